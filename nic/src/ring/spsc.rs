//! A ring with one producer and one consumer, for items that are owned.
//!
//! Each side keeps its own index and a copy of the other's, and looks at the other's cache line only when that copy says "full" or
//! "empty". The indices run freely and are cut to a place by the mask; their difference is the number of items. Every operation is a
//! bounded number of steps (wait-free). What is inside when both sides are gone is dropped; a consumer that goes drops what it finds.
//!
//! Orders: the producer's store of `tail` is a release that the consumer's load acquires, so items are written before they are seen; the
//! consumer's store of `head` is a release that the producer's load acquires, so a place is read before it is written again.
#![allow(unsafe_code)]

use super::slots::Slots;
use super::sync::{Arc, AtomicBool, AtomicUsize, Ordering};
use crossbeam_utils::CachePadded;
use std::mem::MaybeUninit;

struct Shared<T> {
    /// Items taken so far; the consumer's.
    head: CachePadded<AtomicUsize>,
    /// Items put in so far; the producer's.
    tail: CachePadded<AtomicUsize>,
    slots: Slots<T>,
    producer_gone: AtomicBool,
    consumer_gone: AtomicBool,
}

impl<T> Shared<T> {
    fn len(&self) -> usize {
        let head = self.head.load(Ordering::Acquire);
        let tail = self.tail.load(Ordering::Acquire);
        // The two are of different moments: it can be off, but not absurd.
        tail.wrapping_sub(head).min(self.slots.capacity())
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Acquire: the last side to go sees what the other one did.
        let (mut head, tail) = (self.head.load(Ordering::Acquire), self.tail.load(Ordering::Acquire));
        while head != tail {
            let mut item = MaybeUninit::uninit();
            // SAFETY: both sides are gone, and [head, tail) are the places that hold items; each is read once.
            drop(unsafe {
                self.slots.read(head, item.as_mut_ptr(), 1);
                item.assume_init()
            });
            head = head.wrapping_add(1);
        }
    }
}

/// Makes a ring with room for at least `capacity` items (rounded up to a power of two).
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    starting_at(capacity, 0)
}

/// A ring whose indices start at `start`, so that a test can see them pass the end of their range.
fn starting_at<T: Send>(capacity: usize, start: usize) -> (Producer<T>, Consumer<T>) {
    let shared = Arc::new(Shared {
        head: CachePadded::new(AtomicUsize::new(start)),
        tail: CachePadded::new(AtomicUsize::new(start)),
        slots: Slots::new(capacity.max(1).next_power_of_two()),
        producer_gone: AtomicBool::new(false),
        consumer_gone: AtomicBool::new(false),
    });
    let producer = Producer { shared: shared.clone(), tail: start, head_seen: start };
    (producer, Consumer { shared, head: start, tail_seen: start })
}

/// The side that puts items in.
pub struct Producer<T: Send> {
    shared: Arc<Shared<T>>,
    tail: usize,
    head_seen: usize,
}

impl<T: Send> Producer<T> {
    /// Puts one item in; gives it back where the ring is full.
    #[inline]
    pub fn push(&mut self, item: T) -> Result<(), T> {
        let item = MaybeUninit::new(item);
        // SAFETY: one item, which is forgotten here (MaybeUninit drops nothing) if it was taken.
        match unsafe { self.push_raw(item.as_ptr(), 1) } {
            // SAFETY: it was not taken, so it is still here and still ours.
            0 => Err(unsafe { item.assume_init() }),
            _ => Ok(()),
        }
    }

    /// Puts as many of `items` in as there is room for, from the front, and says how many.
    #[inline]
    pub fn push_slice(&mut self, items: &[T]) -> usize
    where
        T: Copy,
    {
        // SAFETY: the slice holds as many; Copy makes the copies independent of it.
        unsafe { self.push_raw(items.as_ptr(), items.len()) }
    }

    /// Moves up to `count` items from `source` into the ring, and says how many.
    ///
    /// # Safety
    /// `source` holds `count` items; those that were taken are no longer the caller's.
    #[inline(always)]
    pub(super) unsafe fn push_raw(&mut self, source: *const T, count: usize) -> usize {
        let count = count.min(self.room_for(count));
        // SAFETY: [tail, tail + count) are free: `room_for` acquired a head at most a capacity behind, so the consumer has done
        // with those places, and only this producer writes. `source` is the caller's promise.
        unsafe { self.shared.slots.write(self.tail, source, count) };
        self.tail = self.tail.wrapping_add(count);
        self.shared.tail.store(self.tail, Ordering::Release);
        count
    }

    /// Free places, as far as known; the consumer is only looked at where fewer than `wanted` are.
    #[inline(always)]
    fn room_for(&mut self, wanted: usize) -> usize {
        let capacity = self.shared.slots.capacity();
        let room = capacity - self.tail.wrapping_sub(self.head_seen);
        if room >= wanted {
            return room;
        }
        self.head_seen = self.shared.head.load(Ordering::Acquire);
        capacity - self.tail.wrapping_sub(self.head_seen)
    }

    /// How many items fit at all.
    pub fn capacity(&self) -> usize {
        self.shared.slots.capacity()
    }

