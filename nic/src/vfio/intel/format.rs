//! Descriptor formats: what the words of a descriptor mean.
//!
//! A receive descriptor is given away as a buffer's address and a second word of 0; the device writes back over it, and all that a driver wants is in
//! the second word then, so that one load of 8 bytes reads it. A transmit descriptor is an address and a word of commands; the device sets one
//! bit of it when it is done.
#![forbid(unsafe_code)]

use crate::memory::Checksum;
use crate::vfio::checksum::{L4, Offload};

/// What a receive descriptor says when the device has written it back. Advanced (82576 datasheet 7.1.5, 82599 datasheet 7.1.6) and extended
/// descriptors (82574 datasheet 7.1.5) agree but for the error bits.
pub(crate) trait RxFormat: Send + 'static {
    /// The device has written it back (DD).
    const DONE: u64 = 1 << 0;
    /// The packet ends here (EOP).
    const END: u64 = 1 << 1;
    /// The checksum of TCP or UDP was looked at (L4CS, TCPCS).
    const L4_CHECKED: u64 = 1 << 5;
    /// The checksum of IPv4's header was looked at (IPCS).
    const IP_CHECKED: u64 = 1 << 6;
    /// The checksum of TCP or UDP is wrong.
    const L4_WRONG: u64;
    /// The checksum of IPv4's header is wrong.
    const IP_WRONG: u64;
    /// What came over the wire is damaged.
    const DAMAGED: u64;

    /// Bytes in this descriptor's buffer.
    #[inline(always)]
    fn length(word: u64) -> usize {
        usize::from((word >> 32) as u16)
    }

    /// Its length in the lower half; in the upper half what of its status says whether it is a packet.
    #[inline(always)]
    fn turned(word: u64) -> u64 {
        (word & (Self::DONE | Self::END | Self::DAMAGED | 0xFFFF << 32)).rotate_right(32)
    }

    /// Of a word that was turned, the bytes of a packet that is done, undamaged and whole in this buffer, less 1; for all else more than any packet has.
    #[inline(always)]
    fn whole(turned: u64) -> u64 {
        // One comparison says all: what the status has too much or too little ends up above the length.
        turned.wrapping_sub((Self::DONE | Self::END) << 32 | 1)
    }

    /// What the device says of the packet's checksums, of its last descriptor. Without an IPv4 header there is none to be looked at.
    #[inline(always)]
    fn checksum(word: u64) -> Checksum {
        let wrong = word & Self::IP_CHECKED != 0 && word & Self::IP_WRONG != 0
            || word & Self::L4_CHECKED != 0 && word & Self::L4_WRONG != 0;
        match (wrong, word & Self::L4_CHECKED != 0) {
            (true, _) => Checksum::Bad,
            (false, true) => Checksum::Good,
            (false, false) => Checksum::Unknown,
        }
    }
}

/// What a transmit descriptor says.
pub(crate) trait TxFormat: Send + 'static {
    /// Report when it is done (RS), a bit of the second word.
    const REPORT: u64 = 1 << 27;
    /// It is done (DD), the same in all formats.
    const DONE: u64 = 1 << 32;
    /// A context holds for all packets that follow it on its queue.
    const KEEPS_CONTEXT: bool = true;

    /// The second word for `length` bytes of a packet of `total` bytes, the last ones if `end`.
    fn data(length: u32, total: u32, end: bool, offload: Option<&Offload>) -> u64;

    /// The descriptor that goes before a packet (or several that are alike) whose checksums the device is to fill in.
    fn context(offload: &Offload) -> [u64; 2];
}

/// End of packet, a bit of the command byte that starts at bit 24.
pub(crate) const EOP: u64 = 1 << 24;
/// Insert the frame check sequence.
pub(crate) const IFCS: u64 = 1 << 25;
/// Not a legacy descriptor.
pub(crate) const DEXT: u64 = 1 << 29;

/// The advanced format of the 82575 and what came after.
pub(crate) struct Advanced;

/// DTYP of a data descriptor (82576 datasheet 7.2.2.3.4, 82599 datasheet 7.2.3.2.4).
const DTYP_DATA: u64 = 0b0011 << 20;
/// DTYP of a context descriptor.
const DTYP_CONTEXT: u64 = 0b0010 << 20;
/// Insert IPv4's checksum, the first bit of POPTS.
const IXSM: u64 = 1 << 40;
/// Insert TCP's or UDP's.
const TXSM: u64 = 1 << 41;
/// TUCMD of a context descriptor: the packet is IPv4.
const TUCMD_IPV4: u64 = 1 << 10;
/// TUCMD: its payload is TCP. UDP is 0.
const TUCMD_TCP: u64 = 1 << 11;

impl TxFormat for Advanced {
    #[inline(always)]
    fn data(length: u32, total: u32, end: bool, offload: Option<&Offload>) -> u64 {
        // PAYLEN is 18 bits from bit 46 on; a packet is shorter.
        let mut word = u64::from(length) | u64::from(total) << 46 | DTYP_DATA | IFCS | DEXT;
        if end {
            word |= EOP;
        }
        if let Some(offload) = offload {
            word |= if offload.is_ipv4 { IXSM } else { 0 };
            word |= if offload.l4.is_some() { TXSM } else { 0 };
        }
        word
    }

    fn context(offload: &Offload) -> [u64; 2] {
        // IPLEN, MACLEN (82576 datasheet 7.2.2.2); of L4LEN only segmentation has a use.
        let lengths = u64::from(offload.ip_len) | u64::from(offload.mac_len) << 9;
        let mut word = DTYP_CONTEXT | DEXT;
        word |= if offload.is_ipv4 { TUCMD_IPV4 } else { 0 };
        if let Some(L4::Tcp) = offload.l4 {
            word |= TUCMD_TCP;
        }
        [lengths, word]
    }
}

/// The error bits of the 82576 (datasheet 7.1.5.2).
pub(crate) struct Advanced82576;

impl RxFormat for Advanced82576 {
    const L4_WRONG: u64 = 1 << 29;
    const IP_WRONG: u64 = 1 << 30;
    const DAMAGED: u64 = 1 << 31;
}

/// Those of the 82599 (datasheet 7.1.6.2).
pub(crate) struct Advanced82599;

impl RxFormat for Advanced82599 {
    const L4_WRONG: u64 = 1 << 30;
    const IP_WRONG: u64 = 1 << 31;
    const DAMAGED: u64 = 1 << 29;
}
