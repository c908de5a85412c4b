//! Packets to receive queues, by a hash of their addresses and ports (7.1.2.8).
#![forbid(unsafe_code)]

use super::device::Device;
use super::registers::*;

/// The key of Microsoft's examples, which other drivers use too: a capture shows in which queue a flow ought to be.
pub(super) const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// What is hashed. A UDP flow of which some packets are fragments would be split if ports counted for UDP; without them all flows
/// between two hosts share a queue. Forwarders seldom see fragments.
const FIELDS: u32 = MRQC_TCPIPV4 | MRQC_IPV4 | MRQC_IPV6 | MRQC_TCPIPV6 | MRQC_UDPIPV4 | MRQC_UDPIPV6;
/// Words of the redirection table that all chips have.
const RETA_WORDS: usize = 32;

/// Spreads packets over so many queues, 1 to 16; with 1 all go to queue 0.
pub(super) fn set(device: &Device, queues: u16) {
    if queues <= 1 {
        return device.write(MRQC, 0);
    }
    for (word, bytes) in KEY.chunks_exact(4).enumerate() {
        device.write(RSSRK(word), u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    }
    for word in 0..device.chip.reta_entries / 4 {
        let queue = |entry: usize| (entry % usize::from(queues)) as u8;
        let entries = [0, 1, 2, 3].map(|entry| queue(word * 4 + entry));
        let register = if word < RETA_WORDS { RETA(word) } else { ERETA(word - RETA_WORDS) };
        device.write(register, u32::from_le_bytes(entries));
    }
    device.write(MRQC, MRQC_RSS | FIELDS);
}
