//! The owned handle of a packet.
//!
//! It lives in the batch, not in the frame: forwarding touches one cache line of packet data and no line of metadata.
//! Whoever has it is the only one who can reach the frame, so its bytes can be lent out as ordinary slices.
#![allow(unsafe_code)]

use super::frame::{self, Frame};
use super::{registry, window};
use crate::port::PortId;
use std::marker::PhantomData;
use std::{fmt, mem, slice};

/// One packet, or the first segment of a chain (jumbo frames). Dropping it frees all its frames.
///
/// ```text
/// frame:  | segment header 64 B | headroom ... | data (length) | tailroom ... |
///         0                                    offset
/// ```
#[repr(C)]
pub struct Packet {
    handle: u32,
    offset: u16,
    length: u16,
    next: u32,
    port: u16,
    flags: u16,
}

const _: () = assert!(mem::size_of::<Packet>() == 16);

/// What the device that a packet came in by says of its checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing: the port was not asked to check, or the device knows no such packet.
    #[default]
    Unknown,
    /// That of IPv4's header, where there is one, and that of TCP or UDP are right.
    Good,
    /// One of them is wrong.
    Bad,
}

/// Bits of a packet's flags.
const CHECKSUM_GOOD: u16 = 1;
const CHECKSUM_BAD: u16 = 2;
const FILL_CHECKSUM: u16 = 4;

/// Bytes at a frame's start that hold the rest of a chain's segment: what a `Packet` holds for the first one.
pub(crate) const SEGMENT_HEADER: usize = 64;

impl Packet {
    /// The bit of the flags of a packet that wants its checksums filled in.
    pub(crate) const ASKS: u16 = FILL_CHECKSUM;

    #[inline(always)]
    pub(crate) fn new(handle: u32, offset: u16, length: u16, port: u16) -> Self {
        if cfg!(target_endian = "big") {
            return Self { handle, offset, length, next: frame::NONE, port, flags: 0 };
        }
        Self::from_start(Self::start(handle, offset), length, port)
    }

    /// The first word of a packet in memory but for its length, for [`from_start`](Self::from_start).
    #[inline(always)]
    pub(crate) fn start(handle: u32, offset: u16) -> u64 {
        u64::from(handle) | u64::from(offset) << 32
    }

    /// Where its data is in the window of all pools, in bytes.
    #[inline(always)]
    pub(crate) fn window_offset_of(start: u64) -> u64 {
        Frame::window_offset_of(start as u32) + (start >> 32)
    }

    /// A packet that begins by `start`.
    #[inline(always)]
    pub(crate) fn from_start(start: u64, length: u16, port: u16) -> Self {
        if cfg!(target_endian = "big") {
            return Self::new(start as u32, (start >> 32) as u16, length, port);
        }
        // Two whole words: two stores into a batch instead of six, and later reads of words need not wait
        // for the pieces to be put together (store forwarding).
        let low = start | u64::from(length) << 48;
        let high = u64::from(frame::NONE) | u64::from(port) << 32;
        // SAFETY: Packet is repr(C) without padding, and these words are its fields in little-endian order; every bit
        // pattern is a valid value of its integers.
        unsafe { mem::transmute::<[u64; 2], Packet>([low, high]) }
    }

