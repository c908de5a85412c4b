//! The split virtqueue (VIRTIO 1.2, 2.7): a table of descriptors, a ring of those that are available, and one of those that are used.
//!
//! As descriptors are taken round the table, a ring of buffers of one descriptor each always has the same numbers in `avail`: they are written once,
//! and the line stays clean. Once chains come, they are written for each buffer.
#![allow(unsafe_code)]

use super::abi::split::{
    AVAIL_F_NO_INTERRUPT, DESC_BYTES, DESC_REST, F_NEXT, F_WRITE, FLAGS, IDX, RING, USED_ELEM_BYTES,
    USED_ELEM_LEN, USED_F_NO_NOTIFY,
};
use super::ring::{FreeRow, Hostile, Ring, RingConfig, Segment, Used, UsedRow, passes};
use super::transport::Areas;
use crate::vfio::dma::{DmaBuffer, DmaSpace, Row, exchange, observe, publish};
use std::io;
use std::sync::Arc;

/// One of them.
pub(super) struct SplitRing {
    desc: DmaBuffer,
    avail: DmaBuffer,
    used: DmaBuffer,
    mask: u32,
    config: RingConfig,
    /// Up to where `used` has been consumed, and how far it went at the last look.
    seen: u16,
    filled: u16,
    /// Entries of `avail` that were written, and that were shown.
    put: u16,
    shown: u16,
    /// `avail` does not have its first numbers any more.
    rewritten: bool,
}

impl SplitRing {
    fn describe(&self, at: u32, address: u64, length: u32, flags: u16) {
        let slot = at & self.mask;
        let next = (at.wrapping_add(1) & self.mask) as u64;
        let place = slot as usize * DESC_BYTES;
        self.desc.write64(place, address);
        self.desc.write64(place + DESC_REST, u64::from(length) | u64::from(flags) << 32 | next << 48);
    }

    /// Descriptors from number `at` to the end of the ring.
    #[inline(always)]
    fn to_end(&self, at: u32) -> usize {
        (self.mask + 1 - (at & self.mask)) as usize
    }

    /// Writes the numbers of `count` buffers from number `at` on into `avail`.
    #[cold]
    #[inline(never)]
    fn offer(&self, at: u32, count: usize) {
        for ahead in 0..count as u32 {
            let place = u32::from(self.put).wrapping_add(ahead) & self.mask;
            self.avail.write16(RING + 2 * place as usize, (at.wrapping_add(ahead) & self.mask) as u16);
        }
    }
}

struct UsedElements<'a> {
    row: Row<'a, USED_ELEM_BYTES>,
    count: u32,
    expected: u32,
}

impl UsedRow for UsedElements<'_> {
    #[inline(always)]
    fn count(&self) -> u32 {
        self.count
    }

    #[inline(always)]
    unsafe fn differs(&self, index: usize) -> u32 {
        // SAFETY: the caller's promise.
        let element = unsafe { self.row.element(index) };
        element.read32::<0>() ^ (self.expected + index as u32)
    }

    #[inline(always)]
    unsafe fn written(&self, index: usize) -> Option<u32> {
        // SAFETY: the caller's promise.
        let (differs, element) = unsafe { (self.differs(index), self.row.element(index)) };
        (differs == 0).then(|| element.read32::<USED_ELEM_LEN>())
    }
}

struct FreeDescriptors<'a> {
    row: Row<'a, DESC_BYTES>,
    writable: bool,
}

impl FreeRow for FreeDescriptors<'_> {
    #[inline(always)]
    unsafe fn write(&self, index: usize, address: u64, length: u32) {
        // SAFETY: the caller's promise.
        let descriptor = unsafe { self.row.element(index) };
        descriptor.write64::<0>(address);
        // What the device is to write to has had the same length and flags since the reset.
        if !self.writable {
            descriptor.write64::<DESC_REST>(length.into());
        }
    }
}

