//! The arithmetic of ring indices.
//!
//! Both sides count entries in free-running 32-bit numbers; one number is ours, the other one is whatever the other side
//! wrote last. All that is computed from it is computed here, so that a hostile number can do no more than be refused.
#![forbid(unsafe_code)]

/// Our index of a ring and the ring's size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Index {
    ours: u32,
    /// Size - 1; the size is a power of two.
    mask: u32,
}

impl Index {
    /// An index at `ours` of a ring of `size` entries; `None` where that is no power of two or over 2^31.
    pub(super) fn new(size: u32, ours: u32) -> Option<Self> {
        size.is_power_of_two().then(|| Self { ours, mask: size - 1 })
    }

    /// How many entries the ring has.
    pub(super) fn size(self) -> u32 {
        self.mask + 1
    }

    /// The number to publish.
    pub(super) fn value(self) -> u32 {
        self.ours
    }

    /// We consume: how many entries lie between us and the producer at `theirs`. `None` where that cannot be.
    #[inline(always)]
    pub(super) fn filled(self, theirs: u32) -> Option<u32> {
        let count = theirs.wrapping_sub(self.ours);
        (count <= self.size()).then_some(count)
    }

    /// We produce: how many entries the consumer at `theirs` has still before it. `None` where that cannot be.
    #[inline(always)]
    pub(super) fn unconsumed(self, theirs: u32) -> Option<u32> {
        let count = self.ours.wrapping_sub(theirs);
        (count <= self.size()).then_some(count)
    }

    /// The place in the array of the entry `ahead` of ours: always below the size.
    #[inline(always)]
    pub(super) fn slot(self, ahead: u32) -> usize {
        (self.ours.wrapping_add(ahead) & self.mask) as usize
    }

    /// Moves on by `count` entries.
    #[inline(always)]
    pub(super) fn advance(&mut self, count: u32) {
        self.ours = self.ours.wrapping_add(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The oracle counts in 64 bits, where nothing wraps.
    struct Oracle {
        size: u64,
        produced: u64,
        consumed: u64,
    }

    proptest! {
        #[test]
        fn property_counts_agree_with_numbers_that_never_wrap(
            shift in 0_u32..13,
            start in prop_oneof![any::<u32>(), u32::MAX - 70..=u32::MAX],
            steps in proptest::collection::vec((any::<bool>(), 0_u64..5000), 1..200),
        ) {
            let size = 1_u32 << shift;
            let mut oracle =
                Oracle { size: size.into(), produced: start.into(), consumed: start.into() };
            let mut producer = Index::new(size, start).unwrap();
            let mut consumer = Index::new(size, start).unwrap();
            for (produce, wanted) in steps {
                if produce {
                    let count = wanted.min(oracle.size - (oracle.produced - oracle.consumed));
                    for ahead in 0..count {
                        let slot = producer.slot(ahead as u32) as u64;
                        prop_assert_eq!(slot, (oracle.produced + ahead) % oracle.size);
                    }
                    producer.advance(count as u32);
                    oracle.produced += count;
                } else {
                    let count = wanted.min(oracle.produced - oracle.consumed);
                    for ahead in 0..count {
                        let slot = consumer.slot(ahead as u32) as u64;
                        prop_assert_eq!(slot, (oracle.consumed + ahead) % oracle.size);
                    }
                    consumer.advance(count as u32);
                    oracle.consumed += count;
                }
                let between = (oracle.produced - oracle.consumed) as u32;
                prop_assert_eq!(producer.unconsumed(consumer.value()), Some(between));
                prop_assert_eq!(consumer.filled(producer.value()), Some(between));
            }
        }

        #[test]
        fn property_a_hostile_index_is_refused_or_within_the_ring(shift in 0_u32..32, ours: u32, theirs: u32, ahead: u32) {
            let index = Index::new(1 << shift, ours).unwrap();
            for count in [index.filled(theirs), index.unconsumed(theirs)].into_iter().flatten() {
                prop_assert!(count <= 1 << shift);
            }
            let distance = (i64::from(theirs) - i64::from(ours)).rem_euclid(1 << 32);
            prop_assert_eq!(index.filled(theirs).is_some(), distance <= 1 << shift);
            prop_assert!(index.slot(ahead) < 1 << shift);
        }
    }

    #[test]
    fn sizes_that_are_no_power_of_two_are_refused() {
        for size in [0, 3, 1000, u32::MAX] {
            assert!(Index::new(size, 0).is_none());
        }
    }
}
