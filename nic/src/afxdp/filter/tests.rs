//! The filter's instructions against a reading of the packet that was written for itself.

use super::*;
use crate::afxdp::program::instructions;
use proptest::prelude::*;
use std::fs::File;
use std::os::fd::AsRawFd;

fn filter(pass: &str) -> Result<Filter, String> {
    let spec: PortSpec = format!("afxdp:eth0?pass={pass}").parse().unwrap();
    Filter::read(&spec).map_err(|error| error.to_string())
}

/// Where the interpreter has the context and the packet.
const CONTEXT: u64 = 0x1_0000;
const PACKET: u64 = 0x2_0000;

/// Runs a program as the kernel would; panics at what the verifier refuses, such as a byte that is not the packet's. True where
/// the packet passes, false where it is redirected.
fn run(filter: &Filter, packet: &[u8]) -> bool {
    let map = File::open("/dev/null").unwrap();
    let program = instructions(&map, filter).unwrap();
    let mut registers = [0xdead_0000_0000_u64; 11];
    registers[1] = CONTEXT;
    let mut at = 0;
    for _ in 0..1000 {
        let instruction = program[at];
        at += 1;
        let target = usize::from(instruction.registers & 15);
        let source = registers[usize::from(instruction.registers >> 4)];
        let immediate = i64::from(instruction.immediate) as u64;
        let left = registers[target];
        let load = |size: usize| {
            let address = source.wrapping_add_signed(i64::from(instruction.offset));
            if (CONTEXT..PACKET).contains(&address) {
                assert_eq!(size, 4);
                return match address - CONTEXT {
                    0 => PACKET,
                    4 => PACKET + packet.len() as u64,
                    16 => 5,
                    other => panic!("context byte {other}"),
                };
            }
            let start = (address - PACKET) as usize;
            let mut bytes = [0; 8];
            bytes[..size].copy_from_slice(&packet[start..start + size]);
            u64::from_le_bytes(bytes)
        };
        let mut jump = |taken: bool| {
            // Down only: so it ends.
            assert!(instruction.offset >= 0);
            at += if taken { instruction.offset as usize } else { 0 };
        };
        match instruction.code {
            0x61 => registers[target] = load(4),
            0x69 => registers[target] = load(2),
            0x71 => registers[target] = load(1),
            0xb7 => registers[target] = immediate,
            0xbf => registers[target] = source,
            0x07 => registers[target] = left.wrapping_add(immediate),
            0x0f => registers[target] = left.wrapping_add(source),
            0x57 => registers[target] = left & immediate,
            0x67 => registers[target] = left << immediate,
            0x05 => jump(true),
            0x15 => jump(left == immediate),
            0x55 => jump(left != immediate),
            0xa5 => jump(left < immediate),
            0x2d => jump(left > source),
            0x18 => {
                assert_eq!(instruction.immediate, map.as_raw_fd());
                at += 1;
            }
            0x85 => {
                assert_eq!((instruction.immediate, registers[2], registers[3]), (51, 5, 2));
                return false;
            }
            0x95 => {
                assert_eq!(registers[0], 2);
                return true;
            }
            code => panic!("opcode {code:#x}"),
        }
    }
    panic!("it does not end");
}

/// The same, told from the standards.
fn passes(filter: &Filter, packet: &[u8]) -> Option<bool> {
    let number = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
    let ports = |protocol: u8, segment: &[u8]| {
        let port = number(segment.get(2..4)?);
        Some(match protocol {
            6 => filter.tcp.contains(&port),
            17 => filter.udp.contains(&port),
            _ => false,
        })
    };
    let ip = packet.get(14..)?;
    match number(&packet[12..14]) {
        0x0806 => Some(filter.arp),
        0x0800 => {
            let header = ip.get(..20)?;
            let length = usize::from(header[0] & 15) * 4;
            if header[0] >> 4 != 4 || length < 20 {
                return None;
            }
            if header[9] == 1 && filter.icmp {
                return Some(true);
            }
            if number(&header[6..8]) & 0x1fff != 0 {
                return None;
            }
            ports(header[9], ip.get(length..)?)
        }
        0x86dd => {
            let header = ip.get(..40)?;
            if header[6] == 58 && filter.icmp { Some(true) } else { ports(header[6], &ip[40..]) }
        }
        _ => None,
    }
}

#[track_caller]
fn assert_same(filter: &Filter, packet: &[u8]) -> bool {
    let passed = run(filter, packet);
    assert_eq!(passed, passes(filter, packet).unwrap_or(false), "{filter:?}: {packet:x?}");
    passed
}

fn frame(kind: u16, parts: &[&[u8]]) -> Vec<u8> {
    [&[2; 12][..], &kind.to_be_bytes(), &parts.concat()].concat()
}

fn ipv4(protocol: u8, options: usize, fragment: u16) -> Vec<u8> {
    let [high, low] = fragment.to_be_bytes();
    let length = (5 + options / 4) as u8;
    [&[0x40 | length, 0, 0, 40, 0, 0, high, low, 64, protocol][..], &[0; 10], &vec![1; options]].concat()
}

fn ipv6(next: u8) -> Vec<u8> {
    [&[0x60, 0, 0, 0, 0, 8, next, 64][..], &[0; 32]].concat()
}

