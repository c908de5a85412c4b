//! Packets move between a batch and a ring in bulk.
#![allow(unsafe_code)]

use super::spsc::{Consumer, Producer};
use crate::memory::{Batch, Packet};

impl Producer<Packet> {
    /// Moves as many packets as there is room for from the front of `batch` into the ring, and says how many.
    #[inline]
    pub fn push_batch(&mut self, batch: &mut Batch) -> usize {
        let packets = batch.as_slice();
        // SAFETY: the batch holds as many packets; those the ring took are forgotten by the batch in the next step.
        let count = unsafe { self.push_raw(packets.as_ptr(), packets.len()) };
        // SAFETY: at most `len`, and the ring owns them now.
        unsafe { batch.forget_front(count) };
        count
    }
}

impl Consumer<Packet> {
    /// Moves as many packets as there are, and as `batch` has room for, to its end, and says how many.
    #[inline]
    pub fn pop_batch(&mut self, batch: &mut Batch) -> usize {
        // SAFETY: `extend_raw` gives the address of that many free places, and counts those that were written.
        unsafe { batch.extend_raw(|places, room| self.pop_raw(places, room)) }
    }
}
