//! The books on the frames that one queue has given to the device.
//!
//! Descriptors are used round the ring: buffer number `n` has descriptor `n % size`, and so the id by which the device gives it back says where it stands
//! in the books. Devices give back in order, nearly always; what comes out of order is settled too, but its descriptor is used again only when those
//! before it are back. An id that is not outstanding is nothing: a device gone wrong cannot make us use a frame twice.
//!
//! How entries lie in memory is the matter of a queue's [`Books`]: its bursts go over them without asking for each what kind it is. Whether there are others
//! than single ones at all, the ledger counts.
#![forbid(unsafe_code)]

use crate::memory::Frame;
use std::ops::Range;

/// What a frame's handle cannot be: the descriptor has none.
const NO_FRAME: u32 = u32::MAX;
/// In the note: not the usual entry, but the head of a chain, one of its members, or an empty one.
const UNUSUAL: u32 = 1 << 31;
/// A descriptor of a chain that is not its head.
const MEMBER: u32 = UNUSUAL | 1 << 30;
/// Settled, or never entered.
const EMPTY: Entry = Entry { handle: NO_FRAME, note: u32::MAX };

/// One descriptor's entry: a frame's handle, and a note of at most 30 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    handle: u32,
    note: u32,
}

impl Entry {
    /// A buffer by itself.
    pub(super) fn single(frame: Frame, note: u32) -> Self {
        Self { handle: frame.into_handle(), note }
    }

    /// The first of a chain; without a frame where its memory is the driver's own.
    pub(super) fn head(frame: Option<Frame>, note: u32) -> Self {
        Self { handle: frame.map_or(NO_FRAME, Frame::into_handle), note: UNUSUAL | note }
    }

    /// Another one of a chain.
    pub(super) fn member(frame: Frame) -> Self {
        Self { handle: frame.into_handle(), note: MEMBER }
    }

    fn is_single(self) -> bool {
        self.note & UNUSUAL == 0
    }

    fn is_member(self) -> bool {
        self.note & MEMBER == MEMBER
    }

    /// The note; 0 for members.
    pub(super) fn note(self) -> u32 {
        if self.is_member() { 0 } else { self.note & !UNUSUAL }
    }

    /// The frame, if it has one. Called once for an entry that was settled.
    pub(super) fn frame(self) -> Option<Frame> {
        (self.handle != NO_FRAME).then(|| Frame::from_handle(self.handle))
    }
}

/// The entries of all descriptors.
pub(super) trait Books {
    fn get(&self, slot: usize) -> Entry;
    fn set(&mut self, slot: usize, entry: Entry);
}

/// How the packet begins that a buffer becomes: the first word of it, but for its length. That word is read as a whole.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Start {
    pub(super) handle: u32,
    pub(super) offset: u32,
}

impl Start {
    /// For [`Packet::from_start`](crate::memory::Packet).
    #[inline(always)]
    pub(super) fn word(self) -> u64 {
        // Of the offset, no more than a half is ever written.
        u64::from(self.handle) | u64::from(self.offset) << 32
    }
}

/// Those of a receive queue, of single buffers only. A descriptor's packets start at the same place in any frame, which is written once; the notes say it.
pub(super) struct Starts(Box<[Start]>);

impl Starts {
    /// Empty ones: a place in the frame for each descriptor.
    pub(super) fn new(offsets: impl Iterator<Item = u32>) -> Self {
        Self(offsets.map(|offset| Start { handle: NO_FRAME, offset }).collect())
    }

    /// Those of these descriptors.
    #[inline(always)]
    pub(super) fn row(&self, slots: Range<usize>) -> &[Start] {
        &self.0[slots]
    }

    /// The same, to be written.
    #[inline(always)]
    pub(super) fn row_mut(&mut self, slots: Range<usize>) -> &mut [Start] {
        &mut self.0[slots]
    }
}

impl Books for Starts {
    fn get(&self, slot: usize) -> Entry {
        let Start { handle, offset } = self.0[slot];
        if handle == NO_FRAME { EMPTY } else { Entry { handle, note: offset } }
    }

    fn set(&mut self, slot: usize, entry: Entry) {
        self.0[slot].handle = entry.handle;
    }
}

/// Those of a transmit queue: handles, which go back to the pool in a row, and notes, which are the packets' lengths.
pub(super) struct Sent {
    handles: Box<[u32]>,
    notes: Box<[u32]>,
}

impl Sent {
    /// Empty ones, for `size` descriptors.
    pub(super) fn new(size: u16) -> Self {
        let size = usize::from(size);
        Self { handles: vec![EMPTY.handle; size].into(), notes: vec![EMPTY.note; size].into() }
    }

    /// Handles and notes of these descriptors.
    #[inline(always)]
    pub(super) fn row(&self, slots: Range<usize>) -> (&[u32], &[u32]) {
        (&self.handles[slots.clone()], &self.notes[slots])
    }

    /// The same, to be written.
    #[inline(always)]
    pub(super) fn row_mut(&mut self, slots: Range<usize>) -> (&mut [u32], &mut [u32]) {
        (&mut self.handles[slots.clone()], &mut self.notes[slots])
    }
}

impl Books for Sent {
    fn get(&self, slot: usize) -> Entry {
        Entry { handle: self.handles[slot], note: self.notes[slot] }
    }

    fn set(&mut self, slot: usize, entry: Entry) {
        (self.handles[slot], self.notes[slot]) = (entry.handle, entry.note);
    }
}

