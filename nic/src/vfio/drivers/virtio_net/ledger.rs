//! The books on the frames that one queue has given to the device.
//!
//! Descriptors are used round the ring: buffer number `n` has descriptor `n % size`, and so the id by which the device gives it back says where it stands
//! in the books. Devices give back in order, nearly always; what comes out of order is settled too, but its descriptor is used again only when those
//! before it are back. An id that is not outstanding is nothing: a device gone wrong cannot make us use a frame twice.
//!
//! One descriptor always stays free. Its entry is empty and ends the outstanding ones, so that the usual case needs no comparison for that.
#![forbid(unsafe_code)]

use crate::memory::Frame;

/// No frame: settled, or never entered.
const EMPTY: u64 = u64::MAX;
/// Not the usual entry: the head of a chain, one of its members, or an empty one.
const UNUSUAL: u64 = 1 << 63;
/// A descriptor of a chain that is not its head.
const MEMBER: u64 = UNUSUAL | 1 << 62;
/// What a frame's handle cannot be: the descriptor has none.
const NO_FRAME: u32 = u32::MAX;

/// One descriptor's entry: a frame's handle, and a note of at most 30 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry(u64);

impl Entry {
    /// A buffer by itself.
    #[inline(always)]
    pub(super) fn single(frame: Frame, note: u32) -> Self {
        Self(u64::from(frame.into_handle()) | u64::from(note) << 32)
    }

    /// The first of a chain; without a frame where its memory is the driver's own.
    pub(super) fn head(frame: Option<Frame>, note: u32) -> Self {
        Self(UNUSUAL | u64::from(note) << 32 | u64::from(frame.map_or(NO_FRAME, Frame::into_handle)))
    }

    /// Another one of a chain.
    pub(super) fn member(frame: Frame) -> Self {
        Self(MEMBER | u64::from(frame.into_handle()))
    }

    /// Whether it is that of a buffer by itself, and outstanding.
    #[inline(always)]
    pub(super) fn is_single(self) -> bool {
        self.0 & UNUSUAL == 0
    }

    /// The frame's handle, of a single one.
    #[inline(always)]
    pub(super) fn handle(self) -> u32 {
        self.0 as u32
    }

    /// The note of a single one.
    #[inline(always)]
    pub(super) fn note(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The note of any; 0 for members.
    pub(super) fn any_note(self) -> u32 {
        if self.0 & MEMBER == MEMBER { 0 } else { ((self.0 & !UNUSUAL) >> 32) as u32 }
    }

    /// The frame of a single one. Called once for an entry that was settled.
    #[inline(always)]
    pub(super) fn frame(self) -> Frame {
        Frame::from_handle(self.0 as u32)
    }

    /// The frame of any.
    pub(super) fn any_frame(self) -> Option<Frame> {
        (self.0 as u32 != NO_FRAME).then(|| self.frame())
    }
}

/// The books. Counters run on without a bound; a descriptor is theirs modulo the size, a power of two.
pub(super) struct Ledger {
    entries: Box<[Entry]>,
    mask: u32,
    next: u32,
    clean: u32,
}

impl Ledger {
    /// Empty ones for a ring of `size` descriptors, a power of two.
    pub(super) fn new(size: u16) -> Self {
        Self {
            entries: vec![Entry(EMPTY); usize::from(size)].into(),
            mask: u32::from(size) - 1,
            next: 0,
            clean: 0,
        }
    }

    /// The number of the next buffer.
    #[inline(always)]
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// Descriptors that are in use.
    #[inline(always)]
    pub(super) fn outstanding(&self) -> u32 {
        self.next.wrapping_sub(self.clean)
    }

    /// Descriptors that may be entered now.
    #[inline(always)]
    pub(super) fn room(&self) -> u32 {
        self.mask - self.outstanding()
    }

    /// The number of the oldest buffer.
    #[inline(always)]
    pub(super) fn clean(&self) -> u32 {
        self.clean
    }

    /// The entries from the oldest on, up to the end of the ring. Behind the outstanding ones is one that is not [single](Entry::is_single).
    #[inline(always)]
    pub(super) fn front(&self) -> &[Entry] {
        self.entries.get((self.clean & self.mask) as usize..).unwrap_or(&[])
    }

    /// Takes the first `count` entries of the front back; the caller has read them, and they were single.
    #[inline(always)]
    pub(super) fn advance(&mut self, count: usize) {
        self.clean = self.clean.wrapping_add(count as u32);
    }

    /// How many descriptors there may be entered in a row, up to the end of the ring.
    #[inline(always)]
    pub(super) fn row(&self) -> usize {
        self.room().min(self.mask + 1 - (self.next & self.mask)) as usize
    }

    /// The entries of that row: to be written, and then counted by [`entered`](Self::entered).
    #[inline(always)]
    pub(super) fn back(&mut self) -> &mut [Entry] {
        let (from, count) = ((self.next & self.mask) as usize, self.row());
        self.entries.get_mut(from..from + count).unwrap_or(&mut [])
    }

    /// So many of the row were written. After the last ones of a burst comes [`seal`](Self::seal).
    #[inline(always)]
    pub(super) fn entered(&mut self, count: usize) {
        debug_assert!(count as u32 <= self.room());
        self.next = self.next.wrapping_add(count as u32);
    }

    /// Enters the next descriptor. There is room.
    pub(super) fn enter(&mut self, entry: Entry) {
        if let Some(place) = self.back().first_mut() {
            *place = entry;
        }
        self.entered(1);
    }

    /// Marks the end of what is outstanding, before the device hears of it.
    #[inline(always)]
    pub(super) fn seal(&mut self) {
        if let Some(place) = self.entries.get_mut((self.next & self.mask) as usize) {
            *place = Entry(EMPTY);
        }
    }

    /// Takes back whatever `id` is the head of, in order or not, each entry by `each`, and says how many descriptors that were: none where it is not outstanding.
    #[cold]
    #[inline(never)]
    pub(super) fn settle_any(&mut self, id: u32, mut each: impl FnMut(Entry)) -> u32 {
        if id > self.mask || id.wrapping_sub(self.clean) & self.mask >= self.outstanding() {
            return 0;
        }
        let left = self.outstanding() - (id.wrapping_sub(self.clean) & self.mask);
        let mut count = 0;
        while count < left {
            let place = &mut self.entries[(id.wrapping_add(count) & self.mask) as usize];
            let (entry, is_first) = (*place, count == 0);
            if entry.0 == EMPTY || (entry.0 & MEMBER == MEMBER) == is_first {
                break;
            }
            *place = Entry(EMPTY);
            each(entry);
            count += 1;
            if entry.is_single() {
                break;
            }
        }
        while self.outstanding() > 0 && self.entries[(self.clean & self.mask) as usize].0 == EMPTY {
            self.clean = self.clean.wrapping_add(1);
        }
        count
    }

    /// Takes back everything, and begins anew from 0. The device has been stopped.
    pub(super) fn drain(&mut self, mut each: impl FnMut(Entry)) {
        while self.outstanding() > 0 {
            let place = &mut self.entries[(self.clean & self.mask) as usize];
            let entry = std::mem::replace(place, Entry(EMPTY));
            self.clean = self.clean.wrapping_add(1);
            if entry.0 != EMPTY {
                each(entry);
            }
        }
        (self.next, self.clean) = (0, 0);
        self.seal();
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.drain(|entry| drop(entry.any_frame()));
    }
}
