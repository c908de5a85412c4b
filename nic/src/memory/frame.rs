//! The owned handle of one frame, for drivers: what a packet is while it sits on a ring.
#![forbid(unsafe_code)]

use super::{Packet, registry, window};
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

    /// Where the frame starts in its pool's region, in bytes.
    #[inline]
    pub fn region_offset(&self) -> u64 {
        u64::from(self.0 & INDEX_MASK) << window::STRIDE_SHIFT
    }

    /// The number of its pool.
    #[inline]
    pub fn pool_number(&self) -> u32 {
        self.0 >> POOL_SHIFT
    }

    /// The frame as a packet of `length` bytes that start `offset` bytes into it.
    ///
    /// `None` (and the frame is freed) where that lies outside the frame or in its first 64 bytes, which belong to
    /// chains: a device's numbers are not to be trusted.
    #[inline]
    pub fn into_packet(self, offset: usize, length: usize) -> Option<Packet> {
        let size = registry::slot(self.0).pool().frame_size;
        if offset < super::packet::SEGMENT_HEADER || offset > size || length > size - offset {
            return None;
        }
        let handle = self.0;
        mem::forget(self);
        Some(Packet::new(handle, offset as u16, length as u16, 0))
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        registry::slot(self.0).pool().free_list.give(&[self.0]);
    }
}
