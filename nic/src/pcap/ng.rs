//! The pcapng format: a chain of blocks, each with its length at both ends.
//!
//! Source: draft-ietf-opsawg-pcapng. Several sections, each in a byte order of its own; several interfaces, each with a time
//! resolution of its own; packets in enhanced, simple and the old packet blocks. Every other block is stepped over.
#![forbid(unsafe_code)]

use super::MAX_PACKET_BYTES;
use super::capture::Record;
use super::error::CaptureError;
use super::fields::Order;

/// Reads the same in both byte orders.
pub(super) const SECTION_HEADER: u32 = 0x0A0D_0D0A;
pub(super) const BYTE_ORDER_MAGIC: u32 = 0x1A2B_3C4D;
pub(super) const INTERFACE_DESCRIPTION: u32 = 1;
const PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
pub(super) const ENHANCED_PACKET: u32 = 6;

pub(super) const OPTION_END: u16 = 0;
pub(super) const OPTION_TSRESOL: u16 = 9;
const OPTION_FCSLEN: u16 = 13;
const OPTION_TSOFFSET: u16 = 14;

/// Type and length before a block's body, the length again behind it.
const HEAD: usize = 8;
const TAIL: usize = 4;
/// No writer makes longer blocks: a length above it is no length.
const MAX_BLOCK_BYTES: usize = 16 << 20;

/// What an interface description says of the packets that name it.
struct Interface {
    link_type: u16,
    /// Where the description is.
    offset: usize,
    /// Packets are cut to this many bytes; 0: not at all.
    snap_length: u32,
    /// `if_tsresol`: a power of ten, or of two with the top bit set.
    resolution: u8,
    /// `if_tsoffset`, in seconds.
    offset_s: i64,
    fcs_bytes: u32,
}

/// Walks over the packets of a pcapng file.
pub(super) struct Ng {
    order: Order,
    interfaces: Vec<Interface>,
    at: usize,
    whole: usize,
}

/// One block, its frame checked.
struct Block<'a> {
    kind: u32,
    offset: usize,
    body: &'a [u8],
}

impl Ng {
    /// `None` where the file is not of this format.
    pub(super) fn recognise(bytes: &[u8]) -> Option<Self> {
        let known = bytes.first_chunk() == Some(&SECTION_HEADER.to_be_bytes());
        known.then_some(Self { order: Order::Little, interfaces: Vec::new(), at: 0, whole: 0 })
    }

