//! The client's side of the connection: bounded in time and in length, whatever listens at the path.
#![forbid(unsafe_code)]

use anyhow::{Result, bail};
use dataplane::telemetry::protocol::Request;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long it waits for each part of an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// No answer is longer.
const LONGEST_ANSWER: u64 = 16 << 20;

/// See the module.
pub(super) struct Connection {
    stream: UnixStream,
    path: PathBuf,
}

impl Connection {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let connected = UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        let shown = path.display();
        match connected {
            Ok(stream) => Ok(Self { stream, path: path.to_owned() }),
            Err(error) => {
                let way_out = match error.kind() {
                    ErrorKind::PermissionDenied => {
                        "the socket is its owner's alone: run as who started the run"
                    }
                    _ => "start the run with --ctl SOCKET, and name the same one by --socket",
                };
                bail!("{shown}: {error}; {way_out}")
            }
        }
    }

    /// Sends a request and gives its answer, a line.
    pub(super) fn ask(&mut self, request: &Request) -> Result<String> {
        let shown = self.path.display();
        let question = serde_json::to_string(request)? + "\n";
        let mut line = String::new();
        self.stream
            .write_all(question.as_bytes())
            .and_then(|()| BufReader::new(&self.stream).take(LONGEST_ANSWER).read_line(&mut line))
            .map_err(|error| match error.kind() {
                ErrorKind::WouldBlock => anyhow::anyhow!("{shown}: no answer within {PATIENCE:?}"),
                _ => anyhow::anyhow!("{shown}: {error}"),
            })?;
        if !line.ends_with('\n') {
            let problem =
                if line.is_empty() { "closed without an answer" } else { "this is no whole answer" };
            bail!("{shown}: {problem}: is it a run of isoplane that listens there, and has it ended?");
        }
        Ok(line)
    }
}
