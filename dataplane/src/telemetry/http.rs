//! As much of HTTP/1.1 as a scraper needs: GET and HEAD of `/metrics`, one request a connection.
#![forbid(unsafe_code)]

use std::io::Write;

/// Lines of headers that a request may have.
const MOST_HEADERS: usize = 64;

/// Where a request's head ends, if all of it is here.
pub(super) fn head_end(input: &[u8]) -> Option<usize> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    match httparse::Request::new(&mut headers).parse(input) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(end)) => Some(end),
        // It will not become one by waiting.
        Err(_) => Some(input.len()),
    }
}

/// Writes the response to a request's head.
pub(super) fn answer(head: &[u8], metrics: impl FnOnce() -> String, output: &mut Vec<u8>) {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(head);
    if let Err(httparse::Error::TooManyHeaders) = parsed {
        return refuse_length(output);
    }
    let (Ok(_), Some(method), Some(target)) = (parsed, request.method, request.path) else {
        return respond("400 Bad Request", "", "this is no HTTP request\n", true, output);
    };
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let with_body = method != "HEAD";
    match (method, path) {
        ("GET" | "HEAD", "/metrics") => {
            let kind = "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n";
            respond("200 OK", kind, &metrics(), with_body, output);
        }
        (_, "/metrics") => {
            respond("405 Method Not Allowed", "Allow: GET, HEAD\r\n", "GET it\n", with_body, output);
        }
        _ => respond("404 Not Found", "", "there is /metrics, and nothing else\n", with_body, output),
    }
}

/// Writes the response to a head that is too long.
pub(super) fn refuse_length(output: &mut Vec<u8>) {
    respond("431 Request Header Fields Too Large", "", "the request is too long\n", true, output);
}

fn respond(status: &str, headers: &str, body: &str, with_body: bool, output: &mut Vec<u8>) {
    let kind = if headers.starts_with("Content-Type") { "" } else { "Content-Type: text/plain\r\n" };
    let length = body.len();
    // Into memory: it cannot fail.
    let _ = write!(
        output,
        "HTTP/1.1 {status}\r\n{headers}{kind}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    if with_body {
        output.extend_from_slice(body.as_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn response(request: &str) -> String {
        let mut output = Vec::new();
        answer(request.as_bytes(), || "numbers\n".into(), &mut output);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn metrics_are_served_and_nothing_else() {
        let text = response("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nnumbers\n"), "{text}");
        assert!(text.contains("Content-Length: 8\r\n") && text.contains("version=0.0.4"), "{text}");
        let text = response("HEAD /metrics?x=1 HTTP/1.0\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("close\r\n\r\n"), "{text}");
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics/.. HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("nonsense\r\n\r\n", "400"),
            ("\u{7f}\r\n", "400"),
        ] {
            assert!(response(request).starts_with(&format!("HTTP/1.1 {status}")), "{request}");
        }
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MOST_HEADERS + 1));
        assert!(response(&many).starts_with("HTTP/1.1 431"));
    }

    #[test]
    fn a_head_ends_where_the_empty_line_is() {
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nmore";
        assert_eq!(head_end(request), Some(request.len() - 4));
        assert_eq!(head_end(&request[..30]), None);
        assert_eq!(head_end(b""), None);
        assert_eq!(head_end(b"\x00\x01\x02"), Some(3));
    }
}
