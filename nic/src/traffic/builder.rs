//! Writes test packets.
//!
//! All that does not change from one packet to the next lies ready in a template of one cache line; a packet costs the copy of it
//! and the few stores that make it this packet. Nothing is read back, so nothing waits for a store.
#![forbid(unsafe_code)]

use super::content::{Fill, pseudo_header};
use super::{
    DESTINATION_PORT, FILL_AT, FIRST_SOURCE_PORT, FLOW_AT, IPV4_AT, MAGIC, MAGIC_AT, SEQUENCE_AT, UDP_AT,
};
use crate::checksum;
use crate::port::MacAddress;

/// Who sends to whom.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    /// The Ethernet source.
    pub source: MacAddress,
    /// The Ethernet destination.
    pub destination: MacAddress,
    /// The sender's number: the IPv4 source is 198.18.x.y with it as x.y, the destination 198.19.x.y.
    pub sender: u16,
}

/// Writes the packets of one sender.
#[derive(Debug)]
pub struct FrameBuilder {
    /// The first 54 bytes are the headers; the rest makes it one copy of a cache line.
    template: [u8; 64],
    /// The frame length that the template's length fields and checksum are for.
    length: usize,
    udp_checksum: bool,
}

impl FrameBuilder {
    /// A builder that writes the UDP checksum, or 0 in its place ("none", which RFC 768 allows and which costs nothing).
    pub fn new(addresses: &Addresses, udp_checksum: bool) -> Self {
        let mut template = [0; 64];
        template[..6].copy_from_slice(&addresses.destination.0);
        template[6..12].copy_from_slice(&addresses.source.0);
        template[12..14].copy_from_slice(&0x0800_u16.to_be_bytes());
        let [high, low] = addresses.sender.to_be_bytes();
        // Version 4 and 5 words; no service class; don't fragment; 64 hops; UDP.
        template[IPV4_AT..UDP_AT].copy_from_slice(&[
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 198, 18, high, low, 198, 19, high, low,
        ]);
        template[UDP_AT + 2..UDP_AT + 4].copy_from_slice(&DESTINATION_PORT.to_be_bytes());
        template[MAGIC_AT..FLOW_AT].copy_from_slice(&MAGIC.to_be_bytes());
        Self { template, length: 0, udp_checksum }
    }

    /// Makes `frame` packet number `sequence` of `flow`. Its length is the slice's.
    ///
    /// # Panics
    /// Where the frame is shorter than [`MIN_SIZE`](super::MIN_SIZE) or longer than an IPv4 packet can be.
    #[inline(always)]
    pub fn write(&mut self, frame: &mut [u8], flow: u16, sequence: u64) {
        let length = frame.len();
        self.write_first(frame, length, flow, sequence);
    }

    /// The same for the first segment of a packet of `length` bytes; [`write_rest`](Self::write_rest) makes the others.
    #[inline(always)]
    pub(super) fn write_first(&mut self, first: &mut [u8], length: usize, flow: u16, sequence: u64) {
        if length != self.length {
            self.set_length(length);
        }
        if let Some(line) = first.first_chunk_mut::<64>() {
            *line = self.template;
        }
        let short = first.len() < 64;
        let Some((head, rest)) = first.split_first_chunk_mut::<FILL_AT>() else {
            return;
        };
        if short {
            head.copy_from_slice(&self.template[..FILL_AT]);
        }
        head[UDP_AT..UDP_AT + 2].copy_from_slice(&FIRST_SOURCE_PORT.wrapping_add(flow).to_be_bytes());
        head[FLOW_AT..SEQUENCE_AT].copy_from_slice(&flow.to_be_bytes());
        head[SEQUENCE_AT..FILL_AT].copy_from_slice(&sequence.to_be_bytes());
        let fill = Fill::new(flow, sequence);
        fill.write(rest);
        if self.udp_checksum {
            write_udp_checksum(head, fill, length - FILL_AT);
        }
    }

    /// Writes the segment that starts `position` bytes into the packet.
    pub(super) fn write_rest(segment: &mut [u8], position: usize, flow: u16, sequence: u64) {
        Fill::new(flow, sequence).write_at(position - FILL_AT, segment);
    }

    #[inline(never)]
    fn set_length(&mut self, length: usize) {
        assert!(
            (usize::from(super::MIN_SIZE)..=usize::from(u16::MAX)).contains(&length),
            "a test packet of {length} bytes is not possible"
        );
        self.length = length;
        let head = &mut self.template;
        head[IPV4_AT + 2..IPV4_AT + 4].copy_from_slice(&((length - IPV4_AT) as u16).to_be_bytes());
        head[UDP_AT + 4..UDP_AT + 6].copy_from_slice(&((length - UDP_AT) as u16).to_be_bytes());
        head[IPV4_AT + 10..IPV4_AT + 12].fill(0);
        let sum = checksum::finish(checksum::add(0, &head[IPV4_AT..UDP_AT]));
        head[IPV4_AT + 10..IPV4_AT + 12].copy_from_slice(&sum.to_ne_bytes());
    }
}

