//! The Ethernet header (IEEE 802.3, clause 3): destination, source, type.
#![forbid(unsafe_code)]

use nic::{MacAddress, Packet};

/// A destination and a source address, laid out as on the wire: writing both is two stores and not twelve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses([u8; 12]);

impl Addresses {
    /// Lays them out.
    pub fn new(destination: MacAddress, source: MacAddress) -> Self {
        let mut bytes = [0; 12];
        bytes[..6].copy_from_slice(&destination.0);
        bytes[6..].copy_from_slice(&source.0);
        Self(bytes)
    }

    /// Writes them to a packet; one too short for them is left alone.
    #[inline(always)]
    pub fn write(self, packet: &mut Packet) {
        if let Some(header) = packet.data_mut().first_chunk_mut() {
            *header = self.0;
        }
    }
}