#[test]
fn options_are_read_or_refused_with_the_way_out() {
    assert!(filter("arp").unwrap().arp);
    let all = filter("arp,icmp,tcp:22,udp:53,tcp:2222").unwrap();
    assert_eq!(all, Filter { arp: true, icmp: true, tcp: vec![22, 2222], udp: vec![53] });
    assert_eq!(all.describe().unwrap(), "arp icmp tcp:22 tcp:2222 udp:53 left to the kernel");
    assert_eq!(Filter::default().describe(), None);
    for wrong in ["", "tcp", "tcp:", "tcp:0", "tcp:65536", "ssh", "arp,", "icmp:1", "tcp:22:23"] {
        let said = filter(wrong).unwrap_err();
        assert!(said.contains("arp, icmp, tcp:PORT, udp:PORT"), "{said}");
    }
    let many: Vec<String> = (1..=17).map(|port| format!("udp:{port}")).collect();
    assert!(filter(&many.join(",")).unwrap_err().contains("name fewer"));
}

#[test]
fn the_named_pass_and_all_others_are_redirected() {
    let all = filter("arp,icmp,tcp:22,udp:53").unwrap();
    let (ssh, dns, other) = ([9, 9, 0, 22], [9, 9, 0, 53], [0, 22, 9, 9]);
    for (pass, packet) in [
        (true, frame(0x0806, &[&[0; 28]])),
        (true, frame(0x0800, &[&ipv4(1, 0, 0), &[8, 0]])),
        // A later fragment of a long ping.
        (true, frame(0x0800, &[&ipv4(1, 0, 185), &[0; 8]])),
        (true, frame(0x86dd, &[&ipv6(58), &[135, 0]])),
        (true, frame(0x0800, &[&ipv4(6, 0, 0), &ssh])),
        (true, frame(0x0800, &[&ipv4(6, 12, 0), &ssh])),
        (true, frame(0x0800, &[&ipv4(6, 40, 0x4000), &ssh])),
        (true, frame(0x86dd, &[&ipv6(6), &ssh])),
        (true, frame(0x0800, &[&ipv4(17, 0, 0), &dns])),
        (true, frame(0x86dd, &[&ipv6(17), &dns])),
        // The port of the other protocol, and the source's.
        (false, frame(0x0800, &[&ipv4(17, 0, 0), &ssh])),
        (false, frame(0x0800, &[&ipv4(6, 0, 0), &dns])),
        (false, frame(0x0800, &[&ipv4(6, 0, 0), &other])),
        // In the options, where a header without any would have the ports.
        (false, frame(0x0800, &[&[0x46], &ipv4(6, 0, 0)[1..], &ssh, &other])),
        // A later fragment has no ports.
        (false, frame(0x0800, &[&ipv4(6, 0, 1), &ssh])),
        (false, frame(0x0800, &[&ipv4(47, 0, 0), &ssh])),
        (false, frame(0x8100, &[&[0, 7, 8, 6], &[0; 28]])),
        (false, frame(0x0800, &[&[0x44], &ipv4(6, 0, 0)[1..], &ssh])),
        (false, frame(0x0800, &[&[0x65], &ipv4(6, 0, 0)[1..], &ssh])),
        (false, frame(0x86dd, &[&ipv6(44), &[6, 0], &ssh])),
        (false, frame(0x0800, &[&ipv4(6, 0, 0), &ssh[..3]])),
        (false, vec![2; 13]),
    ] {
        assert_eq!(assert_same(&all, &packet), pass, "{packet:x?}");
        // Cut off anywhere, it is read the same way by both.
        for length in 0..packet.len() {
            assert_same(&all, &packet[..length]);
        }
        for one in ["arp", "icmp", "tcp:22", "udp:53"] {
            assert_same(&filter(one).unwrap(), &packet);
        }
        assert!(!run(&Filter::default(), &packet));
    }
}

proptest! {
    #[test]
    fn property_the_program_reads_any_packet_as_the_standards_do(
        words in proptest::sample::subsequence(vec!["arp", "icmp", "tcp:22", "tcp:80", "udp:53"], 1..5),
        kind in prop_oneof![Just(0x0806_u16), Just(0x0800), Just(0x0800), Just(0x86dd), any::<u16>()],
        first in prop_oneof![0x40_u8..0x50, any::<u8>()],
        fragment in prop_oneof![Just(0_u16), Just(0x4000), any::<u16>()],
        protocol in prop_oneof![Just(1_u8), Just(6), Just(17), Just(58), any::<u8>()],
        port in prop_oneof![Just(22_u16), Just(53), Just(80), any::<u16>()],
        mut rest in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let filter = filter(&words.join(",")).unwrap();
        let mut packet = frame(kind, &[]);
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = rest.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(0, &[first]);
        put(6, &fragment.to_be_bytes());
        put(9, &[protocol]);
        if kind == 0x86dd {
            put(6, &[protocol]);
            put(42, &port.to_be_bytes());
        }
        put(usize::from(first & 15) * 4 + 2, &port.to_be_bytes());
        packet.extend(rest);
        prop_assert_eq!(run(&filter, &packet), passes(&filter, &packet).unwrap_or(false));
    }
}
