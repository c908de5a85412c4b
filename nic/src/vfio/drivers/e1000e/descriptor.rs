//! The 82574's descriptors: extended ones for receiving, since RSS needs them, and the TCP/IP data and context descriptors for transmitting.
#![forbid(unsafe_code)]

use crate::memory::Checksum;
use crate::vfio::checksum::{L4, Offload};
use crate::vfio::intel::format::{DEXT, EOP, IFCS, RxFormat, TxFormat};

/// An extended receive descriptor as it was written back (7.1.5): status in bits 19:0 of the second word, errors in 31:20, then the length.
pub(super) struct ExtendedRx;

/// Ignore Checksum: the device did not know the packet.
const IXSM: u64 = 1 << 2;

impl RxFormat for ExtendedRx {
    /// TCPE.
    const L4_WRONG: u64 = 1 << 29;
    /// IPE.
    const IP_WRONG: u64 = 1 << 30;
    /// CE, SE, SEQ, CXE, RXE: the CRC, a symbol, the sequence, the carrier extension, the data.
    const DAMAGED: u64 = 1 << 24 | 1 << 25 | 1 << 26 | 1 << 28 | 1 << 31;

    #[inline(always)]
    fn checksum(word: u64) -> Checksum {
        if word & IXSM != 0 {
            return Checksum::Unknown;
        }
        let checked = word & Self::L4_CHECKED != 0;
        let wrong = word & Self::IP_CHECKED != 0 && word & Self::IP_WRONG != 0
            || checked && word & Self::L4_WRONG != 0;
        match (wrong, checked) {
            (true, _) => Checksum::Bad,
            (false, true) => Checksum::Good,
            (false, false) => Checksum::Unknown,
        }
    }
}

/// TCP/IP data and context descriptors (7.2).
pub(super) struct ExtendedTx;

/// DTYP of a data descriptor; that of a context descriptor is 0.
const DTYP_DATA: u64 = 1 << 20;
/// POPTS: insert IPv4's checksum.
const POPTS_IXSM: u64 = 1 << 40;
/// POPTS: insert TCP's or UDP's.
const POPTS_TXSM: u64 = 1 << 41;
/// TUCMD of a context descriptor: TCP; else UDP.
const TUCMD_TCP: u64 = 1 << 24;
/// TUCMD: IPv4; else IPv6.
const TUCMD_IP: u64 = 1 << 25;
/// Where IPv4's header has its checksum.
const IP_CHECKSUM: u64 = 10;

impl TxFormat for ExtendedTx {
    // It remembers the last one of all queues, not of each (7.2.6).
    const KEEPS_CONTEXT: bool = false;

    #[inline(always)]
    fn data(length: u32, _total: u32, end: bool, offload: Option<&Offload>) -> u64 {
        let mut word = u64::from(length) | DTYP_DATA | IFCS | DEXT;
        if end {
            word |= EOP;
        }
        if let Some(offload) = offload {
            word |= if offload.is_ipv4 { POPTS_IXSM } else { 0 };
            word |= if offload.l4.is_some() { POPTS_TXSM } else { 0 };
        }
        word
    }

    fn context(offload: &Offload) -> [u64; 2] {
        let ip = u64::from(offload.mac_len);
        let l4 = offload.l4_start() as u64;
        // IPCSS, IPCSO, and IPCSE: the last byte.
        let mut fields = ip | (ip + IP_CHECKSUM) << 8 | (l4 - 1) << 16;
        let mut command = DEXT;
        command |= if offload.is_ipv4 { TUCMD_IP } else { 0 };
        // TUCSS, TUCSO, and TUCSE: 0 is the packet's end.
        if let Some(kind) = offload.l4 {
            fields |= l4 << 32 | (l4 + kind.checksum_offset() as u64) << 40;
            command |= if kind == L4::Tcp { TUCMD_TCP } else { 0 };
        }
        [fields, command]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_says_where_the_checksums_are() {
        let tcp4 = Offload { mac_len: 18, ip_len: 24, is_ipv4: true, l4: Some(L4::Tcp) };
        let [fields, command] = ExtendedTx::context(&tcp4);
        assert_eq!(fields, 18 | 28 << 8 | 41 << 16 | 42 << 32 | 58 << 40);
        assert_eq!(command, 1 << 29 | 1 << 25 | 1 << 24);
        let udp6 = Offload { mac_len: 14, ip_len: 40, is_ipv4: false, l4: Some(L4::Udp) };
        let [fields, command] = ExtendedTx::context(&udp6);
        assert_eq!((fields >> 32 & 255, fields >> 40 & 255, fields >> 48), (54, 60, 0));
        assert_eq!(command, 1 << 29);
        assert_eq!(
            ExtendedTx::data(1514, 1514, true, Some(&tcp4)),
            1514 | 1 << 20 | 1 << 24 | 1 << 25 | 1 << 29 | 3 << 40
        );
        assert_eq!(ExtendedTx::data(60, 90, false, Some(&udp6)) >> 40, 2);
    }

    #[test]
    fn checksums_are_known_only_where_the_device_looked() {
        let (l4, ip) = (1 << 5, 1 << 6);
        let cases = [
            (0, Checksum::Unknown),
            (ip, Checksum::Unknown),
            (l4 | ip, Checksum::Good),
            (l4, Checksum::Good),
            (l4 | ip | ExtendedRx::L4_WRONG, Checksum::Bad),
            (ip | ExtendedRx::IP_WRONG, Checksum::Bad),
            // An error bit of what was not looked at says nothing.
            (ip | ExtendedRx::L4_WRONG, Checksum::Unknown),
            (l4 | ip | IXSM | ExtendedRx::L4_WRONG, Checksum::Unknown),
        ];
        for (word, wanted) in cases {
            assert_eq!(ExtendedRx::checksum(word), wanted, "{word:#x}");
        }
    }
}
