//! Where free frames wait: a stack for each CPU, over a shared lock-free depot (`percpu::Stack`).
//!
//! A worker that frees what it allocates stays on its CPU's stack: no atomic read-modify-write, and the frame it gets next is the one whose
//! header is still in the cache. Any thread may allocate and free, pinned or not. Frames that wait on the stack of a CPU where nobody
//! wants them are taken back from there when the depot is empty.
#![forbid(unsafe_code)]

use super::frame::POOL_SHIFT;
use percpu::{Indexing, Shared, Stack, tsc};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};

/// Frames in one call at most: a batch's.
const MAX_COUNT: usize = super::batch::BATCH_SIZE;
/// Frames that wait on one CPU at most.
const CAPACITY: usize = 512;
/// Between two attempts to take frames back from other CPUs, each of which interrupts them.
const RECLAIM_INTERVAL_NS: u64 = 1_000_000;

/// The free frames of one pool.
pub(crate) struct FreeList {
    frames: usize,
    stack: Stack<u32>,
    /// When frames may be taken back from other CPUs again, in TSC ticks.
    next_reclaim_tsc: AtomicU64,
    /// Debug builds know of each frame whether it is free, and catch one that is freed twice.
    #[cfg(debug_assertions)]
    is_free: Box<[std::sync::atomic::AtomicBool]>,
}

impl FreeList {
    /// A list of pool `number` with all its `frames` free, whose handles are `step` apart.
    pub(crate) fn new(number: u32, frames: usize, step: usize) -> Self {
        let list = Self {
            frames,
            // Never by concurrency id: of such a stack nobody knows whether an isolated worker uses it, so nobody could take frames back
            // while there is one. In a container with few CPUs the stacks of the others take address space only.
            stack: Stack::new(CAPACITY, frames, Indexing::Cpu),
            next_reclaim_tsc: AtomicU64::new(0),
            #[cfg(debug_assertions)]
            is_free: (0..frames * step).map(|_| true.into()).collect(),
        };
        // The lowest frames on top: a small working set stays a small stretch of memory.
        let handles: Vec<u32> =
            (0..frames * step).step_by(step).rev().map(|index| number << POOL_SHIFT | index as u32).collect();
        list.stack.shared().give(&handles);
        list
    }

    /// Takes up to `wanted` (at most 64) frames and hands them to `receive`, which owns them from then on.
    #[inline]
    pub(crate) fn take(&self, wanted: usize, receive: impl FnOnce(&[u32])) -> usize {
        let mut hand = [MaybeUninit::uninit(); MAX_COUNT];
        let taken = self.stack.pop(&mut hand[..wanted]);
        if taken.len() < wanted {
            return self.take_short(taken, wanted, receive);
        }
        self.note(taken, false);
        receive(taken);
        wanted
    }

    /// The depot is empty: takes back what waits on other CPUs, if that has not been tried just now, and adds it to what was taken.
    #[cold]
    fn take_short(&self, taken: &[u32], wanted: usize, receive: impl FnOnce(&[u32])) -> usize {
        let mut all = [0; MAX_COUNT];
        let mut count = taken.len();
        all[..count].copy_from_slice(taken);
        if self.reclaim() {
            let mut hand = [MaybeUninit::uninit(); MAX_COUNT];
            let more = self.stack.pop(&mut hand[..wanted - count]);
            all[count..count + more.len()].copy_from_slice(more);
            count += more.len();
        }
        self.note(&all[..count], false);
        receive(&all[..count]);
        count
    }

    /// Moves what waits on any CPU to the depot, unless there is nothing or somebody did so just now.
    fn reclaim(&self) -> bool {
        let (now, due) = (tsc::now(), self.next_reclaim_tsc.load(Ordering::Relaxed));
        if now < due || self.stack.is_empty() {
            return false;
        }
        let next = now + tsc::from_ns(RECLAIM_INTERVAL_NS);
        self.next_reclaim_tsc.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            && self.stack.drain_all() > 0
    }

    /// Gives frames back. The caller owned each of them and forgets it.
    #[inline]
    pub(crate) fn give(&self, handles: &[u32]) {
        // Before, since afterwards they may be somebody else's.
        self.note(handles, true);
        self.stack.push(handles);
    }

    /// Empties this CPU's stack if somebody asked for that: once a turn of an isolated worker's loop.
    #[inline]
    pub(crate) fn serve(&self) {
        self.stack.serve();
    }

    /// Takes back what an isolated worker has asked for, from CPUs that are not isolated: it cannot interrupt them itself. How many
    /// frames that were.
    pub(crate) fn serve_requests(&self) -> usize {
        self.stack.serve_requests()
    }

    /// Takes back what waits on CPUs that no thread of the process can run on; how many frames that were.
    pub(crate) fn drain_stranded(&self) -> std::io::Result<usize> {
        self.stack.drain_stranded()
    }

    /// Frames that are free; exact while nobody allocates or frees.
    pub(crate) fn len(&self) -> usize {
        self.stack.len()
    }

    /// Whether every frame is free and in the depot, of a pool without handles: then no thread is in the middle of giving one back, for a frame is
    /// found only where the one who gave it has finished.
    pub(crate) fn recall(&self) -> bool {
        self.len() == self.frames && self.audit() == (self.frames, 0)
    }

    /// Counts the frames one by one, and those that are there twice. For a quiet pool: what other threads have in their hands is
    /// not counted.
    pub(crate) fn audit(&self) -> (usize, usize) {
        self.stack.drain_all();
        // One place more than there are frames, to see one that is there twice.
        let mut handles = vec![0; self.frames + 1];
        let found = self.stack.shared().take(&mut handles);
        handles.truncate(found);
        handles.sort_unstable();
        handles.dedup();
        self.stack.shared().give(&handles);
        (handles.len(), found - handles.len())
    }

    /// Frames that an audit has left where they were: on the stacks of CPUs that must not be interrupted, for their isolated workers.
    pub(crate) fn left_alone(&self) -> usize {
        (0..self.stack.stacks()).map(|index| self.stack.stack_len(index)).sum()
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
