//! The owned handle of one frame, for drivers: what a packet is while it sits on a ring.
#![forbid(unsafe_code)]

use super::{BATCH_SIZE, Packet, registry, window};
use std::mem;

/// Where the pool's number starts in a frame handle: `pool:4 | frame:28`.
pub(crate) const POOL_SHIFT: u32 = 28;
/// The bits of a handle that number the frame in its pool.
pub(crate) const INDEX_MASK: u32 = (1 << POOL_SHIFT) - 1;
/// No frame. Frame 2^28 - 1 of pool 15 does not exist: a pool is limited to fewer frames.
pub(crate) const NONE: u32 = u32::MAX;

/// One frame, owned: it is not on any free list, in no packet and on no other ring. Dropping it gives it back.
#[derive(Debug)]
#[repr(transparent)]
pub struct Frame(u32);

impl Frame {
    pub(crate) fn from_handle(handle: u32) -> Self {
        Self(handle)
    }

    /// The handle, to look at.
    #[inline(always)]
    pub(crate) fn handle(&self) -> u32 {
        self.0
    }

    /// The handle; whoever has it is to see that the frame is freed.
    #[inline(always)]
    pub(crate) fn into_handle(self) -> u32 {
        let handle = self.0;
        mem::forget(self);
        handle
    }

    /// Frees the frames of handles of one pool, which the caller owned and forgets.
    #[inline(always)]
    pub(crate) fn free_handles(handles: &[u32]) {
        if let [first, ..] = handles {
            registry::slot(*first).pool().free_list.give(handles);
        }
    }

    /// Whether `length` bytes from `offset` on may be a packet's data.
    #[inline(always)]
    pub(crate) fn has_room(&self, offset: usize, length: usize) -> bool {
        let size = registry::slot(self.0).pool().frame_size;
        offset >= super::packet::SEGMENT_HEADER && offset <= size && length <= size - offset
    }

    /// Where the frame starts in its pool's region, in bytes.
    #[inline(always)]
    pub fn region_offset(&self) -> u64 {
        u64::from(self.0 & INDEX_MASK) << window::STRIDE_SHIFT
    }

    /// Where it starts in the window of all pools, in bytes, by its handle.
    #[inline(always)]
    pub(crate) fn window_offset_of(handle: u32) -> u64 {
        u64::from(handle) << window::STRIDE_SHIFT
    }

    /// The number of its pool.
    #[inline(always)]
    pub fn pool_number(&self) -> u32 {
        self.0 >> POOL_SHIFT
    }

    /// The frame as a packet of `length` bytes that start `offset` bytes into it.
    ///
    /// `None` (and the frame is freed) where that lies outside the frame or in its first 64 bytes, which belong to
    /// chains: a device's numbers are not to be trusted.
    #[inline]
    pub fn into_packet(self, offset: usize, length: usize) -> Option<Packet> {
        let fits = self.has_room(offset, length);
        fits.then(|| Packet::new(self.into_handle(), offset as u16, length as u16, 0))
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        registry::slot(self.0).pool().free_list.give(&[self.0]);
    }
}

/// Up to 64 frames, freed in bulk: a driver's way to give back what it took off a ring. Dropping it frees them.
pub(crate) struct Returned {
    handles: [u32; BATCH_SIZE],
    len: usize,
}

impl Default for Returned {
    fn default() -> Self {
        Self { handles: [NONE; BATCH_SIZE], len: 0 }
    }
}

impl Returned {
    /// Adds one; those before it are freed where there is no room, or where it is of another pool.
    #[inline(always)]
    pub(crate) fn add(&mut self, frame: Frame) {
        let differs = (self.handles[0] ^ frame.0) >> POOL_SHIFT != 0;
        if self.len == BATCH_SIZE || differs {
            self.free();
        }
        self.handles[self.len] = frame.into_handle();
        self.len += 1;
    }

    /// Frees them.
    #[inline]
    pub(crate) fn free(&mut self) {
        let handles = &self.handles[..mem::replace(&mut self.len, 0)];
        if let [first, ..] = handles {
            registry::slot(*first).pool().free_list.give(handles);
        }
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        self.free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Pool, PoolConfig};

    #[test]
    fn frames_of_two_pools_go_back_to_their_own() {
        let config = PoolConfig { frames: 256, ..PoolConfig::default() };
        let pools = [Pool::new(&config).unwrap(), Pool::new(&config).unwrap()];
        let mut returned = Returned::default();
        for round in 0..300 {
            returned.add(pools[usize::from(round % 100 > 50)].allocate_frame().unwrap());
        }
        let held = pools.each_ref().map(|pool| pool.audit().held);
        assert!(held.iter().sum::<usize>() <= BATCH_SIZE, "{held:?}");
        returned.free();
        assert_eq!(pools.each_ref().map(|pool| pool.audit().held), [0, 0]);
        returned.add(pools[0].allocate_frame().unwrap());
        drop(returned);
        let audits = pools.each_ref().map(Pool::audit);
        assert_eq!(audits.each_ref().map(|audit| (audit.free, audit.duplicated)), [(256, 0), (256, 0)]);
    }
}