    #[inline(always)]
    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }

    /// The handle of the next segment; [`frame::NONE`] unless it is chained.
    #[inline(always)]
    pub(crate) fn next_handle(&self) -> u32 {
        self.next
    }

    /// The number of the first segment's pool.
    #[inline(always)]
    pub(crate) fn pool_number(&self) -> u32 {
        self.handle >> frame::POOL_SHIFT
    }

    /// Whether all segments are of this pool.
    pub(crate) fn is_of_pool(&self, number: u32) -> bool {
        let mut segments = self.segments();
        while segments.handle != frame::NONE && segments.handle >> frame::POOL_SHIFT == number {
            segments.next();
        }
        segments.handle == frame::NONE
    }

    #[inline(always)]
    pub(crate) fn is_chained(&self) -> bool {
        self.next != frame::NONE
    }

    #[inline(always)]
    fn base(&self) -> *mut u8 {
        window::address(self.handle)
    }

    fn frame_size(&self) -> usize {
        registry::slot(self.handle).pool().frame_size
    }

    /// The bytes of the first segment (of the whole packet, unless it is a chain).
    #[inline(always)]
    pub fn data(&self) -> &[u8] {
        // SAFETY: offset + length lie inside the frame (every constructor and setter checks), the frame inside its
        // mapped, initialised region, and this handle is the only one: no ring or device has the frame while a
        // Packet does, and `&self` keeps writers out.
        unsafe { slice::from_raw_parts(self.base().add(self.offset as usize), self.length as usize) }
    }

    /// The same, to be written.
    #[inline(always)]
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `data`, and `&mut self` makes the slice the only one.
        unsafe { slice::from_raw_parts_mut(self.base().add(self.offset as usize), self.length as usize) }
    }

    /// Bytes in the first segment.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// True where the first segment is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes in all segments.
    #[inline]
    pub fn total_len(&self) -> usize {
        if self.is_chained() { self.segments().map(<[u8]>::len).sum() } else { self.length as usize }
    }

    /// Where the data starts in the frame, in bytes.
    #[inline(always)]
    pub fn offset(&self) -> usize {
        self.offset as usize
    }

    /// Bytes before the data that [`prepend`](Self::prepend) may use.
    pub fn headroom(&self) -> usize {
        (self.offset as usize).saturating_sub(SEGMENT_HEADER)
    }

    /// Bytes behind the last segment's data that [`append`](Self::append) may use.
    pub fn tailroom(&self) -> usize {
        let last = self.last_segment();
        self.frame_size() - last.offset as usize - last.length as usize
    }

    /// The port it came in by.
    #[inline]
    pub fn port(&self) -> PortId {
        PortId(self.port)
    }

    /// Says which port it came in by.
    #[inline]
    pub fn set_port(&mut self, port: PortId) {
        self.port = port.0;
    }

    /// What the receiving device says of its checksums.
    #[inline]
    pub fn checksum(&self) -> Checksum {
        match self.flags & (CHECKSUM_GOOD | CHECKSUM_BAD) {
            0 => Checksum::Unknown,
            CHECKSUM_GOOD => Checksum::Good,
            _ => Checksum::Bad,
        }
    }

    /// For drivers: what the device says.
    #[inline]
    #[allow(dead_code)] // until a driver of this table uses it
    pub(crate) fn set_checksum(&mut self, checksum: Checksum) {
        let bits = match checksum {
            Checksum::Unknown => 0,
            Checksum::Good => CHECKSUM_GOOD,
            Checksum::Bad => CHECKSUM_BAD,
        };
        self.flags = self.flags & !(CHECKSUM_GOOD | CHECKSUM_BAD) | bits;
    }

    /// Whether the sending device is to fill in the checksums of IPv4's header and of TCP or UDP; off for every packet that comes in. A port that was not opened
    /// with `checksum=on` sends it as it is; one that was drops what it cannot fill in (`tx_checksum`): behind an extension header of IPv6, or where
    /// headers are not whole in the first segment. Of a fragment, IPv4's header is all that is to be filled in.
    #[inline]
    pub fn fill_checksum(&mut self, on: bool) {
        self.flags = if on { self.flags | FILL_CHECKSUM } else { self.flags & !FILL_CHECKSUM };
    }

    /// Whether [`fill_checksum`](Self::fill_checksum) was asked for.
    #[inline]
    #[allow(dead_code)] // as above
    pub(crate) fn wants_checksum(&self) -> bool {
        self.flags & FILL_CHECKSUM != 0
    }

    /// Grows the data at its front into the headroom by `count` bytes and returns them (their content is whatever was
    /// there); `None`, and nothing changes, where the headroom is smaller.
    pub fn prepend(&mut self, count: usize) -> Option<&mut [u8]> {
        if count > self.headroom() {
            return None;
        }
        self.offset -= count as u16;
        self.length += count as u16;
        Some(&mut self.data_mut()[..count])
    }

    /// Grows the last segment at its end by `count` bytes and returns them; `None`, and nothing changes, where the
    /// tailroom is smaller.
    pub fn append(&mut self, count: usize) -> Option<&mut [u8]> {
        if count > self.tailroom() {
            return None;
        }
        let mut last = self.last_segment();
        let (handle, start) = (last.handle, last.offset as usize + last.length as usize);
        last.length += count as u16;
        self.set_last_segment(last);
        // SAFETY: `tailroom` says that they lie in the last segment's frame, which this packet owns; `&mut self` makes the
        // slice the only one.
        Some(unsafe { slice::from_raw_parts_mut(window::address(handle).add(start), count) })
    }

    /// Removes `count` bytes from the front; `None`, and nothing changes, where the first segment is shorter.
    pub fn adj(&mut self, count: usize) -> Option<()> {
        if count > self.length as usize {
            return None;
        }
        self.offset += count as u16;
        self.length -= count as u16;
        Some(())
    }

    /// Removes `count` bytes from the end of the last segment; `None`, and nothing changes, where it is shorter.
    pub fn trim(&mut self, count: usize) -> Option<()> {
        let mut last = self.last_segment();
        if count > last.length as usize {
            return None;
        }
        last.length -= count as u16;
        self.set_last_segment(last);
        Some(())
    }

    /// The bytes of each segment in turn.
    pub fn segments(&self) -> Segments<'_> {
        Segments { handle: self.handle, header: self.peek(), packet: PhantomData }
    }

    /// How many segments it has; 1 unless it is a chain.
    pub fn segment_count(&self) -> usize {
        self.segments().count()
    }

    /// Links `tail` (itself perhaps a chain) behind the last segment.
    pub fn chain(&mut self, tail: Packet) {
        let mut last = self.last_segment();
        last.next = tail.into_segment();
        self.set_last_segment(last);
    }

    fn last_segment(&self) -> Segment {
        let mut last =
            Segment { handle: self.handle, offset: self.offset, length: self.length, next: self.next };
        while last.next != frame::NONE {
            let SegmentHeader { next, offset, length } = read_header(last.next);
            last = Segment { handle: last.next, offset, length, next };
        }
        last
    }

    fn set_last_segment(&mut self, last: Segment) {
        let Segment { handle, offset, length, next } = last;
        if handle == self.handle {
            (self.length, self.next) = (length, next);
        } else {
            write_header(handle, SegmentHeader { next, offset, length });
        }
    }

    /// Takes the chain apart: this packet keeps the first segment, the rest is returned as a packet of its own.
    pub fn split_first(&mut self) -> Option<Packet> {
        if !self.is_chained() {
            return None;
        }
        let handle = mem::replace(&mut self.next, frame::NONE);
        let SegmentHeader { next, offset, length } = read_header(handle);
        Some(Packet { handle, offset, length, next, port: self.port, flags: self.flags })
    }

    /// Gives up the packet for its frame, for a driver that puts it on a ring. Segments behind the first are freed.
    #[inline(always)]
    pub fn into_frame(mut self) -> Frame {
        if self.is_chained() {
            self.free_tail();
        }
        let handle = self.handle;
        mem::forget(self);
        Frame::from_handle(handle)
    }

    /// All bytes of all segments, copied out.
    pub fn to_vec(&self) -> Vec<u8> {
        self.segments().flatten().copied().collect()
    }

    fn peek(&self) -> SegmentHeader {
        SegmentHeader { offset: self.offset, length: self.length, next: self.next }
    }

    fn into_segment(self) -> u32 {
        let handle = self.handle;
        write_header(handle, self.peek());
        mem::forget(self);
        handle
    }

    /// Frees a chain's segments behind the first.
    #[cold]
    #[inline(never)]
    pub(crate) fn free_tail(&mut self) {
        // One at a time and not by recursion: a chain may be long, the stack is not.
        let mut tail = self.split_first();
        while let Some(mut segment) = tail {
            tail = segment.split_first();
        }
    }
}

