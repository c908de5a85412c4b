//! pktgen on the interfaces at both ends of a wire, and l2fwd in its middle (root). In a file of its own: three programs that poll want
//! the CPUs for themselves.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;

use common::network::{Wire, can_make_namespaces};
use common::{assert_books, error_lines, port_counts, read_report, run_within};
use percpu::Topology;
use serde_json::Value;
use std::process::Output;
use std::time::Duration;
use tempfile::TempDir;

/// A pktgen that has both outer ends of a wire, and l2fwd in its middle: how the one ended, and the reports of both.
fn both_ends_of_a_wire() -> (Output, Value, Value) {
    // Rings that hold 400 ms of this traffic: one CPU may have both workers, and others besides.
    const OUTER: [&str; 4] = ["--port", "afxdp:eth0?rx_ring=8192", "--port", "afxdp:eth1?rx_ring=8192"];
    const INNER: [&str; 4] = ["--port", "afxdp:p0?rx_ring=8192", "--port", "afxdp:p1?rx_ring=8192"];
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (outer, inner) = (path("outer.json"), path("inner.json"));
    let wire = Wire::new(1500);
    let middle = wire.forward(&[&INNER[..], &["--report", inner.to_str().unwrap()]].concat());
    wire.silence();
    // Both ends to one namespace, so that one pktgen has both, and knows what it sent.
    wire.right.ip(&["link", "set", "eth0", "down"]);
    wire.right.ip(&["link", "set", "eth0", "name", "eth1", "netns", &wire.left.name]);
    wire.left.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv6/conf/eth1/disable_ipv6"]);
    wire.left.ip(&["link", "set", "eth1", "up"]);

    #[rustfmt::skip]
    let traffic = [
        "--rate", "20k", "--duration", "3", "--flows", "4", "--size", "60-1514", "--udp-checksum", "--expect-no-loss",
        "--stats-period", "0", "--report", outer.to_str().unwrap(),
    ];
    let mut args = [&OUTER[..], &traffic].concat();
    // Where there is a choice, not the CPU that l2fwd has its worker on.
    let cpus: Vec<String> = Topology::read().unwrap().allowed.iter().map(|cpu| cpu.to_string()).collect();
    if let [first, second, ..] = &cpus[..] {
        args.extend(["--workers", first, "--control", second]);
    }
    let mut command = wire.left.command(env!("CARGO_BIN_EXE_pktgen"), &args);
    let output = run_within(&mut command, Duration::from_secs(30));
    assert!(middle.end("INT").success());
    (output, read_report(&outer), read_report(&inner))
}

/// Through l2fwd as its user sees it: interfaces on both sides, and no packet lost on the way out, through or back.
#[test]
fn namespace_pktgen_on_both_ends_of_a_wire_loses_nothing() {
    if !can_make_namespaces("namespace_pktgen_on_both_ends_of_a_wire_loses_nothing") {
        return;
    }
    // The smallest room on the way: the 256 packets that the kernel's veth holds for the other end. A machine that takes a CPU away
    // for longer than they last shows it in the loop gap: then nothing was said about us, and we try again.
    const ROOM_NS: u64 = 256 * 1_000_000_000 / 20_000;
    for attempt in 1..=3 {
        let (output, outer, inner) = both_ends_of_a_wire();
        let errors = error_lines(&output);
        assert_books(&inner);
        assert_eq!(outer["pool"]["leaked"], 0, "{outer:#}");
        let traffic = |key: &str| outer["traffic"][key].as_u64().unwrap();
        for key in ["duplicate", "reordered", "late", "corrupt", "unexpected", "in_flight"] {
            assert_eq!(traffic(key), 0, "{key}: {outer:#}");
        }
        let ports = outer["ports"].as_array().unwrap();
        let sum = |key: &str| ports.iter().map(|port| port[key].as_u64().unwrap()).sum::<u64>();
        let came = ["received", "foreign", "untracked"].map(traffic).iter().sum::<u64>();
        assert_eq!(sum("rx_packets"), came, "received by the ports, and seen by pktgen: {outer:#}");
        // What a port takes for sending, and the kernel then does not, it takes back.
        let drops = ports.iter().flat_map(|port| port["drops"].as_object().unwrap());
        let refused: u64 = drops
            .filter(|(reason, _)| reason.starts_with("tx_"))
            .map(|(_, count)| count.as_u64().unwrap())
            .sum();
        assert_eq!(
            sum("tx_packets") + refused,
            traffic("sent"),
            "sent by the ports, and by pktgen: {outer:#}"
        );
        // Both ports' rate for 3 s; less is what a stall at the very end holds back.
        let (sent, lost) = (traffic("sent"), traffic("lost"));
        assert!(sent <= 120_000, "{sent} packets");
        if output.status.success() && sent >= 80_000 {
            assert_eq!((lost, traffic("received"), errors.len()), (0, sent, 0), "{errors:?}");
            for stream in outer["traffic"]["streams"].as_array().unwrap() {
                assert!(stream["received"].as_u64().unwrap() >= 40_000, "both ways: {outer:#}");
            }
            let forwarded: u64 = (0..2).map(|port| port_counts(&inner, port).1).sum();
            assert!(forwarded >= sent, "by l2fwd, and by no other way: {inner:#}");
            return;
        }
        let gap = |report: &Value| report["workers"][0]["loop_gap_ns"]["max"].as_u64().unwrap();
        let longest_gap_ns = gap(&outer).max(gap(&inner));
        eprintln!("attempt {attempt}: {sent} sent, {lost} lost, longest loop gap {longest_gap_ns} ns");
        let reports = || format!("{errors:?} {outer:#} {inner:#}");
        assert!(longest_gap_ns > ROOM_NS, "{sent} sent, {lost} lost without an excuse: {}", reports());
    }
    panic!("this machine takes the workers' CPUs away for too long: nothing could be shown");
}
