//! One client's connection: a request of bounded length in, one answer out, and nothing read while an answer waits for its reader.
//!
//! So a client holds one buffer for what it says and one answer at most, whatever it does. What it does wrong is told to it, once; then the
//! connection is closed in order: what it still sends is thrown away for a moment, or it would lose the words.
#![forbid(unsafe_code)]

use super::http;
use super::protocol::{Answer, Request, Setting, Subject};
use super::view::View;
use super::{log_level, metrics};
use nix::poll::PollFlags;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// The longest request, in bytes.
pub(super) const LONGEST_REQUEST: usize = 8192;
/// Room for an answer that is there from the beginning.
const ANSWER_BYTES: usize = 32 << 10;

/// How a client talks.
pub(super) enum Stream {
    /// Lines of JSON.
    Ctl(UnixStream),
    /// HTTP.
    Http(TcpStream),
}

impl Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Ctl(stream) => stream.read(bytes),
            Self::Http(stream) => stream.read(bytes),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Ctl(stream) => stream.write(bytes),
            Self::Http(stream) => stream.write(bytes),
        }
    }

    fn end_output(&self) {
        // An error is for the next read to find.
        let _ = match self {
            Self::Ctl(stream) => stream.shutdown(std::net::Shutdown::Write),
            Self::Http(stream) => stream.shutdown(std::net::Shutdown::Write),
        };
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Ctl(stream) => stream.as_fd(),
            Self::Http(stream) => stream.as_fd(),
        }
    }
}

#[derive(PartialEq, Eq)]
enum State {
    Open,
    /// When the answer has been taken, nothing more is said.
    LastAnswer,
    /// What comes is thrown away, until the other side has closed.
    Closing,
    Closed,
}

/// The buffers of a connection, to be used again by the next.
pub(super) struct Buffers {
    input: Box<[u8; LONGEST_REQUEST]>,
    output: Vec<u8>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self { input: Box::new([0; LONGEST_REQUEST]), output: Vec::with_capacity(ANSWER_BYTES) }
    }
}

/// See the module.
pub(super) struct Client {
    stream: Stream,
    buffers: Buffers,
    /// Bytes of the input buffer that are in use.
    filled: usize,
    /// Bytes of the answer that are sent.
    sent: usize,
    state: State,
    /// When it came, or had its last answer: who has waited longest goes first.
    pub(super) served: Instant,
}

impl Client {
    pub(super) fn new(stream: Stream, buffers: Buffers) -> Self {
        Self { stream, buffers, filled: 0, sent: 0, state: State::Open, served: Instant::now() }
    }

    pub(super) fn into_buffers(mut self) -> Buffers {
        self.buffers.output.clear();
        // A long answer's room is not kept for good.
        self.buffers.output.shrink_to(ANSWER_BYTES);
        self.buffers
    }

    /// Bytes of memory that it holds.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.buffers.input.len() + self.buffers.output.capacity()
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.descriptor()
    }

    fn has_answer(&self) -> bool {
        self.sent < self.buffers.output.len()
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        if self.has_answer() { PollFlags::POLLOUT } else { PollFlags::POLLIN }
    }

    /// True where a request is here already.
    pub(super) fn has_request(&self) -> bool {
        self.state == State::Open && !self.has_answer() && self.request_end().is_some()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    fn input(&self) -> &[u8] {
        &self.buffers.input[..self.filled]
    }

    fn request_end(&self) -> Option<usize> {
        match self.stream {
            Stream::Ctl(_) => self.input().iter().position(|byte| *byte == b'\n').map(|at| at + 1),
            Stream::Http(_) => http::head_end(self.input()),
        }
    }

    /// Goes on as far as it can without waiting: reads once, answers one request at most.
    pub(super) fn turn(&mut self, view: &View) {
        if self.has_answer() {
            return self.write();
        }
        if !self.has_request() && !self.read() {
            return;
        }
        match self.state {
            State::Open => {}
            // Thrown away.
            _ => return self.filled = 0,
        }
        if let Some(end) = self.request_end() {
            self.answer(end, view);
            self.buffers.input.copy_within(end..self.filled, 0);
            self.filled -= end;
        } else if self.filled == LONGEST_REQUEST {
            self.refuse();
        } else {
            return;
        }
        self.write();
    }

    /// Reads what there is room for; false where nothing came.
    fn read(&mut self) -> bool {
        match self.stream.read(&mut self.buffers.input[self.filled..]) {
            Ok(0) => self.state = State::Closed,
            Ok(count) => {
                self.filled += count;
                return true;
            }
            Err(error) => self.failed(&error),
        }
        false
    }

    fn write(&mut self) {
        match self.stream.write(&self.buffers.output[self.sent..]) {
            Ok(count) => self.sent += count,
            Err(error) => self.failed(&error),
        }
        if self.has_answer() || self.state == State::Closed {
            return;
        }
        self.buffers.output.clear();
        self.sent = 0;
        self.served = Instant::now();
        if self.state == State::LastAnswer {
            self.state = State::Closing;
            self.filled = 0;
            self.stream.end_output();
        }
    }

    fn failed(&mut self, error: &io::Error) {
        if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
            self.state = State::Closed;
        }
    }

    /// It has sent more than any request has.
    fn refuse(&mut self) {
        self.state = State::LastAnswer;
        match self.stream {
            Stream::Ctl(_) => {
                let words =
                    format!("a request is one line of at most {LONGEST_REQUEST} bytes: this one is longer");
                write_answer(&Answer::Error(words), &mut self.buffers.output);
            }
            Stream::Http(_) => http::refuse_length(&mut self.buffers.output),
        }
    }

    fn answer(&mut self, end: usize, view: &View) {
        let Buffers { input, output } = &mut self.buffers;
        let request = &input[..end];
        match self.stream {
            Stream::Ctl(_) => write_answer(&answer(request, view), output),
            Stream::Http(_) => {
                self.state = State::LastAnswer;
                http::answer(request, || metrics::text(&view.snapshot()), output);
            }
        }
    }
}

