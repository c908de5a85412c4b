//! A job in place: a closure of bounded size, moved whole through a ring, without an allocation.
#![allow(unsafe_code)]

use std::mem::{ManuallyDrop, MaybeUninit, align_of, size_of};
use std::ptr;

/// What a job gives back.
pub type Message = [u64; 4];

/// The most bytes that a job may capture; more is an error of the compiler. Box what is larger, beforehand.
pub const JOB_BYTES: usize = 96;
const JOB_ALIGN: usize = 16;

#[repr(C, align(16))]
struct Storage(MaybeUninit<[u8; JOB_BYTES]>);

/// A closure of which only the size was forgotten.
pub(super) struct Task {
    storage: Storage,
    call: unsafe fn(*mut u8) -> Message,
    discard: unsafe fn(*mut u8),
}

// SAFETY: made only of closures that are Send, which are what it has.
unsafe impl Send for Task {}

/// # Safety
/// `storage` has an `F`, which is moved out: nobody may use or drop it afterwards.
unsafe fn call<F: FnOnce() -> Message>(storage: *mut u8) -> Message {
    // SAFETY: by the caller's word; the storage is aligned for it, see `Task::new`.
    let job = unsafe { storage.cast::<F>().read() };
    job()
}

/// # Safety
/// As with `call`.
unsafe fn discard<F>(storage: *mut u8) {
    // SAFETY: by the caller's word.
    unsafe { ptr::drop_in_place(storage.cast::<F>()) }
}

impl Task {
    #[inline]
    pub(super) fn new<F: FnOnce() -> Message + Send + 'static>(job: F) -> Self {
        const {
            assert!(size_of::<F>() <= JOB_BYTES, "the job captures more than JOB_BYTES: box it beforehand");
            assert!(align_of::<F>() <= JOB_ALIGN, "the job's captures are aligned to more than 16 bytes");
        }
        let mut storage = Storage(MaybeUninit::uninit());
        // SAFETY: room and alignment were asserted when this was compiled.
        unsafe { storage.0.as_mut_ptr().cast::<F>().write(job) };
        Self { storage, call: call::<F>, discard: discard::<F> }
    }

    pub(super) fn run(self) -> Message {
        let mut this = ManuallyDrop::new(self);
        let call = this.call;
        // SAFETY: the storage has the closure that `call` was made for, and ManuallyDrop forgets it.
        unsafe { call(this.storage.0.as_mut_ptr().cast()) }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // SAFETY: `run` has not been called, for it takes the task and forgets it.
        unsafe { (self.discard)(self.storage.0.as_mut_ptr().cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    #[test]
    fn a_task_is_run_or_dropped_once() {
        let witness = Arc::new(());
        let (run, dropped, panics) = (witness.clone(), witness.clone(), witness.clone());
        let numbers = [3_u64; 8];
        let task = Task::new(move || [numbers.iter().sum(), Arc::strong_count(&run) as u64, 0, 0]);
        drop(Task::new(move || [Arc::strong_count(&dropped) as u64; 4]));
        let panicking = Task::new(move || {
            let _panics = panics;
            std::panic::resume_unwind(Box::new(()))
        });
        assert_eq!(Arc::strong_count(&witness), 3);
        assert_eq!(task.run()[..2], [24, 3]);
        assert!(catch_unwind(AssertUnwindSafe(|| panicking.run())).is_err());
        assert_eq!(Arc::strong_count(&witness), 1);
    }
}
