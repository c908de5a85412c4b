//! What a split and a packed virtqueue have in common: the seam between the layouts and the queues. Queues are generic over it, so the hot loop has no
//! dynamic dispatch.
//!
//! Buffers have a number that runs on without a bound ([`Ledger`](super::ledger::Ledger)); number modulo size is the descriptor, and the id the device
//! gives back is that of the first descriptor of a buffer. Nothing is visible to the device before [`Ring::publish`].
#![allow(unsafe_code)]

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
    /// Bytes of each buffer that the device is to write to; 0 where there are none in a [row](Ring::put_row).
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

/// One descriptor of a buffer.
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

/// Used buffers of one descriptor each that lie in a row, as the device writes them. It may change its mind at any time: each is read once.
pub(super) trait UsedRow {
    /// How many there are at the most.
    fn count(&self) -> u32;

    /// 0 where the one at `index` is used, and is the one that comes next in order; else anything else. So several are asked with one branch.
    ///
    /// # Safety
    /// `index` is below the count.
    unsafe fn differs(&self, index: usize) -> u32;

    /// The bytes written to the one at `index`, as the device says, where it does not differ.
    ///
    /// # Safety
    /// `index` is below the count.
    unsafe fn written(&self, index: usize) -> Option<u32>;
}

/// Descriptors in a row that are to be written, each one a buffer.
pub(super) trait FreeRow {
    /// Writes the one at `index`.
    ///
    /// # Safety
    /// `index` is below the count that was asked for.
    unsafe fn write(&self, index: usize, address: u64, length: u32);
}

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

    /// The used buffers from the next one on, up to the end of the ring, where they come in order from the one with number `clean` on. They stay to be
    /// consumed, behind [`observe`](crate::vfio::dma::observe).
    fn used_row(&self, clean: u32) -> impl UsedRow;

    /// The next used buffer, which stays the next until it is consumed.
    fn used(&mut self) -> Option<Used>;

    /// Goes on behind so many used buffers, which have so many descriptors together.
    fn consume(&mut self, buffers: u32, descriptors: u32);

    /// Puts `count` buffers of one descriptor, which do not go past the end of the ring, as number `at` and so on: all of them are to be written. The first of
    /// a burst is not among them, but put by [`put_segment`](Self::put_segment). Those that the device writes to are of the configured length.
    fn put_row(&mut self, at: u32, count: usize, writable: bool) -> impl FreeRow;

    /// Puts one descriptor, of several or by itself.
    fn put_segment(&mut self, at: u32, address: u64, length: u32, segment: Segment);

    /// Shows the device what was put, up to number `next`; true where it wants to be notified of that.
    fn publish(&mut self, next: u32) -> bool;
}

/// Whether going from `old` to `new` passes `event` (2.7.10.1, `vring_need_event`).
#[inline(always)]
pub(super) fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
