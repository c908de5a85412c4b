//! The two halves of a descriptor ring: the descriptors, which the device reads and writes, and the frames that belong to them, which are the ring's own books
//! and out of its reach.
//!
//! A device works a ring in order, so the books are a queue: what goes behind its end belongs to the descriptor at the tail, what comes off its front to the
//! one that is done next. What a burst of ordinary packets costs is decided here, by two loops and no more.
#![allow(unsafe_code)]

use super::DESCRIPTOR_BYTES;
use super::format::{RxFormat, TxFormat};
use crate::memory::{Batch, Frame, Fresh, Packet, write_starts};
use crate::vfio::dma::DmaBuffer;
use std::ptr::NonNull;

/// No frame: the place of a descriptor without one.
const NOTHING: u32 = u32::MAX;

/// The descriptors: two words each.
pub(crate) struct Descriptors {
    words: NonNull<[u64; 2]>,
    mask: usize,
    /// Owns them.
    buffer: DmaBuffer,
}

// SAFETY: as the buffer, which one thread uses at a time; the pointer is the buffer's.
unsafe impl Send for Descriptors {}

impl Descriptors {
    /// `size` of them, a power of two, in a buffer that has room for them.
    pub(crate) fn new(buffer: DmaBuffer, size: u16) -> Self {
        assert!(size.is_power_of_two() && buffer.length() >= usize::from(size) * DESCRIPTOR_BYTES);
        Self { words: buffer.pointer().cast(), mask: usize::from(size) - 1, buffer }
    }

    /// The device's address of the first, and the bytes of all.
    pub(crate) fn place(&self) -> (u64, usize) {
        (self.buffer.iova(), (self.mask + 1) * DESCRIPTOR_BYTES)
    }

    /// The descriptor of a place, which may be counted on past the end of the ring.
    #[inline(always)]
    fn at(&self, place: u32) -> *mut u64 {
        // SAFETY: masked, it is below the size, for which the buffer has room.
        unsafe { self.words.as_ptr().add(place as usize & self.mask).cast() }
    }

    /// The second word of a descriptor.
    #[inline(always)]
    pub(crate) fn read(&self, place: u32) -> u64 {
        // SAFETY: `at` gives an address inside the buffer, aligned; no reference to it exists, and the device may write at any time.
        u64::from_le(unsafe { self.at(place).add(1).read_volatile() })
    }

    /// Writes a descriptor.
    #[inline(always)]
    pub(crate) fn write(&self, place: u32, words: [u64; 2]) {
        let at = self.at(place);
        // SAFETY: as for `read`.
        unsafe {
            at.write_volatile(words[0].to_le());
            at.add(1).write_volatile(words[1].to_le());
        }
    }

    /// Writes its second word.
    #[inline(always)]
    pub(crate) fn write_second(&self, place: u32, word: u64) {
        // SAFETY: as for `read`.
        unsafe { self.at(place).add(1).write_volatile(word.to_le()) }
    }
}

/// A ring of `size` places of which at most `size` - 1 are taken, since to the device a full ring would look like an empty one.
pub(crate) struct FrameRing {
    /// Handles of owned frames from `head` up to `tail`; the others mean nothing. As many as the mask allows.
    handles: Box<[u32]>,
    /// Of a ring of buffers to be filled, how the packet begins that each of them becomes; else empty.
    starts: Box<[u64]>,
    mask: u32,
    head: u32,
    tail: u32,
    /// Places that are taken and have no frame.
    nothings: u32,
}

impl FrameRing {
    /// An empty one. `size` is a power of two.
    pub(crate) fn new(size: u16) -> Self {
        assert!(size.is_power_of_two());
        let handles = vec![NOTHING; size.into()].into();
        Self { handles, starts: Box::default(), mask: u32::from(size) - 1, head: 0, tail: 0, nothings: 0 }
    }

    /// An empty one for [`give_buffers`](Self::give_buffers).
    pub(crate) fn of_buffers(size: u16) -> Self {
        let mut ring = Self::new(size);
        ring.starts = vec![0; size.into()].into();
        ring
    }

    /// Places there are.
    pub(crate) fn size(&self) -> usize {
        self.handles.len()
    }

