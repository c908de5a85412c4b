//! Which packets are received (7.1.1): those to the port's own address, broadcasts, all multicasts, everything if promiscuous; of some VLANs only if so wished.
#![forbid(unsafe_code)]

use super::device::Device;
use super::registers::*;
use crate::port::MacAddress;
use crate::vfio::intel::filters as tables;

const RECEIVE_ADDRESSES: usize = 128;
const TABLE_WORDS: usize = 128;

/// Sets all filters. `vlans`: their packets and those without a tag; all where it is empty.
pub(super) fn set(device: &Device, mac: MacAddress, promiscuous: bool, vlans: &[u16]) {
    let registers = &**device.registers();
    tables::set_address(registers, RAL(0), mac);
    tables::clear_addresses(registers, RAL(0), 1..RECEIVE_ADDRESSES);
    // All multicasts pass, so the table of their hashes is not used; but it has no value after power-on.
    device.update(MCSTCTRL, MCSTCTRL_MFE, 0);
    tables::set_table(registers, MTA(0), TABLE_WORDS, &[]);
    let unicast = if promiscuous { FCTRL_UPE } else { 0 };
    device.update(FCTRL, FCTRL_SBP | FCTRL_UPE, FCTRL_BAM | FCTRL_MPE | unicast);
    tables::set_table(registers, VFTA(0), TABLE_WORDS, vlans);
    let enable = if vlans.is_empty() { 0 } else { VLNCTRL_VFE };
    device.update(VLNCTRL, VLNCTRL_VFE, enable);
}