/// The books. Counters run on without a bound; a descriptor is theirs modulo the size, a power of two.
pub(super) struct Ledger<B: Books> {
    books: B,
    mask: u32,
    next: u32,
    clean: u32,
    /// Outstanding entries that are not single.
    odd: u32,
}

impl<B: Books> Ledger<B> {
    /// Of a ring of `size` descriptors, a power of two, and `books` of as many that are empty.
    pub(super) fn new(size: u16, books: B) -> Self {
        Self { books, mask: u32::from(size) - 1, next: 0, clean: 0, odd: 0 }
    }

    /// The entries.
    #[inline(always)]
    pub(super) fn books(&self) -> &B {
        &self.books
    }

    /// The same, to be written.
    #[inline(always)]
    pub(super) fn books_mut(&mut self) -> &mut B {
        &mut self.books
    }

    /// The number of the next buffer.
    #[inline(always)]
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// The number of the oldest buffer.
    #[inline(always)]
    pub(super) fn clean(&self) -> u32 {
        self.clean
    }

    /// Descriptors that are in use.
    #[inline(always)]
    pub(super) fn outstanding(&self) -> u32 {
        self.next.wrapping_sub(self.clean)
    }

    /// Descriptors that may be entered now. One always stays free.
    #[inline(always)]
    pub(super) fn room(&self) -> u32 {
        self.mask - self.outstanding()
    }

    /// Up to `most` descriptors from number `at` on that lie in a row, up to the end of the ring.
    #[inline(always)]
    fn row(&self, at: u32, most: u32) -> Range<usize> {
        let from = at & self.mask;
        from as usize..(from + most.min(self.mask + 1 - from)) as usize
    }

    /// The first `most` outstanding entries, oldest first, as far as they are single and lie in a row.
    #[inline(always)]
    pub(super) fn front(&self, most: u32) -> Range<usize> {
        let row = self.row(self.clean, self.outstanding().min(most));
        if self.odd == 0 { row } else { self.up_to_odd(row) }
    }

    #[cold]
    #[inline(never)]
    fn up_to_odd(&self, row: Range<usize>) -> Range<usize> {
        let odd = row.clone().find(|slot| !self.books.get(*slot).is_single());
        row.start..odd.unwrap_or(row.end)
    }

    /// Takes the first `count` entries of the front back; the caller has read them.
    #[inline(always)]
    pub(super) fn advance(&mut self, count: usize) {
        debug_assert!(count as u32 <= self.outstanding());
        self.clean = self.clean.wrapping_add(count as u32);
    }

    /// Up to `most` descriptors in a row that may be entered: their entries are to be written, as single ones, and then counted by [`entered`](Self::entered).
    #[inline(always)]
    pub(super) fn back(&self, most: u32) -> Range<usize> {
        self.row(self.next, self.room().min(most))
    }

    /// So many of the row were written.
    #[inline(always)]
    pub(super) fn entered(&mut self, count: usize) {
        debug_assert!(count as u32 <= self.room());
        self.next = self.next.wrapping_add(count as u32);
    }

    /// Enters the next descriptor. There is room.
    pub(super) fn enter(&mut self, entry: Entry) {
        self.books.set((self.next & self.mask) as usize, entry);
        self.odd += u32::from(!entry.is_single());
        self.entered(1);
    }

    /// Empties an outstanding entry, if it is `wanted`.
    fn settle(&mut self, number: u32, wanted: impl FnOnce(Entry) -> bool) -> Option<Entry> {
        let slot = (number & self.mask) as usize;
        let entry = self.books.get(slot);
        if entry == EMPTY || !wanted(entry) {
            return None;
        }
        self.books.set(slot, EMPTY);
        self.odd += u32::from(entry.is_single());
        Some(entry)
    }

    /// Takes back whatever `id` is the head of, in order or not, each entry by `each`, and says how many descriptors that were: none where it is not outstanding.
    #[cold]
    #[inline(never)]
    pub(super) fn settle_any(&mut self, id: u32, mut each: impl FnMut(Entry)) -> u32 {
        if id > self.mask || id.wrapping_sub(self.clean) & self.mask >= self.outstanding() {
            return 0;
        }
        let left = self.outstanding() - (id.wrapping_sub(self.clean) & self.mask);
        let Some(first) = self.settle(id, |entry| !entry.is_member()) else { return 0 };
        each(first);
        let mut count = 1;
        while !first.is_single()
            && count < left
            && let Some(entry) = self.settle(id.wrapping_add(count), Entry::is_member)
        {
            each(entry);
            count += 1;
        }
        while self.outstanding() > 0 && self.books.get((self.clean & self.mask) as usize) == EMPTY {
            self.clean = self.clean.wrapping_add(1);
            self.odd -= 1;
        }
        count
    }

    /// Takes back everything, and begins anew from 0. The device has been stopped.
    pub(super) fn drain(&mut self, mut each: impl FnMut(Entry)) {
        while self.outstanding() > 0 {
            if let Some(entry) = self.settle(self.clean, |_| true) {
                each(entry);
            }
            self.clean = self.clean.wrapping_add(1);
        }
        (self.next, self.clean, self.odd) = (0, 0, 0);
    }
}

impl<B: Books> Drop for Ledger<B> {
    fn drop(&mut self) {
        self.drain(|entry| drop(entry.frame()));
    }
}
