//! Packets to receive queues, by a hash of their addresses and ports (7.1.2.8). The X550 tells four times as many hashes apart: what of its table is not
//! written sends packets to queue 0.
#![forbid(unsafe_code)]

use super::device::Device;
use super::registers::*;
use crate::vfio::intel::rss::KEY;

/// What is hashed; UDP by its addresses alone, for the reason that [`rss`](crate::vfio::intel::rss) gives.
const FIELDS: u32 = MRQC_TCPIPV4 | MRQC_IPV4 | MRQC_IPV6 | MRQC_TCPIPV6;
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
