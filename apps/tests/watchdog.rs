//! A real-time task that holds a worker's CPU is named by the watchdog, and not the worker's own code (root).
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/hog.rs"]
mod hog;

use common::{l2fwd, read_report, wait_for, wait_within};
use hog::{Bursts, Hog};
use percpu::Topology;
use std::process::Stdio;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn namespace_a_hog_on_a_workers_cpu_is_named_and_the_worker_is_back_afterwards() {
    const TEST: &str = "namespace_a_hog_on_a_workers_cpu_is_named_and_the_worker_is_back_afterwards";
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED {TEST}: needs root for a real-time priority");
        return;
    }
    let cpus: Vec<usize> = Topology::read().unwrap().allowed.iter().take(2).collect();
    let [control, worker] = cpus[..] else {
        eprintln!("SKIPPED {TEST}: needs a second CPU");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (report, log) = (folder.path().join("report.json"), folder.path().join("log"));
    let mut command = l2fwd(&[
        "--port",
        "mem:gen",
        "--port",
        "mem:gen",
        "--queues-per-worker",
        "2",
        "--stats-period",
        "0",
        "--watchdog",
        "20",
        // It ends by itself, should this test end before.
        "--duration",
        "60",
    ]);
    command
        .args(["--control", &control.to_string(), "--workers", &worker.to_string(), "--report"])
        .arg(&report);
    let file = std::fs::File::create(&log).unwrap();
    let mut forwarder = command.stdout(Stdio::null()).stderr(file).spawn().unwrap();
    let text = || std::fs::read_to_string(&log).unwrap();
    let start = Instant::now();
    // Where the control core has to wait for its CPU itself, it may miss a burst.
    let said = loop {
        std::thread::sleep(Duration::from_millis(200));
        let burst = Bursts {
            cpu: worker,
            count: 3,
            length: Duration::from_millis(50),
            pause: Duration::from_millis(50),
        };
        let hog = Hog::start(burst);
        let pid = hog.pid();
        if !hog.wait() {
            forwarder.kill().unwrap();
            forwarder.wait().unwrap();
            eprintln!("SKIPPED {TEST}: no real-time priority here");
            return;
        }
        let text = text();
        let name = format!("another task has its CPU: hog (process {pid}, SCHED_FIFO priority 40)");
        let told = text.lines().find(|line| line.contains(&name)).map(str::to_owned);
        if told.is_some() || start.elapsed() > LIMIT {
            break told;
        }
    };
    wait_for("the worker", LIMIT, text, || text().contains("worker 0 is back").then_some(()));
    let pid = nix::unistd::Pid::from_raw(forwarder.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert!(wait_within(&mut forwarder, LIMIT).is_some_and(|status| status.success()));
    let said = said.unwrap_or_else(|| panic!("no hog in: {}", text()));
    eprintln!("{said}");
    assert!(said.contains("worker 0 stands still for"), "{said}");
    assert!(said.contains("user_stack=cannot be had while it waits for its CPU"), "{said}");
    assert!(said.contains("kernel_stack=") && !said.contains("kernel_stack=cannot"), "{said}");
    let report = read_report(&report);
    assert!(report["workers"][0]["stalls"].as_u64().unwrap() > 0, "{report:#}");
    assert_eq!(report["pool"]["leaked"], 0);
}
