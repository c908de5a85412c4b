//! What packets must be like for a driver's quick way.
#![forbid(unsafe_code)]

use crate::memory::{POOL_SHIFT, Packet, bounds};

/// Packets of one segment and one pool, within bounds, that want nothing.
#[derive(Clone, Copy)]
pub(crate) struct Usual {
    pool: u32,
    least: i16,
    most: i16,
    offset: i16,
    checksum: bool,
}

impl Usual {
    /// Packets of this pool, of `least` to `most` bytes that start `offset` bytes or more into their frames, and that do not ask for a checksum where the device can
    /// fill it in.
    pub(crate) fn new(pool: u32, least: usize, most: usize, offset: usize, checksum: bool) -> Self {
        let bound = |bytes: usize| bytes.min(i16::MAX as usize) as i16;
        Self { pool, least: bound(least), most: bound(most), offset: bound(offset), checksum }
    }

    /// Whether all packets are, of which there is one at least.
    #[inline(always)]
    pub(crate) fn are(&self, packets: &[Packet]) -> bool {
        let bounds = bounds(packets);
        let (shortest, longest) = bounds.lengths;
        let of_our_pool = bounds.differs >> POOL_SHIFT == 0 && bounds.common >> POOL_SHIFT == self.pool;
        let asks = self.checksum && bounds.flags & Packet::ASKS != 0;
        let fits = self.least <= shortest && longest <= self.most;
        of_our_pool && fits && bounds.offset >= self.offset && !bounds.chained && !asks
    }
}