    /// True once the consumer is gone: nobody will take what is put in.
    #[inline]
    pub fn is_abandoned(&self) -> bool {
        self.shared.consumer_gone.load(Ordering::Acquire)
    }

    /// A handle that only looks.
    pub fn observer(&self) -> Observer<T> {
        Observer(self.shared.clone())
    }
}

impl<T: Send> Drop for Producer<T> {
    fn drop(&mut self) {
        self.shared.producer_gone.store(true, Ordering::Release);
    }
}

/// The side that takes items out.
pub struct Consumer<T: Send> {
    shared: Arc<Shared<T>>,
    head: usize,
    tail_seen: usize,
}

impl<T: Send> Consumer<T> {
    /// Takes the oldest item.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let mut item = MaybeUninit::uninit();
        // SAFETY: room for one; if 1 was moved there, it is initialised and ours.
        unsafe { (self.pop_raw(item.as_mut_ptr(), 1) == 1).then(|| item.assume_init()) }
    }

    /// Takes as many items as there are and as fit, oldest first, to the front of `items`, and says how many.
    #[inline]
    pub fn pop_slice(&mut self, items: &mut [T]) -> usize
    where
        T: Copy,
    {
        // SAFETY: the slice has room for as many; what it held is Copy and needs no drop.
        unsafe { self.pop_raw(items.as_mut_ptr(), items.len()) }
    }

    /// Moves up to `count` items from the ring to `target`, and says how many.
    ///
    /// # Safety
    /// `target` has room for `count`; those that were moved are the caller's.
    #[inline(always)]
    pub(super) unsafe fn pop_raw(&mut self, target: *mut T, count: usize) -> usize {
        let count = count.min(self.items_for(count));
        if count == 0 {
            return 0;
        }
        // SAFETY: [head, head + count) hold items: `items_for` acquired a tail beyond them, and only this consumer takes.
        unsafe { self.shared.slots.read(self.head, target, count) };
        self.head = self.head.wrapping_add(count);
        self.shared.head.store(self.head, Ordering::Release);
        count
    }

    /// Items inside, as far as known; the producer is only looked at where fewer than `wanted` are.
    #[inline(always)]
    fn items_for(&mut self, wanted: usize) -> usize {
        let items = self.tail_seen.wrapping_sub(self.head);
        if items >= wanted {
            return items;
        }
        self.tail_seen = self.shared.tail.load(Ordering::Acquire);
        self.tail_seen.wrapping_sub(self.head)
    }

    /// True once the producer is gone; what it put in before that can still be taken.
    #[inline]
    pub fn is_abandoned(&self) -> bool {
        self.shared.producer_gone.load(Ordering::Acquire)
    }

    /// A handle that only looks.
    pub fn observer(&self) -> Observer<T> {
        Observer(self.shared.clone())
    }
}

impl<T: Send> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.shared.consumer_gone.store(true, Ordering::Release);
        // What the producer puts in behind this is dropped with the ring.
        while let Some(item) = self.pop() {
            drop(item);
        }
    }
}

/// Tells how full a ring is, from any thread. It keeps the ring's memory, and what is inside, alive.
pub struct Observer<T: Send>(Arc<Shared<T>>);

impl<T: Send> Observer<T> {
    /// How many items are inside; exact while both sides are quiet.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True where nothing is inside.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::thread;

    /// Tries to push 1..=items, `bulk` at a time, while another thread tries `pops` times to take as many. Nobody waits for
    /// anybody, so the model is finite; what went in must come out, in order.
    fn in_order(capacity: usize, start: usize, items: u32, bulk: usize, pops: usize) {
        loom::model(move || {
            let (mut producer, mut consumer) = starting_at::<u32>(capacity, start);
            let pusher = thread::spawn(move || {
                let mut next = 1;
                while next <= items {
                    let wanted: Vec<u32> = (next..=items).take(bulk).collect();
                    let pushed = producer.push_slice(&wanted);
                    next += pushed as u32;
                    if pushed < wanted.len() {
                        break;
                    }
                }
                next
            });
            let mut expected = 1;
            let mut take = |consumer: &mut Consumer<u32>| {
                let mut taken = [0; 4];
                let count = consumer.pop_slice(&mut taken[..bulk]);
                for item in &taken[..count] {
                    assert_eq!(*item, expected);
                    expected += 1;
                }
                count
            };
            for _ in 0..pops {
                take(&mut consumer);
            }
            let end = pusher.join().unwrap();
            while take(&mut consumer) > 0 {}
            assert_eq!(expected, end);
        });
    }

    #[test]
    fn a_ring_of_one() {
        in_order(1, 0, 3, 1, 3);
    }

    #[test]
    fn round_the_end_of_the_places_and_of_the_indices() {
        in_order(2, usize::MAX - 1, 4, 1, 3);
    }

    #[test]
    fn in_bulk() {
        in_order(4, 3, 6, 2, 3);
        in_order(4, usize::MAX, 8, 3, 2);
    }

