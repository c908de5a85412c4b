//! The lengths of what comes before a packet's network header.
#![forbid(unsafe_code)]

/// Bytes of an Ethernet header, which the MTU does not count.
pub(crate) const ETHERNET_HEADER: usize = 14;

/// Bytes of VLAN tags, which the MTU does not count either: up to two.
pub(crate) fn vlan_bytes(data: &[u8]) -> usize {
    let is_tag = |at: usize| matches!(data.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8]));
    match (is_tag(12), is_tag(16)) {
        (false, _) => 0,
        (true, false) => 4,
        (true, true) => 8,
    }
}
