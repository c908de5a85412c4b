//! A packet's way in: filters, the choice of a queue, descriptors (7.1).
#![forbid(unsafe_code)]

use super::Inner;
use super::map::MAP;
use super::parse::{self, Ip, Seen};
use super::toeplitz;

const BROADCAST: [u8; 6] = [0xFF; 6];
const FCS: usize = 4;

/// What became of a packet from the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vfio::drivers::ixgbe) enum Fate {
    /// It is in the memory of this queue.
    Received(usize),
    /// There is no link, or receive is off: nobody saw it.
    Nobody,
    /// For another station, or another VLAN.
    Filtered,
    /// Longer than MAXFRS, or shorter than 64 bytes.
    Length,
    /// This queue had no descriptor for it.
    NoDescriptor(usize),
    /// The packet buffer had no room.
    Missed,
}

impl Inner {
    pub(super) fn wire(&mut self, packet: &[u8]) -> Fate {
        if !self.link_is_up() || self.get("RXCTRL", 0) & 1 == 0 {
            return Fate::Nobody;
        }
        let vet = self.get("VLNCTRL", 0) as u16;
        let seen = parse::see(packet, vet);
        if let Some(counter) = self.wrong_length(packet, &seen) {
            self.count(counter, 0);
            return Fate::Length;
        }
        if !self.passes(packet, &seen) {
            return Fate::Filtered;
        }
        self.count("GPRC", 0);
        if packet[..6] == BROADCAST {
            self.count("BPRC", 0);
        } else if packet[0] & 1 != 0 {
            self.count("MPRC", 0);
        }
        if !self.bus_master {
            self.count("MPC", 0);
            return Fate::Missed;
        }
        let (queue, hash) = self.choose(packet, &seen);
        self.deliver(packet, &seen, queue, hash)
    }

