//! The shared path: a lock-free store of items that any thread can give to and take from.
//!
//! Items lie in nodes of 64; three Treiber stacks hold the full nodes, those with some items, and the empty ones. A thread takes a node off
//! a stack, and then it is the only one who touches what is in it; then it puts it on the stack where it now belongs. So 64 items move for two
//! compare-and-swaps. The heads carry a count of their changes, which keeps a node that went and came back from being taken for one that stayed.
//!
//! Progress: lock-free as long as at most 256 threads are in the middle of a call at a time; were there more, a give could have to wait until one of
//! them goes on. A thread that is stopped in the middle keeps one node (at most 64 items) out of sight of the others until
//! it goes on: so what is taken may be less than what is there, and never more. Order: what was written before a give is seen after the take that gets
//! the item.
//!
//! A depot is made for a number of items. To give it more is a mistake of the program: there is some room beyond, and where that ends, a panic.
#![allow(unsafe_code)]

use crate::sync::{AtomicU32, AtomicU64, Ordering, UnsafeCell, spin_loop};
use std::fmt;

/// Items in a node.
#[cfg(not(loom))]
pub const NODE_ITEMS: usize = 64;
/// Few, so that a model fills and empties nodes.
#[cfg(loom)]
pub const NODE_ITEMS: usize = 2;

/// Nodes more than the items fill: each thread that is in the middle of a call can have one in its hands, or leave one that is not full.
#[cfg(not(loom))]
const SPARE_NODES: usize = 256;
#[cfg(loom)]
const SPARE_NODES: usize = 4;

/// Where a per-CPU stack puts what overflows, and takes from when it is empty: its overflow and refill hooks.
///
/// Called by any thread at any time, also instead of the per-CPU path: what it promises of progress is what the stack can promise.
pub trait Shared<T> {
    /// Takes all of `items`.
    fn give(&self, items: &[T]);
    /// Fills `into` from its start with as many items as there are, and says how many.
    fn take(&self, into: &mut [T]) -> usize;
    /// How many items there are, about.
    fn len(&self) -> usize;
    /// True where there are none, about.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

struct Contents<T> {
    len: usize,
    items: [T; NODE_ITEMS],
}

struct Node<T> {
    /// The node below on its stack, plus 1; 0 is none. Read by threads that lost the race for the node too.
    next: AtomicU32,
    contents: UnsafeCell<Contents<T>>,
}

/// A stack of nodes: number of the top one plus 1 in the low half, count of changes in the high half.
#[repr(align(128))]
struct Head(AtomicU64);

/// A store for a limited number of items.
pub struct Depot<T> {
    full: Head,
    partial: Head,
    empty: Head,
    nodes: Box<[Node<T>]>,
    /// How many it was made for.
    limit: usize,
    /// Items inside or being given, but for calls that are going on.
    count: AtomicU64,
}

// SAFETY: `contents` of a node is touched only by the thread that took the node off a stack (see `Head::pop`), until it puts it back.
unsafe impl<T: Copy + Send> Sync for Depot<T> {}
// SAFETY: it owns all it has.
unsafe impl<T: Copy + Send> Send for Depot<T> {}

impl<T> fmt::Debug for Depot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Depot({} nodes)", self.nodes.len())
    }
}

impl Head {
    fn none() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Takes the top node off; from then on it is the caller's alone.
    fn pop<T>(&self, nodes: &[Node<T>]) -> Option<usize> {
        let mut head = self.0.load(Ordering::Acquire);
        loop {
            let top = (head as u32).checked_sub(1)? as usize;
            // Perhaps stale, where somebody else took the node meanwhile: then the count differs and the exchange fails.
            let below = nodes[top].next.load(Ordering::Relaxed);
            let new = (head >> 32).wrapping_add(1) << 32 | u64::from(below);
            match self.0.compare_exchange_weak(head, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(top),
                Err(now) => head = now,
            }
        }
    }

