//! Up to 64 packets in an array: what ports and applications hand to each other.
#![allow(unsafe_code)]

use super::frame::{self, Frame, POOL_SHIFT};
use super::packet::Packet;
use super::registry;
use super::words::{self, Fresh};
use crate::port::PortId;
use std::mem::MaybeUninit;
use std::{fmt, ptr, slice};

/// Packets a batch holds at most.
pub const BATCH_SIZE: usize = 64;

/// A list of owned packets, in order. Dropping it frees them in bulk.
pub struct Batch {
    /// The first `len` are initialised.
    packets: [MaybeUninit<Packet>; BATCH_SIZE],
    len: usize,
}

impl Batch {
    /// An empty batch.
    pub const fn new() -> Self {
        Self { packets: [const { MaybeUninit::uninit() }; BATCH_SIZE], len: 0 }
    }

    /// How many packets it holds.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True where it holds none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many more it can hold.
    #[inline(always)]
    pub fn room(&self) -> usize {
        BATCH_SIZE - self.len
    }

    /// Adds a packet at the end; gives it back where the batch is full.
    #[inline]
    pub fn push(&mut self, packet: Packet) -> Result<(), Packet> {
        if self.len == BATCH_SIZE {
            return Err(packet);
        }
        self.packets[self.len].write(packet);
        self.len += 1;
        Ok(())
    }

    /// Adds a frame as a packet of `length` bytes that start `offset` bytes into it and came in by `port`; false, and the frame is
    /// freed, where it has no such bytes ([`Frame::into_packet`]) or the batch no room.
    #[inline(always)]
    pub(crate) fn push_frame(&mut self, frame: Frame, offset: usize, length: usize, port: PortId) -> bool {
        let fits = self.len < BATCH_SIZE && frame.has_room(offset, length);
        if fits {
            let handle = frame.into_handle();
            // In place, whole: a packet that came here by way of a result would be put together anew.
            self.packets[self.len].write(Packet::new(handle, offset as u16, length as u16, port.0));
            self.len += 1;
        }
        fits
    }

