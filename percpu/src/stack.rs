//! Stacks of numbers, one for each CPU: the free list of a pool, or of anything else that is numbered.
//!
//! A push or a pop of many items is one critical section with one commit. What does not fit, and what is missing, goes through the
//! [`Shared`] part, a lock-free depot unless the user has something better. Any thread may push and pop, pinned or not.
//!
//! Progress: a section that is interrupted eight times in a row gives way to the shared part, and so does one that finds its slot claimed; so a
//! call never waits, and is as lock-free as the shared part. Order: what was written before an item was pushed is seen by whoever pops it.
//!
//! From outside: [`Stack::drain`] claims a slot (see `claim.rs`), moves its items to the shared part, and lets go; [`Stack::steal`] moves them to the
//! caller. For a CPU that is marked isolated they only ask; its own threads answer in [`Stack::serve`]. A thread of an isolated CPU only asks
//! too; a control thread answers for the other CPUs in [`Stack::serve_requests`].
#![allow(unsafe_code)]

use crate::claim::{Claimed, Diverted, Unclaimed};
use crate::counter::ATTEMPTS;
use crate::depot::{Depot, NODE_ITEMS, Shared};
use crate::rseq::section::{self, Place, Refused, StackHeader};
use crate::rseq::thread::{self, IndexField};
use crate::slots::{Indexing, Slots};
use crate::{isolated, membarrier};
use std::io;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, size_of};
use std::slice;
use std::sync::atomic::Ordering;

mod sealed {
    pub trait Sealed {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// What a stack holds: `u32` or `u64`.
pub trait Item: sealed::Sealed + Copy + Default + Send + 'static {}
impl Item for u32 {}
impl Item for u64 {}

/// A stack for each CPU, over a shared part.
#[derive(Debug)]
pub struct Stack<T: Item, S: Shared<T> = Depot<T>> {
    slots: Slots,
    capacity_bytes: u32,
    shared: S,
    _items: PhantomData<T>,
}

/// How a drain or a theft ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// So many items were moved.
    Moved(usize),
    /// The stack's CPU is isolated, or the caller's: they will be moved to the shared part, by the stack's threads when they next call
    /// [`Stack::serve`], or by whoever calls [`Stack::serve_requests`].
    Requested,
    /// Somebody else works on this stack just now.
    Busy,
    /// The kernel did not stop the CPU's critical sections: a sandbox forbids membarrier(2) since the process has begun. Nobody can work on
    /// stacks from outside there.
    Refused,
}

impl Drained {
    /// How many items were moved.
    pub fn moved(self) -> usize {
        match self {
            Self::Moved(count) => count,
            Self::Requested | Self::Busy | Self::Refused => 0,
        }
    }
}

impl<T: Item> Stack<T> {
    /// Stacks of up to `capacity` items for each CPU, over a depot; `items` is how many there are at most in all.
    pub fn new(capacity: usize, items: usize, indexing: Indexing) -> Self {
        Self::over(Depot::new(items), capacity, indexing)
    }
}

impl<T: Item, S: Shared<T>> Stack<T, S> {
    /// Stacks of up to `capacity` items for each CPU, over a shared part of the user's own. Panics where the capacity is 0 or above 2^20.
    pub fn over(shared: S, capacity: usize, indexing: Indexing) -> Self {
        assert!((1..=1 << 20).contains(&capacity), "a stack of {capacity} items: choose from 1 to 2^20");
        let bytes = capacity * size_of::<T>();
        Self {
            slots: Slots::new(size_of::<StackHeader>() + bytes, indexing),
            capacity_bytes: bytes as u32,
            shared,
            _items: PhantomData,
        }
    }

    /// The shared part.
    pub fn shared(&self) -> &S {
        &self.shared
    }

    /// How many stacks there are: numbers below are what [`drain`](Self::drain) takes.
    pub fn stacks(&self) -> usize {
        self.slots.count() as usize
    }

    /// Bytes of all stacks, used or not.
    pub fn memory_bytes(&self) -> usize {
        self.slots.bytes()
    }

