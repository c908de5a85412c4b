//! A run with live control, and `isoplane ctl` beside it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use crate::common::{error_lines, l2fwd, read_report, run_within, wait_for, wait_within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

pub const LIMIT: Duration = Duration::from_secs(20);
pub const ISOPLANE: &str = env!("CARGO_BIN_EXE_isoplane");

/// A running l2fwd with its sockets and files; killed when dropped.
pub struct Running {
    pub child: Child,
    pub folder: tempfile::TempDir,
}

pub fn isoplane(args: &[&str]) -> Output {
    run_within(Command::new(ISOPLANE).args(args).stdin(Stdio::null()).env_remove("ISOPLANE_LOG"), LIMIT)
}

/// It ends with status 1 and one error line that has these words.
#[track_caller]
pub fn refused(output: &Output, words: &[&str]) {
    let lines = error_lines(output);
    assert_eq!((output.status.code(), lines.len()), (Some(1), 1), "{lines:?}");
    words.iter().for_each(|word| assert!(lines[0].contains(word), "\"{word}\" is not in: {lines:?}"));
}

impl Running {
    #[track_caller]
    pub fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let own = [
            "--stats-period",
            "0.1",
            "--metrics",
            "127.0.0.1:0",
            "--ctl",
            &path("ctl"),
            "--report",
            &path("report"),
        ];
        let (log, tables) = (File::create(path("log")).unwrap(), File::create(path("tables")).unwrap());
        let child = l2fwd(&[&own[..], args].concat()).stdout(tables).stderr(log).spawn().unwrap();
        Self { child, folder }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[track_caller]
    pub fn wait_for<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> T {
        wait_for(what, LIMIT, || self.log(), condition)
    }

    /// `isoplane ctl` with these arguments.
    pub fn ctl(&self, args: &[&str]) -> Output {
        isoplane(&[&["ctl", "--socket", self.path("ctl").to_str().unwrap()], args].concat())
    }

    /// What it answers to `show`.
    #[track_caller]
    pub fn show(&self, subject: &str) -> Value {
        let output = self.ctl(&["show", subject, "--json"]);
        assert!(output.status.success(), "{output:?}: {}", self.log());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        answer[subject].clone()
    }

    #[track_caller]
    pub fn set(&self, args: &[&str]) {
        let output = self.ctl(&[&["set"], args].concat());
        assert!(output.status.success(), "{output:?}: {}", self.log());
    }

    /// Where its log says that metrics are.
    #[track_caller]
    pub fn metrics_address(&self) -> String {
        self.wait_for("metrics", || {
            let log = self.log();
            Some(log.split("http://").nth(1)?.split_once("/metrics")?.0.to_owned())
        })
    }

    #[track_caller]
    pub fn scrape(&self) -> String {
        let text = get(&self.metrics_address()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        body.to_owned()
    }

    /// The number of the thread that serves clients.
    #[track_caller]
    pub fn telemetry_thread(&self) -> String {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().map(Result::unwrap);
        let is_it = |folder: &PathBuf| {
            fs::read_to_string(folder.join("comm")).is_ok_and(|name| name == "telemetry\n")
        };
        let found = tasks.map(|task| task.path()).find(is_it).unwrap();
        found.file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// Ends it, and gives its report.
    #[track_caller]
    pub fn end(mut self) -> Value {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).unwrap();
        let status = wait_within(&mut self.child, LIMIT);
        assert!(status.is_some_and(|status| status.success()), "{status:?}: {}", self.log());
        assert!(!self.path("ctl").exists(), "the socket is left behind");
        read_report(&self.path("report"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn get(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map(|_| text)
}