    /// The counter of packets with such a length, if it is wrong.
    fn wrong_length(&self, packet: &[u8], seen: &Seen) -> Option<&'static str> {
        let jumbo = self.get("HLREG0", 0) & 4 != 0;
        let most = if jumbo { (self.get("MAXFRS", 0) >> 16) as usize } else { 1518 };
        let tag = if seen.vlan.is_some() { 4 } else { 0 };
        match packet.len() + FCS {
            ..64 => Some("RUC"),
            length if length > most + tag => Some("ROC"),
            _ => None,
        }
    }

    /// 7.1.1: by address, then by VLAN.
    fn passes(&self, packet: &[u8], seen: &Seen) -> bool {
        let filter = self.get("FCTRL", 0);
        let exact = || {
            let first = MAP.place("RAL", 0) / 4;
            self.values[first..first + 256].chunks_exact(2).any(|pair| {
                let (low, high) = (pair[0].to_le_bytes(), pair[1]);
                high >> 31 == 1 && packet[..4] == low && packet[4..6] == high.to_le_bytes()[..2]
            })
        };
        let address = if packet[..6] == BROADCAST {
            filter & 1 << 10 != 0
        } else if packet[0] & 1 != 0 {
            filter & 1 << 8 != 0 || self.get("MCSTCTRL", 0) & 4 != 0 && self.hashed(packet) || exact()
        } else {
            filter & 1 << 9 != 0 || exact()
        };
        let vlan = match seen.vlan {
            Some(vlan) if self.get("VLNCTRL", 0) & 1 << 30 != 0 => {
                self.get("VFTA", usize::from(vlan / 32)) & 1 << (vlan % 32) != 0
            }
            _ => true,
        };
        address && vlan
    }

    /// 8.2.3.7.4, with MCSTCTRL.MO 00: bits 47:36 of the address.
    fn hashed(&self, packet: &[u8]) -> bool {
        let bits = u32::from(u16::from_le_bytes([packet[4], packet[5]])) >> 4;
        self.get("MTA", (bits / 32) as usize) & 1 << (bits % 32) != 0
    }

    /// The queue, and the hash with its type if there is one (7.1.2.8).
    fn choose(&self, packet: &[u8], seen: &Seen) -> (usize, Option<(u32, u32)>) {
        let mrqc = self.get("MRQC", 0);
        let Some(ip) = seen.ip.as_ref().filter(|_| mrqc & 15 == 1) else { return (0, None) };
        // Field, type: with ports if it may be, without if not.
        let on = |bit: u32| mrqc & 1 << bit != 0;
        let found = match (ip.is_v6, ip.l4) {
            (false, Some(6)) if on(16) => Some((true, 1)),
            (false, Some(17)) if on(22) => Some((true, 7)),
            (true, Some(6)) if on(21) => Some((true, 3)),
            (true, Some(17)) if on(23) => Some((true, 8)),
            (false, _) if on(17) => Some((false, 2)),
            (true, _) if on(20) => Some((false, 5)),
            _ => None,
        };
        let Some((with_ports, kind)) = found else { return (0, None) };
        let mut key = [0; 40];
        for (word, bytes) in key.chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&self.get("RSSRK", word).to_le_bytes());
        }
        let ports = if with_ports { ip.ports(packet) } else { &[] };
        let hash = toeplitz::hash(&key, ip.addresses.iter().chain(ports).copied());
        let entry = hash as usize % (self.kind.reta_words * 4);
        let word =
            if entry < 128 { self.get("RETA", entry / 4) } else { self.get("ERETA", (entry - 128) / 4) };
        (usize::from(word.to_le_bytes()[entry % 4] & 15), Some((hash, kind)))
    }

    fn deliver(&mut self, packet: &[u8], seen: &Seen, queue: usize, hash: Option<(u32, u32)>) -> Fate {
        let control = self.get("SRRCTL", queue);
        let size = (control & 31).max(1) as usize * 1024;
        let counter = (self.get("RQSMR", queue / 4).to_le_bytes()[queue % 4] & 15) as usize;
        let needed = packet.len().div_ceil(size);
        if !self.rx[queue].enabled || self.rx[queue].fetched.len() < needed {
            // Without DROP_EN it blocks the packet buffer, and those behind it are missed.
            let dropped = control & 1 << 28 != 0 || !self.rx[queue].enabled;
            self.count(if dropped { "QPRDC" } else { "MPC" }, if dropped { counter } else { 0 });
            return if dropped { Fate::NoDescriptor(queue) } else { Fate::Missed };
        }
        let base = u64::from(self.get("RDBAL", queue)) | u64::from(self.get("RDBAH", queue)) << 32;
        let ring = self.get("RDLEN", queue) / 16;
        for (at, part) in packet.chunks(size).enumerate() {
            let Some((index, address)) = self.rx[queue].fetched.pop_front() else { break };
            if !self.store("a receive buffer", address, part) {
                return Fate::Missed;
            }
            let end = at + 1 == needed;
            let words = write_back(packet, seen, part.len(), end, hash);
            let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
            self.store("a receive descriptor", base + u64::from(index) * 16, &bytes);
            self.set("RDH", queue, (index + 1) % ring);
        }
        self.count("QPRC", counter);
        self.count("RXDGPC", 0);
        Fate::Received(queue)
    }
}

/// The advanced receive descriptor as it is written back (7.1.6.2).
fn write_back(packet: &[u8], seen: &Seen, length: usize, end: bool, hash: Option<(u32, u32)>) -> [u64; 2] {
    let mut status: u64 = 1 | u64::from(end) << 1;
    // NEXTP, which only RSC uses, may hold anything in all but the last.
    if !end {
        return [0, status | 0x7_FFF0 | (length as u64) << 32];
    }
    if seen.vlan.is_some() {
        status |= 1 << 3;
    }
    let mut types = 0;
    if let Some(ip) = &seen.ip {
        status |= checksums(packet, ip);
        types |= if ip.is_v6 { 4 } else { 1 };
        types |= match ip.l4 {
            Some(6) => 1 << 4,
            Some(17) => 1 << 5,
            _ => 0,
        };
    }
    let (hash, kind) = hash.unwrap_or_default();
    let first = u64::from(kind) | types << 4 | u64::from(hash) << 32;
    [first, status | (length as u64) << 32]
}

/// Status and error bits of what was checked (7.1.11).
fn checksums(packet: &[u8], ip: &Ip) -> u64 {
    let mut bits = 0;
    if !ip.is_v6 {
        bits |= 1 << 6;
        bits |= if ip.header_is_good(packet) { 0 } else { 1 << 31 };
    }
    match ip.l4_is_good(packet) {
        Some(good) => bits | 1 << 5 | if good { 0 } else { 1 << 30 },
        None => bits,
    }
}
