//! The static table of pools.
//!
//! A packet names its pool by four bits. This table turns them into the free list to give the frame back to, without the
//! packet carrying a pointer or a reference count, which is what keeps it at 16 bytes.
//!
//! Life of a slot: empty -> live -> (all user handles gone) -> empty when every frame is back, or else a *zombie* that
//! keeps its memory mapped, so that a packet that is still held stays valid. A zombie is swept when its last frame has
//! come back and a slot is wanted.
#![allow(unsafe_code)]

use super::pool::PoolInner;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many pools one process may have at a time.
pub const MAX_POOLS: usize = 16;

/// One pool's place.
#[repr(align(64))]
pub(crate) struct Slot {
    pool: AtomicPtr<PoolInner>,
    zombie: AtomicBool,
}

static SLOTS: [Slot; MAX_POOLS] =
    [const { Slot { pool: AtomicPtr::new(ptr::null_mut()), zombie: AtomicBool::new(false) } }; MAX_POOLS];

/// Held while a slot is taken or given up.
static CHANGING: Mutex<()> = Mutex::new(());

fn changing() -> MutexGuard<'static, ()> {
    CHANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The slot of the pool a frame handle names.
#[inline(always)]
pub(crate) fn slot(handle: u32) -> &'static Slot {
    &SLOTS[(handle >> super::frame::POOL_SHIFT) as usize]
}

impl Slot {
    /// The pool of a live frame.
    #[inline(always)]
    pub(crate) fn pool(&self) -> &'static PoolInner {
        let pool = self.pool.load(Ordering::Acquire);
        debug_assert!(!pool.is_null(), "a frame of a pool that is gone");
        // SAFETY: the caller has a frame of this pool, or is its handle. The PoolInner is only freed by `sweep`, which
        // makes sure that every frame is in the free list, and no user handle exists; so it is alive. 'static is
        // shorter than that for as long as the caller keeps the frame, and no caller stores the reference.
        unsafe { &*pool }
    }

    fn sweep(&self) -> bool {
        let pool = self.pool.load(Ordering::Acquire);
        // SAFETY: slots change only under CHANGING, which every caller of sweep holds; not null is alive.
        if pool.is_null() || !unsafe { &*pool }.free_list.recall() {
            return false;
        }
        self.pool.store(ptr::null_mut(), Ordering::Release);
        self.zombie.store(false, Ordering::Relaxed);
        // SAFETY: `register` made this pointer with Box::into_raw. Every frame has been taken out of the depot and put
        // back by `recall`, so no packet, frame or ring refers to the pool, every thread that gave one back is done with the
        // free list's memory (the store that shows a frame is the last it makes there; a claimed stack is not counted), and the last user
        // handle is gone (zombie or being dropped).
        drop(unsafe { Box::from_raw(pool) });
        true
    }
}

/// Gives a new pool a slot; `make` gets the slot's number. `None` where all are taken.
pub(crate) fn register<E>(
    make: impl FnOnce(u32) -> Result<PoolInner, E>,
) -> Option<Result<&'static PoolInner, E>> {
    let _guard = changing();
    for slot in SLOTS.iter().filter(|slot| slot.zombie.load(Ordering::Relaxed)) {
        slot.sweep();
    }
    let free = || SLOTS.iter().position(|slot| slot.pool.load(Ordering::Relaxed).is_null());
    // On a machine with many CPUs libtest runs more tests at a time than there are slots.
    #[cfg(test)]
    let _guard = {
        let (mut guard, start) = (_guard, std::time::Instant::now());
        while free().is_none() && start.elapsed().as_secs() < 10 {
            drop(guard);
            std::thread::sleep(std::time::Duration::from_millis(1));
            guard = changing();
        }
        guard
    };
    let number = free()?;
    Some(make(number as u32).map(|inner| {
        let slot = &SLOTS[number];
        let raw = Box::into_raw(Box::new(inner));
        slot.pool.store(raw, Ordering::Release);
        // SAFETY: just made; freed only by `sweep`, see `Slot::pool`.
        unsafe { &*raw }
    }))
}

/// The last user handle of a pool is gone: frees it, or keeps it as a zombie while frames are out.
pub(crate) fn retire(number: u32) {
    let _guard = changing();
    let slot = &SLOTS[number as usize];
    slot.zombie.store(true, Ordering::Relaxed);
    slot.sweep();
}
