//! Where free frames wait: a small stack for each thread, over a shared lock-free depot.
//!
//! A worker that frees what it allocates stays in its own stack: no atomic read-modify-write, and the frame it gets next is
//! the one whose header is still in the cache. Surplus and shortage move in chunks of 64 through the depot, one queue operation
//! for 64 frames. A thread that ends gives its stack back to the depot.
//!
//! This file is the seam for per-CPU stacks: `take` and `give` are all the rest of the crate knows.
#![allow(unsafe_code)]

use super::registry::{self, MAX_POOLS, Slot};
use crossbeam_queue::ArrayQueue;
use std::cell::{Cell, UnsafeCell};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};

/// Frames that move between a thread and the depot at a time.
const CHUNK: usize = 64;
/// Frames one thread keeps at most.
const CAPACITY: usize = 512;

/// One thread's stack of free frames of one pool.
pub(crate) struct LocalCache {
    /// Written by the owning thread alone; others read it to count.
    len: AtomicU32,
    frames: UnsafeCell<[u32; CAPACITY]>,
}

// SAFETY: `frames` is touched only by the owning thread, through its thread-local pointer; other threads see
// `len` alone, which is atomic.
unsafe impl Sync for LocalCache {}

/// The calling thread's caches, by pool number.
struct Caches([Cell<*const LocalCache>; MAX_POOLS]);

thread_local! {
    static CACHES: Caches = const { Caches([const { Cell::new(ptr::null()) }; MAX_POOLS]) };
}

impl Drop for Caches {
    fn drop(&mut self) {
        for (number, cell) in self.0.iter().enumerate() {
            let cache = cell.replace(ptr::null());
            if cache.is_null() {
                continue;
            }
            let slot = registry::slot((number as u32) << super::frame::POOL_SHIFT);
            // Under the lock, before the length is read: a closed pool may be taking its frames back (`recall`).
            let mut known = slot.caches.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the slot's list holds an Arc to it until the end of this block, and this is its owning thread.
            let cache_ref = unsafe { &*cache };
            if cache_ref.len.load(Ordering::Relaxed) > 0 {
                slot.pool().free_list.spill(cache_ref, 0);
            }
            known.retain(|known| !ptr::eq(Arc::as_ptr(known), cache));
        }
    }
}

/// The free frames of one pool.
pub(crate) struct FreeList {
    number: u32,
    frames: usize,
    chunks: ArrayQueue<[u32; CHUNK]>,
    singles: ArrayQueue<u32>,
    /// Debug builds know of each frame whether it is free, and catch one that is freed twice.
    #[cfg(debug_assertions)]
    is_free: Box<[std::sync::atomic::AtomicBool]>,
}

impl FreeList {
    /// A list of pool `number` with all its `frames` free, whose handles are `step` apart.
    pub(crate) fn new(number: u32, frames: usize, step: usize) -> Self {
        let list = Self {
            number,
            frames,
            // Each chunk holds 64 different frames and each single is a different one: neither queue can overflow.
            chunks: ArrayQueue::new(frames.div_ceil(CHUNK)),
            singles: ArrayQueue::new(frames),
            #[cfg(debug_assertions)]
            is_free: (0..frames * step).map(|_| true.into()).collect(),
        };
        let handles: Vec<u32> = (0..frames * step)
            .step_by(step)
            .map(|index| number << super::frame::POOL_SHIFT | index as u32)
            .collect();
        // The lowest frames on top: a small working set stays a small stretch of memory.
        list.to_depot(&handles);
        list
    }