    /// Places taken.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.tail.wrapping_sub(self.head) as usize
    }

    /// Places that are free.
    #[inline(always)]
    pub(crate) fn free(&self) -> usize {
        self.mask as usize - self.len()
    }

    /// The oldest place: the descriptor that is done next. Counted on past the end of the ring, as all places are.
    #[inline(always)]
    pub(crate) fn head(&self) -> u32 {
        self.head
    }

    /// The next free place.
    #[inline(always)]
    pub(crate) fn tail(&self) -> u32 {
        self.tail
    }

    /// What the tail register is to say.
    #[inline(always)]
    pub(crate) fn tail_index(&self) -> u32 {
        self.tail & self.mask
    }

    #[inline(always)]
    fn handle(&self, place: u32) -> u32 {
        // SAFETY: masked, it is below the number of handles.
        unsafe { *self.handles.get_unchecked((place & self.mask) as usize) }
    }

    #[inline(always)]
    fn set(&mut self, place: u32, handle: u32) {
        // SAFETY: as in `handle`.
        unsafe { *self.handles.get_unchecked_mut((place & self.mask) as usize) = handle };
    }

    /// Takes the next free place; gives the frame back where there is none.
    #[inline(always)]
    pub(crate) fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        if self.free() == 0 {
            return Err(frame);
        }
        self.set(self.tail, frame.into_handle());
        self.tail = self.tail.wrapping_add(1);
        Ok(())
    }

    /// Takes it for a descriptor that has no frame, if there is one.
    pub(crate) fn push_nothing(&mut self) {
        if self.free() > 0 {
            self.set(self.tail, NOTHING);
            self.tail = self.tail.wrapping_add(1);
            self.nothings += 1;
        }
    }

    /// Frees the oldest place, and gives its frame if it has one.
    #[inline(always)]
    pub(crate) fn pop(&mut self) -> Option<Frame> {
        if self.head == self.tail {
            return None;
        }
        let handle = self.handle(self.head);
        self.head = self.head.wrapping_add(1);
        if handle == NOTHING {
            self.nothings -= 1;
            return None;
        }
        Some(Frame::from_handle(handle))
    }

    /// Frees the `count` oldest places, and their frames.
    #[inline(always)]
    pub(crate) fn free_front(&mut self, count: usize) {
        let count = count.min(self.len());
        if self.nothings > 0 {
            return self.free_front_slowly(count);
        }
        let start = (self.head & self.mask) as usize;
        let first = count.min(self.handles.len() - start);
        self.head = self.head.wrapping_add(count as u32);
        // They are nobody's now but the pool's.
        Frame::free_handles(&self.handles[start..start + first]);
        Frame::free_handles(&self.handles[..count - first]);
    }

    #[cold]
    fn free_front_slowly(&mut self, count: usize) {
        (0..count).for_each(|_| drop(self.pop()));
    }

    /// Frees all.
    pub(crate) fn clear(&mut self) {
        self.free_front_slowly(self.len());
    }

    /// Moves all so that the oldest is at index 0, as a device that was reset expects it.
    pub(crate) fn rewind(&mut self) {
        let head = (self.head & self.mask) as usize;
        self.handles.rotate_left(head);
        if !self.starts.is_empty() {
            self.starts.rotate_left(head);
        }
        (self.head, self.tail) = (0, self.len() as u32);
    }

    /// Where a run of places starts and how long it is: up to `count` from `place` on, before the ring's end.
    #[inline(always)]
    fn run(&self, place: u32, count: usize) -> (usize, usize) {
        let start = (place & self.mask) as usize;
        (start, count.min(self.handles.len() - start))
    }

    /// Puts up to `count` (at most 64) of a pool's frames into the next free places, as buffers to be filled, and says how many.
    #[inline(always)]
    pub(crate) fn give_buffers(
        &mut self,
        descriptors: &Descriptors,
        buffers: &Buffers<'_>,
        count: usize,
    ) -> usize {
        let (start, run) = self.run(self.tail, count.min(self.free()));
        let (handles, starts) = (&mut self.handles[start..start + run], &mut self.starts[start..start + run]);
        let got = buffers.pool.allocate_handles(handles);
        let (origin, fresh) = (buffers.origin, buffers.fresh);
        write_starts(&handles[..got], starts, fresh);
        let mut descriptor = descriptors.at(start as u32);
        for start in &starts[..got] {
            let address = origin.wrapping_add(Packet::window_offset_of(*start));
            // SAFETY: as in `Descriptors::write`: there are as many descriptors from `start` on as places, and this is the place's.
            unsafe {
                descriptor.write_volatile(address.to_le());
                descriptor.add(1).write_volatile(0);
                descriptor = descriptor.wrapping_add(2);
            }
        }
        self.tail = self.tail.wrapping_add(got as u32);
        got
    }

    /// Writes the descriptors of all that are there anew.
    pub(crate) fn give_again(&self, descriptors: &Descriptors, buffers: &Buffers<'_>) {
        for ahead in 0..self.len() as u32 {
            let place = self.head.wrapping_add(ahead);
            let frame = Frame::from_handle(self.handle(place));
            descriptors.write(place, buffers.descriptor(&frame));
            // Only looked at: it stays on the ring.
            let _ = frame.into_handle();
        }
    }

    /// Takes packets that are whole in one buffer off the front and adds them to the batch, until there is another or none, or no room; how many bytes.
    /// `look` says what the device thinks of each packet's checksums.
    #[inline(always)]
    pub(crate) fn receive_whole<F: RxFormat>(
        &mut self,
        descriptors: &Descriptors,
        batch: &mut Batch,
        port: u16,
        buffer_bytes: usize,
        checksum: bool,
    ) -> u64 {
        // Its lower half is the sum of the lengths.
        let mut found_all = 0_u64;
        // Up to the ring's end, and on from its start.
        for _ in 0..2 {
            let (start, run) = self.run(self.head, self.len());
            let descriptor = descriptors.at(start as u32);
            let starts = &self.starts[start..start + run];
            let write = |packets: *mut Packet, room: usize| {
                let mut count = 0;
                for start in &starts[..run.min(room)] {
                    // SAFETY: as in `Descriptors::read`: there are as many descriptors from `start` on as places.
                    let word = u64::from_le(unsafe { descriptor.add(count * 2 + 1).read_volatile() });
                    let found = F::turned(word);
                    if F::whole(found) >= buffer_bytes as u64 {
                        break;
                    }
                    let mut packet = Packet::from_start(*start, found as u16, port);
                    if checksum {
                        packet.set_checksum(F::checksum(word));
                    }
                    // SAFETY: `count` is below the room. The frame of this place is the packet's: the place is given up below.
                    unsafe { packets.add(count).write(packet) };
                    found_all = found_all.wrapping_add(found);
                    count += 1;
                }
                count
            };
            // SAFETY: `write` has initialised as many as it says, one after the other.
            let count = unsafe { batch.extend_raw(write) };
            self.head = self.head.wrapping_add(count as u32);
            if self.head & self.mask != 0 || count == 0 {
                break;
            }
        }
        u64::from(found_all as u32)
    }

    /// Writes a descriptor for each of the first `count` packets of the batch, which are in one segment, of the pool whose window begins for the device at
    /// `origin`, and for which there is room; the packets are the ring's then. How many bytes, and the last one's second word.
    #[inline(always)]
    pub(crate) fn send_whole<F: TxFormat>(
        &mut self,
        descriptors: &Descriptors,
        batch: &mut Batch,
        origin: u64,
        count: usize,
    ) -> (u64, u64) {
        let count = count.min(batch.len()).min(self.free());
        let (mut bytes, mut word, mut done) = (0, 0, 0);
        while done < count {
            let (start, run) = self.run(self.tail, count - done);
            let mut descriptor = descriptors.at(start as u32);
            let packets = &batch.as_slice()[done..done + run];
            for (packet, place) in packets.iter().zip(&mut self.handles[start..start + run]) {
                debug_assert!(!packet.is_chained());
                let length = packet.len() as u32;
                let (handle, offset) = (packet.handle(), packet.offset() as u64);
                let address = origin.wrapping_add(Frame::window_offset_of(handle) + offset);
                word = F::data(length, length, true, None);
                // SAFETY: as in `Descriptors::write`: there are as many descriptors from `start` on as places, and this is the place's.
                unsafe {
                    descriptor.write_volatile(address.to_le());
                    descriptor.add(1).write_volatile(word.to_le());
                    descriptor = descriptor.wrapping_add(2);
                }
                *place = handle;
                bytes += u64::from(length);
            }
            self.tail = self.tail.wrapping_add(run as u32);
            done += run;
        }
        // SAFETY: no more than there are; their frames are the ring's now.
        unsafe { batch.forget_front(count) };
        (bytes, word)
    }
}