    /// Takes up to as many items as `into` is long, the most recent of this CPU first, and gives the part that was filled.
    #[inline]
    pub fn pop<'a>(&self, into: &'a mut [MaybeUninit<T>]) -> &'a [T] {
        if let [place] = into {
            return self.pop_one().map_or(&[], |item| slice::from_ref(place.write(item)));
        }
        let (to, want) = (into.as_mut_ptr().cast::<T>(), into.len());
        // SAFETY: `to` has room for `want` items.
        let mut count = unsafe { self.pop_here(to, want) };
        if count < want {
            // SAFETY: room is left for what is still wanted.
            count += unsafe { self.refill(to.add(count), want - count) };
        }
        // SAFETY: that many were written.
        unsafe { slice::from_raw_parts(to, count) }
    }

    /// Takes one item.
    #[inline]
    pub fn pop_one(&self) -> Option<T> {
        // SAFETY: the slots were made for items of this type.
        if let Some(item) = unsafe { section::pop_one(self.slots.place()) } {
            return Some(item);
        }
        self.pop_one_again()
    }

    #[cold]
    fn pop_one_again(&self) -> Option<T> {
        let mut item = T::default();
        // SAFETY: room for one.
        let count = unsafe {
            match self.pop_again(&raw mut item, 1) {
                0 => self.refill(&raw mut item, 1),
                count => count,
            }
        };
        (count == 1).then_some(item)
    }

    /// Puts all of `items` on this CPU's stack, the last on top; what does not fit goes to the shared part.
    #[inline]
    pub fn push(&self, items: &[T]) {
        if let [item] = items {
            return self.push_one(*item);
        }
        if self.push_at(self.slots.place(), items).is_err() {
            self.push_again(items);
        }
    }

    /// Puts one item on this CPU's stack.
    #[inline]
    pub fn push_one(&self, item: T) {
        // SAFETY: the slots were made for the capacity, and items of this type.
        if !unsafe { section::push_one(self.slots.place(), self.capacity_bytes, item) } {
            self.push_one_again(item);
        }
    }

    #[cold]
    fn push_one_again(&self, item: T) {
        self.push_again(&[item]);
    }

    #[inline(always)]
    fn push_at(&self, place: Place, items: &[T]) -> Result<(), Refused> {
        let bytes = size_of_val(items);
        if bytes > self.capacity_bytes as usize {
            return Err(Refused::Full);
        }
        // SAFETY: the slots were made for the capacity; `items` has that many bytes, a multiple of 4.
        unsafe { section::push(place, self.capacity_bytes, items.as_ptr().cast(), bytes as u32) }
    }

    /// # Safety
    /// `to` has room for `want` items.
    #[inline(always)]
    unsafe fn pop_here(&self, to: *mut T, want: usize) -> usize {
        let want_bytes = (want * size_of::<T>()).min(self.capacity_bytes as usize) as u32;
        // SAFETY: the caller's promise. Items are of 4 or 8 bytes, so it is a multiple of 4.
        match unsafe { section::pop(self.slots.place(), to.cast(), want_bytes) } {
            Ok(bytes) => bytes as usize / size_of::<T>(),
            Err(Refused::Full) => 0,
            // SAFETY: the caller's promise.
            Err(_) => unsafe { self.pop_again(to, want) },
        }
    }

    /// # Safety
    /// As for `pop_here`.
    #[cold]
    unsafe fn pop_again(&self, to: *mut T, want: usize) -> usize {
        let want_bytes = (want * size_of::<T>()).min(self.capacity_bytes as usize) as u32;
        for _ in 0..ATTEMPTS {
            let Some(place) = self.slots.place_again() else { break };
            // SAFETY: as in `pop_here`.
            match unsafe { section::pop(place, to.cast(), want_bytes) } {
                Ok(bytes) => return bytes as usize / size_of::<T>(),
                Err(Refused::Interrupted) => {}
                Err(_) => return 0,
            }
        }
        let Some(slot) = self.claim_preferred() else { return 0 };
        // SAFETY: the caller's promise.
        unsafe { slot.pop(to, want) }
    }

    /// Gets what the stack did not have, and brings some more for the next time.
    ///
    /// # Safety
    /// `to` has room for `want` items.
    #[cold]
    unsafe fn refill(&self, to: *mut T, want: usize) -> usize {
        let mut count = 0;
        while count < want {
            let mut hand = [T::default(); NODE_ITEMS];
            // A shared part of the user's own may say what it likes.
            let found = self.shared.take(&mut hand).min(NODE_ITEMS);
            let used = found.min(want - count);
            // SAFETY: `count + used` is at most `want`, and `used` at most what the hand has. Its first items are used, in the order they came in.
            unsafe { to.add(count).copy_from_nonoverlapping(hand.as_ptr(), used) };
            count += used;
            if used < found {
                self.push(&hand[used..found]);
            }
            if found < NODE_ITEMS {
                break;
            }
        }
        count
    }

    #[cold]
    fn push_again(&self, items: &[T]) {
        // At most half of the stack stays when it overflows: that makes no room for a portion that is larger. And where somebody else works on it, it is full
        // and empty at once.
        let too_large = size_of_val(items) > self.capacity_bytes as usize / 2;
        for _ in 0..ATTEMPTS {
            let Some(place) = self.slots.place_again() else { break };
            match self.push_at(place, items) {
                Ok(()) => return,
                Err(Refused::Interrupted) => {}
                Err(Refused::Full) if !too_large && self.move_to_shared(self.capacity().div_ceil(2)) > 0 => {}
                Err(Refused::Full | Refused::Nowhere) => return self.shared.give(items),
            }
        }
        match self.claim_preferred() {
            Some(slot) => slot.push_or_give(items, &self.shared),
            None => self.shared.give(items),
        }
    }

    /// Moves items from this CPU's stack to the shared part until it is empty, or `most` were moved (a node's worth more at the worst): bounded,
    /// since others may push meanwhile. Says how many.
    fn move_to_shared(&self, most: usize) -> usize {
        let mut hand = [MaybeUninit::<T>::uninit(); NODE_ITEMS];
        let mut moved = 0;
        while moved < most {
            // SAFETY: the hand has room for as many as it is long.
            let count = unsafe { self.pop_here(hand.as_mut_ptr().cast(), NODE_ITEMS) };
            if count == 0 {
                break;
            }
            // SAFETY: that many were written.
            self.shared.give(unsafe { slice::from_raw_parts(hand.as_ptr().cast(), count) });
            moved += count;
        }
        moved
    }

    fn capacity(&self) -> usize {
        self.capacity_bytes as usize / size_of::<T>()
    }

    /// Where there are no sections: claims the slot that the calling thread goes by; `None` where somebody else has it.
    fn claim_preferred(&self) -> Option<ClaimedSlot<'_, T>> {
        if self.slots.has_sections() {
            return None;
        }
        // No section can be inside, so there is nothing to fence off.
        let slot = self.claim_with(self.slots.otherwise(), || Ok(None)).ok()?;
        slot.header.used.store(1, Ordering::Relaxed);
        Some(slot)
    }

    fn claim_with<'a>(
        &'a self,
        index: u32,
        fence: impl FnOnce() -> io::Result<Option<Diverted<'a>>>,
    ) -> Result<ClaimedSlot<'a, T>, Unclaimed<io::Error>> {
        let slot = self.slots.slot(index);
        // SAFETY: every slot begins with a header; it is made of atomics, and all zeroes is a valid one.
        let header = unsafe { &*slot.cast::<StackHeader>() };
        let claimed = header.claim.try_claim(fence)?;
        Ok(ClaimedSlot {
            _claimed: claimed,
            header,
            items: slot.wrapping_add(size_of::<StackHeader>()).cast(),
            capacity: self.capacity(),
        })
    }

    /// Claims a slot from outside.
    fn claim(&self, index: u32) -> Result<ClaimedSlot<'_, T>, Unclaimed<io::Error>> {
        let cpu = self.slots.cpu(index);
        self.claim_with(index, || {
            if !self.slots.has_sections() {
                return Ok(None);
            }
            let diverted = self.slots.divert(index, (&raw const section::FULL_AND_EMPTY).addr());
            membarrier::stop_sections(cpu)?;
            Ok(Some(diverted))
        })
    }

    fn header(&self, index: u32) -> &StackHeader {
        // SAFETY: every slot begins with a header, which is made of atomics.
        unsafe { &*self.slots.slot(index).cast::<StackHeader>() }
    }

    /// How many items stack `index` has just now. Panics where there is no such stack.
    pub fn stack_len(&self, index: usize) -> usize {
        assert!(index < self.stacks(), "stack {index} of {}", self.stacks());
        self.header(index as u32).len_bytes.load(Ordering::Relaxed) as usize / size_of::<T>()
    }

    /// The address of the slot of stack `index`, for debuggers and tests. Panics where there is no such stack.
    pub fn slot_address(&self, index: usize) -> usize {
        assert!(index < self.stacks(), "stack {index} of {}", self.stacks());
        self.slots.slot(index as u32) as usize
    }

    /// How many items there are, in all stacks and the shared part; exact while nobody pushes or pops.
    pub fn len(&self) -> usize {
        (0..self.stacks()).map(|index| self.stack_len(index)).sum::<usize>() + self.shared.len()
    }

    /// True where there are no items.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves all items of stack `index` to the shared part, from any thread. Panics where there is no such stack.
    ///
    /// Puts an interrupt on the CPU the stack belongs to where it runs a thread of this process; where that CPU or the caller's own is
    /// marked isolated, only asks. Stacks that go by concurrency ids belong to no CPU: they are asked as long as any CPU is isolated, and a
    /// program that isolates CPUs had better choose [`Indexing::Cpu`].
    pub fn drain(&self, index: usize) -> Drained {
        self.work_on(index, Self::drain_now)
    }

    /// Takes up to as many items as `into` is long off the top of stack `index`, from any thread: [`Drained::Moved`] says how many are at the
    /// beginning of `into` now. Panics where there is no such stack. Interrupts as [`drain`](Self::drain) does; where that only asks, so does this,
    /// and who asked may find the items in the shared part later, by [`pop`](Self::pop).
    pub fn steal(&self, index: usize, into: &mut [T]) -> Drained {
        self.work_on(index, |stack, index| {
            stack.with_claim(index, |slot| {
                // SAFETY: that is how much room there is.
                unsafe { slot.pop(into.as_mut_ptr(), into.len()) }
            })
        })
    }

    /// Copies up to as many items as `into` is long from stack `index`, which keeps them, the one on top last: [`Drained::Moved`] says how many are at the
    /// beginning of `into` now. Panics where there is no such stack. Interrupts as [`drain`](Self::drain) does; where that only asks this does nothing
    /// and says [`Drained::Busy`].
    pub fn read(&self, index: usize, into: &mut [T]) -> Drained {
        assert!(index < self.stacks(), "stack {index} of {}", self.stacks());
        if self.must_ask(index as u32) {
            return Drained::Busy;
        }
        self.with_claim(index as u32, |slot| {
            let items = slot.items();
            let top = &items[items.len() - into.len().min(items.len())..];
            into[..top.len()].copy_from_slice(top);
            top.len()
        })
    }

    fn work_on(&self, index: usize, work: impl FnOnce(&Self, u32) -> Drained) -> Drained {
        if self.stack_len(index) == 0 {
            return Drained::Moved(0);
        }
        let index = index as u32;
        if self.must_ask(index) {
            self.header(index).requested.store(1, Ordering::Relaxed);
            return Drained::Requested;
        }
        work(self, index)
    }

    /// Whether working on this stack would interrupt a CPU that is isolated, or the caller's own is: it makes no system calls.
    fn must_ask(&self, index: u32) -> bool {
        let owner = match self.slots.cpu(index) {
            Some(cpu) => isolated::is_isolated(cpu as usize),
            None => self.slots.has_sections() && isolated::any(),
        };
        owner || thread::index(IndexField::Cpu).is_some_and(|cpu| isolated::is_isolated(cpu as usize))
    }

    fn with_claim(&self, index: u32, work: impl FnOnce(&ClaimedSlot<'_, T>) -> usize) -> Drained {
        match self.claim(index) {
            Ok(slot) => Drained::Moved(work(&slot)),
            Err(Unclaimed::Busy) => Drained::Busy,
            Err(Unclaimed::Refused(_)) => Drained::Refused,
        }
    }

    fn drain_now(&self, index: u32) -> Drained {
        self.with_claim(index, |slot| {
            slot.header.requested.store(0, Ordering::Relaxed);
            let moved = slot.items().len();
            self.shared.give(slot.items());
            slot.truncate(0);
            moved
        })
    }

    /// Drains every stack; what could not be drained is asked for or left. Says how many items were moved.
    pub fn drain_all(&self) -> usize {
        (0..self.stacks()).map(|index| self.drain(index).moved()).sum()
    }

    /// Drains the stacks that somebody has asked to be emptied who could not do it himself, for his own CPU is isolated; stacks of isolated CPUs
    /// are left to their threads. Says how many items were moved. For a control thread, now and then: a thread of an isolated
    /// CPU that is short of items gets those of other CPUs only by this.
    pub fn serve_requests(&self) -> usize {
        (0..self.slots.count())
            .filter(|index| self.header(*index).requested.load(Ordering::Relaxed) != 0)
            .filter(|index| !self.must_ask(*index))
            .map(|index| self.drain_now(index).moved())
            .sum()
    }

    /// Answers a request to empty this CPU's stack, if there is one: for a worker of an isolated CPU, once a turn of its loop. One load where
    /// there is none.
    #[inline]
    pub fn serve(&self) {
        if let Some(mine) = self.slots.mine() {
            // SAFETY: the slot begins with a header of atomics.
            let header = unsafe { &*mine.cast::<StackHeader>() };
            if header.requested.load(Ordering::Relaxed) != 0 {
                self.serve_request(header);
            }
        }
    }

    #[cold]
    fn serve_request(&self, header: &StackHeader) {
        header.requested.store(0, Ordering::Relaxed);
        if self.move_to_shared(self.capacity()) == 0 && header.len_bytes.load(Ordering::Relaxed) > 0 {
            // Somebody else works on it: the next time.
            header.requested.store(1, Ordering::Relaxed);
        }
    }

    /// Drains the stacks that nobody comes back to, and says how many items were moved. Reads `/proc/self/task`: for a control thread.
    ///
    /// By CPU number these are the stacks of CPUs that no thread of this process can run on: off line, or taken away by a cpuset or by affinity masks. By
    /// concurrency id, those of ids that are no longer given to anybody since the process has fewer CPUs; not while a CPU is
    /// isolated. Where there is no rseq, those that no thread has used since the last call.
    pub fn drain_stranded(&self) -> io::Result<usize> {
        let reachable = crate::topology::reachable()?;
        let is_stranded = |index: u32| match self.slots.cpu(index) {
            Some(cpu) => !reachable.contains(cpu as usize),
            // Ids are given from 0 on, to as many threads as there are CPUs to run them.
            None if self.slots.has_sections() => index as usize >= reachable.len() && !isolated::any(),
            None => self.header(index).used.swap(0, Ordering::Relaxed) == 0,
        };
        let stranded = (0..self.slots.count())
            .filter(|index| self.stack_len(*index as usize) > 0)
            .filter(|index| is_stranded(*index));
        Ok(stranded.map(|index| self.drain_now(index).moved()).sum())
    }
}

