//! A packet's way out: descriptors, checksums, the wire (7.2).
#![forbid(unsafe_code)]

use super::parse::sum;
use super::{Inner, Sent};

/// Descriptors of one packet at most (7.2.3.3), and the shortest packet that TXPADEN can pad.
const MOST_DESCRIPTORS: usize = 40;
const SHORTEST: usize = 17;
const LONGEST: usize = 15_872 - 4;

/// A data descriptor (7.2.3.2.4).
struct Data {
    address: u64,
    word: u64,
}

impl Data {
    fn length(&self) -> usize {
        (self.word & 0xFFFF) as usize
    }

    fn bit(&self, bit: u32) -> bool {
        self.word & 1 << bit != 0
    }

    fn payload_length(&self) -> usize {
        (self.word >> 46) as usize
    }
}

impl Inner {
    /// All queues send what they have.
    pub(super) fn transmit_all(&mut self) {
        (0..self.tx.len())
            .filter(|queue| self.tx[*queue].enabled)
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|queue| self.transmit(queue));
    }

    fn may_send(&mut self, queue: usize) -> bool {
        self.tx[queue].enabled
            && !self.tx[queue].hung
            && self.bus_master
            && self.get("DMATXCTL", 0) & 1 != 0
            && self.link_is_up()
    }

    /// A queue sends all up to its tail.
    pub(super) fn transmit(&mut self, queue: usize) {
        if !self.may_send(queue) {
            return;
        }
        let ring = self.get("TDLEN", queue) / 16;
        let base = u64::from(self.get("TDBAL", queue)) | u64::from(self.get("TDBAH", queue)) << 32;
        let mut packet: Vec<Data> = Vec::new();
        let mut at = self.get("TDH", queue);
        while at != self.get("TDT", queue) {
            let Some(words) = self.fetch::<16>("a transmit descriptor", base + u64::from(at) * 16) else {
                // Silicon stops the queue.
                self.tx[queue].hung = true;
                return;
            };
            let (low, high) = words.split_at(8);
            let [low, high] = [low, high].map(|half| u64::from_le_bytes(half.try_into().unwrap_or_default()));
            match (high >> 29 & 1, high >> 20 & 15) {
                (1, 2) if packet.is_empty() => self.context(queue, low, high),
                (1, 2) => self.violation("a context descriptor in the middle of a packet"),
                (1, 3) => packet.push(Data { address: low, word: high }),
                (0, _) => self.violation("a legacy descriptor"),
                (_, kind) => self.violation(format!("a descriptor of the reserved type {kind}")),
            }
            let ended = packet.last().is_some_and(|data| data.bit(24));
            if ended {
                let data = std::mem::take(&mut packet);
                if !self.send(queue, &data) {
                    self.tx[queue].hung = true;
                    return;
                }
            }
            if high & 1 << 27 != 0 {
                // All but DD is written over.
                let done = (1_u64 << 32).to_le_bytes();
                self.store("a transmit descriptor", base + u64::from(at) * 16 + 8, &done);
            }
            at = (at + 1) % ring;
            if packet.is_empty() {
                self.set("TDH", queue, at);
            }
        }
        if !packet.is_empty() {
            self.violation("TDT in the middle of a packet");
        }
    }

    /// 7.2.3.2.3.
    fn context(&mut self, queue: usize, low: u64, high: u64) {
        let (ip_len, mac_len) = (low & 0x1FF, low >> 9 & 0x7F);
        let is_v4 = high & 1 << 10 != 0;
        if low >> 32 != 0 || high & !(0xF << 9 | 3 << 11 | 0xF << 20 | 1 << 29 | 1 << 36) != 0 {
            self.violation("a context descriptor: reserved bits, or those of segmentation and security");
        }
        if mac_len < 14 || ip_len % 2 != 0 || is_v4 && !(20..=60).contains(&ip_len) || !is_v4 && ip_len < 40 {
            self.violation(format!("a context descriptor: MACLEN {mac_len}, IPLEN {ip_len}"));
        }
        self.tx[queue].contexts[(high >> 36 & 1) as usize] = Some([low, high]);
    }

    /// Checks a packet's descriptors and sends it; false after a fault.
    fn send(&mut self, queue: usize, data: &[Data]) -> bool {
        let first = &data[0];
        if data.len() > MOST_DESCRIPTORS {
            self.violation(format!("a packet of {} descriptors", data.len()));
        }
        if data.iter().any(|data| data.length() == 0) {
            self.violation("a data descriptor without data");
        }
        if !first.bit(25) {
            self.violation("IFCS is not set, though packets are padded");
        }
        if first.bit(30) || first.bit(31) {
            self.violation("VLE or TSE: the driver knows neither");
        }
        // RSV, MAC; DDTYP; STA; CC; the rest of POPTS.
        if data.iter().any(|data| {
            data.word & (0xF << 16 | 1 << 26 | 1 << 28 | 0xF << 32 | 1 << 37 | 1 << 38 | 1 << 39 | 0xF << 42)
                != 0
        }) {
            self.violation("a data descriptor: reserved bits");
        }
        if data.iter().any(|data| data.bit(27) && !data.bit(24)) {
            self.violation("RS without EOP");
        }
        let total: usize = data.iter().map(Data::length).sum();
        if first.payload_length() != total {
            self.violation(format!("PAYLEN {} of a packet of {total} bytes", first.payload_length()));
        }
        if !(SHORTEST..=LONGEST).contains(&total) {
            self.violation(format!("a packet of {total} bytes"));
        }
        let mut bytes = Vec::with_capacity(total);
        for data in data {
            let start = bytes.len();
            bytes.resize(start + data.length(), 0);
            if !self.iommu.read(data.address, &mut bytes[start..]) {
                self.violation("a transmit buffer: an address that is not mapped");
                return false;
            }
        }
        if first.word >> 40 & 3 != 0 {
            self.offload(queue, first, &mut bytes);
        }
        if self.get("HLREG0", 0) & 1 << 10 != 0 && bytes.len() < 60 {
            bytes.resize(60, 0);
        }
        self.count("GPTC", 0);
        self.sent.push(Sent { queue, bytes });
        true
    }

    /// 7.2.5: fills in checksums where the context says.
    fn offload(&mut self, queue: usize, first: &Data, bytes: &mut [u8]) {
        let Some([low, high]) = self.tx[queue].contexts[(first.word >> 36 & 1) as usize] else {
            return self.violation("a checksum without a context");
        };
        let (ip_len, mac_len) = ((low & 0x1FF) as usize, (low >> 9 & 0x7F) as usize);
        let (start, tcp) = (mac_len + ip_len, high >> 11 & 3 == 1);
        let field = start + if tcp { 16 } else { 6 };
        if first.bit(40) && high & 1 << 10 == 0 {
            return self.violation("IXSM for what is not IPv4");
        }
        if start > bytes.len() || first.bit(41) && field + 2 > bytes.len() {
            return self.violation("a checksum beyond the packet");
        }
        if first.bit(41) {
            // Up to where IP says that it ends: padding is not part of it.
            let end = self.payload_end(bytes, mac_len, ip_len, high & 1 << 10 != 0);
            let value = !sum(&bytes[start..end], 0);
            // UDP's 0 means none.
            let value = if !tcp && value == 0 { 0xFFFF } else { value };
            bytes[field..field + 2].copy_from_slice(&value.to_be_bytes());
        }
        if first.bit(40) {
            let value = !sum(&bytes[mac_len..start], 0);
            bytes[mac_len + 10..mac_len + 12].copy_from_slice(&value.to_be_bytes());
        }
    }

    fn payload_end(&mut self, bytes: &[u8], mac_len: usize, ip_len: usize, is_v4: bool) -> usize {
        let at = if is_v4 { mac_len + 2 } else { mac_len + 4 };
        let length = usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let end = mac_len + if is_v4 { length } else { ip_len + length };
        if end > bytes.len() {
            self.violation("an IP packet longer than its frame");
        }
        end.clamp(mac_len + ip_len, bytes.len())
    }
}
