//! A job in place: a closure of bounded size, moved whole through a ring, without an allocation.
#![allow(unsafe_code)]

use nic::ring::Producer;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit, align_of, size_of};
use std::ptr;

/// What a job gives back.
pub type Message = [u64; 4];

/// The most bytes that a job may capture; more is an error of the compiler. Box what is larger, beforehand.
pub const JOB_BYTES: usize = 48;
const JOB_ALIGN: usize = 16;
/// So many jobs before its turn, a place's line is asked for: what a line takes to come from another CPU, in jobs submitted one after another.
const AHEAD: usize = 8;

#[repr(C, align(16))]
struct Storage(MaybeUninit<[u8; JOB_BYTES]>);

/// What can be done to a closure of one type.
struct Calls {
    call: unsafe fn(*mut u8) -> Message,
    discard: unsafe fn(*mut u8),
}

/// A closure of which only the size was forgotten, and its class: one cache line, for each costs a worker what it takes to come from another CPU.
#[repr(C, align(64))]
pub(super) struct Task {
    storage: Storage,
    calls: &'static Calls,
    class: u8,
}

const _: () = assert!(size_of::<Task>() == 64);

// SAFETY: made only of closures that are Send, which are what it has.
unsafe impl Send for Task {}

/// # Safety
/// `storage` has an `F`, which is moved out: nobody may use or drop it afterwards.
unsafe fn call<F: FnOnce() -> Message>(storage: *mut u8) -> Message {
    // SAFETY: by the caller's word; the storage is aligned for it, see `Task::push`.
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
    /// Puts a job into a ring; gives it back where the ring is full.
    #[inline(always)]
    pub(super) fn push<F>(ring: &mut Producer<Self>, class: u8, job: F) -> Result<(), F>
    where
        F: FnOnce() -> Message + Send + 'static,
    {
        let Some(place) = ring.place() else { return Err(job) };
        // SAFETY: a place for a task, and it is written.
        unsafe {
            Self::write(place, class, job);
            ring.publish();
        }
        ring.fetch_ahead(AHEAD);
        Ok(())
    }

    /// One that comes by no ring.
    pub(super) fn new<F: FnOnce() -> Message + Send + 'static>(class: u8, job: F) -> Self {
        let mut task = MaybeUninit::uninit();
        // SAFETY: room for one, which is written.
        unsafe {
            Self::write(task.as_mut_ptr(), class, job);
            task.assume_init()
        }
    }

    /// # Safety
    /// `place` has room for a task; one is there afterwards.
    #[inline(always)]
    unsafe fn write<F>(place: *mut Self, class: u8, job: F)
    where
        F: FnOnce() -> Message + Send + 'static,
    {
        const {
            assert!(size_of::<F>() <= JOB_BYTES, "the job captures more than JOB_BYTES: box it beforehand");
            assert!(align_of::<F>() <= JOB_ALIGN, "the job's captures are aligned to more than 16 bytes");
        }
        // SAFETY: room by the caller's word. Size and alignment of the closure were asserted when this was compiled, and all three fields are written.
        unsafe {
            (&raw mut (*place).storage).cast::<F>().write(job);
            (&raw mut (*place).calls).write(CallsOf::<F>::CALLS);
            (&raw mut (*place).class).write(class);
        }
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
        let (mut jobs, mut tasks) = nic::ring::ring(4);
        let sum = move || [numbers.iter().sum(), Arc::strong_count(&run) as u64, 0, 0];
        assert!(Task::push(&mut jobs, 7, sum).is_ok());
        assert!(Task::push(&mut jobs, 0, move || [Arc::strong_count(&dropped) as u64; 4]).is_ok());
        let panicking = move || {
            let _panics = panics;
            std::panic::resume_unwind(Box::new(()))
        };
        assert!(Task::push(&mut jobs, 0, panicking).is_ok());
        // The last one is dropped with the ring.
        let left = witness.clone();
        assert!(Task::push(&mut jobs, 0, move || [Arc::strong_count(&left) as u64; 4]).is_ok());
        let Err(refused) = Task::push(&mut jobs, 0, || [5; 4]) else { panic!("the ring is full") };
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
}
