//! What kind of packet is punted, as far as the limits go: read from its first headers, whatever is wrong with it.
#![forbid(unsafe_code)]

pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const ICMPV6: u8 = 58;
/// Where the type is in an Ethernet header, and where the payload begins.
const TYPE: usize = 12;
const PAYLOAD: usize = 14;

/// Each class has a limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Arp,
    /// ICMP and ICMPv6, neighbour discovery with it.
    Icmp,
    Tcp,
    Other,
}

impl Class {
    pub(super) const COUNT: usize = 4;

    /// The names in `--punt-limit`, by number.
    pub(super) const NAMES: [&'static str; Self::COUNT] = ["arp", "icmp", "tcp", "other"];

    /// Of an Ethernet frame, with one VLAN tag at most.
    pub(super) fn of(frame: &[u8]) -> Self {
        let (kind, payload) = match payload(frame) {
            Some((ETHERTYPE_VLAN, tag)) if tag.len() >= 4 => {
                (u16::from_be_bytes([tag[2], tag[3]]), &tag[4..])
            }
            Some(untagged) => untagged,
            None => return Self::Other,
        };
        let protocol = match kind {
            ETHERTYPE_ARP => return Self::Arp,
            ETHERTYPE_IPV4 => payload.get(9),
            ETHERTYPE_IPV6 => payload.get(6),
            _ => None,
        };
        match protocol {
            Some(&(ICMP | ICMPV6)) => Self::Icmp,
            Some(&TCP) => Self::Tcp,
            _ => Self::Other,
        }
    }
}

/// The type of an Ethernet frame and what follows it.
pub(super) fn payload(frame: &[u8]) -> Option<(u16, &[u8])> {
    let kind = frame.get(TYPE..PAYLOAD)?;
    Some((u16::from_be_bytes([kind[0], kind[1]]), &frame[PAYLOAD..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u16, rest: &[u8]) -> Vec<u8> {
        [&[0; 12][..], &kind.to_be_bytes(), rest].concat()
    }

    #[test]
    fn the_class_is_that_of_the_first_protocol() {
        let ipv4 = |protocol| [&[0x45, 0, 0, 0, 0, 0, 0, 0, 64][..], &[protocol], &[0; 10]].concat();
        let ipv6 = |next| [&[0x60, 0, 0, 0, 0, 0][..], &[next], &[0; 33]].concat();
        for (class, frame) in [
            (Class::Arp, frame(0x0806, &[0; 28])),
            (Class::Icmp, frame(0x0800, &ipv4(1))),
            (Class::Icmp, frame(0x86dd, &ipv6(58))),
            (Class::Tcp, frame(0x0800, &ipv4(6))),
            (Class::Tcp, frame(0x86dd, &ipv6(6))),
            (Class::Tcp, frame(0x8100, &[&[0, 7, 8, 0][..], &ipv4(6)].concat())),
            (Class::Other, frame(0x0800, &ipv4(17))),
            (Class::Other, frame(0x88cc, &[0; 40])),
            (Class::Other, frame(0x0800, &[0x45])),
            (Class::Other, frame(0x8100, &[0, 7, 8])),
            (Class::Other, vec![0; 13]),
        ] {
            assert_eq!(Class::of(&frame), class, "{frame:x?}");
        }
    }

    proptest! {
        #[test]
        fn property_any_bytes_have_a_class(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let class = Class::of(&bytes);
            prop_assert!((class as usize) < Class::COUNT);
        }
    }
}
