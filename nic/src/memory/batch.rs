//! Up to 64 packets in an array: what ports and applications hand to each other.
#![allow(unsafe_code)]

use super::frame::POOL_SHIFT;
use super::packet::Packet;
use super::registry;
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
        self.survey().bytes
    }

    /// What a batch must know of its packets to free them in bulk, in one pass without a branch for each.
    #[inline(always)]
    fn survey(&self) -> Survey {
        let Some(first) = self.as_slice().first() else {
            return Survey { one_pool: true, chained: false, bytes: 0 };
        };
        let (first, mut differs, mut nexts, mut bytes) = (first.handle(), 0, u32::MAX, 0);
        for packet in self.iter() {
            if cfg!(target_endian = "little") {
                let [low, high] = packet.words();
                differs |= low as u32 ^ first;
                nexts &= high as u32;
                bytes += low >> 48;
            } else {
                differs |= packet.handle() ^ first;
                nexts &= if packet.is_chained() { 0 } else { u32::MAX };
                bytes += packet.len() as u64;
            }
        }
        let chained = nexts != u32::MAX;
        if chained {
            bytes = self.iter().map(|packet| packet.total_len() as u64).sum();
        }
        Survey { one_pool: differs >> POOL_SHIFT == 0, chained, bytes }
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
        // SAFETY: [count, len) are still initialised and are moved, as plain bytes, to the front.
        unsafe { ptr::copy(self.packets.as_ptr().add(count), self.packets.as_mut_ptr(), len - count) };
        self.len = len - count;
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
        let Survey { one_pool, chained, bytes } = self.survey();
        let Some(first) = self.as_slice().first() else {
            return 0;
        };
        let handle = first.handle();
        if !one_pool {
            self.truncate(0);
            return bytes;
        }
        if chained {
            self.iter_mut().for_each(Packet::free_tail);
        }
        let count = std::mem::replace(&mut self.len, 0);
        let packets: *const Packet = self.packets.as_ptr().cast();
        let mut handles = [MaybeUninit::<u32>::uninit(); BATCH_SIZE];
        for (index, place) in handles[..count].iter_mut().enumerate() {
            // SAFETY: the first `count` are initialised; `len` is 0, so their claim on the frames ends with this copy of the
            // handles, which makes the free list the owner.
            place.write(unsafe { (*packets.add(index)).handle() });
        }
        // SAFETY: the first `count` were written just now.
        let handles = unsafe { slice::from_raw_parts(handles.as_ptr().cast(), count) };
        registry::slot(handle).pool().free_list.give(handles);
        bytes
    }

    /// Adds `count` packets that `write` makes; no more than [`room`](Self::room).
    #[inline(always)]
    pub(crate) fn extend_from_handles(&mut self, handles: &[u32], mut make: impl FnMut(u32) -> Packet) {
        debug_assert!(handles.len() <= self.room());
        for (place, handle) in self.packets[self.len..].iter_mut().zip(handles) {
            place.write(make(*handle));
        }
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

struct Survey {
    one_pool: bool,
    chained: bool,
    bytes: u64,
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
