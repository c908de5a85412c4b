//! The frames on a descriptor ring, in the order of its descriptors: the ring's own books, which a device cannot reach.
//!
//! A device works a ring in order, so the books are a queue: what goes behind its end belongs to the descriptor at the tail, what comes off its front to the
//! one that is done next.
#![forbid(unsafe_code)]

use crate::memory::Frame;

/// No frame: the place of a descriptor without one.
const NOTHING: u32 = u32::MAX;

/// A ring of `size` places of which at most `size` - 1 are taken, since to the device a full ring would look like an empty one.
pub(crate) struct FrameRing {
    /// Handles of owned frames from `head` up to `tail`; the others mean nothing.
    handles: Box<[u32]>,
    mask: u32,
    head: u32,
    tail: u32,
}

impl FrameRing {
    /// An empty one. `size` is a power of two.
    pub(crate) fn new(size: u16) -> Self {
        debug_assert!(size.is_power_of_two());
        Self { handles: vec![NOTHING; size.into()].into(), mask: u32::from(size) - 1, head: 0, tail: 0 }
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

    /// The index of the oldest place: the descriptor that is done next.
    #[inline(always)]
    pub(crate) fn head(&self) -> usize {
        (self.head & self.mask) as usize
    }

    /// The index of the next free place.
    #[inline(always)]
    pub(crate) fn tail(&self) -> usize {
        (self.tail & self.mask) as usize
    }

    /// The index of the youngest place, if any is taken.
    #[inline(always)]
    pub(crate) fn last(&self) -> usize {
        (self.tail.wrapping_sub(1) & self.mask) as usize
    }

    /// The place that is `ahead` behind the oldest.
    pub(crate) fn index(&self, ahead: usize) -> usize {
        (self.head.wrapping_add(ahead as u32) & self.mask) as usize
    }

    /// Takes the next free place; gives the frame back where there is none.
    #[inline(always)]
    pub(crate) fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        if self.len() >= self.mask as usize {
            return Err(frame);
        }
        let index = self.tail();
        self.handles[index] = frame.into_handle();
        self.tail = self.tail.wrapping_add(1);
        Ok(())
    }

    /// Takes it for a descriptor that has no frame. There is a free one.
    pub(crate) fn push_nothing(&mut self) {
        if self.len() < self.mask as usize {
            let index = self.tail();
            self.handles[index] = NOTHING;
            self.tail = self.tail.wrapping_add(1);
        }
    }

    /// Frees the oldest place, and gives its frame if it has one.
    #[inline(always)]
    pub(crate) fn pop(&mut self) -> Option<Frame> {
        if self.head == self.tail {
            return None;
        }
        let handle = self.handles[self.head()];
        self.head = self.head.wrapping_add(1);
        (handle != NOTHING).then(|| Frame::from_handle(handle))
    }

    /// Frees the youngest places until `len` are taken.
    pub(crate) fn truncate(&mut self, len: usize) {
        while self.len() > len {
            self.tail = self.tail.wrapping_sub(1);
            let handle = self.handles[self.tail()];
            if handle != NOTHING {
                drop(Frame::from_handle(handle));
            }
        }
    }

    /// Moves all so that the oldest is at index 0, as a device that was reset expects it.
    pub(crate) fn rewind(&mut self) {
        let head = self.head();
        self.handles.rotate_left(head);
        (self.head, self.tail) = (0, self.len() as u32);
    }

    /// The frames that are there with their indices.
    pub(crate) fn for_each(&self, mut each: impl FnMut(usize, &Frame)) {
        for ahead in 0..self.len() {
            let index = self.index(ahead);
            if self.handles[index] != NOTHING {
                let frame = Frame::from_handle(self.handles[index]);
                each(index, &frame);
                // Only looked at: it stays on the ring.
                let _ = frame.into_handle();
            }
        }
    }
}

impl Drop for FrameRing {
    fn drop(&mut self) {
        self.truncate(0);
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
                        ring.truncate(model.len().saturating_sub(1));
                        model.pop_back();
                    }
                    7 => {
                        ring.rewind();
                        prop_assert_eq!(ring.head(), 0);
                    }
                    _ => prop_assert_eq!(ring.pop().map(|frame| frame.handle()), model.pop_front().flatten()),
                }
                prop_assert_eq!((ring.len(), ring.free()), (model.len(), 15 - model.len()));
                prop_assert_eq!(ring.tail(), (ring.head() + ring.len()) % 16);
                let mut seen = Vec::new();
                ring.for_each(|_, frame| seen.push(frame.handle()));
                prop_assert_eq!(&seen, &model.iter().flatten().copied().collect::<Vec<_>>());
                prop_assert_eq!(pool.audit().held, seen.len());
            }
            drop(ring);
            prop_assert_eq!(pool.audit().held, 0);
        }
    }
}
