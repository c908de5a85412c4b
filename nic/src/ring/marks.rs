//! Marks that any thread sets on things of a fixed number, and that one thread takes, with how often each was set.
//!
//! The marked things are a list through their indices: who marks one that is not in it pushes it, who takes takes the whole list. So there is
//! room for all of them, nothing is allocated, and an index that comes again while another thread pushes does no harm: only heads are compared, and
//! what is behind a head is never read by who pushes.
//!
//! Orders: what happened before a mark was set is seen by who takes it, also where the mark was in the list already, for both add to and take from the
//! same count.
#![forbid(unsafe_code)]

use super::sync::{AtomicU32, AtomicU64, Ordering};
use crossbeam_utils::CachePadded;

/// The end of the list.
const NONE: u32 = u32::MAX;

struct Mark {
    /// Times it was set since it was taken last; in the list where it is not 0.
    count: AtomicU64,
    next: AtomicU32,
}

/// The marks of some things.
pub struct Marks {
    head: CachePadded<AtomicU32>,
    marks: Box<[Mark]>,
}

impl Marks {
    /// For so many things, none of them marked.
    pub fn new(count: u32) -> Self {
        let mark = |_| Mark { count: AtomicU64::new(0), next: AtomicU32::new(NONE) };
        Self { head: CachePadded::new(AtomicU32::new(NONE)), marks: (0..count).map(mark).collect() }
    }

    /// Marks one. Lock-free; never allocates.
    pub fn set(&self, index: u32) {
        let mark = &self.marks[index as usize];
        if mark.count.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            mark.next.store(head, Ordering::Relaxed);
            match self.head.compare_exchange_weak(head, index, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes all marks, those that were set first before others, and says of each how often it was set.
    pub fn take(&self, mut each: impl FnMut(u32, u64)) {
        if self.is_empty() {
            return;
        }
        let mut at = self.head.swap(NONE, Ordering::Acquire);
        // Turned round, for the last one is in front. Those in the list that was taken are nobody else's until their count is taken.
        let mut first = NONE;
        while at != NONE {
            let next = self.marks[at as usize].next.swap(first, Ordering::Relaxed);
            first = at;
            at = next;
        }
        while first != NONE {
            let mark = &self.marks[first as usize];
            // Before the count, for then it can be pushed again.
            let next = mark.next.load(Ordering::Relaxed);
            each(first, mark.count.swap(0, Ordering::AcqRel));
            first = next;
        }
    }

    /// Whether this one is set.
    pub fn is_set(&self, index: u32) -> bool {
        self.marks[index as usize].count.load(Ordering::Acquire) > 0
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::Acquire) == NONE
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::super::sync::Arc;
    use super::*;
    use loom::thread;

    /// Two threads mark things while a third takes: each mark comes out once, and with it what was written before.
    fn each_once(first: &'static [u32], second: &'static [u32]) {
        loom::model(move || {
            let shared = Arc::new((Marks::new(2), [AtomicU64::new(0), AtomicU64::new(0)]));
            let threads: Vec<_> = [first, second]
                .into_iter()
                .map(|indices| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        for index in indices {
                            shared.1[*index as usize].fetch_add(1, Ordering::Relaxed);
                            shared.0.set(*index);
                        }
                    })
                })
                .collect();
            let mut taken = [0; 2];
            let take = |taken: &mut [u64; 2]| {
                shared.0.take(|index, count| {
                    assert!(count > 0);
                    taken[index as usize] += count;
                    // Written before each mark.
                    assert!(shared.1[index as usize].load(Ordering::Relaxed) >= taken[index as usize]);
                });
            };
            take(&mut taken);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            take(&mut taken);
            let set = |index| first.iter().chain(second).filter(|set| **set == index).count() as u64;
            assert_eq!(taken, [set(0), set(1)]);
            assert!(shared.0.is_empty());
        });
    }

    #[test]
    fn one_thing_marked_by_two() {
        each_once(&[0, 0], &[0]);
    }

    #[test]
    fn two_things_marked_by_two() {
        each_once(&[0, 1], &[1]);
        each_once(&[0], &[1, 0]);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn in_the_order_of_their_first_mark_and_with_their_count() {
        let marks = Marks::new(5);
        for _ in 0..2 {
            assert!(marks.is_empty());
            [3, 1, 3, 4, 3, 1].into_iter().for_each(|index| marks.set(index));
            let mut taken = Vec::new();
            marks.take(|index, count| taken.push((index, count)));
            assert_eq!(taken, [(3, 3), (1, 2), (4, 1)]);
        }
    }

    #[test]
    fn many_threads_lose_none() {
        const TIMES: u64 = 50_000;
        let marks = Marks::new(7);
        let mut taken = [0; 7];
        thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| (0..TIMES).for_each(|number| marks.set((number % 7) as u32))))
                .collect();
            while !threads.iter().all(thread::ScopedJoinHandle::is_finished) {
                marks.take(|index, count| taken[index as usize] += count);
            }
        });
        marks.take(|index, count| taken[index as usize] += count);
        let set = |index| 3 * (0..TIMES).filter(|number| number % 7 == index).count() as u64;
        assert_eq!(taken, [0, 1, 2, 3, 4, 5, 6].map(set));
    }
}
