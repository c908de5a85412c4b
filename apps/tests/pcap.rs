//! The shipped l2fwd between capture files: what comes out is what went in, frame by frame, and a damaged capture is one line.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

#[path = "../../nic/tests/captures/mod.rs"]
mod captures;

use captures::*;
use nic::pcap::{Capture, Format};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Runs l2fwd; it ends with its captures, or at the latest after 20 seconds.
fn l2fwd(ports: &[String], report: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_l2fwd"));
    command.args(["--no-mac-updating", "--no-color", "--duration", "20", "--report"]).arg(report);
    for port in ports {
        command.args(["--port", port]);
    }
    command.output().unwrap()
}

fn read(path: &Path) -> Capture {
    let capture = Capture::parse(fs::read(path).unwrap()).unwrap();
    assert!(capture.cut_off().is_none());
    capture
}

fn assert_same(capture: &Capture, frames: &[Vec<u8>]) {
    assert_eq!(capture.format(), Format::Pcapng);
    assert_eq!(capture.len(), frames.len());
    for (index, (packet, frame)) in capture.packets().zip(frames).enumerate() {
        assert_eq!(packet.data, frame, "packet {index}");
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no {key} in {value}"))
}

#[test]
fn captures_cross_l2fwd_identical_frame_by_frame() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let frames = mixed_frames();
    let reversed: Vec<Vec<u8>> = frames.iter().rev().cloned().collect();
    fs::write(path("a.pcap"), pcap(Order { big: true }, false, &frames)).unwrap();
    fs::write(path("b.pcapng"), pcapng(Order { big: false }, &reversed)).unwrap();
    let here = directory.path().display();
    for (speed, passes) in [("max", 50), ("wire", 1)] {
        let ports = [
            format!("pcap:{here}/a.pcap?out={here}/a-out.pcapng&speed={speed}&loop={passes}"),
            format!("pcap:{here}/b.pcapng?out={here}/b-out.pcapng&speed={speed}&loop={passes}"),
        ];
        let output = l2fwd(&ports, &path("report.json"));
        assert!(output.status.success(), "{output:?}");
        let repeated = |frames: &[Vec<u8>]| vec![frames.to_vec(); passes].concat();
        assert_same(&read(&path("b-out.pcapng")), &repeated(&frames));
        assert_same(&read(&path("a-out.pcapng")), &repeated(&reversed));
        let report: Value = serde_json::from_slice(&fs::read(path("report.json")).unwrap()).unwrap();
        let packets = (frames.len() * passes) as u64;
        for port in report["ports"].as_array().unwrap() {
            assert_eq!(
                (number(port, "rx_packets"), number(port, "tx_packets")),
                (packets, packets),
                "{report}"
            );
            assert_eq!(
                (number(port, "rx_bytes"), port["drops"].as_object().unwrap().len()),
                (number(port, "tx_bytes"), 0)
            );
        }
        assert_eq!((number(&report["pool"], "leaked"), number(&report["pool"], "held")), (0, 0), "{report}");
        assert!(report["duration_s"].as_f64().unwrap() < 15.0, "it did not end with its captures: {report}");
    }
}

#[test]
fn one_port_may_only_read_and_the_other_only_write() {
    let directory = tempfile::tempdir().unwrap();
    let (here, frames) = (directory.path().display(), mixed_frames());
    fs::write(directory.path().join("in.pcap"), pcap(Order { big: false }, true, &frames)).unwrap();
    let ports = [format!("pcap:{here}/in.pcap"), format!("pcap:none?out={here}/out.pcapng")];
    let output = l2fwd(&ports, &directory.path().join("report.json"));
    assert!(output.status.success(), "{output:?}");
    assert_same(&read(&directory.path().join("out.pcapng")), &frames);
}

#[test]
fn a_damaged_capture_is_one_clear_line() {
    let directory = tempfile::tempdir().unwrap();
    let (here, frames) = (directory.path().display(), [vec![1; 60], vec![2; 60]]);
    let whole = pcap(Order { big: false }, false, &frames);
    let mut corrupt = whole.clone();
    corrupt[108..112].fill(0xFF);
    let ng = pcapng(Order { big: true }, &frames);
    let cases: &[(&[u8], &str)] = &[
        (&whole[..170], "packet 2 at byte 100 needs 76 bytes, 70 are left: add truncated=accept"),
        (&whole[..100], ""),
        (
            &ng[..200],
            "the block behind packet 1 at byte 152 needs 92 bytes, 48 are left: add truncated=accept",
        ),
        (&corrupt, "corrupt at byte 100, behind 1 whole packets: 4294967295 captured bytes"),
        (&whole[1..], "neither pcap nor pcapng"),
        (&[], "empty file"),
    ];
    for (bytes, words) in cases {
        let input = directory.path().join("in.pcap");
        fs::write(&input, bytes).unwrap();
        let ports = [format!("pcap:{here}/in.pcap"), format!("pcap:none?out={here}/out.pcapng")];
        let output = l2fwd(&ports, &directory.path().join("report.json"));
        if words.is_empty() {
            assert!(output.status.success(), "cut between two packets a capture is whole: {output:?}");
            fs::remove_file(directory.path().join("out.pcapng")).unwrap();
            continue;
        }
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(words) && text.trim_end().lines().count() == 1, "{text}");
        assert!(!directory.path().join("out.pcapng").exists(), "nothing is opened before all is checked");
    }
}
