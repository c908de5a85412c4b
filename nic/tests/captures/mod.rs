//! Frames and captures to test with. The captures are put together by hand, independently of the code under test.

#![forbid(unsafe_code)]
#![allow(dead_code)] // Each test program uses a part of it.

use etherparse::{PacketBuilder, VlanId};

/// ARP, IPv4 and IPv6, TCP and UDP, VLAN and QinQ, the smallest and jumbo frames.
pub(crate) fn mixed_frames() -> Vec<Vec<u8>> {
    let (source, destination) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ethernet = || PacketBuilder::ethernet2(source, destination);
    let v4 = || ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    let v6 = || ethernet().ipv6([1; 16], [2; 16], 64);
    let (one, two) = (VlanId::try_new(100).unwrap(), VlanId::try_new(200).unwrap());
    let mut frames = Vec::new();
    for size in [0, 1, 18, 470, 1472, 1473, 4000, 8972] {
        let payload: Vec<u8> = (0..size).map(|index| (index * 7 + size) as u8).collect();
        let mut udp = Vec::new();
        v4().udp(7, 7).write(&mut udp, &payload).unwrap();
        let mut v4_tcp = Vec::new();
        v4().tcp(1000, 80, 1, 4096).write(&mut v4_tcp, &payload).unwrap();
        let mut v6_udp = Vec::new();
        v6().udp(53, 53).write(&mut v6_udp, &payload).unwrap();
        let mut v6_tcp = Vec::new();
        v6().tcp(1000, 80, 1, 4096).write(&mut v6_tcp, &payload).unwrap();
        let mut vlan = Vec::new();
        ethernet()
            .single_vlan(one)
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(7, 7)
            .write(&mut vlan, &payload)
            .unwrap();
        let mut qinq = Vec::new();
        ethernet()
            .double_vlan(one, two)
            .ipv6([1; 16], [2; 16], 64)
            .udp(7, 7)
            .write(&mut qinq, &payload)
            .unwrap();
        frames.extend([udp, v4_tcp, v6_udp, v6_tcp, vlan, qinq]);
    }
    // ARP: who has 10.0.0.2, padded to the smallest frame.
    let mut arp =
        [&[0xFF; 6], &source[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &source, &[10, 0, 0, 1]].concat();
    arp.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
    arp.resize(60, 0);
    frames.push(arp);
    // Nothing but a header, and the longest jumbo frame.
    frames.push([&destination[..], &source, &[0x88, 0xB5]].concat());
    frames.push((0..9018_u32).map(|index| ((index * index) >> 3) as u8).collect());
    frames
}

/// A number in the byte order of a capture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) big: bool,
}

impl Order {
    pub(crate) const BOTH: [Order; 2] = [Order { big: false }, Order { big: true }];

    pub(crate) fn u16(self, value: u16) -> [u8; 2] {
        if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    pub(crate) fn u32(self, value: u32) -> [u8; 4] {
        if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    pub(crate) fn u64(self, value: u64) -> [u8; 8] {
        if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
    }
}

/// The header of a pcap file.
pub(crate) fn pcap_header(order: Order, nanoseconds: bool, link: u32) -> Vec<u8> {
    let magic = if nanoseconds { 0xA1B2_3C4D } else { 0xA1B2_C3D4 };
    let mut bytes = order.u32(magic).to_vec();
    bytes.extend([order.u16(2), order.u16(4)].concat());
    bytes.extend([order.u32(0), order.u32(0), order.u32(65535), order.u32(link)].concat());
    bytes
}

/// A record of a pcap file; `unit_ns` is 1 or 1000.
pub(crate) fn pcap_record(order: Order, unit_ns: u64, time_ns: u64, data: &[u8], original: usize) -> Vec<u8> {
    let fraction = time_ns % 1_000_000_000 / unit_ns;
    let fields = [time_ns / 1_000_000_000, fraction, data.len() as u64, original as u64];
    let mut bytes: Vec<u8> = fields.iter().flat_map(|field| order.u32(*field as u32)).collect();
    bytes.extend(data);
    bytes
}

/// A pcap file of these frames, a millisecond apart.
pub(crate) fn pcap(order: Order, nanoseconds: bool, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = pcap_header(order, nanoseconds, 1);
    for (index, frame) in frames.iter().enumerate() {
        let unit_ns = if nanoseconds { 1 } else { 1000 };
        bytes.extend(pcap_record(order, unit_ns, time_ns(index), frame, frame.len()));
    }
    bytes
}

/// The stamp of the frame with this number.
pub(crate) fn time_ns(index: usize) -> u64 {
    1_700_000_000_123_456_000 + index as u64 * 1_000_000
}

/// A pcapng block around `body`, which is padded.
pub(crate) fn block(order: Order, kind: u32, body: &[u8]) -> Vec<u8> {
    let padded = body.len().next_multiple_of(4);
    let length = order.u32(padded as u32 + 12);
    let mut bytes = [order.u32(kind), length].concat();
    bytes.extend(body);
    bytes.resize(8 + padded, 0);
    bytes.extend(length);
    bytes
}

/// A section header.
pub(crate) fn section(order: Order) -> Vec<u8> {
    let body = [&order.u32(0x1A2B_3C4D)[..], &order.u16(1), &order.u16(0), &order.u64(u64::MAX)].concat();
    block(order, 0x0A0D_0D0A, &body)
}

/// An interface description with options: code and value.
pub(crate) fn interface(order: Order, link: u16, snap_length: u32, options: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = [&order.u16(link)[..], &[0, 0], &order.u32(snap_length)].concat();
    for (code, value) in options {
        body.extend([order.u16(*code), order.u16(value.len() as u16)].concat());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    if !options.is_empty() {
        body.extend([0; 4]);
    }
    block(order, 1, &body)
}

/// An enhanced packet block.
pub(crate) fn enhanced_packet(
    order: Order,
    interface: u32,
    ticks: u64,
    data: &[u8],
    original: usize,
) -> Vec<u8> {
    let lengths = [data.len() as u32, original as u32];
    let fields = [interface, (ticks >> 32) as u32, ticks as u32, lengths[0], lengths[1]];
    let mut body: Vec<u8> = fields.iter().flat_map(|field| order.u32(*field)).collect();
    body.extend(data);
    block(order, 6, &body)
}

/// A pcapng file of these frames, a millisecond apart, in nanoseconds.
pub(crate) fn pcapng(order: Order, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = section(order);
    bytes.extend(interface(order, 1, 0, &[(9, vec![9])]));
    for (index, frame) in frames.iter().enumerate() {
        bytes.extend(enhanced_packet(order, 0, time_ns(index), frame, frame.len()));
    }
    bytes
}