fn write_answer(answer: &Answer, output: &mut Vec<u8>) {
    // Into memory, and with keys that are texts: it cannot fail.
    let _ = serde_json::to_writer(&mut *output, answer);
    output.push(b'\n');
}

/// The answer to one line.
fn answer(line: &[u8], view: &View) -> Answer {
    let request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => {
            return Answer::Error(format!("no request: {error}; send one such as {{\"show\": \"ports\"}}"));
        }
    };
    let done = match request {
        Request::Show(subject) => {
            let snapshot = view.snapshot();
            return match subject {
                Subject::Ports => Answer::Ports(snapshot.ports),
                Subject::Workers => Answer::Workers(snapshot.workers),
                Subject::Drops => Answer::Drops(snapshot.drops()),
                Subject::Violations => Answer::Violations(snapshot.isolation),
                Subject::Pool => Answer::Pool(snapshot.pool),
                Subject::Settings => Answer::Settings(view.settings()),
            };
        }
        Request::Set(Setting::Port(setting)) => view.set_port(&setting),
        Request::Set(Setting::Application(setting)) => view.set_application(&setting),
        Request::Set(Setting::LogLevel(level)) => {
            log_level::change(level).map(|()| format!("the log level is {}", level.name()))
        }
    };
    done.map_or_else(Answer::Error, Answer::Done)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::telemetry::view::tests::view;
    use proptest::prelude::*;

    fn said(line: &str) -> String {
        let mut output = Vec::new();
        write_answer(&answer(line.as_bytes(), &view().0), &mut output);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn requests_have_answers_and_mistakes_have_words() {
        for (line, words) in [
            (r#"{"show": "ports"}"#, r#"{"ports":[{"number":0,"#),
            (r#"{"show": "workers"}"#, r#"{"workers":[{"number":0,"cpu":3,"#),
            (r#"{"show": "drops"}"#, r#"{"drops":[]}"#),
            (r#"{"show": "violations"}"#, r#"{"violations":{"mode":"","causes":{}}}"#),
            (r#"{"show": "pool"}"#, r#"{"pool":{"frames":64,"free":64,"frame_bytes":2048}}"#),
            (
                r#"{"show": "settings"}"#,
                r#"{"settings":[{"name":"number","text":"7","takes":"a number below 100"}]}"#,
            ),
            (r#"{"set": {"application": {"name": "number", "text": "42"}}}"#, "number is set to 42"),
            (
                r#"{"set": {"application": {"name": "number", "text": "x"}}}"#,
                r#"{"error":"\"x\" is no number"#,
            ),
            (r#"{"set": {"application": {"name": "portmap", "text": ""}}}"#, "those that it has are number"),
            (r#"{"set": {"application": {"name": "number"}}}"#, "missing field `text`"),
            (r#"{"set": {"port": {"number": 0, "up": false}}}"#, "is set down"),
            (r#"{"set": {"port": {"number": 9, "up": false}}}"#, r#"{"error":"there is no port 9"#),
            (r#"{"set": {"port": {"number": -1, "up": false}}}"#, r#"{"error":"no request: "#),
            (r#"{"set": {"port": {"number": 0}}}"#, "missing field `up`"),
            (r#"{"show": "prots"}"#, "expected one of `ports`"),
            (r#"{"show": "ports", "show": "ports"}"#, "no request"),
            (r#"{"set": {"log_level": "loud"}}"#, "unknown variant"),
            ("", "send one such as"),
            ("\u{0}", "send one such as"),
            ("[[[[", "send one such as"),
        ] {
            assert!(said(line).contains(words), "{line}: {}", said(line));
        }
        let nested = "[".repeat(LONGEST_REQUEST - 1);
        assert!(said(&nested).contains("no request"));
    }

    proptest! {
        /// Whatever a client sends, each of its lines has one answer, which is one line.
        #[test]
        fn property_every_line_has_one_answer_in_one_line(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut output = Vec::new();
            write_answer(&answer(&line, &view().0), &mut output);
            prop_assert_eq!(output.iter().filter(|byte| **byte == b'\n').count(), 1);
            let answer: Answer = serde_json::from_slice(&output).unwrap();
            prop_assert!(matches!(answer, Answer::Error(_)), "{:?}", answer);
        }
    }
}
