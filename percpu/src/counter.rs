//! Counters that any thread adds to at the price of a thread-local one.
//!
//! An addition is one instruction on the slot of the CPU the thread is on; reading sums over all slots. Progress: wait-free, for a section that
//! is interrupted a few times in a row ends as one atomic addition to a shared slot. Order: none; a sum has every addition that
//! happened before it, and perhaps some that happen meanwhile.
#![allow(unsafe_code)]

use crate::rseq::section;
use crate::slots::{Indexing, Slots};
use std::sync::atomic::{AtomicU64, Ordering};

/// How often an interrupted section is tried again before the shared path is taken.
pub(crate) const ATTEMPTS: usize = 8;

/// A set of 64-bit counters, numbered from 0. They wrap.
#[derive(Debug)]
pub struct Counters {
    /// The last slot is the one that threads without a CPU share.
    slots: Slots,
    count: usize,
}

impl Counters {
    /// `count` counters, all 0.
    pub fn new(count: usize) -> Self {
        Self::with_indexing(count, Indexing::Auto)
    }

    /// The same, with a choice of what slots go by.
    pub fn with_indexing(count: usize, indexing: Indexing) -> Self {
        Self { slots: Slots::with_shared(count.max(1) * size_of::<AtomicU64>(), indexing), count }
    }

    /// How many counters there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds `value` to counter `number`. Panics where there is no such counter, as a slice would.
    #[inline(always)]
    pub fn add(&self, number: usize, value: u64) {
        self.check(number);
        // SAFETY: `number` is below the count that the slots were made for.
        if !unsafe { section::add(self.slots.place(), number * size_of::<u64>(), value) } {
            self.add_again(number, value);
        }
    }

    #[cold]
    fn add_again(&self, number: usize, value: u64) {
        for _ in 0..ATTEMPTS {
            let Some(place) = self.slots.place_again() else { break };
            // SAFETY: as in `add`.
            if unsafe { section::add(place, number * size_of::<u64>(), value) } {
                return;
            }
        }
        let index = self.slots.otherwise();
        // SAFETY: inside the slot, which holds nothing but counters, and to which everybody adds atomically.
        unsafe { &*Self::at(self.slots.slot(index), number) }.fetch_add(value, Ordering::Relaxed);
    }

    #[inline(always)]
    fn check(&self, number: usize) {
        assert!(number < self.count, "counter {number} of {}", self.count);
    }

    #[inline(always)]
    fn at(slot: *mut u8, number: usize) -> *const AtomicU64 {
        slot.cast::<AtomicU64>().wrapping_add(number)
    }

    /// The sum of counter `number` over all CPUs. Panics where there is no such counter.
    pub fn sum(&self, number: usize) -> u64 {
        self.check(number);
        (0..=self.slots.count()).fold(0, |sum, index| {
            // SAFETY: inside the slot. Sections write it by one aligned instruction, so an atomic load reads a whole number.
            let part = unsafe { &*Self::at(self.slots.slot(index), number) }.load(Ordering::Relaxed);
            sum.wrapping_add(part)
        })
    }

    /// Bytes of all slots, used or not: those of one CPU times the CPUs it was made for.
    pub fn memory_bytes(&self) -> usize {
        self.slots.bytes()
    }
}

/// One 64-bit counter.
#[derive(Debug)]
pub struct Counter(Counters);

impl Counter {
    /// A counter at 0.
    pub fn new() -> Self {
        Self(Counters::new(1))
    }

    /// The same, with a choice of what slots go by.
    pub fn with_indexing(indexing: Indexing) -> Self {
        Self(Counters::with_indexing(1, indexing))
    }

    /// Adds `value`.
    #[inline(always)]
    pub fn add(&self, value: u64) {
        self.0.add(0, value);
    }

    /// The sum over all CPUs.
    pub fn sum(&self) -> u64 {
        self.0.sum(0)
    }

    /// The address of slot `index`, for debuggers and tests.
    pub fn slot_address(&self, index: usize) -> usize {
        assert!(index <= self.0.slots.count() as usize, "slot {index} of {}", self.0.slots.count() + 1);
        self.0.slots.slot(index as u32) as usize
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn nothing_is_lost_between_threads() {
        for indexing in [Indexing::Cpu, Indexing::ConcurrencyId] {
            let counters = Counters::with_indexing(3, indexing);
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| (0..50_000).for_each(|_| counters.add(1, 3)));
                }
            });
            assert_eq!([0, 1, 2].map(|number| counters.sum(number)), [0, 8 * 50_000 * 3, 0], "{indexing:?}");
        }
    }

    #[test]
    #[should_panic(expected = "counter 3 of 3")]
    fn there_is_no_counter_beyond_the_last() {
        Counters::new(3).add(3, 1);
    }
}