impl Drop for FrameRing {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Where a pool's frames are to the device, and where in them a packet is to start.
pub(crate) struct Buffers<'a> {
    pub(crate) pool: &'a crate::memory::Pool,
    pub(crate) origin: u64,
    pub(crate) fresh: Fresh,
}

impl Buffers<'_> {
    /// The descriptor of an empty buffer; its second word takes away what the device wrote there the last time.
    #[inline(always)]
    fn descriptor(&self, frame: &Frame) -> [u64; 2] {
        let start = Packet::start(frame.handle(), self.fresh.offset(frame.handle()));
        [self.origin.wrapping_add(Packet::window_offset_of(start)), 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Pool, PoolConfig};
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn property_it_is_a_queue_whatever_is_done_to_it(steps in proptest::collection::vec(0_u8..10, 1..300)) {
            let pool = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
            let mut ring = FrameRing::new(16);
            let mut model = VecDeque::new();
            for step in steps {
                match step {
                    0..=4 => {
                        let frame = pool.allocate_frame().unwrap();
                        let handle = frame.handle();
                        if ring.push(frame).is_ok() {
                            model.push_back(Some(handle));
                        } else {
                            prop_assert_eq!(model.len(), 15);
                        }
                    }
                    5 if model.len() < 15 => {
                        ring.push_nothing();
                        model.push_back(None);
                    }
                    6 => {
                        ring.free_front(3);
                        model.drain(..model.len().min(3));
                    }
                    7 => {
                        ring.rewind();
                        prop_assert_eq!((ring.head(), ring.tail_index()), (0, model.len() as u32));
                    }
                    _ => prop_assert_eq!(ring.pop().map(|frame| frame.handle()), model.pop_front().flatten()),
                }
                prop_assert_eq!((ring.len(), ring.free()), (model.len(), 15 - model.len()));
                let held = model.iter().flatten().count();
                prop_assert_eq!((pool.audit().held, pool.audit().duplicated), (held, 0));
            }
            drop(ring);
            prop_assert_eq!(pool.audit().held, 0);
        }
    }
}
