//! The packed virtqueue (VIRTIO 1.2, 2.8): one ring of descriptors, which driver and device write in turn.
//!
//! Whose a descriptor is, its AVAIL and USED bits say, against a wrap counter: the bit of the running number above the ring's size. The first descriptor
//! of a burst gets its flags last, so that a burst becomes visible at once: a device goes by the ring, and does not get past it.
#![allow(unsafe_code)]

use super::abi::packed::{
    DESC_BYTES, DESC_REST, EVENT_DESC, EVENT_DISABLE, EVENT_FLAGS, EVENT_FLAGS_MASK, EVENT_PLACE, F_AVAIL,
    F_NEXT, F_USED, F_WRITE,
};
use super::ring::{FreeRow, Hostile, Ring, RingConfig, Segment, Used, UsedRow, passes};
use super::transport::Areas;
use crate::vfio::dma::{DmaBuffer, DmaSpace, Row, exchange, observe, publish};
use std::io;
use std::sync::Arc;

/// One of them.
pub(super) struct PackedRing {
    desc: DmaBuffer,
    driver: DmaBuffer,
    device: DmaBuffer,
    mask: u32,
    config: RingConfig,
    /// The number of the next descriptor that the device will have used.
    seen: u32,
    /// Up to which number descriptors were shown.
    shown: u32,
    /// Length, id and flags of the first one that was not.
    first: u64,
}

impl PackedRing {
    /// AVAIL and USED of a descriptor that is available: AVAIL is the wrap counter, which begins with 1, USED is not.
    #[inline(always)]
    fn available(&self, at: u32) -> u16 {
        if at & (self.mask + 1) == 0 { F_AVAIL } else { F_USED }
    }

    /// The same of one that is used: both are the wrap counter.
    #[inline(always)]
    fn used_by(&self, at: u32) -> u16 {
        if at & (self.mask + 1) == 0 { F_AVAIL | F_USED } else { 0 }
    }

    /// Descriptors from number `at` to the end of the ring.
    #[inline(always)]
    fn to_end(&self, at: u32) -> usize {
        (self.mask + 1 - (at & self.mask)) as usize
    }

    fn describe(&mut self, at: u32, head: u32, address: u64, length: u32, flags: u16) {
        let place = (at & self.mask) as usize * DESC_BYTES;
        let id = u64::from(head & self.mask);
        let rest = u64::from(length) | id << 32 | u64::from(flags | self.available(at)) << 48;
        self.desc.write64(place, address);
        if at == self.shown {
            self.first = rest;
        } else {
            self.desc.write64(place + DESC_REST, rest);
        }
    }

    /// Whether the device wants to hear of the descriptors from `old` to `new` (2.8.14).
    #[inline(always)]
    fn wants_notification(&self, new: u32, old: u32) -> bool {
        // Both halves in one piece: the flags go with the place.
        let event = self.device.read32(EVENT_PLACE);
        match (event >> (8 * EVENT_FLAGS)) as u16 & EVENT_FLAGS_MASK {
            EVENT_DISABLE => false,
            EVENT_DESC if self.config.events => {
                let size = self.mask as u16 + 1;
                let (place, wrap) = (event as u16 & 0x7FFF, event & 0x8000 != 0);
                let differs = wrap != (new & (self.mask + 1) == 0);
                let place = if differs { place.wrapping_sub(size) } else { place };
                let reached = (new & self.mask) as u16;
                passes(place, reached, reached.wrapping_sub(new.wrapping_sub(old) as u16))
            }
            _ => true,
        }
    }
}

/// Where a descriptor has its id and flags: the upper half of its rest.
const DESC_ID: usize = DESC_REST + 4;
/// Of that half: its id, and whose it is.
const ID_AND_WHOSE: u32 = 0xFFFF | ((F_AVAIL | F_USED) as u32) << 16;

struct UsedDescriptors<'a> {
    row: Row<'a, DESC_BYTES>,
    count: u32,
    expected: u32,
}

impl UsedRow for UsedDescriptors<'_> {
    #[inline(always)]
    fn count(&self) -> u32 {
        self.count
    }

    #[inline(always)]
    unsafe fn differs(&self, index: usize) -> u32 {
        // SAFETY: the caller's promise.
        let half = unsafe { self.row.element(index) }.read32::<DESC_ID>();
        half & ID_AND_WHOSE ^ (self.expected + index as u32)
    }

    #[inline(always)]
    unsafe fn written(&self, index: usize) -> Option<u32> {
        // SAFETY: the caller's promise.
        let rest = unsafe { self.row.element(index) }.read64::<DESC_REST>();
        // Whose it is and its id in one comparison.
        ((rest >> 32) as u32 & ID_AND_WHOSE == self.expected + index as u32).then_some(rest as u32)
    }
}

