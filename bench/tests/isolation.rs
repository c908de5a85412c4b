//! Strict isolation where it can hold: in a guest whose CPU 1 has no tick (see `bench::vm` and CONTRIBUTING.md).
//!
//! First nothing happens to the shipped program, then one thing after another happens to a worker: `bench/vm/guest/src/isolation`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;

use bench::vm::{Guest, Kit, Outcome, Report, build, build_static};
use common::{json_behind, kit, number, tell_checks};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

/// What a machine is told when it boots, so that its CPU 1 can be left alone.
const TICKLESS: &str = "nohz_full=1 rcu_nocbs=1 isolcpus=managed_irq,domain,1";
/// Runs of the shipped program.
const RUNS: usize = 3;

#[test]
fn guest_isolation() {
    let Some(kit) = kit("guest_isolation") else { return };
    let guest = build_static("guest", "guest").unwrap_or_else(|error| panic!("{error}"));
    let [l2fwd, busy] =
        ["l2fwd", "busy"].map(|program| build(program).unwrap_or_else(|error| panic!("{error}")));
    let list = Command::new(&guest).args(["--list", "--isolated"]).output().unwrap();
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
    let names = String::from_utf8(list.stdout).unwrap();

    let mut machine = Guest::new("isolation")
        .append(TICKLESS)
        .timeout(Duration::from_secs(300))
        .file("bin/guest", &guest)
        .file("bin/l2fwd", &l2fwd)
        .file("bin/busy", &busy)
        .run("guest --isolated");
    for run in 0..RUNS {
        // A process is not given isolated CPUs by itself.
        machine = machine
            .run("taskset 3 l2fwd --isolation strict --duration 5 --stats-period 0 --report /tmp/report --violations /tmp/violations >/tmp/said 2>&1 || cat /tmp/said")
            .run(&format!("echo run {run} && cat /tmp/report && echo told && cat /tmp/violations"));
    }
    let said = with_all_the_rest_busy(&kit, machine).boot(&kit).unwrap_or_else(|error| panic!("{error}"));

    assert_left_alone_by_all_the_rest(&said);
    for run in 0..RUNS {
        let report = json_behind(&said, &format!("run {run}"));
        assert_left_alone(&report);
        assert_eq!(number(&report, "/workers/0/cpu"), 1, "{report:#}");
        assert!(report["duration_s"].as_f64().unwrap() >= 5.0, "{report:#}");
    }
    let told = said.output.iter().filter(|line| line.contains("\"cause\"")).collect::<Vec<_>>();
    assert!(told.is_empty(), "{told:#?}");
    tell_checks("guest_isolation", &said, &names);
}

/// Runs a forwarder whose control core has all to do that there is: see `bench/vm/busy`.
fn with_all_the_rest_busy(kit: &Kit, mut machine: Guest) -> Guest {
    let ports = "--port 'mem:gen?rate=20000&check=off' --port 'mem:gen?rate=20000&check=off' --exception 0=tap0 --address 10.9.0.1";
    let doors = "--ctl /tmp/ctl --metrics 127.0.0.1:9100";
    let files = "--report /tmp/report --violations /tmp/violations";
    let run =
        format!("busy forward {ports} {doors} {files} --isolation strict --duration 5 --stats-period 0.1");
    // Where it is no module, the kernel has it.
    if let Some(module) = kit.module("tun") {
        let name = module.file_name().unwrap().to_str().unwrap();
        machine = machine.file(name, &module).run(&format!("insmod /{name}"));
    }
    machine
        .run("ifconfig lo up && rm -f /tmp/violations")
        .run(&format!(
            "busy clients {doors} --datagrams 10.9.0.255:9 >/tmp/clients & taskset 3 {run} >/tmp/said 2>&1 || cat /tmp/said; wait"
        ))
        .run("echo busy && cat /tmp/report && echo clients && cat /tmp/clients && echo pool && tail -n 1 /tmp/said && echo told && cat /tmp/violations")
}