/// A slot that is ours alone.
struct ClaimedSlot<'a, T> {
    _claimed: Claimed<'a, Option<Diverted<'a>>>,
    header: &'a StackHeader,
    items: *mut T,
    capacity: usize,
}

impl<T: Item> ClaimedSlot<'_, T> {
    fn items(&self) -> &[T] {
        let len = self.header.len_bytes.load(Ordering::Relaxed) as usize / size_of::<T>();
        // SAFETY: the items below the length were pushed, and while the slot is claimed nobody writes them: sections that began before the
        // claim are over or were stopped, later ones are diverted.
        unsafe { slice::from_raw_parts(self.items, len.min(self.capacity)) }
    }

    /// Takes up to `want` items off the top, the lowest first, and says how many.
    ///
    /// # Safety
    /// `to` has room for `want` items.
    unsafe fn pop(&self, to: *mut T, want: usize) -> usize {
        let items = self.items();
        let left = items.len() - want.min(items.len());
        let taken = items.len() - left;
        // SAFETY: the caller has room for them, in memory that is not the slot's, which nobody else knows of.
        unsafe { to.copy_from_nonoverlapping(items[left..].as_ptr(), taken) };
        self.truncate(left);
        taken
    }

    fn truncate(&self, len: usize) {
        self.header.len_bytes.store((len * size_of::<T>()) as u32, Ordering::Relaxed);
    }

    fn push_or_give(&self, items: &[T], shared: &impl Shared<T>) {
        let mut len = self.items().len();
        if len + items.len() > self.capacity {
            let kept = self.capacity / 2;
            shared.give(&self.items()[kept.min(len)..]);
            len = kept.min(len);
        }
        if len + items.len() > self.capacity {
            self.truncate(len);
            return shared.give(items);
        }
        // SAFETY: inside the slot's items by the test above, and nobody else touches them while it is claimed.
        unsafe { self.items.add(len).copy_from_nonoverlapping(items.as_ptr(), items.len()) };
        self.truncate(len + items.len());
    }
}
