//! Where a packet's checksums are, for a device that fills them in, and the sum it starts from.
//!
//! The device sums from the start of TCP's or UDP's header on; the pseudo-header before it is the driver's, as the field's first value. What is no TCP or UDP
//! over IPv4 or IPv6 (a fragment, an extension header, a header beyond the first segment) is not offloaded.
#![forbid(unsafe_code)]

use crate::checksum;
use crate::ethernet::{ETHERNET_HEADER, vlan_bytes};
use crate::memory::Packet;

/// In an IPv4 header, MF and the offset.
const FRAGMENT: u16 = 0x3FFF;

/// The protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum L4 {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What a device has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offload {
    /// Bytes before the IP header: Ethernet and up to two VLAN tags.
    pub(crate) mac_len: u8,
    /// Bytes of the IP header.
    pub(crate) ip_len: u8,
    /// IPv4, whose header has a checksum.
    pub(crate) is_ipv4: bool,
    /// Whose checksum there is to be filled in, if any.
    pub(crate) l4: Option<L4>,
}

impl Offload {
    /// Where TCP's or UDP's header starts.
    pub(crate) fn l4_start(&self) -> usize {
        usize::from(self.mac_len) + usize::from(self.ip_len)
    }
}

impl L4 {
    /// Where its checksum is in its header.
    pub(crate) fn checksum_offset(self) -> usize {
        match self {
            L4::Tcp => 16,
            L4::Udp => 6,
        }
    }

    fn header_len(self) -> usize {
        match self {
            L4::Tcp => 20,
            L4::Udp => 8,
        }
    }

    fn from_protocol(protocol: u8) -> Option<Self> {
        match protocol {
            6 => Some(L4::Tcp),
            17 => Some(L4::Udp),
            _ => None,
        }
    }
}

/// Readies the first segment of a packet of `total` bytes: the checksum of IPv4's header becomes 0, that of TCP or UDP the sum of the pseudo-header.
/// `None`, and nothing changes, where there is nothing to be filled in.
pub(crate) fn prepare(data: &mut [u8], total: usize) -> Option<Offload> {
    let word = |data: &[u8], at: usize| Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let mut mac_len = 14;
    let mut ether_type = word(data, 12)?;
    for _ in 0..2 {
        if matches!(ether_type, 0x8100 | 0x88A8) {
            ether_type = word(data, mac_len + 2)?;
            mac_len += 4;
        }
    }
    let (is_ipv4, ip_len, mut l4, payload, addresses) = match ether_type {
        0x0800 => {
            let header = data.get(mac_len..mac_len + 20)?;
            let ip_len = usize::from(header[0] & 15) * 4;
            let payload = usize::from(word(header, 2)?).checked_sub(ip_len)?;
            // MF, or an offset: a fragment has not the whole of what the checksum is over.
            let fragment = word(header, 6)? & FRAGMENT != 0;
            let l4 = L4::from_protocol(header[9]).filter(|_| !fragment);
            (header[0] >> 4 == 4 && ip_len >= 20, ip_len, l4, payload, mac_len + 12..mac_len + 20)
        }
        0x86DD => {
            let header = data.get(mac_len..mac_len + 40)?;
            let payload = usize::from(word(header, 4)?);
            let l4 = L4::from_protocol(header[6]).filter(|_| header[0] >> 4 == 6);
            (false, 40, l4, payload, mac_len + 8..mac_len + 40)
        }
        _ => return None,
    };
    if ether_type == 0x0800 && !is_ipv4 || mac_len + ip_len + payload > total || mac_len + ip_len > data.len()
    {
        return None;
    }
    let start = mac_len + ip_len;
    // Its header is in the first segment, and in the packet.
    l4 = l4.filter(|l4| payload >= l4.header_len() && data.len() >= start + l4.header_len());
    if let Some(l4) = l4 {
        let protocol = if l4 == L4::Tcp { 6 } else { 17 };
        let sum = checksum::add_number(checksum::add_number(0, protocol), payload as u16);
        let sum = !checksum::finish(checksum::add(sum, data.get(addresses)?));
        let field = start + l4.checksum_offset();
        data.get_mut(field..field + 2)?.copy_from_slice(&sum.to_ne_bytes());
    } else if !is_ipv4 {
        return None;
    }
    if is_ipv4 {
        data.get_mut(mac_len + 10..mac_len + 12)?.fill(0);
    }
    Some(Offload { mac_len: mac_len as u8, ip_len: ip_len as u8, is_ipv4, l4 })
}

/// Whether a packet that wants its checksums filled in, and for whose TCP or UDP [`prepare`] has found no place, would go out with a wrong one, as far as its
/// first segment says. A fragment would not: what its checksum is over was whole before it.
pub(crate) fn stays_open(packet: &Packet) -> bool {
    let data = packet.data();
    let network = ETHERNET_HEADER + vlan_bytes(data);
    let header = data.get(network..).unwrap_or(&[]);
    let protocol = match data.get(network - 2..network) {
        Some([0x08, 0x00]) => {
            let [first, _, upper, lower, _, _, fragment, more, _, protocol, ..] = header else { return true };
            let (length, total) =
                (usize::from(first & 15) * 4, usize::from(u16::from_be_bytes([*upper, *lower])));
            // That of its own header is filled in, where all of that is there.
            let is_whole = (20..=total.min(header.len())).contains(&length);
            if !is_whole || first >> 4 != 4 || network + total > packet.total_len() {
                return true;
            }
            if u16::from_be_bytes([*fragment, *more]) & FRAGMENT != 0 {
                return false;
            }
            *protocol
        }
        Some([0x86, 0xDD]) => match header.get(6) {
            Some(next) => *next,
            None => return true,
        },
        // No IP at all.
        Some(_) => return false,
        None => return true,
    };
    // TCP and UDP, and in IPv6 what may be before them: hop-by-hop options, routing, destination options (RFC 8200), authentication.
    matches!(protocol, 6 | 17 | 0 | 43 | 51 | 60)
}
