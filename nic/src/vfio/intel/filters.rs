//! What a NIC lets through: its own addresses, multicast, VLANs. The tables are the same in all chips, their places are not.
#![forbid(unsafe_code)]

use crate::port::MacAddress;
use crate::vfio::registers::RegisterSpace;

/// RAH: the entry is used (AV).
pub(crate) const ADDRESS_VALID: u32 = 1 << 31;

/// The address in the pair of registers RAL, RAH at `offset`, as the device read it from its NVM; `None` where there is none that a station can have.
pub(crate) fn own_address(registers: &dyn RegisterSpace, offset: usize) -> Option<MacAddress> {
    let (low, high) = (registers.read32(offset), registers.read32(offset + 4));
    let [a, b, c, d] = low.to_le_bytes();
    let [e, f, _, _] = high.to_le_bytes();
    let address = [a, b, c, d, e, f];
    // All ones is what a device that is gone says; it is a group address, too.
    (address[0] & 1 == 0 && address != [0; 6]).then_some(MacAddress(address))
}

/// Writes the pair.
pub(crate) fn set_address(registers: &dyn RegisterSpace, offset: usize, address: MacAddress) {
    let [a, b, c, d, e, f] = address.0;
    registers.write32(offset, u32::from_le_bytes([a, b, c, d]));
    registers.write32(offset + 4, u32::from_le_bytes([e, f, 0, 0]) | ADDRESS_VALID);
}

/// Clears the pairs `from` up to `to` of those that start at `offset`.
pub(crate) fn clear_addresses(
    registers: &dyn RegisterSpace,
    offset: usize,
    pairs: impl Iterator<Item = usize>,
) {
    for pair in pairs {
        registers.write32(offset + pair * 8, 0);
        registers.write32(offset + pair * 8 + 4, 0);
    }
}

/// Fills a table of bits: the multicast table, or the VLANs' (VFTA), of which each has a bit of 4096.
pub(crate) fn set_table(registers: &dyn RegisterSpace, offset: usize, words: usize, bits: &[u16]) {
    for word in 0..words {
        let of_word = bits.iter().filter(|bit| usize::from(**bit / 32) == word);
        registers.write32(offset + word * 4, of_word.fold(0, |value, bit| value | 1 << (bit % 32)));
    }
}