    /// Puts a node on top, whose contents the caller has finished with.
    fn push<T>(&self, nodes: &[Node<T>], node: usize) {
        let mut head = self.0.load(Ordering::Relaxed);
        loop {
            nodes[node].next.store(head as u32, Ordering::Relaxed);
            let new = (head >> 32).wrapping_add(1) << 32 | (node as u64 + 1);
            // Release: whoever takes the node sees its contents and its link.
            match self.0.compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

impl<T: Copy + Default> Depot<T> {
    /// A store that `items` items fit into, whoever gives them in whatever portions. [`give`](Shared::give) panics where there are many more.
    pub fn new(items: usize) -> Self {
        let count = items.div_ceil(NODE_ITEMS) + SPARE_NODES;
        assert!(count < u32::MAX as usize, "more items than nodes can be numbered for");
        let contents = || Contents { len: 0, items: [T::default(); NODE_ITEMS] };
        let depot = Self {
            full: Head::none(),
            partial: Head::none(),
            empty: Head::none(),
            nodes: (0..count)
                .map(|_| Node { next: AtomicU32::new(0), contents: UnsafeCell::new(contents()) })
                .collect(),
            limit: items,
            count: AtomicU64::new(0),
        };
        (0..count).rev().for_each(|node| depot.empty.push(&depot.nodes, node));
        depot
    }

    fn give_some(&self, items: &[T]) -> usize {
        // Whole nodes stay whole; the rest joins a node that has room.
        let node = if items.len() >= NODE_ITEMS {
            self.empty.pop(&self.nodes).or_else(|| self.partial.pop(&self.nodes))
        } else {
            self.partial.pop(&self.nodes).or_else(|| self.empty.pop(&self.nodes))
        };
        let Some(node) = node else {
            self.wait_for_room(items.len());
            return 0;
        };
        let (given, len) = self.nodes[node].contents.with_mut(|contents| {
            // SAFETY: the node was taken off a stack by us, so nobody else touches its contents until we put it back.
            let contents = unsafe { &mut *contents };
            let given = items.len().min(NODE_ITEMS - contents.len);
            contents.items[contents.len..contents.len + given].copy_from_slice(&items[..given]);
            contents.len += given;
            (given, contents.len)
        });
        let home = if len == NODE_ITEMS { &self.full } else { &self.partial };
        home.push(&self.nodes, node);
        given
    }

    /// All nodes are full, or in the hands of others: then one with room comes back when they go on. Unless there are too many items.
    #[cold]
    fn wait_for_room(&self, left: usize) {
        // Each item is counted before it is in a node and until it is out of it, once: a caller that keeps to the limit sees no more.
        let count = self.count.load(Ordering::Relaxed);
        if count > self.limit as u64 {
            // They are not there.
            self.count.fetch_sub(left as u64, Ordering::Relaxed);
            panic!("a depot for {} items was given {count}: make it for as many as there can be", self.limit);
        }
        spin_loop();
    }

    fn take_some(&self, into: &mut [T]) -> Option<usize> {
        let node = if into.len() >= NODE_ITEMS {
            self.full.pop(&self.nodes).or_else(|| self.partial.pop(&self.nodes))
        } else {
            self.partial.pop(&self.nodes).or_else(|| self.full.pop(&self.nodes))
        }?;
        let (taken, len) = self.nodes[node].contents.with_mut(|contents| {
            // SAFETY: as in `give_some`.
            let contents = unsafe { &mut *contents };
            let taken = into.len().min(contents.len);
            contents.len -= taken;
            into[..taken].copy_from_slice(&contents.items[contents.len..contents.len + taken]);
            (taken, contents.len)
        });
        let home = if len == 0 { &self.empty } else { &self.partial };
        home.push(&self.nodes, node);
        Some(taken)
    }
}

impl<T: Copy + Default> Shared<T> for Depot<T> {
    fn give(&self, mut items: &[T]) {
        self.count.fetch_add(items.len() as u64, Ordering::Relaxed);
        while !items.is_empty() {
            items = &items[self.give_some(items)..];
        }
    }

    fn take(&self, into: &mut [T]) -> usize {
        let mut filled = 0;
        while filled < into.len() {
            match self.take_some(&mut into[filled..]) {
                Some(taken) => filled += taken,
                None => break,
            }
        }
        self.count.fetch_sub(filled as u64, Ordering::Relaxed);
        filled
    }

    fn len(&self) -> usize {
        // A take can be counted before the give that it takes from has been.
        (self.count.load(Ordering::Relaxed) as i64).max(0) as usize
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::thread;

    #[test]
    fn items_cross_threads_once_each() {
        let depot = Depot::new(10_000);
        let all: Vec<u32> = (0..10_000).collect();
        all.chunks(7).for_each(|some| depot.give(some));
        thread::scope(|scope| {
            for seed in 1..=8_usize {
                let depot = &depot;
                scope.spawn(move || {
                    let mut hand = [0; 150];
                    for round in 0..20_000 {
                        let taken = depot.take(&mut hand[..(round * seed) % 149 + 1]);
                        depot.give(&hand[..taken]);
                    }
                });
            }
        });
        let mut out = vec![0; 10_001];
        assert_eq!((depot.len(), depot.take(&mut out)), (10_000, 10_000));
        out.truncate(10_000);
        assert_eq!(out.into_iter().collect::<HashSet<u32>>().len(), 10_000);
        assert_eq!(depot.len(), 0);
    }

    #[test]
    fn more_items_than_there_is_room_for_are_a_panic_and_not_a_wait() {
        let depot = Depot::new(100);
        let room = (2 + SPARE_NODES) * NODE_ITEMS;
        let items: Vec<u32> = (0..room as u32).collect();
        depot.give(&items);
        let one_more = std::panic::AssertUnwindSafe(|| depot.give(&[1]));
        let panic = *std::panic::catch_unwind(one_more).unwrap_err().downcast::<String>().unwrap();
        assert!(panic.starts_with(&format!("a depot for 100 items was given {}", room + 1)), "{panic}");
        let mut out = vec![0; room + 1];
        assert_eq!((depot.len(), depot.take(&mut out)), (room, room));
        depot.give(&items);
    }

    proptest! {
        #[test]
        fn property_a_depot_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0..200_usize), 1..100)) {
            let depot = Depot::<u64>::new(1000);
            let mut outside: Vec<u64> = (0..1000).collect();
            for (give, count) in steps {
                if give {
                    let rest = outside.len() - count.min(outside.len());
                    depot.give(&outside.split_off(rest));
                } else {
                    let mut hand = vec![0; count];
                    let there = depot.len();
                    let taken = depot.take(&mut hand);
                    hand.truncate(taken);
                    prop_assert_eq!(hand.len(), count.min(there));
                    outside.append(&mut hand);
                }
                let distinct: HashSet<u64> = outside.iter().copied().collect();
                prop_assert_eq!(distinct.len(), outside.len());
                prop_assert_eq!(depot.len() + outside.len(), 1000);
            }
        }
    }
}

#[cfg(all(test, loom))]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn two_threads_move_items_and_lose_none() {
        loom::model(|| {
            let depot = Arc::new(Depot::<u32>::new(3));
            depot.give(&[1, 2, 3]);
            let move_some = |depot: &Depot<u32>, count: usize| {
                let mut hand = [0; 2];
                let taken = depot.take(&mut hand[..count]);
                depot.give(&hand[..taken]);
            };
            let other = thread::spawn({
                let depot = depot.clone();
                move || move_some(&depot, 1)
            });
            move_some(&depot, 2);
            other.join().unwrap();
            let mut all = [0; 4];
            assert_eq!(depot.take(&mut all), 3);
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3]);
        });
    }
}
