//! A job in place, a closure of bounded size, and the ring by which it comes from a worker, without an allocation.
#![allow(unsafe_code)]

use crossbeam_utils::CachePadded;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit, align_of, size_of};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering};

/// What a job gives back.
pub type Message = [u64; 4];

/// The most bytes that a job may capture; more is an error of the compiler. Box what is larger, beforehand.
pub const JOB_BYTES: usize = 48;
const JOB_ALIGN: usize = 16;
/// So many jobs before its turn, a place's line is asked for: what a line takes to come from another CPU, in jobs submitted one after another.
const AHEAD: u64 = 16;

#[repr(C, align(16))]
struct Storage(MaybeUninit<[u8; JOB_BYTES]>);

impl Storage {
    /// # Safety
    /// `place` may be written. What was there is forgotten.
    #[inline(always)]
    unsafe fn write<F>(place: *mut Self, job: F) {
        const {
            assert!(size_of::<F>() <= JOB_BYTES, "the job captures more than JOB_BYTES: box it beforehand");
            assert!(align_of::<F>() <= JOB_ALIGN, "the job's captures are aligned to more than 16 bytes");
        }
        // SAFETY: by the caller's word; size and alignment were asserted when this was compiled.
        unsafe { place.cast::<F>().write(job) }
    }
}

/// What can be done to a closure of one type.
struct Calls {
    call: unsafe fn(*mut u8) -> Message,
    discard: unsafe fn(*mut u8),
}

/// A closure of which only the size was forgotten, and its class.
pub(super) struct Task {
    storage: Storage,
    calls: &'static Calls,
    class: u8,
}

// SAFETY: made only of closures that are Send, which are what it has.
unsafe impl Send for Task {}

/// # Safety
/// `storage` has an `F`, which is moved out: nobody may use or drop it afterwards.
unsafe fn call<F: FnOnce() -> Message>(storage: *mut u8) -> Message {
    // SAFETY: by the caller's word; the storage is aligned for it, see `Storage::write`.
    let job = unsafe { storage.cast::<F>().read() };
    job()
}

/// # Safety
/// As with `call`.
unsafe fn discard<F>(storage: *mut u8) {
    // SAFETY: by the caller's word.
    unsafe { ptr::drop_in_place(storage.cast::<F>()) }
}

struct CallsOf<F>(PhantomData<F>);

impl<F: FnOnce() -> Message> CallsOf<F> {
    const CALLS: &'static Calls = &Calls { call: call::<F>, discard: discard::<F> };
}

impl Task {
    /// One that comes by no ring.
    pub(super) fn new<F: FnOnce() -> Message + Send + 'static>(class: u8, job: F) -> Self {
        let mut storage = Storage(MaybeUninit::uninit());
        // SAFETY: room for a closure.
        unsafe { Storage::write(&mut storage, job) };
        Self { storage, calls: CallsOf::<F>::CALLS, class }
    }

    /// The place of its class in the configuration.
    pub(super) fn class(&self) -> usize {
        usize::from(self.class)
    }

    pub(super) fn run(self) -> Message {
        let mut this = ManuallyDrop::new(self);
        let call = this.calls.call;
        // SAFETY: the storage has the closure that `call` was made for, and ManuallyDrop forgets it.
        unsafe { call(this.storage.0.as_mut_ptr().cast()) }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // SAFETY: `run` has not been called, for it takes the task and forgets it.
        unsafe { (self.calls.discard)(self.storage.0.as_mut_ptr().cast()) }
    }
}

/// Where a job lies on its way: one cache line, which says itself whether there is a job. All else that both sides wrote would be a second line that has
/// to come from the other CPU, and what a worker's CPU has not yet written when its store buffer is full, it waits for.
#[repr(C, align(64))]
struct Place {
    storage: UnsafeCell<Storage>,
    /// Null where there is none.
    calls: AtomicPtr<Calls>,
    class: AtomicU8,
}

const _: () = assert!(size_of::<Place>() == 64);

impl Place {
    /// # Safety
    /// Nobody else takes from this place now.
    unsafe fn take(&self) -> Option<Task> {
        let calls = self.calls.load(Ordering::Acquire);
        // SAFETY: null, or one of the constants.
        let calls = unsafe { calls.as_ref() }?;
        // SAFETY: whoever wrote `calls` wrote a closure before, and writes here again only when it has heard that it was taken.
        let storage = unsafe { self.storage.get().read() };
        self.calls.store(ptr::null_mut(), Ordering::Relaxed);
        Some(Task { storage, calls, class: self.class.load(Ordering::Relaxed) })
    }
}

struct Shared {
    places: Box<[Place]>,
    /// Jobs taken so far; looked at by who puts them in only where there may be no room.
    taken: CachePadded<AtomicU64>,
}

// SAFETY: a place's storage is written by the one producer while it is empty, and read by the one consumer while it is full: `calls`, and `taken` for the way
// back, hand it over. Closures are Send.
unsafe impl Sync for Shared {}
// SAFETY: as above; it owns closures that are Send.
unsafe impl Send for Shared {}

impl Shared {
    #[inline(always)]
    fn place(&self, number: u64) -> &Place {
        // A power of two.
        &self.places[number as usize & (self.places.len() - 1)]
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: both sides are gone.
        self.places.iter().for_each(|place| drop(unsafe { place.take() }));
    }
}

/// The side that puts jobs in.
pub(super) struct Producer {
    shared: Arc<Shared>,
    pushed: u64,
    taken_seen: u64,
}

/// The side that takes them out.
pub(super) struct Consumer {
    shared: Arc<Shared>,
    taken: u64,
}

