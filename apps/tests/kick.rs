//! Who wakes the kernel for a worker's queues (root). With `--kick control` the worker makes no system call, although every packet goes through the kernel.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/worker_thread.rs"]
mod worker_thread;

use bench::xdp::{Generator, Sink};
use common::network::{Wire, can_make_namespaces};
use common::{assert_books, port_counts, read_report, rounds, wait_for};
use nic::MacAddress;
use std::time::Duration;
use worker_thread::{count, count_event, is_shielded, worker_thread};

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn namespace_a_worker_whose_doorbells_others_ring_makes_no_system_call() {
    if !can_make_namespaces("namespace_a_worker_whose_doorbells_others_ring_makes_no_system_call") {
        return;
    }
    const RATE_PPS: u32 = 50_000;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let wire = Wire::new(1500);
    // That it is the control core's is the default: system calls are signalled.
    let isolation = ["--isolation", "soft", "--signal", "syscalls"];
    let files = ["--report", &path("report.json"), "--violations", &path("violations.jsonl")];
    let forwarder = wire.forward(&[&isolation[..], &files].concat());
    wire.silence();
    let sink = wire.right.spawn(|| Sink::attach("eth0").unwrap()).join().unwrap();
    let before = sink.received().unwrap().packets;
    let tid = wait_for("worker-0", LIMIT, || forwarder.log(), || worker_thread(forwarder.pid()));
    let mut calls = count_event("raw_syscalls/sys_enter", tid);
    wait_for("isolation", LIMIT, || forwarder.log(), || is_shielded(tid).then_some(()));
    let entered = count(&mut calls);
    let duration = Duration::from_secs(rounds(3, 30) as u64);
    let sent = wire.left.spawn(move || {
        Generator::new("eth0", 64, MacAddress([2, 0, 0, 0, 0, 9])).unwrap().paced(RATE_PPS, duration).unwrap()
    });
    let sent = sent.join().unwrap();
    let received = sink.settle(Duration::from_millis(300), Duration::from_secs(5)).unwrap().packets - before;
    let made = count(&mut calls) - entered;
    assert!(forwarder.end("INT").success());
    let report = read_report(&folder.path().join("report.json"));
    assert_books(&report);
    assert_eq!(report["kick"], "control");
    assert_eq!((made, &report["violations"]), (0, &serde_json::json!({})), "{report:#}");
    assert_eq!(std::fs::read_to_string(path("violations.jsonl")).unwrap(), "");
    assert!(report["ports"][1]["doorbells"].as_u64().unwrap() > 100, "{report:#}");
    // Every packet is accounted for; and of what was sent nearly all arrive.
    let lost = sent.packets - sent.refused - received;
    assert_eq!(lost, port_counts(&report, 0).2 + port_counts(&report, 1).2, "{report:#}");
    assert!(received > u64::from(RATE_PPS) * duration.as_secs() / 2, "{sent:?}, received {received}");
    eprintln!("{received} of {} packets, {} doorbells", sent.packets, report["ports"][1]["doorbells"]);
}

#[test]
fn namespace_ping_through_the_kicker_loses_nothing() {
    if !can_make_namespaces("namespace_ping_through_the_kicker_loses_nothing") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let wire = Wire::new(1500);
    let forwarder = wire.forward(&["--kick", "control", "--report", report.to_str().unwrap()]);
    let text = wire.left.run("ping", &["-q", "-c", "1000", "-i", "0.002", "-W", "2", "10.0.0.2"]);
    assert!(text.contains("1000 received, 0% packet loss"), "{text}");
    assert!(forwarder.end("INT").success());
    let report = read_report(&report);
    assert_books(&report);
    assert_eq!(report["kick"], "control");
}