/// The worker has met nobody, and everything was done meanwhile.
#[track_caller]
fn assert_left_alone_by_all_the_rest(said: &Report) {
    let [report, clients, pool] = ["busy", "clients", "pool"].map(|mark| json_behind(said, mark));
    assert_left_alone(&report);
    for class in report["slow_path"]["classes"].as_array().unwrap() {
        assert!(number(class, "/done") > 5, "{report:#}");
        assert_eq!(number(class, "/panicked"), 0, "{report:#}");
    }
    // To the kernel by the TAP, and from there.
    assert!(
        number(&report, "/ports/0/punted") > 100 && number(&report, "/ports/2/tx_packets") > 100,
        "{report:#}"
    );
    assert!(number(&report, "/ports/2/rx_packets") > 10, "{report:#}");
    // Each request once, and more than once on a machine that has the time.
    for (key, least) in [("answers", 12), ("scrapes", 10), ("datagrams", 10)] {
        assert!(number(&clients, &format!("/{key}")) >= least, "{clients:#}");
    }
    // A job has had what waited on the worker's CPU, too: that gives it back when it is asked for it, and by nobody's interrupt.
    assert!(number(&pool, "/least_free") < 64, "{pool:#} {report:#}");
}

/// A strict run that nothing has disturbed.
#[track_caller]
fn assert_left_alone(report: &Value) {
    let isolation = &report["isolation"];
    assert_eq!(isolation["mode"], "strict", "{report:#}");
    assert_eq!(isolation["signal"], "syscalls,exceptions,interrupts", "{report:#}");
    assert_eq!(isolation["tickless"], true, "{report:#}");
    for none in ["interrupts", "softirqs", "threads", "trace_lost", "allowed", "not_recorded", "dropped"] {
        assert_eq!(number(report, &format!("/isolation/{none}")), 0, "{report:#}");
    }
    assert!(isolation["signals"].as_object().unwrap().is_empty(), "{report:#}");
    assert!(isolation["cannot_know"].as_array().unwrap().is_empty(), "{report:#}");
    assert!(report["violations"].as_object().unwrap().is_empty(), "{report:#}");
    assert!(number(report, "/ports/0/rx_packets") > 1000, "{report:#}");
    assert_eq!(number(report, "/pool/leaked"), 0, "{report:#}");
}

/// Two isolated workers: what one does when it enters and when it ends is no disturbance of the other.
#[test]
fn guest_two_isolated_workers_leave_each_other_alone() {
    const RUNS: usize = 6;
    let Some(kit) = kit("guest_two_isolated_workers_leave_each_other_alone") else { return };
    let guest = build_static("guest", "guest").unwrap_or_else(|error| panic!("{error}"));
    let l2fwd = build("l2fwd").unwrap_or_else(|error| panic!("{error}"));
    let port = "--port 'mem:gen?queues=2&flows=8'";
    let mut machine = Guest::new("isolated-workers")
        .cpus(3)
        .append("nohz_full=1-2 rcu_nocbs=1-2 isolcpus=managed_irq,domain,1-2")
        .timeout(Duration::from_secs(120))
        .file("bin/guest", &guest)
        .file("bin/l2fwd", &l2fwd)
        .run("guest --quieten");
    for run in 0..RUNS {
        machine = machine
            .run(&format!("taskset 7 l2fwd {port} {port} --queues-per-worker 2 --isolation strict --duration 0.5 --stats-period 0.1 --report /tmp/report >/tmp/said 2>&1 || cat /tmp/said"))
            .run(&format!("echo run {run} && cat /tmp/report"));
    }
    let said = machine.boot(&kit).unwrap_or_else(|error| panic!("{error}"));
    for run in 0..RUNS {
        let report = json_behind(&said, &format!("run {run}"));
        assert_left_alone(&report);
        assert_eq!(number(&report, "/workers/1/cpu"), 2, "{report:#}");
    }
}

/// What we count and what a tracer of the kernel counts, on the kernel that has it.
#[test]
fn guest_osnoise_agrees() {
    const TEST: &str = "guest_osnoise_agrees";
    let Some(kit) = kit(TEST) else { return };
    let kernel = match kit.real_time_kernel() {
        Ok(kernel) => kernel,
        Err(error) => {
            eprintln!("SKIPPED {TEST}: {error}");
            return;
        }
    };
    let guest = build_static("guest", "guest").unwrap_or_else(|error| panic!("{error}"));
    let said = Guest::new("osnoise")
        .kernel(&kernel)
        .append(TICKLESS)
        .timeout(Duration::from_secs(90))
        .file("bin/guest", &guest)
        .run("guest osnoise_agrees")
        .boot(&kit)
        .unwrap_or_else(|error| panic!("{error}"));
    said.output.iter().for_each(|line| println!("{line}"));
    // It lacks nothing here.
    assert_eq!(said.outcome("osnoise_agrees"), Outcome::Ok);
}
