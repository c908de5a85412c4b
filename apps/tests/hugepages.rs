//! Packet memory on hugepages (root), in use and after a kill. In a file of its own: no other test runs beside it, which would take the
//! pages for its own packets.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;

use common::network::{Wire, can_make_namespaces, run};
use common::{assert_books, read_report};
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
/// Ports with small rings, so that few pages hold all frames.
const PORTS: [&str; 4] =
    ["--port", "afxdp:p0?rx_ring=512&tx_ring=512", "--port", "afxdp:p1?rx_ring=512&tx_ring=512"];
/// Four times what these ports and a worker need.
const PAGES: u64 = 32;

fn pool(file: &str) -> Option<u64> {
    fs::read_to_string(format!("{POOL}/{file}")).ok()?.trim().parse().ok()
}

/// Pages that somebody uses.
fn in_use() -> u64 {
    pool("nr_hugepages").unwrap() - pool("free_hugepages").unwrap()
}

/// So many more hugepages than there were; their number is put back, whatever happens.
struct Reserved {
    before: u64,
}

impl Reserved {
    /// `None` where the kernel has none to give, which is said.
    fn new(test: &str) -> Option<Self> {
        let skip = |why: &str| eprintln!("SKIPPED {test}: {why}");
        let Some(before) = pool("nr_hugepages") else {
            skip("this kernel has no hugepage of 2M");
            return None;
        };
        let this = Self { before };
        let asked = fs::write(format!("{POOL}/nr_hugepages"), (before + PAGES).to_string());
        let granted = pool("nr_hugepages").unwrap().saturating_sub(before);
        if asked.is_err() || granted == 0 {
            skip("the kernel grants no hugepage more");
            return None;
        }
        assert_eq!(granted, PAGES, "the kernel grants only some: free memory, and run the test again");
        Some(this)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = fs::write(format!("{POOL}/nr_hugepages"), self.before.to_string());
    }
}

/// Kilobytes of hugepages that a process has mapped.
fn mapped_kb(pid: u32) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let lines = smaps.lines().filter(|line| line.contains("_Hugetlb:"));
    lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

/// Waits until no more pages are in use than there were, for 10 s at most.
#[track_caller]
fn assert_given_back(before: u64) {
    let start = Instant::now();
    while in_use() > before {
        assert!(start.elapsed() < Duration::from_secs(10), "{} hugepages in use, {before} before", in_use());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn namespace_hugepages_carry_traffic_and_are_given_back_even_after_a_kill() {
    const TEST: &str = "namespace_hugepages_carry_traffic_and_are_given_back_even_after_a_kill";
    if !can_make_namespaces(TEST) {
        return;
    }
    let Some(_reserved) = Reserved::new(TEST) else { return };
    let before = in_use();
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let wire = Wire::new(1500);
    let start = |args: &[&str]| wire.forward(&[&PORTS[..], &["--pages", "2M"], args].concat());

    let forwarder = start(&["--report", report.to_str().unwrap()]);
    let mapped = mapped_kb(forwarder.pid());
    assert!(mapped >= 4096, "packet memory is on {mapped} kB of hugepages");
    assert!(in_use() >= before + mapped / 2048, "its pages are those of the kernel's pool");
    wire.left.run("ping", &["-q", "-c", "200", "-i", "0.002", "-W", "2", "10.0.0.2"]);
    assert!(forwarder.end("INT").success());
    let report = read_report(&report);
    assert_books(&report);
    // The frames, of 2 KiB at least, fill what was mapped.
    let frames = report["pool"]["frames"].as_u64().unwrap();
    assert!(frames * 2 <= mapped, "{frames} frames on {mapped} kB");
    assert_given_back(before);

    let flood = ["-q", "-f", "-s", "600", "-w", "60", "10.0.0.2"];
    let mut ping =
        wire.left.command("ping", &flood).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for _ in 0..3 {
        let forwarder = start(&[]);
        assert!(mapped_kb(forwarder.pid()) >= 4096, "{}", forwarder.log());
        assert!(!forwarder.end("KILL").success());
        assert_given_back(before);
    }
    run("kill", &["-INT", &ping.id().to_string()]);
    ping.wait().unwrap();
}
