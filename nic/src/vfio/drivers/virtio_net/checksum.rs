//! The part of checksum offload that virtio leaves to the driver: where the checksum is, and the sum of the pseudo header that it starts from (VIRTIO
//! 1.2, 5.1.6.2); on receive, checksums that a neighbour on the same host has left open.
#![forbid(unsafe_code)]

use crate::checksum::{add, finish};
use crate::ethernet::{ETHERNET_HEADER, vlan_bytes};
use crate::memory::Packet;
use crate::vfio::checksum as offload;

/// Stores what [`finish`] gives, which is in the machine's order.
fn put(data: &mut [u8], at: usize, value: u16) -> Option<()> {
    data.get_mut(at..at + 2)?.copy_from_slice(&value.to_ne_bytes());
    Some(())
}

/// Fills in the checksum of IPv4's header, and puts the pseudo header's sum where that of TCP or UDP is to be: where its bytes begin, and where from there
/// it goes. `None` where the rest is not for a device.
pub(super) fn prepare(packet: &mut Packet) -> Option<(u16, u16)> {
    let total = packet.total_len();
    let data = packet.data_mut();
    let offload = offload::prepare(data, total)?;
    if offload.is_ipv4 {
        let network = usize::from(offload.mac_len);
        let header = data.get(network..network + usize::from(offload.ip_len))?;
        put(data, network + 10, finish(add(0, header)))?;
    }
    Some((offload.l4_start() as u16, offload.l4?.checksum_offset() as u16))
}

/// Of a packet that [`prepare`] has given no place for: whether a checksum stays open all the same, as far as its first segment says.
pub(super) fn stays_open(packet: &Packet) -> bool {
    let data = packet.data();
    let network = ETHERNET_HEADER + vlan_bytes(data);
    let header = data.get(network..).unwrap_or(&[]);
    let protocol = match (data.get(network - 2..network), header) {
        (Some([0x08, 0x00]), [first, _, upper, lower, ..]) => {
            let (length, total) =
                (usize::from(first & 15) * 4, usize::from(u16::from_be_bytes([*upper, *lower])));
            // That of its own header is filled in, where all of that is there.
            let is_whole = (20..=total.min(header.len())).contains(&length);
            let is_right = first >> 4 == 4 && network + total <= packet.total_len();
            header.get(9).filter(|_| is_whole && is_right)
        }
        (Some([0x86, 0xDD]), _) => header.get(6),
        (Some([0x08, 0x00]), _) => None,
        // No IP at all.
        _ => return false,
    };
    // TCP and UDP, and in IPv6 what may be before them: hop-by-hop options, routing, a fragment, destination options (RFC 8200), authentication.
    protocol.is_none_or(|protocol| matches!(protocol, 6 | 17 | 0 | 43 | 44 | 51 | 60))
}

/// Sums from `start` to the packet's end, and puts the result `offset` behind `start`: what a device would do for
/// [`NEEDS_CSUM`](super::abi::header::NEEDS_CSUM). False, and nothing is changed, where these do not lie in the packet's first segment.
pub(super) fn complete(packet: &mut Packet, start: usize, offset: usize) -> bool {
    let place = start + offset;
    if place + 2 > packet.len() {
        return false;
    }
    let (mut total, mut skip, mut is_odd) = (0, start, false);
    for segment in packet.segments() {
        let part = segment.get(skip..).unwrap_or(&[]);
        skip = skip.saturating_sub(segment.len());
        // Bytes at odd places count for the lower half: their sum is swapped as a whole.
        let value = !finish(add(0, part));
        total += u64::from(if is_odd { value.swap_bytes() } else { value });
        is_odd ^= !part.len().is_multiple_of(2);
    }
    // 0 says "none" in UDP; in TCP both mean the same.
    let checksum = match finish(total) {
        0 => 0xFFFF,
        checksum => checksum,
    };
    put(packet.data_mut(), place, checksum).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Pool, PoolConfig};
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn build(ipv6: bool, tcp: bool, tags: usize, payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut bytes = Vec::new();
        macro_rules! finish {
            ($step:expr) => {
                if tcp {
                    $step.tcp(1, 2, 3, 4).write(&mut bytes, payload)
                } else {
                    $step.udp(1, 2).write(&mut bytes, payload)
                }
            };
        }
        let vlan = |id: u16| id.try_into().unwrap();
        match (ipv6, tags) {
            (false, 0) => finish!(ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)),
            (false, 1) => finish!(ethernet.single_vlan(vlan(7)).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)),
            (false, _) => {
                finish!(ethernet.double_vlan(vlan(7), vlan(8)).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64))
            }
            (true, 0) => finish!(ethernet.ipv6([1; 16], [2; 16], 64)),
            (true, 1) => finish!(ethernet.single_vlan(vlan(7)).ipv6([1; 16], [2; 16], 64)),
            (true, _) => finish!(ethernet.double_vlan(vlan(7), vlan(8)).ipv6([1; 16], [2; 16], 64)),
        }
        .unwrap();
        bytes
    }

    proptest! {
        /// What the driver leaves and the device completes is what another implementation computes; in one segment and in several.
        #[test]
        fn property_prepared_and_completed_it_is_the_right_checksum(
            ipv6: bool, tcp: bool, tags in 0_usize..3, payload in proptest::collection::vec(any::<u8>(), 0..600), cut in 0_usize..600,
        ) {
            let pool = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
            let right = build(ipv6, tcp, tags, &payload);
            let head = (right.len() - payload.len() + cut).min(right.len());
            let mut packet = pool.allocate(head).unwrap();
            packet.data_mut().copy_from_slice(&right[..head]);
            if head < right.len() {
                let mut tail = pool.allocate(right.len() - head).unwrap();
                tail.data_mut().copy_from_slice(&right[head..]);
                packet.chain(tail);
            }
            // Whatever is there does not matter.
            let network = 14 + 4 * tags;
            if !ipv6 {
                packet.data_mut()[network + 10..network + 12].fill(0xAA);
            }
            let transport = network + if ipv6 { 40 } else { 20 };
            let place = transport + if tcp { 16 } else { 6 };
            packet.data_mut()[place..place + 2].fill(0xBB);
            let (start, offset) = prepare(&mut packet).unwrap();
            prop_assert_eq!((start as usize, start as usize + offset as usize), (transport, place));
            prop_assert!(complete(&mut packet, start.into(), offset.into()));
            prop_assert_eq!(packet.to_vec(), right);
        }

        #[test]
        fn property_any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 1..200), start: u16, offset: u16, ipv4: bool) {
            let pool = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
            let mut packet = pool.allocate(bytes.len()).unwrap();
            packet.data_mut().copy_from_slice(&bytes);
            if ipv4 && bytes.len() > 24 {
                packet.data_mut()[12..15].copy_from_slice(&[8, 0, 0x45]);
            }
            prepare(&mut packet);
            complete(&mut packet, start.into(), offset.into());
            prop_assert_eq!(packet.len(), bytes.len());
        }
    }
}