    /// The next packet; `None` at the end of the file.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Result<Option<Record>, CaptureError> {
        while let Some(block) = self.block(bytes)? {
            let record = match block.kind {
                SECTION_HEADER => {
                    self.interfaces.clear();
                    None
                }
                INTERFACE_DESCRIPTION => {
                    let interface = self.interface(&block)?;
                    self.interfaces.push(interface);
                    None
                }
                ENHANCED_PACKET | PACKET => Some(self.packet(&block)?),
                SIMPLE_PACKET => Some(self.simple_packet(&block)?),
                _ => None,
            };
            self.at = block.offset + HEAD + block.body.len() + TAIL;
            if record.is_some() {
                self.whole += 1;
                return Ok(record);
            }
        }
        Ok(None)
    }

    fn corrupt(&self, offset: usize, problem: impl Into<String>) -> CaptureError {
        CaptureError::Corrupt { offset, whole: self.whole, problem: problem.into() }
    }

    /// The block at the current position; a section header changes the byte order first.
    fn block<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<Block<'a>>, CaptureError> {
        let offset = self.at;
        let rest = &bytes[offset..];
        if rest.is_empty() {
            return Ok(None);
        }
        let whole = self.whole;
        let cut = |needed| CaptureError::Truncated {
            what: format!("the block behind packet {whole}"),
            offset,
            needed,
            left: rest.len(),
            whole,
        };
        if rest.first_chunk() == Some(&SECTION_HEADER.to_be_bytes()) {
            self.order = match Order::Little.u32(rest, HEAD) {
                None => return Err(cut(28)),
                Some(BYTE_ORDER_MAGIC) => Order::Little,
                Some(magic) if magic.swap_bytes() == BYTE_ORDER_MAGIC => Order::Big,
                Some(magic) => {
                    return Err(self.corrupt(offset, format!("a section of byte order {magic:#010x}")));
                }
            };
        }
        let (Some(kind), Some(length)) = (self.order.u32(rest, 0), self.order.u32(rest, 4)) else {
            return Err(cut(HEAD + TAIL));
        };
        let least = HEAD + TAIL + if kind == SECTION_HEADER { 16 } else { 0 };
        let length = length as usize;
        if length < least || !length.is_multiple_of(4) || length > MAX_BLOCK_BYTES {
            return Err(self.corrupt(offset, format!("a block of type {kind:#x} of {length} bytes")));
        }
        let Some(block) = rest.get(..length) else {
            return Err(cut(length));
        };
        let again = self.order.u32(block, length - TAIL).unwrap_or_default() as usize;
        if again != length {
            let problem = format!("a block of {length} bytes that calls itself {again} long at its end");
            return Err(self.corrupt(offset, problem));
        }
        let body = &block[HEAD..length - TAIL];
        if kind == SECTION_HEADER && self.order.u16(body, 4) != Some(1) {
            let version = self.order.u16(body, 4).unwrap_or_default();
            return Err(self.corrupt(offset, format!("format version {version}, and only 1 is known")));
        }
        Ok(Some(Block { kind, offset, body }))
    }

    fn interface(&self, block: &Block<'_>) -> Result<Interface, CaptureError> {
        let Block { offset, body, .. } = *block;
        let (Some(link_type), Some(snap_length)) = (self.order.u16(body, 0), self.order.u32(body, 4)) else {
            return Err(self.corrupt(offset, "an interface description that is too short"));
        };
        // Microseconds, unless an option says otherwise.
        let mut interface =
            Interface { link_type, offset, snap_length, resolution: 6, offset_s: 0, fcs_bytes: 0 };
        let mut options = &body[8..];
        while let (Some(code), Some(length)) = (self.order.u16(options, 0), self.order.u16(options, 2)) {
            if code == OPTION_END {
                break;
            }
            let Some(value) = options.get(4..4 + usize::from(length)) else {
                return Err(
                    self.corrupt(offset, format!("option {code} of {length} bytes goes past its block"))
                );
            };
            match code {
                OPTION_TSRESOL => interface.resolution = value.first().copied().unwrap_or(6),
                OPTION_FCSLEN => interface.fcs_bytes = value.first().copied().unwrap_or(0).into(),
                OPTION_TSOFFSET => {
                    interface.offset_s = self.order.u64(value, 0).unwrap_or(0).cast_signed();
                }
                _ => {}
            }
            options = options.get(4 + usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(interface)
    }

    fn interface_of(&self, offset: usize, number: u32) -> Result<&Interface, CaptureError> {
        let interface = self.interfaces.get(number as usize).ok_or_else(|| {
            self.corrupt(offset, format!("a packet of interface {number}, which is not described before it"))
        })?;
        match interface.link_type {
            super::LINKTYPE_ETHERNET => Ok(interface),
            link_type => Err(CaptureError::LinkType { link_type, offset: interface.offset }),
        }
    }

    /// An enhanced packet block, or the packet block it replaced, which has 16 bits for the interface.
    fn packet(&self, block: &Block<'_>) -> Result<Record, CaptureError> {
        let Block { kind, offset, body } = *block;
        let field = |at| self.order.u32(body, at);
        let number =
            if kind == PACKET { self.order.u16(body, 0).map(u32::from) } else { self.order.u32(body, 0) };
        let (Some(number), Some(high), Some(low), Some(captured), Some(original)) =
            (number, field(4), field(8), field(12), field(16))
        else {
            return Err(self.corrupt(offset, "a packet block that is too short"));
        };
        let interface = self.interface_of(offset, number)?;
        let time_ns = interface.time_ns(u64::from(high) << 32 | u64::from(low));
        self.check_length(offset, captured, body.len() - 20)?;
        Ok(Record::new(offset + HEAD + 20, Some(time_ns), captured, original, interface.fcs_bytes))
    }

    /// Of the first interface, without a time stamp, cut to the snap length.
    fn simple_packet(&self, block: &Block<'_>) -> Result<Record, CaptureError> {
        let Block { offset, body, .. } = *block;
        let Some(original) = self.order.u32(body, 0) else {
            return Err(self.corrupt(offset, "a packet block that is too short"));
        };
        let interface = self.interface_of(offset, 0)?;
        let captured =
            if interface.snap_length == 0 { original } else { original.min(interface.snap_length) };
        self.check_length(offset, captured, body.len() - 4)?;
        Ok(Record::new(offset + HEAD + 4, None, captured, original, interface.fcs_bytes))
    }

    fn check_length(&self, offset: usize, captured: u32, room: usize) -> Result<(), CaptureError> {
        let most = room.min(MAX_PACKET_BYTES);
        if captured as usize <= most {
            return Ok(());
        }
        Err(self.corrupt(offset, format!("{captured} captured bytes where there is room for {most}")))
    }
}

impl Interface {
    /// Nanoseconds since 1970, held to what 64 bits can say.
    fn time_ns(&self, ticks: u64) -> u64 {
        let ticks = u128::from(ticks);
        let power = u32::from(self.resolution & 0x7F);
        let ns = if self.resolution & 0x80 != 0 {
            (ticks * 1_000_000_000) >> power
        } else if power <= 9 {
            ticks * 10_u128.pow(9 - power)
        } else {
            10_u128.checked_pow(power - 9).map_or(0, |divisor| ticks / divisor)
        };
        // At most 2^64 * 10^9, which leaves room for the sum.
        let ns = ns.cast_signed() + i128::from(self.offset_s) * 1_000_000_000;
        ns.clamp(0, u64::MAX.into()) as u64
    }
}
