//! The memory of a ring: a power of two of places that may or may not hold an item.
//!
//! It knows nothing of who may touch which place; the ring does. Under loom every place is watched on its own, otherwise items are
//! copied in at most two stretches.
#![allow(unsafe_code)]

use super::sync::UnsafeCell;
use std::mem::MaybeUninit;
#[cfg(not(loom))]
use std::ptr;

pub(super) struct Slots<T> {
    places: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a place is written by one thread and read by another, never both at a time: every access goes through `write` and
// `read`, whose callers promise that. The items themselves move between threads, hence `T: Send`.
unsafe impl<T: Send> Sync for Slots<T> {}

impl<T> Slots<T> {
    /// `capacity` empty places; it must be a power of two.
    pub(super) fn new(capacity: usize) -> Self {
        assert!(capacity.is_power_of_two());
        Self { places: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect() }
    }

    #[inline(always)]
    pub(super) fn capacity(&self) -> usize {
        self.places.len()
    }

    /// Moves `count` items from `source` to the places from `index` on, round the end where it must be.
    ///
    /// # Safety
    /// `source` holds `count` items, which are the ring's from then on. `count` is at most the capacity, and nobody else
    /// reads or writes those places meanwhile.
    #[inline(always)]
    pub(super) unsafe fn write(&self, index: usize, source: *const T, count: usize) {
        #[cfg(not(loom))]
        {
            let (first, before_end) = self.stretch(index, count);
            // SAFETY: `stretch` cuts the range at the end of the places, so both parts lie inside them; `source` has
            // `count` items by the caller's promise. The places are distinct memory from the caller's items.
            unsafe {
                ptr::copy_nonoverlapping(source, first, before_end);
                if before_end < count {
                    ptr::copy_nonoverlapping(source.add(before_end), self.base(), count - before_end);
                }
            }
        }
        #[cfg(loom)]
        for offset in 0..count {
            let place = &self.places[(index.wrapping_add(offset)) & (self.capacity() - 1)];
            // SAFETY: the caller's promise; loom checks the part about others.
            place.with_mut(|place| unsafe {
                (*place).as_mut_ptr().copy_from_nonoverlapping(source.add(offset), 1)
            });
        }
    }

    /// Moves `count` items from the places from `index` on to `target`.
    ///
    /// # Safety
    /// Those places hold items, which are the caller's from then on. `target` has room for `count`, which is at most
    /// the capacity, and nobody else writes those places meanwhile.
    #[inline(always)]
    pub(super) unsafe fn read(&self, index: usize, target: *mut T, count: usize) {
        #[cfg(not(loom))]
        {
            let (first, before_end) = self.stretch(index, count);
            // SAFETY: as in `write`, with the directions changed.
            unsafe {
                ptr::copy_nonoverlapping(first, target, before_end);
                if before_end < count {
                    ptr::copy_nonoverlapping(self.base(), target.add(before_end), count - before_end);
                }
            }
        }
        #[cfg(loom)]
        for offset in 0..count {
            let place = &self.places[(index.wrapping_add(offset)) & (self.capacity() - 1)];
            // SAFETY: the caller's promise; loom checks the part about others.
            place.with(|place| unsafe { target.add(offset).copy_from_nonoverlapping((*place).as_ptr(), 1) });
        }
    }

    #[cfg(not(loom))]
    #[inline(always)]
    fn base(&self) -> *mut T {
        // UnsafeCell and MaybeUninit have the layout of what they hold, and a cell may be written through `&self`.
        self.places.as_ptr().cast_mut().cast()
    }

    /// The address of place `index`, and how many of `count` come before the end.
    #[cfg(not(loom))]
    #[inline(always)]
    fn stretch(&self, index: usize, count: usize) -> (*mut T, usize) {
        let place = index & (self.capacity() - 1);
        (self.base().wrapping_add(place), count.min(self.capacity() - place))
    }
}
