//! Runs the shipped binaries as a user would: by their command line, with a time limit.
// Each test binary uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod network;

use std::io::Read;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// `l2fwd` with these arguments.
pub fn l2fwd(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_l2fwd"));
    command.args(args).stdin(Stdio::null()).env_remove("ISOPLANE_LOG");
    command
}

/// Runs a command to its end, which must come within `limit`.
#[track_caller]
pub fn run_within(command: &mut Command, limit: Duration) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let read_out = thread::spawn(move || {
        let mut text = Vec::new();
        stdout.read_to_end(&mut text).map(|_| text)
    });
    let read_err = thread::spawn(move || {
        let mut text = Vec::new();
        stderr.read_to_end(&mut text).map(|_| text)
    });
    let status = wait_within(&mut child, limit);
    let (stdout, stderr) = (read_out.join().unwrap().unwrap(), read_err.join().unwrap().unwrap());
    let Some(status) = status else {
        panic!("not ended after {limit:?}: {command:?}\n{}", String::from_utf8_lossy(&stderr));
    };
    Output { status, stdout, stderr }
}

/// Waits for a child; `None` (and it is killed) where it does not end within `limit`.
pub fn wait_within(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// How many rounds a campaign has: more with `ISOPLANE_LONG=1`, as `./test.sh --long` sets it.
pub fn rounds(short: usize, long: usize) -> usize {
    if std::env::var_os("ISOPLANE_LONG").is_some_and(|value| value == "1") { long } else { short }
}

/// Asks until there is an answer, for at most `limit`; `log` is what to show where there is none.
#[track_caller]
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    log: impl Fn() -> String,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}: {}", log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The lines of standard error that are not log lines.
pub fn error_lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stderr);
    let is_log =
        |line: &str| ["INFO ", "WARN ", "ERROR "].iter().any(|level| line.trim_start().starts_with(level));
    text.lines().filter(|line| !is_log(line) && !line.is_empty()).map(str::to_owned).collect()
}

/// The report that a run with `--report` wrote.
#[track_caller]
pub fn read_report(path: &std::path::Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A port's received packets, sent packets and the sum of its drops.
pub fn port_counts(report: &serde_json::Value, port: usize) -> (u64, u64, u64) {
    let port = &report["ports"][port];
    let drops = port["drops"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    (port["rx_packets"].as_u64().unwrap(), port["tx_packets"].as_u64().unwrap(), drops)
}

/// Asserts the books of a whole run: the pool is whole, and what all ports received was sent or dropped by name after it
/// was received. `received_drops` are reasons of packets that were lost before a worker had them.
#[track_caller]
pub fn assert_books(report: &serde_json::Value) {
    const BEFORE_THE_WORKER: [&str; 8] = [
        "rx_ring_full",
        "rx_missed",
        "rx_dropped",
        "rx_invalid_descriptor",
        "rx_no_frame",
        "rx_oversize",
        "rx_truncated",
        "rx_unread",
    ];
    assert_eq!(report["pool"]["leaked"], 0, "{report:#}");
    assert_eq!(report["pool"]["free"], report["pool"]["frames"], "{report:#}");
    let (mut received, mut sent, mut dropped) = (0, 0, 0);
    for port in report["ports"].as_array().unwrap() {
        received += port["rx_packets"].as_u64().unwrap();
        sent += port["tx_packets"].as_u64().unwrap();
        for (reason, count) in port["drops"].as_object().unwrap() {
            if !BEFORE_THE_WORKER.contains(&reason.as_str()) {
                dropped += count.as_u64().unwrap();
            }
        }
    }
    assert_eq!(received, sent + dropped, "received {received}, sent {sent}, dropped {dropped}: {report:#}");
}
