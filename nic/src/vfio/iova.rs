//! Hands out the addresses that a device uses (IOVAs), within the ranges that the IOMMU allows.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// The smallest unit, and what everything is aligned to: a page.
pub(crate) const PAGE: u64 = 4096;

/// The free addresses: first fit, lowest first, neighbours joined again when they are freed.
#[derive(Debug)]
pub(crate) struct IovaAllocator {
    /// Start and last byte of each free stretch.
    free: BTreeMap<u64, u64>,
}

impl IovaAllocator {
    /// With these ranges free, which may overlap and stand in any order. Page 0 is never given: 0 is what a driver that has forgotten an address gives
    /// a device.
    pub(crate) fn new(ranges: &[RangeInclusive<u64>]) -> Self {
        let mut sorted: Vec<(u64, u64)> = ranges.iter().map(|range| (*range.start(), *range.end())).collect();
        sorted.sort_unstable();
        let mut free: BTreeMap<u64, u64> = BTreeMap::new();
        let mut reached = PAGE;
        for (start, last) in sorted {
            let Some(start) = start.max(reached).checked_next_multiple_of(PAGE) else { continue };
            // Whole pages only; a range may end with the last byte that there is.
            let end = if last == u64::MAX { u64::MAX - (PAGE - 1) } else { (last + 1) & !(PAGE - 1) };
            if start < end {
                free.insert(start, end - 1);
                reached = end;
            }
        }
        let mut allocator = Self { free: BTreeMap::new() };
        for (start, last) in free {
            allocator.insert(start, last);
        }
        allocator
    }

    /// From now on gives only what lies in these ranges.
    pub(crate) fn narrow(&mut self, ranges: &[RangeInclusive<u64>]) {
        let allowed = Self::new(ranges).free;
        let mut narrowed = Self { free: BTreeMap::new() };
        for (start, last) in &self.free {
            for (first, end) in &allowed {
                let (from, to) = (*start.max(first), *last.min(end));
                if from <= to {
                    narrowed.insert(from, to);
                }
            }
        }
        *self = narrowed;
    }

    /// The lowest `length` bytes (rounded up to pages) that start at a multiple of `align` (a power of two, at least a page).
    pub(crate) fn allocate(&mut self, length: u64, align: u64) -> Option<u64> {
        let length = length.max(1).checked_next_multiple_of(PAGE)?;
        let align = align.max(PAGE);
        let (start, last, from) = self.free.iter().find_map(|(start, last)| {
            let from = start.checked_next_multiple_of(align)?;
            let end = from.checked_add(length - 1)?;
            (end <= *last).then_some((*start, *last, from))
        })?;
        self.free.remove(&start);
        if from > start {
            self.free.insert(start, from - 1);
        }
        if from + (length - 1) < last {
            self.free.insert(from + length, last);
        }
        Some(from)
    }

    /// Takes back what [`allocate`](Self::allocate) gave.
    pub(crate) fn free(&mut self, start: u64, length: u64) {
        let length = length.max(1).next_multiple_of(PAGE);
        self.insert(start, start + (length - 1));
    }

    fn insert(&mut self, mut start: u64, mut last: u64) {
        if let Some((before, end)) = self.free.range(..start).next_back().map(|(a, b)| (*a, *b))
            && end.checked_add(1) == Some(start)
        {
            self.free.remove(&before);
            start = before;
        }
        if let Some(next) = last.checked_add(1)
            && let Some(end) = self.free.remove(&next)
        {
            last = end;
        }
        self.free.insert(start, last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reserved_ranges_and_the_first_page_are_left_out() {
        let mut allocator =
            IovaAllocator::new(&[0x9000..=u64::MAX, 0..=0x2FFF, 0x1000..=0x4FFF, 0x6001..=0x7FFE]);
        let mut given = Vec::new();
        for _ in 0..5 {
            given.push(allocator.allocate(1, PAGE).unwrap());
        }
        assert_eq!(given, [0x1000, 0x2000, 0x3000, 0x4000, 0x9000]);
        assert_eq!(allocator.allocate(1 << 21, 1 << 21), Some(1 << 21));
        assert_eq!(allocator.allocate(u64::MAX, PAGE), None);
    }

    proptest! {
        #[test]
        fn property_what_is_given_is_allowed_and_nobody_elses(
            ranges in proptest::collection::vec((0_u64..1 << 20, 0_u64..1 << 18), 1..5),
            steps in proptest::collection::vec((any::<bool>(), 1_u64..1 << 16, 12_u32..16), 1..100),
        ) {
            let ranges: Vec<_> = ranges.iter().map(|(start, length)| *start..=start + length).collect();
            let mut allocator = IovaAllocator::new(&ranges);
            let whole = format!("{allocator:?}");
            let mut given: Vec<(u64, u64)> = Vec::new();
            for (take, length, align) in steps {
                if !take {
                    if let Some((start, length)) = given.pop() {
                        allocator.free(start, length);
                    }
                    continue;
                }
                let Some(start) = allocator.allocate(length, 1 << align) else { continue };
                let end = start + length.next_multiple_of(PAGE);
                prop_assert!(start >= PAGE && start % (1 << align) == 0);
                // Page by page, for ranges may overlap.
                for page in (start..end).step_by(PAGE as usize) {
                    prop_assert!((page..page + PAGE).all(|byte| ranges.iter().any(|range| range.contains(&byte))));
                }
                for (other, length) in &given {
                    prop_assert!(end <= *other || start >= other + length.next_multiple_of(PAGE));
                }
                given.push((start, length));
            }
            for (start, length) in given {
                allocator.free(start, length);
            }
            prop_assert_eq!(format!("{allocator:?}"), whole);
        }
    }
}
