//! The IP addresses of an exception port's interface, which the control core reads and workers look at.
//!
//! A broadcast that asks for one of them is the kernel's business, one that asks for another host's is not; and whoever gives the
//! interface an address does so while workers run. A slot is two words: one that is being changed may be misread for a moment,
//! which costs a question that is asked again.
#![forbid(unsafe_code)]

use crate::registry::Registry;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Addresses of one interface that are known at most.
const MOST: usize = 32;

/// The table; IPv4 addresses are in it as mapped ones (RFC 4291, 2.5.5.2).
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    count: AtomicUsize,
    slots: [[AtomicU64; 2]; MOST],
}

fn halves(address: IpAddr) -> [u64; 2] {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let bits = u128::from(address);
    [(bits >> 64) as u64, bits as u64]
}

impl Addresses {
    /// Whether the interface has it.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let [high, low] = halves(address);
        let count = self.count.load(Ordering::Relaxed).min(MOST);
        self.slots[..count].iter().any(|[slot_high, slot_low]| {
            slot_low.load(Ordering::Relaxed) == low && slot_high.load(Ordering::Relaxed) == high
        })
    }

    /// Puts these in, and no others.
    pub(crate) fn set(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let mut count = 0;
        for (slot, address) in self.slots.iter().zip(addresses) {
            for (word, half) in slot.iter().zip(halves(address)) {
                word.store(half, Ordering::Relaxed);
            }
            count += 1;
        }
        self.count.store(count, Ordering::Relaxed);
    }
}

/// Reads the addresses of all exception ports' interfaces.
pub(crate) fn refresh(registry: &Registry) {
    if registry.ports.iter().all(|entry| entry.exception.is_none()) {
        return;
    }
    // Next time, then.
    let Ok(all) = getifaddrs() else { return };
    let all: Vec<(u32, IpAddr)> = all
        .filter_map(|entry| {
            let address = entry.address?;
            let ipv4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            let ipv6 = address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()));
            // An address may have a label of its own, NAME:LABEL, which the kernel gives in the name's place; and names change.
            let name = entry.interface_name.split(':').next()?;
            Some((if_nametoindex(name).ok()?, ipv4.or(ipv6)?))
        })
        .collect();
    for exception in registry.ports.iter().filter_map(|entry| entry.exception.as_ref()) {
        let of = all.iter().filter(|(index, _)| *index == exception.ifindex);
        exception.addresses.set(of.map(|(_, address)| *address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_last_is_what_it_contains() {
        let addresses = Addresses::default();
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(!addresses.contains(parse("0.0.0.0")) && !addresses.contains(parse("::")));
        addresses.set([parse("10.0.0.1"), parse("fd00::1")]);
        assert!(addresses.contains(parse("10.0.0.1")) && addresses.contains(parse("fd00::1")));
        for other in ["10.0.0.2", "fd00::2", "fd01::1", "::1"] {
            assert!(!addresses.contains(parse(other)), "{other}");
        }
        addresses.set([parse("10.0.0.2")]);
        assert!(addresses.contains(parse("10.0.0.2")));
        assert!(!addresses.contains(parse("10.0.0.1")) && !addresses.contains(parse("fd00::1")));
        addresses.set((0..100).map(|last| IpAddr::from([10, 1, 0, last])));
        assert!(addresses.contains(parse("10.1.0.31")) && !addresses.contains(parse("10.1.0.32")));
    }
}
