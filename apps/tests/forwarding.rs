//! What makes l2fwd DPDK's l2fwd: the addresses it writes, the pairs of ports that `--portmap` names, and the queues it gives a worker.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

#[path = "../../nic/tests/captures/mod.rs"]
mod captures;
mod common;

use captures::{Order, mixed_frames, pcap};
use common::{assert_books, error_lines, l2fwd, read_report, run_within};
use nic::pcap::Capture;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Runs l2fwd to the end of its inputs; gives its report.
#[track_caller]
fn forward(folder: &Path, args: &[&str]) -> Value {
    let report = folder.join("report.json");
    let mut command = l2fwd(args);
    command.args(["--stats-period", "0", "--report"]).arg(&report);
    let output = run_within(&mut command, Duration::from_secs(20));
    assert!(output.status.success(), "{args:?}: {:?}", error_lines(&output));
    let report = read_report(&report);
    assert_books(&report);
    report
}

/// The specification of a capture port that plays `N.pcap` of these frames and writes `N-out.pcapng`.
fn capture_port(folder: &Path, number: usize, frames: &[Vec<u8>]) -> String {
    let here = folder.display();
    fs::write(folder.join(format!("{number}.pcap")), pcap(Order { big: false }, true, frames)).unwrap();
    format!("pcap:{here}/{number}.pcap?speed=max&out={here}/{number}-out.pcapng")
}

/// What port `number` sent.
fn sent_by(folder: &Path, number: usize) -> Vec<Vec<u8>> {
    let capture = Capture::read(&folder.join(format!("{number}-out.pcapng"))).unwrap().0;
    capture.packets().map(|packet| packet.data.to_vec()).collect()
}

#[test]
fn addresses_are_those_of_the_sending_port_and_the_rest_is_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let frames = mixed_frames();
    let reversed: Vec<Vec<u8>> = frames.iter().rev().cloned().collect();
    let ports = [capture_port(folder, 0, &frames), capture_port(folder, 1, &reversed)];
    forward(folder, &["--port", &ports[0], "--port", &ports[1]]);
    for (to, received) in [(1, &frames), (0, &reversed)] {
        let sent = sent_by(folder, to);
        assert_eq!(sent.len(), received.len());
        let to = u8::try_from(to).unwrap();
        // The destination DPDK's l2fwd writes, and the address that a capture port calls its own.
        let addresses = [[0x02, 0, 0, 0, 0, to], [0x02, 0x49, 0x50, 0, 0, to]].concat();
        for (number, (sent, received)) in sent.iter().zip(received).enumerate() {
            assert_eq!(sent[..12], addresses, "packet {number} to port {to}");
            assert!(sent[12..] == received[12..], "packet {number} to port {to} is not what came in");
        }
    }
}

#[test]
fn packets_go_where_the_port_map_says() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    // So many frames as its number and one more, each full of its number: no two ports receive the same.
    let frames = |port: usize| vec![vec![port as u8; 60 + port]; port + 1];
    let ports: Vec<String> = (0..4).map(|port| capture_port(folder, port, &frames(port))).collect();
    let ports: Vec<&str> = ports.iter().flat_map(|port| ["--port", port]).collect();
    forward(folder, &[&ports[..], &["--no-mac-updating", "--portmap", "(0,2)(1,3)"]].concat());
    for (from, to) in [(0, 2), (2, 0), (1, 3), (3, 1)] {
        assert_eq!(sent_by(folder, to), frames(from), "port {from} forwards to port {to}");
    }
}

#[test]
fn one_worker_has_as_many_queues_as_it_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let port = "mem:gen?queues=2&flows=4&count=10000";
    let args = ["--port", port, "--port", port, "--no-mac-updating", "--queues-per-worker", "4"];
    let report = forward(directory.path(), &args);
    // By itself it would take two workers, where there are CPUs for them.
    assert_eq!(report["workers"].as_array().unwrap().len(), 1, "{report:#}");
    assert_eq!(report["workers"][0]["packets"], 20_000, "{report:#}");
    for port in report["ports"].as_array().unwrap() {
        let checked = ["rx_packets", "tx_packets"].map(|key| port[key].as_u64().unwrap());
        assert_eq!(checked, [10_000, 10_000], "{report:#}");
        assert_eq!(
            (&port["extra"]["sink_received"], &port["extra"]["sink_lost"]),
            (&10_000.into(), &0.into())
        );
    }
}
