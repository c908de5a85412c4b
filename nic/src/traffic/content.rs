//! What a test packet's bytes must be: the fill pattern, and the reader that checks all of it.
#![forbid(unsafe_code)]

use super::{
    DESTINATION_PORT, FILL_AT, FIRST_SOURCE_PORT, FLOW_AT, IPV4_AT, MAGIC, MAGIC_AT, MIN_SIZE, SEQUENCE_AT,
    UDP_AT,
};
use crate::checksum;
use crate::memory::Packet;

/// The bytes behind the sequence number: 64-bit little-endian words, each a constant more than the one before, from a key in which
/// every bit of flow and sequence has its say. So a swapped block, a stale tail and a wrong number all show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill(u64);

const STEP: u64 = 0xA24B_AED4_963E_E407;

impl Fill {
    #[inline(always)]
    pub(super) fn new(flow: u16, sequence: u64) -> Self {
        let product = (sequence ^ u64::from(flow).rotate_right(16)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // The product's low bits know nothing of the sequence's high ones, and the shortest frame shows only 48 bits.
        Self(product ^ (product >> 32))
    }

    #[inline(always)]
    fn word(self, index: usize) -> u64 {
        self.0.wrapping_add(STEP.wrapping_mul(index as u64))
    }

    #[inline(always)]
    fn byte(self, position: usize) -> u8 {
        self.word(position / 8).to_le_bytes()[position % 8]
    }

    /// Writes the bytes from the first on.
    #[inline(always)]
    pub(super) fn write(self, part: &mut [u8]) {
        let (words, rest) = part.as_chunks_mut::<8>();
        let mut word = self.0;
        for place in words {
            *place = word.to_le_bytes();
            word = word.wrapping_add(STEP);
        }
        let left = rest.len();
        if left == 0 {
            return;
        }
        // A last word that overlaps the one before: a store of one size, where a copy of `left` bytes is a function call.
        match part.last_chunk_mut::<8>() {
            Some(place) => *place = tail(word.wrapping_sub(STEP), word, left).to_le_bytes(),
            None => part.copy_from_slice(&word.to_le_bytes()[..left]),
        }
    }

    /// Writes the bytes from `position` on.
    pub(super) fn write_at(self, position: usize, part: &mut [u8]) {
        let lead = (position.wrapping_neg() % 8).min(part.len());
        let (lead, aligned) = part.split_at_mut(lead);
        for (offset, byte) in lead.iter_mut().enumerate() {
            *byte = self.byte(position + offset);
        }
        Self(self.word(position.div_ceil(8))).write(aligned);
    }

    /// Whether these are the bytes from the first on.
    #[inline(always)]
    fn matches(self, part: &[u8]) -> bool {
        let (words, rest) = part.as_chunks::<8>();
        let (mut word, mut wrong) = (self.0, 0);
        for place in words {
            wrong |= u64::from_le_bytes(*place) ^ word;
            word = word.wrapping_add(STEP);
        }
        let left = rest.len();
        if left > 0 {
            wrong |= match part.last_chunk::<8>() {
                Some(place) => u64::from_le_bytes(*place) ^ tail(word.wrapping_sub(STEP), word, left),
                None => u64::from(*part != word.to_le_bytes()[..left]),
            };
        }
        wrong == 0
    }

    /// Whether these are the bytes from `position` on.
    fn matches_at(self, position: usize, part: &[u8]) -> bool {
        let lead = (position.wrapping_neg() % 8).min(part.len());
        let (lead, aligned) = part.split_at(lead);
        let whole = lead.iter().enumerate().all(|(offset, byte)| *byte == self.byte(position + offset));
        whole & Self(self.word(position.div_ceil(8))).matches(aligned)
    }

    /// The unfolded checksum of the first `length` bytes.
    pub(super) fn sum(self, length: usize) -> u64 {
        let mut sum = 0;
        for index in 0..length.div_ceil(8) {
            let mut bytes = self.word(index).to_le_bytes();
            bytes[(length - index * 8).min(8)..].fill(0);
            let [a, b, c, d, e, f, g, h] = bytes;
            sum = checksum::add32(checksum::add32(sum, [a, b, c, d]), [e, f, g, h]);
        }
        sum
    }
}

/// The eight bytes that end `left` (1 to 7) bytes into `word`, of which `before` is the word before.
#[inline(always)]
fn tail(before: u64, word: u64, left: usize) -> u64 {
    before >> (8 * left) | word << (64 - 8 * left)
}

/// What the headers of a test packet say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestPacket {
    /// Who sent it: the last 16 bits of the IPv4 source address.
    pub source: u16,
    /// The flow.
    pub flow: u16,
    /// Its number in the flow.
    pub sequence: u64,
}

