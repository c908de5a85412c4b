//! What the device sees in a packet: tags, addresses, ports, checksums (7.1.2.8.1, 7.1.11).
#![forbid(unsafe_code)]

/// IP and what is above it.
#[derive(Debug, Default)]
pub(super) struct Ip {
    pub(super) is_v6: bool,
    /// Source and destination.
    pub(super) addresses: Vec<u8>,
    /// Where it starts, and how long its header is.
    pub(super) start: usize,
    pub(super) header: usize,
    /// Where its payload ends.
    pub(super) end: usize,
    /// 6 or 17, if the payload is all of it and has a whole header.
    pub(super) l4: Option<u8>,
}

/// A packet.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Of the first tag, if its type is VLNCTRL.VET.
    pub(super) vlan: Option<u16>,
    pub(super) ip: Option<Ip>,
}

fn word(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

/// Looks at a packet. Behind a second tag nothing is seen, since CTRL_EXT.EXTENDED_VLAN is off.
pub(super) fn see(data: &[u8], vet: u16) -> Seen {
    let mut seen = Seen::default();
    let mut start = 14;
    let Some(mut ether_type) = word(data, 12) else { return seen };
    if ether_type == vet {
        seen.vlan = word(data, 14).map(|tag| tag & 0xFFF);
        let Some(inner) = word(data, 16) else { return seen };
        (ether_type, start) = (inner, 18);
    }
    seen.ip = match ether_type {
        0x0800 => v4(data, start),
        0x86DD => v6(data, start),
        _ => None,
    };
    seen
}

fn with_ports(data: &[u8], protocol: u8, from: usize, end: usize) -> Option<u8> {
    let least = match protocol {
        6 => 20,
        17 => 8,
        _ => return None,
    };
    (end <= data.len() && from + least <= end).then_some(protocol)
}

fn v4(data: &[u8], start: usize) -> Option<Ip> {
    let fixed = data.get(start..start + 20)?;
    let header = usize::from(fixed[0] & 15) * 4;
    if fixed[0] >> 4 != 4 || header < 20 || start + header > data.len() {
        return None;
    }
    let end = start + usize::from(word(fixed, 2)?);
    let whole = word(fixed, 6)? & 0x3FFF == 0;
    let l4 = if whole { with_ports(data, fixed[9], start + header, end) } else { None };
    Some(Ip { is_v6: false, addresses: fixed[12..20].to_vec(), start, header, end, l4 })
}

fn v6(data: &[u8], start: usize) -> Option<Ip> {
    let fixed = data.get(start..start + 40)?;
    let end = start + 40 + usize::from(word(fixed, 4)?);
    let l4 = with_ports(data, fixed[6], start + 40, end);
    Some(Ip { is_v6: true, addresses: fixed[8..40].to_vec(), start, header: 40, end, l4 })
}

/// The ones' complement sum of 16-bit words.
pub(super) fn sum(data: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in data.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

impl Ip {
    /// Source and destination port.
    pub(super) fn ports<'a>(&self, data: &'a [u8]) -> &'a [u8] {
        &data[self.start + self.header..self.start + self.header + 4]
    }

    /// Whether IPv4's header sums up.
    pub(super) fn header_is_good(&self, data: &[u8]) -> bool {
        sum(&data[self.start..self.start + self.header], 0) == 0xFFFF
    }

    /// Whether TCP or UDP sums up; `None` where there is no checksum to look at.
    pub(super) fn l4_is_good(&self, data: &[u8]) -> Option<bool> {
        let protocol = self.l4?;
        let payload = &data[self.start + self.header..self.end];
        if protocol == 17 && payload[6..8] == [0, 0] {
            return None;
        }
        let pseudo = u32::from(sum(&self.addresses, 0)) + u32::from(protocol) + payload.len() as u32;
        Some(sum(payload, pseudo) == 0xFFFF)
    }
}