    /// Whoever goes first, every item is dropped once: loom's Arc reports a leak, and a double drop is a panic.
    #[test]
    fn what_is_inside_is_dropped_once() {
        loom::model(|| {
            let witness = Arc::new(());
            let (mut producer, mut consumer) = starting_at::<Arc<()>>(2, 0);
            let mine = witness.clone();
            let pusher = thread::spawn(move || {
                drop(producer.push(mine.clone()));
                drop(producer.push(mine.clone()));
                drop(producer.push(mine));
            });
            drop(consumer.pop());
            drop(consumer);
            pusher.join().unwrap();
            assert_eq!(Arc::strong_count(&witness), 1);
        });
    }

    /// The consumer sees everything that was put in before the producer went.
    #[test]
    fn a_producer_that_goes_leaves_what_it_gave() {
        loom::model(|| {
            let (mut producer, mut consumer) = starting_at::<u32>(2, 0);
            let pusher = thread::spawn(move || producer.push(7).unwrap());
            let gone = consumer.is_abandoned();
            let item = consumer.pop();
            assert!(item == Some(7) || !gone);
            pusher.join().unwrap();
            assert!(consumer.is_abandoned());
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::rc::Rc;
    use std::thread;

    #[derive(Clone, Debug)]
    enum Step {
        Push,
        Pop,
        PushSlice(usize),
        PopSlice(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            Just(Step::Push),
            Just(Step::Pop),
            (0..40_usize).prop_map(Step::PushSlice),
            (0..40_usize).prop_map(Step::PopSlice),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn property_it_is_a_queue(capacity in 1..40_usize, start: usize, near_the_end: bool, steps in steps()) {
            let start = if near_the_end { usize::MAX - start % 64 } else { start };
            let (mut producer, mut consumer) = starting_at::<u64>(capacity, start);
            let room = capacity.next_power_of_two();
            prop_assert_eq!(producer.capacity(), room);
            let observer = producer.observer();
            let (mut model, mut next) = (VecDeque::new(), 0);
            for step in steps {
                match step {
                    Step::Push => {
                        let pushed = producer.push(next);
                        prop_assert_eq!(pushed, if model.len() < room { Ok(()) } else { Err(next) });
                        if pushed.is_ok() { model.push_back(next); next += 1; }
                    }
                    Step::Pop => prop_assert_eq!(consumer.pop(), model.pop_front()),
                    Step::PushSlice(count) => {
                        let items: Vec<u64> = (next..next + count as u64).collect();
                        let pushed = producer.push_slice(&items);
                        prop_assert_eq!(pushed, count.min(room - model.len()));
                        model.extend(&items[..pushed]);
                        next += pushed as u64;
                    }
                    Step::PopSlice(count) => {
                        let mut items = vec![u64::MAX; count];
                        let popped = consumer.pop_slice(&mut items);
                        prop_assert_eq!(popped, count.min(model.len()));
                        let expected: Vec<u64> = model.drain(..popped).collect();
                        prop_assert_eq!(&items[..popped], &expected[..]);
                    }
                }
                prop_assert_eq!(observer.len(), model.len());
            }
        }

        #[test]
        fn property_what_is_inside_is_dropped_once(pushes in 0..20_usize, pops in 0..20_usize, producer_first: bool) {
            /// Counts itself; sent to no other thread here.
            struct Item(#[allow(dead_code)] Rc<()>);
            // SAFETY: for this test alone, which has one thread.
            unsafe impl Send for Item {}
            let witness = Rc::new(());
            let (mut producer, mut consumer) = ring::<Item>(8);
            (0..pushes).for_each(|_| drop(producer.push(Item(witness.clone()))));
            prop_assert_eq!(Rc::strong_count(&witness), 1 + pushes.min(8));
            (0..pops).for_each(|_| drop(consumer.pop()));
            prop_assert_eq!(Rc::strong_count(&witness), 1 + pushes.min(8).saturating_sub(pops));
            if producer_first {
                drop(producer);
                prop_assert!(consumer.is_abandoned());
                drop(consumer);
            } else {
                drop(consumer);
                prop_assert!(producer.is_abandoned());
                prop_assert_eq!(Rc::strong_count(&witness), 1);
                drop(producer.push(Item(witness.clone())));
                drop(producer);
            }
            prop_assert_eq!(Rc::strong_count(&witness), 1);
        }
    }

    #[test]
    fn two_threads_agree() {
        const ITEMS: u64 = 300_000;
        let (mut producer, mut consumer) = ring::<u64>(256);
        let pusher = thread::spawn(move || {
            let mut next = 0;
            while next < ITEMS {
                let items: Vec<u64> = (next..(next + 1 + next % 50).min(ITEMS)).collect();
                let pushed = producer.push_slice(&items);
                next += pushed as u64;
                if pushed == 0 {
                    thread::yield_now();
                }
            }
        });
        let (mut next, mut items) = (0, [0; 32]);
        while next < ITEMS {
            let count = consumer.pop_slice(&mut items);
            for item in &items[..count] {
                assert_eq!(*item, next);
                next += 1;
            }
            if count == 0 {
                assert!(!(consumer.is_abandoned() && consumer.observer().is_empty()), "ended at {next}");
                thread::yield_now();
            }
        }
        pusher.join().unwrap();
    }
}