#[inline(never)]
fn write_udp_checksum(head: &mut [u8; FILL_AT], fill: Fill, length: usize) {
    let sum = checksum::add(pseudo_header(head), &head[UDP_AT..]) + fill.sum(length);
    // 0 means "none": RFC 768 has the other zero sent in its place.
    let sum = match checksum::finish(sum) {
        0 => u16::MAX,
        sum => sum,
    };
    head[UDP_AT + 6..UDP_AT + 8].copy_from_slice(&sum.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::content::{Damage, TestPacket, read, read_segments};
    use super::super::{MAX_FLOWS, MAX_SIZE, MIN_SIZE};
    use super::*;
    use etherparse::SlicedPacket;
    use proptest::prelude::*;

    fn addresses() -> Addresses {
        Addresses {
            source: "02:49:50:00:00:01".parse().unwrap(),
            destination: "02:49:50:00:00:02".parse().unwrap(),
            sender: 0x0102,
        }
    }

    /// Takes a frame apart with a parser that is not ours, and checks both checksums with it.
    fn check_with_etherparse(frame: &[u8], flow: u16, with_udp_checksum: bool) -> Result<(), TestCaseError> {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else { panic!("no IPv4") };
        let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP") };
        let ip_header = ip.header().to_header();
        prop_assert_eq!(ip_header.calc_header_checksum(), ip_header.header_checksum);
        prop_assert_eq!(usize::from(ip_header.total_len), frame.len() - 14);
        prop_assert_eq!(ip_header.source, [198, 18, 1, 2]);
        prop_assert_eq!(udp.source_port(), 1024 + flow);
        prop_assert_eq!(usize::from(udp.length()), frame.len() - 34);
        let right = udp.to_header().calc_checksum_ipv4(&ip_header, udp.payload()).unwrap();
        prop_assert_eq!(udp.checksum(), if with_udp_checksum { right } else { 0 });
        Ok(())
    }

    proptest! {
        #[test]
        fn property_every_packet_is_well_formed_and_reads_back(
            packets in proptest::collection::vec((MIN_SIZE..=MAX_SIZE, 0..MAX_FLOWS, 0..u64::MAX), 1..8),
            udp_checksum: bool,
        ) {
            let mut builder = FrameBuilder::new(&addresses(), udp_checksum);
            for (size, flow, sequence) in packets {
                let mut frame = vec![0xEE; usize::from(size)];
                builder.write(&mut frame, flow, sequence);
                check_with_etherparse(&frame, flow, udp_checksum)?;
                prop_assert_eq!(read(&frame), Ok(TestPacket { source: 0x0102, flow, sequence }));
                // A forwarder may write what it likes here.
                frame[..12].fill(0xAB);
                prop_assert!(read(&frame).is_ok());
            }
        }

        #[test]
        fn property_every_bit_flipped_behind_the_addresses_shows(
            size in MIN_SIZE..200, flow in 0..MAX_FLOWS, sequence in 0..u64::MAX, udp_checksum: bool,
        ) {
            // With and without a UDP checksum: two packets that are both whole.
            let whole = [false, true].map(|udp_checksum| {
                let mut frame = vec![0; usize::from(size)];
                FrameBuilder::new(&addresses(), udp_checksum).write(&mut frame, flow, sequence);
                frame
            });
            let mut frame = whole[usize::from(udp_checksum)].clone();
            for bit in 12 * 8..frame.len() * 8 {
                frame[bit / 8] ^= 1 << (bit % 8);
                // Where the checksum has a single bit, one flip makes the one of the other.
                prop_assert!(read(&frame).is_err() || whole.contains(&frame), "bit {bit}");
                frame[bit / 8] ^= 1 << (bit % 8);
            }
            prop_assert!(read(&frame).is_ok());
        }

        #[test]
        fn property_a_chain_holds_the_same_bytes(
            size in MIN_SIZE..=MAX_SIZE, first in 54_usize..3000, step in 1_usize..3000, sequence: u64,
        ) {
            let sequence = sequence >> 1;
            let mut whole = vec![0; usize::from(size)];
            let mut builder = FrameBuilder::new(&addresses(), true);
            builder.write(&mut whole, 7, sequence);
            let mut parts = vec![0; usize::from(size)];
            let (head, rest) = parts.split_at_mut(first.min(usize::from(size)));
            builder.write_first(head, usize::from(size), 7, sequence);
            let mut position = head.len();
            for part in rest.chunks_mut(step) {
                FrameBuilder::write_rest(part, position, 7, sequence);
                position += part.len();
            }
            prop_assert_eq!(&parts, &whole);
            let segments = || std::iter::once(&parts[..first.min(parts.len())])
                .chain(parts[first.min(parts.len())..].chunks(step));
            let expected = TestPacket { source: 0x0102, flow: 7, sequence };
            prop_assert_eq!(read_segments(segments(), parts.len()), Ok(expected));
            prop_assert_eq!(read_segments(segments(), parts.len() + 1), Err(Damage::Corrupt));
        }

        #[test]
        fn property_any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(read(&bytes).is_err());
            prop_assert!(read_segments(bytes.chunks(7), bytes.len()).is_err());
        }
    }

    #[test]
    fn what_is_not_ours_is_foreign() {
        let mut frame = [0; 64];
        FrameBuilder::new(&addresses(), false).write(&mut frame, 0, 0);
        assert!(read(&frame).is_ok());
        assert_eq!(read(&frame[..53]), Err(Damage::Foreign));
        assert_eq!(read(&frame[..60]), Err(Damage::Corrupt));
        frame[MAGIC_AT] = 0;
        assert_eq!(read(&frame), Err(Damage::Foreign));
        assert_eq!(read(&[0xFF; 60]), Err(Damage::Foreign));
    }
}
