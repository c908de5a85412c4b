//! Which packets are for the port itself: the usual choice of what to punt.
#![forbid(unsafe_code)]

use super::addresses::Addresses;
use super::class::{ETHERTYPE_ARP, ETHERTYPE_IPV6, ICMPV6, payload};
use crate::outputs::Outputs;
use nic::{Batch, MacAddress, Packet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Where an ARP packet for Ethernet and IPv4 has the address that is asked for (RFC 826).
const ARP_TARGET: usize = 24;
/// What it begins with: Ethernet, IPv4, and the lengths of their addresses.
const ARP_START: [u8; 6] = [0, 1, 8, 0, 6, 4];
const IPV6_NEXT_HEADER: usize = 6;
const IPV6_HEADER: usize = 40;
/// Neighbour solicitation and advertisement (RFC 4861), which have the address behind eight bytes.
const NEIGHBOUR: [u8; 2] = [135, 136];
const NEIGHBOUR_TARGET: usize = IPV6_HEADER + 8;

/// Knows the packets that are for a port itself: those to its own Ethernet address, and broadcasts and multicasts of ARP and of
/// IPv6 neighbour discovery that ask for an address of its exception port's interface.
#[derive(Clone, Debug)]
pub struct Local {
    mac: MacAddress,
    addresses: Arc<Addresses>,
}

impl Local {
    pub(crate) fn new(mac: MacAddress, addresses: Arc<Addresses>) -> Self {
        Self { mac, addresses }
    }

    /// Whether the packet is for the port itself.
    #[inline]
    pub fn is_for(&self, packet: &Packet) -> bool {
        let frame = packet.data();
        match frame.first_chunk::<6>() {
            Some(destination) if *destination == self.mac.0 => true,
            Some(destination) if destination[0] & 1 != 0 => self.asks_for_us(frame),
            _ => false,
        }
    }

    /// Punts those packets of the batch that are for the port itself, and leaves the others in it, in their order.
    #[inline]
    pub fn punt(&self, packets: &mut Batch, out: &mut Outputs) {
        if packets.iter().any(|packet| self.is_for(packet)) {
            let mut ours = Batch::new();
            packets.partition(&mut ours, |packet| !self.is_for(packet));
            out.punt_all(&mut ours);
        }
    }

    #[cold]
    fn asks_for_us(&self, frame: &[u8]) -> bool {
        target(frame).is_some_and(|target| self.addresses.contains(target))
    }
}

/// The address that an ARP or neighbour discovery packet is about.
fn target(frame: &[u8]) -> Option<IpAddr> {
    match payload(frame)? {
        (ETHERTYPE_ARP, arp) if arp.starts_with(&ARP_START) => {
            let target: [u8; 4] = *arp.get(ARP_TARGET..)?.first_chunk()?;
            Some(IpAddr::V4(Ipv4Addr::from(target)))
        }
        (ETHERTYPE_IPV6, ip)
            if ip.get(IPV6_NEXT_HEADER) == Some(&ICMPV6)
                && NEIGHBOUR.contains(ip.get(IPV6_HEADER).unwrap_or(&0)) =>
        {
            let target: [u8; 16] = *ip.get(NEIGHBOUR_TARGET..)?.first_chunk()?;
            Some(IpAddr::V6(Ipv6Addr::from(target)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nic::{Pool, PoolConfig};
    use proptest::prelude::*;

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 7]);

    fn local() -> Local {
        let addresses = Arc::new(Addresses::default());
        addresses.set(["10.0.0.7", "fd00::7"].map(|text| text.parse().unwrap()));
        Local::new(MAC, addresses)
    }

    fn frame(destination: [u8; 6], kind: u16, rest: &[u8]) -> Vec<u8> {
        [&destination[..], &[2, 0, 0, 0, 0, 1], &kind.to_be_bytes(), rest].concat()
    }

    fn arp(target: [u8; 4]) -> Vec<u8> {
        [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[0; 16], &target].concat()
    }

    fn neighbour(kind: u8, target: &str) -> Vec<u8> {
        let target: Ipv6Addr = target.parse().unwrap();
        [&[0x60, 0, 0, 0, 0, 24, 58, 255][..], &[0; 32], &[kind], &[0; 7], &target.octets()].concat()
    }

    #[test]
    fn what_is_for_the_port_is_told_from_what_is_for_others() {
        let pool = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
        let local = local();
        let (all, multicast) = ([0xff; 6], [0x33, 0x33, 0xff, 0, 0, 7]);
        for (ours, bytes) in [
            (true, frame(MAC.0, 0x0800, &[0; 46])),
            (false, frame([2, 0, 0, 0, 0, 8], 0x0806, &arp([10, 0, 0, 7]))),
            (true, frame(all, 0x0806, &arp([10, 0, 0, 7]))),
            (false, frame(all, 0x0806, &arp([10, 0, 0, 8]))),
            (false, frame(all, 0x0800, &arp([10, 0, 0, 7]))),
            (false, frame(all, 0x0806, &arp([10, 0, 0, 7])[..27])),
            (true, frame(multicast, 0x86dd, &neighbour(135, "fd00::7"))),
            (true, frame(multicast, 0x86dd, &neighbour(136, "fd00::7"))),
            (false, frame(multicast, 0x86dd, &neighbour(135, "fd01::7"))),
            (false, frame(multicast, 0x86dd, &neighbour(134, "fd00::7"))),
            (false, frame(multicast, 0x86dd, &neighbour(135, "fd00::7")[..63])),
            (false, vec![0xff; 5]),
        ] {
            let mut packet = pool.allocate(bytes.len()).unwrap();
            packet.data_mut().copy_from_slice(&bytes);
            assert_eq!(local.is_for(&packet), ours, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn property_any_bytes_are_for_somebody(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            // A broadcast, or the reader sees little of it.
            let mut bytes = bytes;
            bytes.iter_mut().take(6).for_each(|byte| *byte = 0xff);
            prop_assert!(!local().asks_for_us(&bytes) || bytes.len() >= 42);
        }
    }
}
