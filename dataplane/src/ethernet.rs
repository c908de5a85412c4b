//! The Ethernet header (IEEE 802.3, clause 3): destination, source, type.
#![forbid(unsafe_code)]

use nic::{MacAddress, Packet};

/// Bytes of destination, source and type.
pub const HEADER_LEN: usize = 14;

/// Writes destination and source; a packet too short for them is left alone.
#[inline(always)]
pub fn set_addresses(packet: &mut Packet, destination: MacAddress, source: MacAddress) {
    if let Some(header) = packet.data_mut().first_chunk_mut::<12>() {
        // One 8-byte and one 4-byte store instead of twelve.
        let [a, b, c, d, e, f] = destination.0;
        let [g, h, i, j, k, l] = source.0;
        *header = [a, b, c, d, e, f, g, h, i, j, k, l];
    }
}