    fn slot(&self) -> &'static Slot {
        registry::slot(self.number << super::frame::POOL_SHIFT)
    }

    /// Takes up to `wanted` (at most 64) frames and hands them to `receive`, which owns them from then on.
    #[inline]
    pub(crate) fn take(&self, wanted: usize, receive: impl FnOnce(&[u32])) -> usize {
        debug_assert!(wanted <= CHUNK);
        let Some(cache) = self.local() else {
            return self.take_shared(wanted, receive);
        };
        // SAFETY: `local` gives this thread's own cache, and nothing in this function or in `refill` runs foreign code
        // while the reference lives, but `receive`, which gets a shared slice and is crate code that frees nothing.
        let stack = unsafe { &mut *cache.frames.get() };
        let mut len = cache.len.load(Ordering::Relaxed) as usize;
        if len < wanted {
            len = self.refill(stack, len, wanted);
        }
        let count = wanted.min(len);
        let left = len - count;
        cache.len.store(left as u32, Ordering::Relaxed);
        let taken = &stack[left..len];
        self.note(taken, false);
        receive(taken);
        count
    }

    /// Gives frames back. The caller owned each of them and forgets it.
    #[inline]
    pub(crate) fn give(&self, handles: &[u32]) {
        self.give_with(handles.len(), |space| space.copy_from_slice(handles));
    }

    /// Gives `count` (at most 64) frames back, which `write` puts into the slice it gets.
    #[inline]
    pub(crate) fn give_with(&self, count: usize, write: impl FnOnce(&mut [u32])) {
        debug_assert!(count <= CHUNK);
        let Some(cache) = self.local() else {
            let mut handles = [0; CHUNK];
            write(&mut handles[..count]);
            self.note(&handles[..count], true);
            return self.to_depot(&handles[..count]);
        };
        let mut len = cache.len.load(Ordering::Relaxed) as usize;
        if len + count > CAPACITY {
            len = self.spill(cache, CAPACITY / 2);
        }
        // SAFETY: as in `take`: this thread's own cache, and `write` is crate code that frees nothing.
        let stack = unsafe { &mut *cache.frames.get() };
        let space = &mut stack[len..len + count];
        write(space);
        self.note(space, true);
        // Release: whoever counts this frame as free may take it back from here, once its pool is closed.
        cache.len.store((len + count) as u32, Ordering::Release);
    }

    /// Moves frames from the depot to the stack until `wanted` are there or the depot is empty.
    #[cold]
    fn refill(&self, stack: &mut [u32; CAPACITY], mut len: usize, wanted: usize) -> usize {
        while len < wanted {
            if let Some(chunk) = self.chunks.pop() {
                stack[len..len + CHUNK].copy_from_slice(&chunk);
                len += CHUNK;
            } else if let Some(single) = self.singles.pop() {
                stack[len] = single;
                len += 1;
            } else {
                break;
            }
        }
        len
    }

    /// Moves frames from this thread's stack to the depot until only `keep` are left.
    #[cold]
    fn spill(&self, cache: &LocalCache, keep: usize) -> usize {
        let len = cache.len.load(Ordering::Relaxed) as usize;
        // SAFETY: the caller is the owning thread (see LocalCache) and holds no reference into the stack.
        let stack = unsafe { &*cache.frames.get() };
        // The bottom of the stack goes: it is the coldest. What stays is moved down.
        let surplus = len.saturating_sub(keep);
        self.to_depot(&stack[..surplus]);
        // SAFETY: as above; the shared reference is not used again.
        unsafe { &mut *cache.frames.get() }.copy_within(surplus..len, 0);
        cache.len.store((len - surplus) as u32, Ordering::Relaxed);
        len - surplus
    }

    fn to_depot(&self, handles: &[u32]) {
        let (chunks, rest) = handles.as_chunks::<CHUNK>();
        let fits = chunks.iter().all(|chunk| self.chunks.push(*chunk).is_ok())
            && rest.iter().all(|single| self.singles.push(*single).is_ok());
        debug_assert!(fits, "more frames given back than the pool has");
    }

    #[cold]
    fn take_shared(&self, wanted: usize, receive: impl FnOnce(&[u32])) -> usize {
        let mut taken = [0; CHUNK];
        let mut count = 0;
        while count < wanted {
            if let Some(single) = self.singles.pop() {
                taken[count] = single;
                count += 1;
            } else if let Some(chunk) = self.chunks.pop() {
                self.to_depot_singles(&chunk);
            } else {
                break;
            }
        }
        self.note(&taken[..count], false);
        receive(&taken[..count]);
        count
    }

    fn to_depot_singles(&self, handles: &[u32]) {
        for handle in handles {
            let pushed = self.singles.push(*handle);
            debug_assert!(pushed.is_ok());
        }
    }

    /// This thread's cache; `None` while the thread is being torn down.
    #[inline(always)]
    fn local(&self) -> Option<&'static LocalCache> {
        let cache = CACHES.try_with(|caches| caches.0[self.number as usize].get()).ok()?;
        if cache.is_null() {
            return self.attach();
        }
        // SAFETY: not null, it was put there by `attach`, and the slot's list keeps it alive until this thread's Caches
        // are dropped, after which try_with fails. It is only used inside one call.
        Some(unsafe { &*cache })
    }

    #[cold]
    fn attach(&self) -> Option<&'static LocalCache> {
        let cache = Arc::new(LocalCache { len: AtomicU32::new(0), frames: UnsafeCell::new([0; CAPACITY]) });
        let pointer = Arc::as_ptr(&cache);
        CACHES.try_with(|caches| caches.0[self.number as usize].set(pointer)).ok()?;
        self.slot().caches.lock().unwrap_or_else(PoisonError::into_inner).push(cache);
        // SAFETY: the list just got an Arc that lives until this thread ends.
        Some(unsafe { &*pointer })
    }

    /// Gives the calling thread's stack back to the depot.
    pub(crate) fn flush_local(&self) {
        if let Some(cache) = self.local() {
            self.spill(cache, 0);
        }
    }

    /// Frames that are free; exact while nobody allocates or frees.
    pub(crate) fn len(&self) -> usize {
        let caches = self.slot().caches.lock().unwrap_or_else(PoisonError::into_inner);
        self.chunks.len() * CHUNK
            + self.singles.len()
            + caches.iter().map(|cache| cache.len.load(Ordering::Relaxed) as usize).sum::<usize>()
    }

    /// Whether every frame is free and in the depot, of a pool without handles: takes back what threads keep.
    ///
    /// Frames are counted by taking them out: the depot's lengths count what another thread has only begun to put there.
    pub(crate) fn recall(&self) -> bool {
        {
            let caches = self.slot().caches.lock().unwrap_or_else(PoisonError::into_inner);
            let kept: usize = caches.iter().map(|cache| cache.len.load(Ordering::Acquire) as usize).sum();
            if self.chunks.len() * CHUNK + self.singles.len() + kept < self.frames {
                return false;
            }
            for cache in caches.iter() {
                let len = cache.len.swap(0, Ordering::Acquire) as usize;
                // SAFETY: every frame is free, and without a handle of the pool no thread can allocate one: so no owner
                // touches its stack any more, but when it ends, which waits for the lock that we hold.
                self.to_depot(unsafe { &(&*cache.frames.get())[..len] });
            }
        }
        self.audit_depot() == (self.frames, 0)
    }

    /// Counts the depot's frames one by one, and those that are there twice.
    pub(crate) fn audit_depot(&self) -> (usize, usize) {
        let mut handles = Vec::with_capacity(self.frames);
        while let Some(chunk) = self.chunks.pop() {
            handles.extend(chunk);
        }
        while let Some(single) = self.singles.pop() {
            handles.push(single);
        }
        let found = handles.len();
        handles.sort_unstable();
        handles.dedup();
        self.to_depot(&handles);
        (handles.len(), found - handles.len())
    }

    #[inline(always)]
    fn note(&self, handles: &[u32], free: bool) {
        #[cfg(debug_assertions)]
        for handle in handles {
            let before =
                self.is_free[(handle & super::frame::INDEX_MASK) as usize].swap(free, Ordering::Relaxed);
            assert!(
                before != free,
                "frame {handle:#x} {}",
                if free { "freed twice" } else { "allocated twice" }
            );
        }
        #[cfg(not(debug_assertions))]
        let _ = (handles, free);
    }
}