/// Why a frame is not a whole test packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Somebody else's: no IPv4 with UDP and the magic number.
    Foreign,
    /// Ours, but a length, a checksum, a port number or the fill is wrong.
    Corrupt,
}

#[inline(always)]
fn be16(bytes: &[u8; FILL_AT], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Reads and checks a frame that lies in one piece. The Ethernet addresses may be anything: forwarders rewrite them.
#[inline]
pub fn read(frame: &[u8]) -> Result<TestPacket, Damage> {
    let (packet, fill) = read_head(frame, frame.len())?;
    if fill.matches(&frame[FILL_AT..]) { Ok(packet) } else { Err(Damage::Corrupt) }
}

/// The same for a packet, which may be a chain.
#[inline(always)]
pub(super) fn read_packet(packet: &Packet) -> Result<TestPacket, Damage> {
    if packet.is_chained() { read_chain(packet) } else { read(packet.data()) }
}

#[inline(never)]
fn read_chain(packet: &Packet) -> Result<TestPacket, Damage> {
    read_segments(packet.segments(), packet.total_len())
}

/// The same for a chain: `segments` in order, `length` bytes together. The first holds the headers, or it is foreign.
pub(super) fn read_segments<'a>(
    mut segments: impl Iterator<Item = &'a [u8]>,
    length: usize,
) -> Result<TestPacket, Damage> {
    let head = segments.next().unwrap_or_default();
    let (packet, fill) = read_head(head, length)?;
    let mut position = head.len() - FILL_AT;
    let mut whole = fill.matches(&head[FILL_AT..]);
    for segment in segments {
        whole &= fill.matches_at(position, segment);
        position += segment.len();
    }
    if whole { Ok(packet) } else { Err(Damage::Corrupt) }
}

/// The flow that a test packet's first segment names, checked no further; `None` where it is too short.
pub fn flow_of(frame: &[u8]) -> Option<u16> {
    frame.first_chunk::<FILL_AT>().map(|head| be16(head, FLOW_AT))
}

#[inline(always)]
fn read_head(frame: &[u8], length: usize) -> Result<(TestPacket, Fill), Damage> {
    let head = frame.first_chunk::<FILL_AT>().ok_or(Damage::Foreign)?;
    let ours = be16(head, 12) == 0x0800
        && head[IPV4_AT] == 0x45
        && head[IPV4_AT + 9] == 17
        && be16(head, MAGIC_AT) == MAGIC;
    if !ours {
        return Err(Damage::Foreign);
    }
    let flow = be16(head, FLOW_AT);
    let sequence = u64::from_be_bytes(*head[SEQUENCE_AT..].first_chunk().ok_or(Damage::Foreign)?);
    let fill = Fill::new(flow, sequence);
    let mut wrong = usize::from(be16(head, IPV4_AT + 2)) ^ length.wrapping_sub(IPV4_AT);
    wrong |= usize::from(be16(head, UDP_AT + 4)) ^ length.wrapping_sub(UDP_AT);
    wrong |= usize::from(be16(head, UDP_AT) ^ FIRST_SOURCE_PORT.wrapping_add(flow));
    wrong |= usize::from(be16(head, UDP_AT + 2) ^ DESTINATION_PORT);
    wrong |= usize::from(checksum::finish(checksum::add(0, &head[IPV4_AT..UDP_AT])));
    wrong |= usize::from(length < usize::from(MIN_SIZE));
    // The one number that has no successor.
    wrong |= usize::from(sequence == u64::MAX);
    if wrong == 0 && be16(head, UDP_AT + 6) != 0 {
        wrong = usize::from(udp_checksum_over(head, fill, length));
    }
    if wrong != 0 {
        return Err(Damage::Corrupt);
    }
    Ok((TestPacket { source: be16(head, IPV4_AT + 14), flow, sequence }, fill))
}

/// 0 where the UDP checksum is right. Not inlined: most packets have none, and the registers are needed.
#[inline(never)]
fn udp_checksum_over(head: &[u8; FILL_AT], fill: Fill, length: usize) -> u16 {
    let sum = checksum::add(pseudo_header(head), &head[UDP_AT..]);
    checksum::finish(sum + fill.sum(length - FILL_AT))
}

/// The unfolded sum of addresses, protocol and UDP length (RFC 768).
pub(super) fn pseudo_header(head: &[u8; FILL_AT]) -> u64 {
    let addresses = checksum::add(0, &head[IPV4_AT + 12..UDP_AT]);
    checksum::add_number(checksum::add_number(addresses, 17), be16(head, UDP_AT + 4))
}