    /// Takes the last packet.
    #[inline]
    pub fn pop(&mut self) -> Option<Packet> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: this one was initialised, and is no longer counted, so nobody reads it again.
        Some(unsafe { self.packets[self.len].assume_init_read() })
    }

    /// The packets as a slice.
    #[inline(always)]
    pub fn as_slice(&self) -> &[Packet] {
        // SAFETY: the first `len` are initialised; MaybeUninit<Packet> has the layout of Packet.
        unsafe { slice::from_raw_parts(self.packets.as_ptr().cast(), self.len) }
    }

    /// The packets as a slice to be changed.
    #[inline(always)]
    pub fn as_mut_slice(&mut self) -> &mut [Packet] {
        // SAFETY: as in `as_slice`.
        unsafe { slice::from_raw_parts_mut(self.packets.as_mut_ptr().cast(), self.len) }
    }

    /// Iterates over the packets.
    pub fn iter(&self) -> slice::Iter<'_, Packet> {
        self.as_slice().iter()
    }

    /// Iterates over the packets to change them.
    #[inline(always)]
    pub fn iter_mut(&mut self) -> slice::IterMut<'_, Packet> {
        self.as_mut_slice().iter_mut()
    }

    /// Bytes of all packets, all segments.
    #[inline]
    pub fn total_bytes(&self) -> u64 {
        let (mut nexts, mut bytes) = (frame::NONE, 0);
        for packet in self.iter() {
            nexts &= packet.next_handle();
            // At most 64 times 64 KiB.
            bytes += packet.len() as u32;
        }
        if nexts == frame::NONE { bytes.into() } else { self.chained_bytes() }
    }

    #[cold]
    fn chained_bytes(&self) -> u64 {
        self.iter().map(|packet| packet.total_len() as u64).sum()
    }

    /// Moves as many packets as fit from the front of `other` to the end of this one, and says how many.
    #[inline]
    pub fn append(&mut self, other: &mut Batch) -> usize {
        let count = self.room().min(other.len);
        // SAFETY: source and destination are different batches; `count` initialised packets are read and as many
        // free places written. `forget_front` then drops the source's claim on them, so each has one owner.
        unsafe {
            ptr::copy_nonoverlapping(other.packets.as_ptr(), self.packets.as_mut_ptr().add(self.len), count);
            other.forget_front(count);
        }
        self.len += count;
        count
    }

    /// Takes the first `count` packets out, in order, calling `take` for each.
    #[inline]
    pub fn drain_front(&mut self, count: usize, mut take: impl FnMut(Packet)) {
        let count = count.min(self.len);
        // A panic in `take` leaks packets, which the pool's audit reports; it never frees one twice.
        let len = std::mem::replace(&mut self.len, 0);
        for place in &mut self.packets[..count] {
            // SAFETY: the first `len` were initialised; `len` is 0 now, so each is read by this loop alone.
            take(unsafe { place.assume_init_read() });
        }
        self.len = len - count;
        if self.len > 0 {
            // SAFETY: [count, len) are still initialised and are moved, as plain bytes, to the front.
            unsafe { ptr::copy(self.packets.as_ptr().add(count), self.packets.as_mut_ptr(), self.len) };
        }
    }

    /// Moves the packets that `wanted` refuses to the end of `others`, as many as there is room for, and keeps the order
    /// of both.
    pub fn partition(&mut self, others: &mut Batch, mut wanted: impl FnMut(&mut Packet) -> bool) {
        let mut kept = Batch::new();
        self.drain_front(self.len, |mut packet| {
            let packet = if wanted(&mut packet) { Err(packet) } else { others.push(packet) };
            if let Err(packet) = packet {
                // It came out of a batch of the same size.
                drop(kept.push(packet));
            }
        });
        self.append(&mut kept);
    }

    /// Frees the last packets until `len` are left.
    pub fn truncate(&mut self, len: usize) {
        while self.len > len {
            drop(self.pop());
        }
    }

    /// Frees all packets, in bulk where they are of one pool.
    #[inline]
    pub fn clear(&mut self) {
        self.clear_counted();
    }

    /// Frees all packets and says how many bytes they had.
    #[inline]
    pub fn clear_counted(&mut self) -> u64 {
        let Some(first) = self.as_slice().first().map(Packet::handle) else { return 0 };
        // One pass without a branch for each.
        let mut handles = [MaybeUninit::<u32>::uninit(); BATCH_SIZE];
        let survey = words::read_handles(self.as_slice(), &mut handles);
        let bytes = if survey.chained { self.chained_bytes() } else { survey.bytes.into() };
        if survey.differs >> POOL_SHIFT != 0 {
            self.truncate(0);
            return bytes;
        }
        if survey.chained {
            self.iter_mut().for_each(Packet::free_tail);
        }
        // The packets' claim on the frames ends here, with the copies of their handles, which make the free list the owner.
        let count = std::mem::replace(&mut self.len, 0);
        // SAFETY: the first `count` were written just now.
        let handles = unsafe { slice::from_raw_parts(handles.as_ptr().cast(), count) };
        registry::slot(first).pool().free_list.give(handles);
        bytes
    }

    /// Adds fresh packets of these handles, of which there are no more than [`room`](Self::room).
    ///
    /// # Safety
    /// As for [`words::write_packets`].
    #[inline(always)]
    pub(crate) unsafe fn extend_fresh(&mut self, handles: &[u32], fresh: Fresh) {
        debug_assert!(handles.len() <= self.room());
        // SAFETY: the caller's promise.
        unsafe { words::write_packets(handles, &mut self.packets[self.len..], fresh) };
        self.len += handles.len();
    }

    /// Lets `write` put packets into the free places behind the last one (it gets their address and number), and says how many.
    ///
    /// # Safety
    /// `write` returns how many places it has initialised, from the first on and no more than it was offered.
    #[inline(always)]
    pub(crate) unsafe fn extend_raw(&mut self, write: impl FnOnce(*mut Packet, usize) -> usize) -> usize {
        let count = write(self.packets[self.len..].as_mut_ptr().cast(), self.room());
        debug_assert!(count <= self.room());
        self.len += count;
        count
    }

    /// Forgets the first `count` packets without freeing them.
    ///
    /// # Safety
    /// `count <= len`, and somebody else owns them now.
    #[inline(always)]
    pub(crate) unsafe fn forget_front(&mut self, count: usize) {
        self.len -= count;
        if self.len > 0 {
            // SAFETY: the caller's promise; the rest moves to the front as plain bytes.
            unsafe { ptr::copy(self.packets.as_ptr().add(count), self.packets.as_mut_ptr(), self.len) };
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.clear();
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for &'a mut Batch {
    type Item = &'a mut Packet;
    type IntoIter = slice::IterMut<'a, Packet>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = &'a Packet;
    type IntoIter = slice::Iter<'a, Packet>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
