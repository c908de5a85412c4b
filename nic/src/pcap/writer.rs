//! Makes pcapng: little-endian, one Ethernet interface, stamps in nanoseconds.
#![forbid(unsafe_code)]

use super::ng::{
    BYTE_ORDER_MAGIC, ENHANCED_PACKET, INTERFACE_DESCRIPTION, OPTION_END, OPTION_TSRESOL, SECTION_HEADER,
};
use std::io::{self, Write};

/// Bytes an enhanced packet block has besides its data: 28 before and 4 behind.
const PACKET_OVERHEAD: usize = 32;
const DATA_AT: usize = 28;

/// What a file starts with: a section of unknown length, and the interface.
pub fn file_header() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |block: &[&[u8]]| block.iter().for_each(|field| bytes.extend_from_slice(field));
    put(&[
        &SECTION_HEADER.to_le_bytes(),
        &28_u32.to_le_bytes(),
        &BYTE_ORDER_MAGIC.to_le_bytes(),
        &1_u16.to_le_bytes(),
        &0_u16.to_le_bytes(),
        &(-1_i64).to_le_bytes(),
        &28_u32.to_le_bytes(),
    ]);
    put(&[
        &INTERFACE_DESCRIPTION.to_le_bytes(),
        &32_u32.to_le_bytes(),
        &super::LINKTYPE_ETHERNET.to_le_bytes(),
        &[0, 0],
        // No snap length: packets are never cut.
        &0_u32.to_le_bytes(),
        &OPTION_TSRESOL.to_le_bytes(),
        &1_u16.to_le_bytes(),
        &[9, 0, 0, 0],
        &OPTION_END.to_le_bytes(),
        &0_u16.to_le_bytes(),
        &32_u32.to_le_bytes(),
    ]);
    bytes
}

/// Bytes of the block of a packet of `length` bytes.
#[inline]
pub fn packet_block_bytes(length: usize) -> usize {
    length.next_multiple_of(4) + PACKET_OVERHEAD
}

/// Writes the block of one packet, which comes in `segments` of `length` bytes in all, into `block`, which has
/// [`packet_block_bytes`] of them.
#[inline]
pub fn write_packet_block<'a>(
    block: &mut [u8],
    time_ns: u64,
    length: usize,
    segments: impl Iterator<Item = &'a [u8]>,
) {
    debug_assert_eq!(block.len(), packet_block_bytes(length));
    let total = (block.len() as u32).to_le_bytes();
    let length = (length as u32).to_le_bytes();
    let fields = [
        ENHANCED_PACKET.to_le_bytes(),
        total,
        0_u32.to_le_bytes(),
        ((time_ns >> 32) as u32).to_le_bytes(),
        (time_ns as u32).to_le_bytes(),
        length,
        length,
    ];
    let (head, rest) = block.split_at_mut(DATA_AT);
    head.copy_from_slice(fields.as_flattened());
    let (mut data, tail) = rest.split_at_mut(rest.len() - 4);
    tail.copy_from_slice(&total);
    for segment in segments {
        let (place, behind) = data.split_at_mut(segment.len().min(data.len()));
        place.copy_from_slice(&segment[..place.len()]);
        data = behind;
    }
    data.fill(0);
}

/// Writes a pcapng file packet by packet, for whoever has no need for speed; give it a `BufWriter`.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    block: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Starts the file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&file_header())?;
        Ok(Self { out, block: Vec::new() })
    }

    /// Adds a packet that was seen `time_ns` nanoseconds after 1970 began.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&mut self, time_ns: u64, data: &[u8]) -> io::Result<()> {
        self.block.resize(packet_block_bytes(data.len()), 0);
        write_packet_block(&mut self.block, time_ns, data.len(), std::iter::once(data));
        self.out.write_all(&self.block)
    }

    /// Ends the file and gives `out` back.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}