struct FreeDescriptors<'a> {
    row: Row<'a, DESC_BYTES>,
    /// Id and flags of the first.
    rest: u64,
    /// Length of all, where it is the configured one.
    length: Option<u32>,
}

impl FreeRow for FreeDescriptors<'_> {
    #[inline(always)]
    unsafe fn write(&self, index: usize, address: u64, length: u32) {
        // SAFETY: the caller's promise.
        let descriptor = unsafe { self.row.element(index) };
        descriptor.write64::<0>(address);
        let length = self.length.unwrap_or(length);
        descriptor.write64::<DESC_REST>(self.rest + u64::from(length) + ((index as u64) << 32));
    }
}

impl Ring for PackedRing {
    fn new(space: &Arc<DmaSpace>, config: RingConfig) -> io::Result<Self> {
        let mut ring = Self {
            desc: space.allocate(usize::from(config.size) * DESC_BYTES)?,
            driver: space.allocate(4)?,
            device: space.allocate(4)?,
            mask: u32::from(config.size) - 1,
            config,
            seen: 0,
            shown: 0,
            first: 0,
        };
        ring.reset();
        Ok(ring)
    }

    fn areas(&self) -> Areas {
        Areas { desc: self.desc.iova(), driver: self.driver.iova(), device: self.device.iova() }
    }

    fn reset(&mut self) {
        for area in [&self.desc, &self.driver, &self.device] {
            area.clear();
        }
        self.driver.write16(EVENT_FLAGS, EVENT_DISABLE);
        (self.seen, self.shown, self.first) = (0, 0, 0);
    }

    #[inline(always)]
    fn look(&mut self, _outstanding: u32) -> Result<(), Hostile> {
        // Each descriptor says for itself.
        Ok(())
    }

    #[inline(always)]
    fn used_row(&self, clean: u32) -> impl UsedRow {
        let count = self.to_end(self.seen);
        let row = self.desc.row((self.seen & self.mask) as usize * DESC_BYTES, count);
        let expected = u32::from(self.used_by(self.seen)) << 16 | clean & self.mask;
        UsedDescriptors { row, count: count as u32, expected }
    }

    #[inline(always)]
    fn used(&mut self) -> Option<Used> {
        let rest = self.desc.read64((self.seen & self.mask) as usize * DESC_BYTES + DESC_REST);
        if (rest >> 48) as u16 & (F_AVAIL | F_USED) != self.used_by(self.seen) {
            return None;
        }
        observe();
        Some(Used { id: u32::from((rest >> 32) as u16), length: rest as u32 })
    }

    #[inline(always)]
    fn consume(&mut self, _buffers: u32, descriptors: u32) {
        self.seen = self.seen.wrapping_add(descriptors);
    }

    #[inline(always)]
    fn put_row(&mut self, at: u32, count: usize, writable: bool) -> impl FreeRow {
        assert!(count <= self.to_end(at), "a row past the end of a ring");
        debug_assert!(count == 0 || at != self.shown, "the first one of a burst is kept back");
        let flags = self.available(at) | if writable { F_WRITE } else { 0 };
        let rest = u64::from(at & self.mask) << 32 | u64::from(flags) << 48;
        let row = self.desc.row((at & self.mask) as usize * DESC_BYTES, count);
        FreeDescriptors { row, rest, length: writable.then_some(self.config.buffer) }
    }

    fn put_segment(&mut self, at: u32, address: u64, length: u32, segment: Segment) {
        let next = if segment.more { F_NEXT } else { 0 };
        let write = if segment.writable { F_WRITE } else { 0 };
        self.describe(at, segment.head, address, length, next | write);
    }

    #[inline(always)]
    fn publish(&mut self, next: u32) -> bool {
        let old = self.shown;
        if old == next {
            return false;
        }
        publish();
        self.desc.write64((old & self.mask) as usize * DESC_BYTES + DESC_REST, self.first);
        self.shown = next;
        // As for the split ring.
        exchange();
        self.wants_notification(next, old)
    }
}
