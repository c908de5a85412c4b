//! What a split and a packed virtqueue have in common: the seam between the layouts and the queues. Queues are generic over it, so the hot loop has no
//! dynamic dispatch.
//!
//! Buffers have a number that runs on without a bound ([`Ledger`](super::ledger::Ledger)); number modulo size is the descriptor, and the id the device
//! gives back is that of the first descriptor of a buffer. Nothing is visible to the device before [`Ring::publish`].
#![forbid(unsafe_code)]

use super::transport::Areas;
use crate::vfio::dma::DmaSpace;
use std::io;
use std::sync::Arc;

/// How a ring is made.
#[derive(Clone, Copy)]
pub(super) struct RingConfig {
    /// Descriptors: a power of two, 32768 at the most.
    pub(super) size: u16,
    /// EVENT_IDX has been negotiated.
    pub(super) events: bool,
    /// Bytes of each buffer that the device is to write to; 0 where [`Ring::giving`] is not used.
    pub(super) buffer: u32,
}

/// What the device has done with.
#[derive(Clone, Copy)]
pub(super) struct Used {
    /// As the device says; not checked.
    pub(super) id: u32,
    /// Bytes written, as the device says.
    pub(super) length: u32,
}

/// One descriptor of a buffer that has several.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    /// The number of the buffer's first one.
    pub(super) head: u32,
    /// There is another one behind it.
    pub(super) more: bool,
    /// The device writes to it.
    pub(super) writable: bool,
}

/// The device says that more is used than it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hostile;

/// A virtqueue's memory.
pub(super) trait Ring: Send + Sized + 'static {
    /// Allocates one. It is empty, and wants no interrupts.
    fn new(space: &Arc<DmaSpace>, config: RingConfig) -> io::Result<Self>;

    /// Where the device finds it.
    fn areas(&self) -> Areas;

    /// Makes it as new, while the device is stopped.
    fn reset(&mut self);

    /// Looks how much is used, of `outstanding` descriptors: what [`used`](Self::used) goes by until the next look.
    fn look(&mut self, outstanding: u32) -> Result<(), Hostile>;

    /// The used buffers that come in order, of one descriptor each, from the one with number `clean` on and no further than to the end of the ring: the
    /// bytes written to each. They stay to be consumed, behind [`observe`](crate::vfio::dma::observe).
    fn used_in_order(&self, clean: u32) -> impl Iterator<Item = u32>;

    /// The next used buffer, which stays the next until it is consumed.
    fn used(&mut self) -> Option<Used>;

    /// Goes on behind so many used buffers, which have so many descriptors together.
    fn consume(&mut self, buffers: u32, descriptors: u32);

    /// Puts buffers of the configured length, for the device to write to: the first as number `at`, no more than `count` and no further than to the end of the
    /// ring. [`done`](Self::done) says how many.
    fn giving(&mut self, at: u32, count: usize) -> impl FnMut(u64);

    /// The same for buffers of one descriptor that the device is to read, of address and length.
    fn putting(&mut self, at: u32, count: usize) -> impl FnMut(u64, u32);

    /// So many were put in a row.
    fn done(&mut self, count: usize);

    /// Puts one descriptor of several.
    fn put_segment(&mut self, at: u32, address: u64, length: u32, segment: Segment);

    /// Shows the device what was put, up to number `next`; true where it wants to be notified of that.
    fn publish(&mut self, next: u32) -> bool;
}

/// Whether going from `old` to `new` passes `event` (2.7.10.1, `vring_need_event`).
#[inline(always)]
pub(super) fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
