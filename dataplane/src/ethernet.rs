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

#[cfg(test)]
mod tests {
    use super::*;
    use nic::{Pool, PoolConfig};

    #[test]
    fn the_destination_goes_first_and_nothing_else_is_touched() {
        let [destination, source] =
            [0x10, 0x20].map(|from| MacAddress([0, 1, 2, 3, 4, 5].map(|byte| from + byte)));
        let addresses = Addresses::new(destination, source);
        let pool = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
        let mut packet = pool.allocate(15).unwrap();
        packet.data_mut().fill(0xEE);
        addresses.write(&mut packet);
        let expected =
            [0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0xEE, 0xEE, 0xEE];
        assert_eq!(packet.data(), expected);
        // One byte too short for both.
        let mut short = pool.allocate(11).unwrap();
        short.data_mut().fill(0xEE);
        addresses.write(&mut short);
        assert_eq!(short.data(), [0xEE; 11]);
    }
}
