//! The generator's books: what it says it sent is what the interface took and refused, and what the other end saw.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::fs;
use std::process::Command;

/// Runs xdpgen between the two ends of a veth pair, in a network namespace that goes with it.
fn between_veths(test: &str, prefix: &str, arguments: &str) -> Option<(bool, String, String)> {
    // The owner of our own process: the user we run as.
    let root = fs::metadata("/proc/self").is_ok_and(|us| std::os::unix::fs::MetadataExt::uid(&us) == 0);
    if !root {
        eprintln!("SKIPPED {test}: needs root");
        return None;
    }
    // No IPv6: the kernel's own neighbour discovery would be counted too. With GRO a veth takes frames as with native XDP.
    let script = format!(
        "set -e; sysctl -qw net.ipv6.conf.default.disable_ipv6=1; ip link add q0 type veth peer name p0; \
         ethtool -K p0 gro on; ip link set q0 up; ip link set p0 up; exec {prefix} {} {arguments}",
        env!("CARGO_BIN_EXE_xdpgen")
    );
    let output = Command::new("unshare").args(["--net", "sh", "-c", &script]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some((output.status.success(), text(&output.stdout), text(&output.stderr)))
}

fn report(test: &str, arguments: &str) -> Option<Value> {
    let (success, out, err) = between_veths(test, "timeout -s KILL 30", arguments)?;
    assert!(success, "{err}");
    Some(serde_json::from_str(&out).unwrap())
}

#[test]
fn namespace_paced_stream_arrives_to_the_packet() {
    let test = "namespace_paced_stream_arrives_to_the_packet";
    let Some(report) = report(test, "--interface q0 --sink p0 --rate 50000 --seconds 1") else { return };
    for key in ["sent", "received", "tx_packets"] {
        assert_eq!(report[key], 50_000, "{key} in {report}");
    }
    let seconds = report["seconds"].as_f64().unwrap();
    let stalls = report["stalls"].as_u64().unwrap();
    assert!(seconds > 0.999 && (seconds < 1.01 || stalls > 0), "{report}");
}

#[test]
fn namespace_flood_is_counted_to_the_packet() {
    let test = "namespace_flood_is_counted_to_the_packet";
    let Some(report) = report(test, "--interface q0 --sink p0 --seconds 0.5 --size 1514") else { return };
    let number = |key: &str| report[key].as_u64().unwrap();
    assert!(number("sent") > 100_000, "{report}");
    assert_eq!(number("sent"), number("tx_packets") + number("tx_dropped"), "{report}");
    assert_eq!(number("received"), number("tx_packets"), "{report}");
}

#[test]
fn namespace_mistakes_are_one_line() {
    for (arguments, words) in [
        ("--interface q9", "no interface \"q9\""),
        ("--interface q0 --sink q9", "no interface \"q9\""),
        ("--interface q0 --size 41", "from 42 to 3392"),
        ("--interface q0 --seconds 0", "above 0"),
        ("--interface q0 --rate 4000000000", "at most 6 x 10^9"),
        ("--interface q0 --cpu 9999", "9999"),
    ] {
        let Some((success, out, err)) = between_veths("namespace_mistakes_are_one_line", "", arguments)
        else {
            return;
        };
        assert!(
            !success && out.is_empty() && err.lines().count() == 1 && err.contains(words),
            "{arguments}: {err}"
        );
    }
}

#[test]
fn namespace_it_ends_by_itself_under_a_real_time_policy() {
    let test = "namespace_it_ends_by_itself_under_a_real_time_policy";
    if !Command::new("chrt").args(["--fifo", "1", "true"]).status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED {test}: no real-time policy to be had");
        return;
    }
    // No other thread of its CPU gets a turn while it runs, so none can be what ends it.
    let prefix = "timeout -s KILL 20 chrt --fifo 1";
    for arguments in ["--rate 20000 --seconds 0.5", "--seconds 0.2"] {
        let arguments = format!("--interface q0 --sink p0 --cpu 0 {arguments}");
        let Some((success, out, err)) = between_veths(test, prefix, &arguments) else { return };
        assert!(success && out.contains("\"sent\""), "{arguments}: {err}");
    }
}