/// A segment, wherever its description stands: in the packet or in its frame.
struct Segment {
    handle: u32,
    offset: u16,
    length: u16,
    next: u32,
}

/// What a segment behind the first keeps at its frame's start.
#[repr(C)]
#[derive(Clone, Copy)]
struct SegmentHeader {
    next: u32,
    offset: u16,
    length: u16,
}

fn read_header(handle: u32) -> SegmentHeader {
    // SAFETY: a frame is at least 2 KiB, aligned to 2 KiB, and owned by the chain that `handle` was read from; the
    // header was written by `write_header` when it was linked, and no packet's data starts in the first 64 bytes
    // (`Frame::into_packet` and `prepend` see to it), so no safe write has touched it since.
    unsafe { window::address(handle).cast::<SegmentHeader>().read() }
}

fn write_header(handle: u32, header: SegmentHeader) {
    debug_assert!(header.offset as usize >= SEGMENT_HEADER);
    // SAFETY: as above: inside an owned, aligned frame, before its data.
    unsafe { window::address(handle).cast::<SegmentHeader>().write(header) }
}

impl Drop for Packet {
    #[inline]
    fn drop(&mut self) {
        if self.is_chained() {
            self.free_tail();
        }
        registry::slot(self.handle).pool().free_list.give(&[self.handle]);
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packet(frame {:#x}, port {}, {} bytes", self.handle, self.port, self.total_len())?;
        if self.is_chained() {
            write!(f, " in {} segments", self.segment_count())?;
        }
        f.write_str(")")
    }
}

/// Iterates over the bytes of each segment of a packet.
pub struct Segments<'a> {
    handle: u32,
    header: SegmentHeader,
    packet: PhantomData<&'a Packet>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.handle == frame::NONE {
            return None;
        }
        let base = window::address(self.handle);
        // SAFETY: the frame belongs to the packet that is borrowed for 'a, alone or as a segment of its chain;
        // offset + length lie inside it, as for `Packet::data`.
        let data = unsafe {
            slice::from_raw_parts(base.add(self.header.offset as usize), self.header.length as usize)
        };
        self.handle = self.header.next;
        if self.handle != frame::NONE {
            self.header = read_header(self.handle);
        }
        Some(data)
    }
}
