//! l2fwd between two hosts of the real kernel, which have no other way to each other (root).

#![allow(clippy::unwrap_used)]

mod common;

use common::network::{Forwarder, Wire, can_make_namespaces};
use common::{assert_books, read_report};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

#[test]
fn namespace_ping_over_ipv4_and_ipv6_loses_nothing() {
    if !can_make_namespaces("namespace_ping_over_ipv4_and_ipv6_loses_nothing") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let wire = Wire::new(1500);
    let forwarder = wire.forward(&["--report", report.to_str().unwrap()]);
    for target in ["10.0.0.2", "fd00::2"] {
        let text = wire.left.run("ping", &["-q", "-c", "1000", "-i", "0.002", "-W", "2", target]);
        assert!(text.contains("1000 received, 0% packet loss"), "{target}: {text}");
    }
    let text = wire.left.run("ping", &["-q", "-c", "10", "-i", "0.01", "-M", "do", "-s", "1472", "10.0.0.2"]);
    assert!(text.contains("10 received, 0% packet loss"), "full frames: {text}");
    assert!(forwarder.end("INT").success());
    assert_books(&read_report(&report));
}

/// Frames of kinds that a forwarder must not care about, each with its own bytes.
fn tagged_frames() -> Vec<Vec<u8>> {
    let frame = |tags: &[u8], length: usize, mark: u8| {
        let mut frame = [[0x02, 0, 0, 0, 9, 1], [0x02, 0, 0, 0, 9, 2]].concat();
        frame.extend(tags);
        // EtherType for local experiments (IEEE 802): no host answers it.
        frame.extend([0x88, 0xb5]);
        frame.extend((frame.len()..length).map(|index| index as u8 ^ mark));
        frame
    };
    let vlan: &[u8] = &[0x81, 0x00, 0x20, 0x07];
    let qinq: &[u8] = &[0x88, 0xa8, 0x00, 0x05, 0x81, 0x00, 0x20, 0x07];
    (0..90)
        .map(|mark| frame([&[], vlan, qinq][usize::from(mark) % 3], 64 + 16 * usize::from(mark), mark))
        .collect()
}

/// A capture in the classic format: microseconds, Ethernet.
fn write_capture(path: &Path, frames: &[Vec<u8>]) {
    let mut bytes: Vec<u8> =
        [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1].iter().flat_map(|word| word.to_le_bytes()).collect();
    for (index, frame) in frames.iter().enumerate() {
        let length = frame.len() as u32;
        bytes.extend([1, index as u32, length, length].iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(frame);
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn namespace_vlan_and_unknown_frames_pass_unchanged() {
    if !can_make_namespaces("namespace_vlan_and_unknown_frames_pass_unchanged") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (input, output) = (path("in.pcap"), path("out.pcapng"));
    write_capture(&input, &tagged_frames());
    let wire = Wire::new(1500);
    let middle = wire.forward(&["--report", path("middle.json").to_str().unwrap()]);
    let out_spec = format!("pcap:none?out={}", output.display());
    let right_report = path("right.json");
    let right_args =
        ["--port", "afxdp:eth0", "--port", &out_spec, "--report", right_report.to_str().unwrap()];
    let right = Forwarder::start(&wire.right, &right_args);
    right.wait_until_open(2);
    let in_spec = format!("pcap:{}?speed=max", input.display());
    let left_report = path("left.json");
    let left_args = [
        "--port",
        &in_spec,
        "--port",
        "afxdp:eth0",
        "--duration",
        "2",
        "--report",
        left_report.to_str().unwrap(),
    ];
    assert!(Forwarder::start(&wire.left, &left_args).wait(Duration::from_secs(20)).success());
    assert!(right.end("INT").success());
    assert!(middle.end("INT").success());
    for name in ["left.json", "middle.json", "right.json"] {
        assert_books(&read_report(&path(name)));
    }
    // The hosts' own neighbour discovery may pass too; our frames must all be there, whole and in order.
    let (capture, _) = nic::pcap::Capture::read(&output).unwrap();
    let is_ours = |frame: &&[u8]| frame.starts_with(&[0x02, 0, 0, 0, 9, 1]);
    let got: Vec<&[u8]> = capture.packets().map(|packet| packet.data).filter(is_ours).collect();
    assert_eq!(got.len(), 90);
    assert!(got == tagged_frames(), "frames differ");
}

/// Bytes that nobody else would send, and that a lost, swapped or damaged packet would not reproduce.
struct Stream(u64);

impl Stream {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.as_chunks_mut::<8>().0 {
            // xorshift64 (Marsaglia 2003).
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            *chunk = self.0.to_le_bytes();
        }
    }
}

#[track_caller]
fn tcp_transfer(mtu: u32, bytes: usize) {
    const BLOCK: usize = 1 << 16;
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let wire = Wire::new(mtu);
    let forwarder = wire.forward(&["--report", report.to_str().unwrap()]);
    let limit = Some(Duration::from_secs(20));
    let listener = wire.right.spawn(|| TcpListener::bind("10.0.0.2:4000").unwrap()).join().unwrap();
    let receiver = wire.right.spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(limit).unwrap();
        let (mut expected, mut got) = (vec![0; BLOCK], vec![0; BLOCK]);
        let mut source = Stream(42);
        for block in 0..bytes / BLOCK {
            source.fill(&mut expected);
            stream.read_exact(&mut got).unwrap();
            assert!(got == expected, "block {block} differs");
        }
        assert_eq!(stream.read(&mut got).unwrap(), 0, "more than was sent");
        stream.write_all(b"done").unwrap();
    });
    let sender = wire.left.spawn(move || {
        let mut stream = TcpStream::connect("10.0.0.2:4000").unwrap();
        stream.set_write_timeout(limit).unwrap();
        stream.set_read_timeout(limit).unwrap();
        let mut block = vec![0; BLOCK];
        let mut source = Stream(42);
        for _ in 0..bytes / BLOCK {
            source.fill(&mut block);
            stream.write_all(&block).unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"done");
    });
    sender.join().unwrap();
    receiver.join().unwrap();
    assert!(forwarder.end("TERM").success());
    assert_books(&read_report(&report));
}

#[test]
fn namespace_tcp_carries_a_gibibyte() {
    if can_make_namespaces("namespace_tcp_carries_a_gibibyte") {
        tcp_transfer(1500, 1 << 30);
    }
}

#[test]
fn namespace_tcp_carries_a_gibibyte_in_jumbo_frames() {
    if can_make_namespaces("namespace_tcp_carries_a_gibibyte_in_jumbo_frames") {
        tcp_transfer(9000, 1 << 30);
    }
}