/// A ring with room for at least `capacity` jobs.
pub(super) fn ring(capacity: usize) -> (Producer, Consumer) {
    let place = |_| Place {
        storage: UnsafeCell::new(Storage(MaybeUninit::uninit())),
        calls: AtomicPtr::new(ptr::null_mut()),
        class: AtomicU8::new(0),
    };
    let shared = Arc::new(Shared {
        places: (0..capacity.next_power_of_two()).map(place).collect(),
        taken: CachePadded::new(AtomicU64::new(0)),
    });
    (Producer { shared: Arc::clone(&shared), pushed: 0, taken_seen: 0 }, Consumer { shared, taken: 0 })
}

impl Producer {
    /// Puts a job in; gives it back where the ring is full.
    #[inline(always)]
    pub(super) fn push<F>(&mut self, class: u8, job: F) -> Result<(), F>
    where
        F: FnOnce() -> Message + Send + 'static,
    {
        let shared = &*self.shared;
        let room = shared.places.len() as u64;
        if self.pushed - self.taken_seen >= room {
            self.taken_seen = shared.taken.load(Ordering::Acquire);
            if self.pushed - self.taken_seen >= room {
                return Err(job);
            }
        }
        let place = shared.place(self.pushed);
        // SAFETY: the place is empty, for all that was put in a round ago was taken; only this side writes.
        unsafe { Storage::write(place.storage.get(), job) };
        place.class.store(class, Ordering::Relaxed);
        let calls: &'static Calls = CallsOf::<F>::CALLS;
        place.calls.store(ptr::from_ref(calls).cast_mut(), Ordering::Release);
        self.pushed += 1;
        fetch_to_write(shared.place(self.pushed + AHEAD));
        Ok(())
    }

    /// Takes the next place's line back from whoever looks whether there is a job in it, so that the next job need not wait for that. It is a store, for
    /// CPUs take a line that they still share for fetched already.
    #[inline(always)]
    pub(super) fn take_line(&self) {
        let place = self.shared.place(self.pushed);
        // Where the ring is full it has a job.
        if self.pushed - self.taken_seen < self.shared.places.len() as u64 {
            place.class.store(0, Ordering::Relaxed);
        }
    }

    /// Jobs put in so far.
    #[inline(always)]
    pub(super) fn pushed(&self) -> u64 {
        self.pushed
    }
}

impl Consumer {
    pub(super) fn pop(&mut self) -> Option<Task> {
        // SAFETY: only this side takes.
        let task = unsafe { self.shared.place(self.taken).take() }?;
        self.taken += 1;
        self.shared.taken.store(self.taken, Ordering::Release);
        Some(task)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shared.place(self.taken).calls.load(Ordering::Relaxed).is_null()
    }
}

/// Has the CPU fetch a line for writing, without waiting for it. The consumer's CPU had it last; asked for early enough, it is here when its turn comes.
#[inline(always)]
fn fetch_to_write<T>(line: &T) {
    // SAFETY: a hint, which changes nothing that the language knows of; where a CPU does not know it, it does nothing.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) ptr::from_ref(line), options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    #[test]
    fn a_task_is_run_or_dropped_once() {
        let witness = Arc::new(());
        let (run, dropped, panics) = (witness.clone(), witness.clone(), witness.clone());
        let numbers = [3_u64; 5];
        let (mut jobs, mut tasks) = ring(4);
        let sum = move || [numbers.iter().sum(), Arc::strong_count(&run) as u64, 0, 0];
        assert!(jobs.push(7, sum).is_ok());
        assert!(jobs.push(0, move || [Arc::strong_count(&dropped) as u64; 4]).is_ok());
        let panicking = move || {
            let _panics = panics;
            std::panic::resume_unwind(Box::new(()))
        };
        assert!(jobs.push(0, panicking).is_ok());
        // The last one is dropped with the ring.
        let left = witness.clone();
        assert!(jobs.push(0, move || [Arc::strong_count(&left) as u64; 4]).is_ok());
        let Err(refused) = jobs.push(0, || [5; 4]) else { panic!("the ring is full") };
        assert_eq!(refused(), [5; 4]);
        assert_eq!(Arc::strong_count(&witness), 5);
        let task = tasks.pop().unwrap();
        assert_eq!(task.class(), 7);
        assert_eq!(task.run()[..2], [15, 5]);
        drop(tasks.pop().unwrap());
        let panicking = tasks.pop().unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| panicking.run())).is_err());
        assert_eq!(Arc::strong_count(&witness), 2);
        drop((jobs, tasks));
        assert_eq!(Arc::strong_count(&witness), 1);
    }

    #[test]
    fn jobs_come_in_order_and_no_more_than_there_is_room_for() {
        const JOBS: u64 = 200_000;
        let (mut jobs, mut tasks) = ring(8);
        let pusher = std::thread::spawn(move || {
            while jobs.pushed() < JOBS {
                let number = jobs.pushed();
                // What is captured is all there when it is taken.
                let captured = [number; 5];
                if jobs.push((number % 64) as u8, move || [captured[0], captured[4], 0, 0]).is_err() {
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < JOBS {
            let Some(task) = tasks.pop() else {
                assert!(!pusher.is_finished() || !tasks.is_empty(), "ended at {next}");
                std::thread::yield_now();
                continue;
            };
            assert_eq!((task.class() as u64, task.run()), (next % 64, [next, next, 0, 0]));
            next += 1;
        }
        pusher.join().unwrap();
        assert!(tasks.is_empty() && tasks.pop().is_none());
    }
}
