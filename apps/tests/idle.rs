//! A worker with nothing to do (root): it sleeps, and is back for the first packet.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/worker_thread.rs"]
mod worker_thread;

use common::network::{Wire, can_make_namespaces};
use common::{assert_books, read_report, wait_for};
use std::time::{Duration, Instant};
use worker_thread::worker_thread;

const LIMIT: Duration = Duration::from_secs(20);

/// CPU time of worker 0 so far, by the scheduler's count.
fn cpu_time(pid: u32) -> Option<Duration> {
    let tid = worker_thread(pid)?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// The median of what ping -D says of each packet, in microseconds.
fn median_us(text: &str) -> f64 {
    let mut times: Vec<f64> = text
        .lines()
        .filter_map(|line| line.split_once("time=")?.1.split_once(" ms")?.0.parse::<f64>().ok())
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2] * 1000.0
}

#[test]
fn namespace_an_idle_worker_sleeps_and_is_back_for_the_first_packet() {
    if !can_make_namespaces("namespace_an_idle_worker_sleeps_and_is_back_for_the_first_packet") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let wire = Wire::new(1500);
    let forwarder = wire.forward(&["--idle", "adaptive", "--report", report.to_str().unwrap()]);
    wire.left.run("ping", &["-q", "-c", "10", "-i", "0.01", "10.0.0.2"]);
    // A second in which nothing comes, and it has next to no CPU time.
    let pid = forwarder.pid();
    let least = wait_for(
        "a second of sleep",
        LIMIT,
        || forwarder.log(),
        || {
            let (before, start) = (cpu_time(pid)?, Instant::now());
            std::thread::sleep(Duration::from_secs(1));
            let share = (cpu_time(pid)? - before).as_secs_f64() / start.elapsed().as_secs_f64();
            (share < 0.05).then_some(share)
        },
    );
    // 20 ms apart, so that each finds it asleep; there and back again.
    let text = wire.left.run("ping", &["-c", "200", "-i", "0.02", "-W", "2", "10.0.0.2"]);
    assert!(text.contains("200 received, 0% packet loss"), "{text}");
    assert!(forwarder.end("INT").success());
    let report = read_report(&report);
    assert_books(&report);
    let sleeps = report["workers"][0]["sleeps"].as_u64().unwrap();
    assert!(sleeps > 200, "{report:#}");
    eprintln!(
        "asleep: {:.2} % CPU; median round trip {:.0} us; {sleeps} sleeps",
        least * 100.0,
        median_us(&text)
    );
}
