//! Which packets are received (7.1.1): those to the port's own address, broadcasts, all multicasts, everything if promiscuous; of some VLANs only if so wished.
#![forbid(unsafe_code)]

use super::device::Device;
use super::registers::*;
use crate::port::MacAddress;

const RECEIVE_ADDRESSES: usize = 128;
const TABLE_WORDS: usize = 128;

/// Sets all filters. `vlans`: their packets and those without a tag; all where it is empty.
pub(super) fn set(device: &Device, mac: MacAddress, promiscuous: bool, vlans: &[u16]) {
    let [a, b, c, d, e, f] = mac.0;
    device.write(RAL(0), u32::from_le_bytes([a, b, c, d]));
    device.write(RAH(0), u32::from_le_bytes([e, f, 0, 0]) | RAH_AV);
    for index in 1..RECEIVE_ADDRESSES {
        device.write(RAL(index), 0);
        device.write(RAH(index), 0);
    }
    // All multicasts pass, so the table of their hashes is not used; but it has no value after power-on.
    device.update(MCSTCTRL, MCSTCTRL_MFE, 0);
    for word in 0..TABLE_WORDS {
        device.write(MTA(word), 0);
    }
    let unicast = if promiscuous { FCTRL_UPE } else { 0 };
    device.update(FCTRL, FCTRL_SBP | FCTRL_UPE, FCTRL_BAM | FCTRL_MPE | unicast);
    let mut table = [0_u32; TABLE_WORDS];
    for vlan in vlans.iter().map(|vlan| usize::from(vlan & 0xFFF)) {
        table[vlan / 32] |= 1 << (vlan % 32);
    }
    for (word, bits) in table.into_iter().enumerate() {
        device.write(VFTA(word), bits);
    }
    let enable = if vlans.is_empty() { 0 } else { VLNCTRL_VFE };
    device.update(VLNCTRL, VLNCTRL_VFE, enable);
}