impl Ring for SplitRing {
    fn new(space: &Arc<DmaSpace>, config: RingConfig) -> io::Result<Self> {
        let size = usize::from(config.size);
        let mut ring = Self {
            desc: space.allocate(size * DESC_BYTES)?,
            avail: space.allocate(RING + 2 * size + 2)?,
            used: space.allocate(RING + USED_ELEM_BYTES * size + 2)?,
            mask: u32::from(config.size) - 1,
            config,
            seen: 0,
            filled: 0,
            put: 0,
            shown: 0,
            rewritten: false,
        };
        ring.reset();
        Ok(ring)
    }

    fn areas(&self) -> Areas {
        Areas { desc: self.desc.iova(), driver: self.avail.iova(), device: self.used.iova() }
    }

    fn reset(&mut self) {
        for area in [&self.desc, &self.avail, &self.used] {
            area.clear();
        }
        for slot in 0..=self.mask {
            self.describe(slot, 0, self.config.buffer, F_WRITE);
            self.avail.write16(RING + 2 * slot as usize, slot as u16);
        }
        // With event indices the flags say nothing (2.7.7.1).
        self.avail.write16(FLAGS, if self.config.events { 0 } else { AVAIL_F_NO_INTERRUPT });
        (self.seen, self.filled, self.put, self.shown, self.rewritten) = (0, 0, 0, 0, false);
    }

    #[inline(always)]
    fn look(&mut self, outstanding: u32) -> Result<(), Hostile> {
        let index = self.used.read16(IDX);
        observe();
        self.filled = self.seen;
        if u32::from(index.wrapping_sub(self.seen)) > outstanding {
            return Err(Hostile);
        }
        self.filled = index;
        Ok(())
    }

    #[inline(always)]
    fn used_row(&self, clean: u32) -> impl UsedRow {
        let seen = u32::from(self.seen);
        let count = usize::from(self.filled.wrapping_sub(self.seen)).min(self.to_end(seen));
        let first = RING + (seen & self.mask) as usize * USED_ELEM_BYTES;
        UsedElements { row: self.used.row(first, count), count: count as u32, expected: clean & self.mask }
    }

    #[inline(always)]
    fn used(&mut self) -> Option<Used> {
        if self.seen == self.filled {
            return None;
        }
        let place = RING + (u32::from(self.seen) & self.mask) as usize * USED_ELEM_BYTES;
        Some(Used { id: self.used.read32(place), length: self.used.read32(place + USED_ELEM_LEN) })
    }

    #[inline(always)]
    fn consume(&mut self, buffers: u32, _descriptors: u32) {
        self.seen = self.seen.wrapping_add(buffers as u16);
    }

    #[inline(always)]
    fn put_row(&mut self, at: u32, count: usize, writable: bool) -> impl FreeRow {
        assert!(count <= self.to_end(at), "a row past the end of a ring");
        if self.rewritten {
            self.offer(at, count);
        }
        self.put = self.put.wrapping_add(count as u16);
        FreeDescriptors { row: self.desc.row((at & self.mask) as usize * DESC_BYTES, count), writable }
    }

    fn put_segment(&mut self, at: u32, address: u64, length: u32, segment: Segment) {
        let next = if segment.more { F_NEXT } else { 0 };
        let write = if segment.writable { F_WRITE } else { 0 };
        self.describe(at, address, length, next | write);
        if at == segment.head {
            self.rewritten |= segment.more;
            if self.rewritten {
                let place = RING + 2 * (u32::from(self.put) & self.mask) as usize;
                self.avail.write16(place, (at & self.mask) as u16);
            }
            self.put = self.put.wrapping_add(1);
        }
    }

    #[inline(always)]
    fn publish(&mut self, _next: u32) -> bool {
        let (old, new) = (self.shown, self.put);
        if old == new {
            return false;
        }
        if self.config.events {
            // An event that has passed already: no interrupt before the index has gone round.
            self.avail.write16(RING + 2 * (self.mask as usize + 1), self.seen.wrapping_sub(1));
        }
        publish();
        self.avail.write16(IDX, new);
        self.shown = new;
        // The device sets its flag and then looks at the index; so the index has to be written before the flag is read.
        exchange();
        if self.config.events {
            let event = self.used.read16(RING + USED_ELEM_BYTES * (self.mask as usize + 1));
            passes(event, new, old)
        } else {
            self.used.read16(FLAGS) & USED_F_NO_NOTIFY == 0
        }
    }
}
