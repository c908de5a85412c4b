//! The pcap format: one header of 24 bytes, then 16 bytes before each packet.
//!
//! Source: draft-ietf-opsawg-pcap. Both byte orders; microseconds and nanoseconds.
#![forbid(unsafe_code)]

use super::MAX_PACKET_BYTES;
use super::capture::Record;
use super::error::CaptureError;
use super::fields::Order;

const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
/// The link type field: the type in its low half; above it the length of the frame check sequence, where bit 26 says it is there.
const FCS_PRESENT: u32 = 1 << 26;
const FCS_LENGTH_SHIFT: u32 = 28;

/// Walks over the records of a pcap file.
pub(super) struct Classic {
    order: Order,
    /// Nanoseconds of one unit of the stamp's second half.
    unit_ns: u32,
    /// Bytes of frame check sequence at the end of each packet.
    fcs_bytes: u32,
    at: usize,
    whole: usize,
}

impl Classic {
    /// `None` where the file is not of this format.
    pub(super) fn recognise(bytes: &[u8]) -> Option<Result<Self, CaptureError>> {
        let (order, unit_ns) = match bytes.first_chunk()? {
            [0xD4, 0xC3, 0xB2, 0xA1] => (Order::Little, 1000),
            [0xA1, 0xB2, 0xC3, 0xD4] => (Order::Big, 1000),
            [0x4D, 0x3C, 0xB2, 0xA1] => (Order::Little, 1),
            [0xA1, 0xB2, 0x3C, 0x4D] => (Order::Big, 1),
            _ => return None,
        };
        Some(Self::open(bytes, order, unit_ns))
    }

    fn open(bytes: &[u8], order: Order, unit_ns: u32) -> Result<Self, CaptureError> {
        let fields = (order.u16(bytes, 4), order.u16(bytes, 6), order.u32(bytes, 20));
        let (Some(major), Some(minor), Some(link)) = fields else {
            let what = "the file header".into();
            return Err(CaptureError::Truncated {
                what,
                offset: 0,
                needed: FILE_HEADER,
                left: bytes.len(),
                whole: 0,
            });
        };
        // Before 2.3 the two lengths of a record stood in the other order.
        if major != 2 || minor < 3 {
            let problem = format!("format version {major}.{minor}, and only 2.3 and 2.4 are known");
            return Err(CaptureError::Corrupt { offset: 0, whole: 0, problem });
        }
        if link as u16 != super::LINKTYPE_ETHERNET {
            return Err(CaptureError::LinkType { link_type: link as u16, offset: 20 });
        }
        // Counted in units of 16 bits.
        let fcs_bytes = if link & FCS_PRESENT != 0 { (link >> FCS_LENGTH_SHIFT) * 2 } else { 0 };
        Ok(Self { order, unit_ns, fcs_bytes, at: FILE_HEADER, whole: 0 })
    }

    /// The next record; `None` at the end of the file.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Result<Option<Record>, CaptureError> {
        let (offset, whole) = (self.at, self.whole);
        let rest = &bytes[offset..];
        if rest.is_empty() {
            return Ok(None);
        }
        let cut = |needed| CaptureError::Truncated {
            what: format!("packet {}", whole + 1),
            offset,
            needed,
            left: rest.len(),
            whole,
        };
        let corrupt = |problem| CaptureError::Corrupt { offset, whole, problem };
        let field = |at| self.order.u32(rest, at);
        let (Some(seconds), Some(fraction), Some(captured), Some(original)) =
            (field(0), field(4), field(8), field(12))
        else {
            return Err(cut(RECORD_HEADER));
        };
        if captured > MAX_PACKET_BYTES as u32 {
            let problem =
                format!("{captured} captured bytes, more than the {MAX_PACKET_BYTES} of any packet");
            return Err(corrupt(problem));
        }
        let fraction_ns = u64::from(fraction) * u64::from(self.unit_ns);
        if fraction_ns >= 1_000_000_000 {
            return Err(corrupt(format!("a time stamp with {fraction_ns} ns behind its seconds")));
        }
        let end = RECORD_HEADER + captured as usize;
        if end > rest.len() {
            return Err(cut(end));
        }
        self.at += end;
        self.whole += 1;
        let time_ns = u64::from(seconds) * 1_000_000_000 + fraction_ns;
        Ok(Some(Record::new(offset + RECORD_HEADER, Some(time_ns), captured, original, self.fcs_bytes)))
    }
}
