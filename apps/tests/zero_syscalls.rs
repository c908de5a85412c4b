//! A worker that forwards between two AF_XDP ports while clients ask and change things all the time (root): it makes no system call, by what the run itself
//! says and by what the kernel counts.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/controlled.rs"]
mod controlled;
#[path = "common/worker_thread.rs"]
mod worker_thread;

use bench::xdp::{Generator, Sink};
use common::network::{Forwarder, Wire, can_make_namespaces};
use common::{assert_books, port_counts, read_report, rounds, wait_for};
use controlled::{LIMIT, get, isoplane};
use nic::MacAddress;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use worker_thread::{count, count_event, is_shielded, thread_named};

const RATE_PPS: u32 = 50_000;

/// What a client does, again and again.
const COMMANDS: [&[&str]; 12] = [
    &["show", "ports"],
    &["set", "portmap", "(0,0)(1,1)"],
    &["show", "workers"],
    &["set", "log-level", "debug"],
    &["show", "drops"],
    &["set", "portmap", "(0,1)"],
    &["show", "violations"],
    &["set", "port", "1", "down"],
    &["show", "pool"],
    &["set", "port", "1", "up"],
    &["set", "log-level", "info"],
    &["show", "settings"],
];

#[track_caller]
fn thread(forwarder: &Forwarder, name: &str) -> i32 {
    wait_for(name, LIMIT, || forwarder.log(), || thread_named(forwarder.pid(), name))
}

#[test]
fn namespace_a_worker_makes_no_system_call_whatever_clients_do() {
    if !can_make_namespaces("namespace_a_worker_makes_no_system_call_whatever_clients_do") {
        return;
    }
    let (seconds, counted) = (rounds(3, 30) as u64, rounds(2, 10) as u64);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, report, violations) = (path("ctl"), path("report.json"), path("violations.jsonl"));
    let wire = Wire::new(1500);
    let isolation = ["--isolation", "soft", "--signal", "syscalls", "--violations", &violations];
    let clients = ["--ctl", &socket, "--metrics", "127.0.0.1:0", "--report", &report];
    let forwarder = wire.forward(&[&isolation[..], &clients].concat());
    wire.silence();
    let sink =
        |host: &common::network::Namespace| host.spawn(|| Sink::attach("eth0").unwrap()).join().unwrap();
    let (there, back) = (sink(&wire.right), sink(&wire.left));
    let arrived = || there.received().unwrap().packets + back.received().unwrap().packets;
    let log = forwarder.log();
    let address = log.split("http://").nth(1).unwrap().split_once("/metrics").unwrap().0.to_owned();

    let worker = thread(&forwarder, "worker-0");
    let mut calls = count_event("raw_syscalls/sys_enter", worker);
    let others = ["l2fwd", "telemetry", "kicker"];
    let mut calls_of_others =
        others.map(|name| count_event("raw_syscalls/sys_enter", thread(&forwarder, name)));
    wait_for("isolation", LIMIT, || forwarder.log(), || is_shielded(worker).then_some(()));
    let entered = count(&mut calls);

    let counting_ends = Arc::new(AtomicBool::new(false));
    let (stop, scrapes, commands) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), AtomicU64::new(0));
    let scraper = wire.middle.spawn({
        let (stop, scrapes) = (Arc::clone(&stop), Arc::clone(&scrapes));
        move || {
            while !stop.load(Ordering::Relaxed) {
                let text = get(&address).unwrap();
                assert!(text.contains("isoplane_build_info"), "{text}");
                scrapes.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let before = arrived();
    let generator = wire.left.spawn({
        let counting_ends = Arc::clone(&counting_ends);
        move || {
            let generator = Generator::new("eth0", 64, MacAddress([2, 0, 0, 0, 0, 9])).unwrap();
            let (start, mut sent) = (Instant::now(), 0);
            while start.elapsed() < Duration::from_secs(seconds) || !counting_ends.load(Ordering::Relaxed) {
                let part = generator.paced(RATE_PPS, Duration::from_secs(1)).unwrap();
                sent += part.packets - part.refused;
            }
            sent
        }
    });
    let (sent, stretch) = thread::scope(|scope| {
        let client = scope.spawn(|| {
            for command in COMMANDS.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                let output = isoplane(&[&["ctl", "--socket", &socket], *command].concat());
                // A machine with too much to do may keep it waiting.
                let late = String::from_utf8_lossy(&output.stderr).contains("no answer within");
                assert!(output.status.success() || late, "{command:?}: {output:?}");
                commands.fetch_add(u64::from(!late), Ordering::Relaxed);
            }
        });
        wait_for("packets", LIMIT, || forwarder.log(), || (arrived() > before + 1000).then_some(()));
        // The stretch that the kernel is asked for, within traffic and commands.
        let mut now = || {
            let of_others = calls_of_others.each_mut().map(count);
            let busy = [commands.load(Ordering::Relaxed), scrapes.load(Ordering::Relaxed), arrived()];
            (count(&mut calls), of_others, busy)
        };
        let from = now();
        thread::sleep(Duration::from_secs(counted));
        // Each command has had its turn, and some more, however slow the machine is.
        wait_for(
            "commands and packets",
            3 * LIMIT,
            || forwarder.log(),
            || {
                let [commands, scrapes, arrived] = now().2;
                let [commands, scrapes] = [commands - from.2[0], scrapes - from.2[1]];
                (commands > COMMANDS.len() as u64 && scrapes > 0 && arrived - from.2[2] > 1000).then_some(())
            },
        );
        let to = now();
        counting_ends.store(true, Ordering::Relaxed);
        let sent = generator.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        client.join().unwrap();
        (sent, (from, to))
    });
    scraper.join().unwrap();
    for sink in [&there, &back] {
        sink.settle(Duration::from_millis(300), Duration::from_secs(5)).unwrap();
    }
    let made = count(&mut calls) - entered;
    let log = forwarder.log();
    assert!(forwarder.end("INT").success(), "{log}");
    // Only now: a worker that was away for long sends its last ones when it ends.
    for sink in [&there, &back] {
        sink.settle(Duration::from_millis(100), Duration::from_secs(5)).unwrap();
    }
    let arrived = arrived() - before;
    let report = read_report(&folder.path().join("report.json"));

    let ((calls_before, others_before, busy_before), (calls_after, others_after, busy_after)) = stretch;
    let of_others = [0, 1, 2].map(|index| others_after[index] - others_before[index]);
    let busy = [0, 1, 2].map(|index| busy_after[index] - busy_before[index]);
    eprintln!(
        "{counted} s: {} system calls of the worker, {of_others:?} of {others:?}, in {} commands, {} scrapes and {} packets that arrived; in {seconds} s: {made} system calls of the worker, {arrived} of {sent} packets arrived",
        calls_after - calls_before,
        busy[0],
        busy[1],
        busy[2]
    );
    assert_eq!((calls_after - calls_before, made), (0, 0), "{report:#}");
    // The counter counts, where there is something to count.
    assert!(of_others.iter().all(|calls| *calls > 0), "{of_others:?}");
    assert_eq!(report["violations"], json!({}), "{report:#}");
    assert_eq!(std::fs::read_to_string(&violations).unwrap(), "");
    assert_books(&report);
    // To the packet: there, back, or lost by name.
    let lost = sent - arrived;
    assert_eq!(
        lost,
        port_counts(&report, 0).2 + port_counts(&report, 1).2,
        "{sent} sent, {arrived} arrived: {report:#}"
    );
}
