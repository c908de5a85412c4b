//! What a worker, its signal handlers, the kernel and the control core know of one isolated thread.
//!
//! The kernel reads the selector at each system call; the handlers write the rest; the control core reads it. All of it is made before the
//! thread enters, and outlives the thread's last system call.
#![forbid(unsafe_code)]
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use super::record::RecordRing;
use super::source::{SOURCES, Source};
use super::traps::Traps;
use percpu::tsc;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

/// `SYSCALL_DISPATCH_FILTER_ALLOW` and `..._BLOCK` of `linux/prctl.h`.
pub(super) const OPEN: u8 = 0;
pub(super) const SHUT: u8 = 1;

/// Times between stays that are remembered.
const MOST_OUTSIDE: usize = 1024;

/// Why the thread should look up at its next turn.
pub(super) mod attention {
    /// The gate was left open for one call.
    pub(crate) const SHUT_GATE: u32 = 1;
    /// Isolation has ended.
    pub(crate) const ENDED: u32 = 2;
    /// Something happened that was signalled.
    pub(crate) const VIOLATED: u32 = 4;
    /// The kernel was entered by one of the allowed ways.
    pub(crate) const ENTERED: u32 = 8;
    /// It was the thread's own doing: a system call or a fault.
    pub(crate) const OWN: u32 = 16;
}

/// What a handler needs to know of its thread's wishes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wishes {
    pub(super) one_shot: bool,
    pub(super) allow_syscalls: bool,
    pub(super) allow_exceptions: bool,
    pub(super) abort: bool,
}

/// The selector has its cache line to itself: the kernel's user of it is this thread, and nobody else's stores should take it away.
#[repr(align(128))]
pub(super) struct Gate {
    pub(super) selector: AtomicU8,
    /// What the selector goes back to: `SHUT` while system calls are trapped.
    pub(super) rest: AtomicU8,
}

/// See the module. In pages of its own, which can be kept from children without taking anything else from them.
#[repr(align(4096))]
pub(crate) struct Shared {
    pub(super) gate: Gate,
    pub(super) attention: AtomicU32,
    /// The source that ended isolation, plus one; 0 while nothing has.
    pub(super) ended_by: AtomicU32,
    /// A debugger is attached: handlers let everything through and count nothing.
    pub(super) suspended: AtomicBool,
    /// Signals by source.
    counts: [AtomicU64; SOURCES],
    /// Kernel entries that were allowed.
    pub(super) allowed: AtomicU64,
    /// Signals of page faults, whatever became of them.
    pub(super) faults_signalled: AtomicU64,
    /// Records that the ring had no room for, and entries whose signal was one with another's.
    pub(super) skipped: AtomicU64,
    pub(crate) ring: RecordRing,
    pub(super) wishes: Wishes,
    /// The thread's stack.
    pub(super) stack: Range<u64>,
    /// The one that its handlers run on.
    pub(super) alternate_stack: Range<u64>,
    tid: i32,
    /// The CPU it belongs on.
    pub(super) cpu: u32,
    /// Its perf events, switched by the thread, and from outside where a debugger comes and goes.
    pub(super) traps: Traps,
    /// Whether they are on unless a debugger is there; taken while they and the gate are switched, from inside and from outside.
    armed: Mutex<bool>,
    /// Since when, and until when, it is isolated, by the time stamp counter; 0 for neither.
    since_tsc: AtomicU64,
    until_tsc: AtomicU64,
    /// Stretches of time between two stays. The thread adds to it when it is not isolated.
    outside: Mutex<VecDeque<(u64, u64)>>,
    /// Whether system calls are trapped in this stay.
    pub(super) traps_calls: AtomicBool,
}

impl Shared {
    pub(super) fn new(
        wishes: Wishes,
        stack: Range<u64>,
        alternate_stack: Range<u64>,
        tid: i32,
        cpu: u32,
        traps: Traps,
    ) -> Self {
        Self {
            gate: Gate { selector: AtomicU8::new(OPEN), rest: AtomicU8::new(OPEN) },
            attention: AtomicU32::new(0),
            ended_by: AtomicU32::new(0),
            suspended: AtomicBool::new(false),
            counts: [const { AtomicU64::new(0) }; SOURCES],
            allowed: AtomicU64::new(0),
            faults_signalled: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            ring: RecordRing::new(),
            wishes,
            stack,
            alternate_stack,
            tid,
            cpu,
            traps,
            armed: Mutex::new(false),
            since_tsc: AtomicU64::new(0),
            until_tsc: AtomicU64::new(0),
            outside: Mutex::default(),
            traps_calls: AtomicBool::new(false),
        }
    }

    /// Opens the gate for good, as far as this stay goes.
    pub(super) fn open_for_good(&self) {
        self.gate.rest.store(OPEN, Ordering::Relaxed);
        self.gate.selector.store(OPEN, Ordering::Relaxed);
    }

    /// A stay begins.
    pub(super) fn begin(&self) {
        let now = tsc::now();
        let until = self.until_tsc.swap(0, Ordering::Relaxed);
        let mut outside = self.outside.lock().unwrap_or_else(PoisonError::into_inner);
        if until != 0 {
            outside.push_back((until, now));
            if outside.len() > MOST_OUTSIDE {
                outside.pop_front();
            }
        }
        if self.since_tsc.load(Ordering::Relaxed) == 0 {
            self.since_tsc.store(now, Ordering::Relaxed);
        }
    }

    /// The stay is over.
    pub(super) fn close(&self) {
        let _ = self.until_tsc.compare_exchange(0, tsc::now(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether the thread was isolated at that time.
    pub(crate) fn was_isolated(&self, at: u64) -> bool {
        let (since, until) = (self.since_tsc.load(Ordering::Relaxed), self.until_tsc.load(Ordering::Relaxed));
        let outside = self.outside.lock().unwrap_or_else(PoisonError::into_inner);
        since != 0
            && at >= since
            && (until == 0 || at <= until)
            && !outside.iter().any(|(from, to)| (*from..*to).contains(&at))
    }

    /// The stay is over, because of this. For handlers.
    pub(super) fn end(&self, source: Source) {
        self.close();
        self.open_for_good();
        self.ended_by.store(source.number() + 1, Ordering::Relaxed);
        self.raise(attention::ENDED);
    }

    /// The same by another thread; false where it has ended before.
    pub(crate) fn end_elsewhere(&self, source: Source) -> bool {
        let goes_on = !self.has_ended();
        if goes_on {
            self.end(source);
        }
        goes_on
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended_by.load(Ordering::Relaxed) != 0
    }

    pub(super) fn ended_by(&self) -> Option<Source> {
        Source::from_number(self.ended_by.load(Ordering::Relaxed).checked_sub(1)?)
    }

    pub(super) fn raise(&self, bits: u32) {
        self.attention.fetch_or(bits, Ordering::Relaxed);
    }

    /// One more of these. Only the thread and its handlers count, which do not interrupt each other.
    pub(super) fn count(&self, source: Source) {
        let counter = &self.counts[source.number() as usize];
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Switches the perf events on, unless a debugger is there, or off. For the thread.
    pub(super) fn arm(&self, on: bool) -> io::Result<()> {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        *armed = on;
        self.traps.enable(on && !self.is_suspended())
    }

    /// System calls are trapped from now on, unless a debugger is there. For the thread; it makes none afterwards.
    pub(super) fn shut_gate(&self) {
        {
            let _switching = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
            self.traps_calls.store(true, Ordering::Relaxed);
            if self.is_suspended() {
                return;
            }
            self.gate.rest.store(SHUT, Ordering::Relaxed);
        }
        self.gate.selector.store(SHUT, Ordering::SeqCst);
        // One may have come since the lock was given back.
        if self.is_suspended() {
            self.gate.selector.store(OPEN, Ordering::Relaxed);
        }
    }

    /// Counts the page faults whose signal was one with another's: such that come while another signal is on its way. For the thread, when its events are
    /// off.
    pub(super) fn count_merged_faults(&self) {
        let signalled = self.faults_signalled.load(Ordering::Relaxed);
        let Some(merged) = self.traps.faults().and_then(|faults| faults.checked_sub(signalled)) else {
            return;
        };
        self.faults_signalled.store(signalled + merged, Ordering::Relaxed);
        if self.wishes.allow_exceptions {
            self.allowed.fetch_add(merged, Ordering::Relaxed);
        } else {
            self.counts[Source::PageFault.number() as usize].fetch_add(merged, Ordering::Relaxed);
            self.skipped.fetch_add(merged, Ordering::Relaxed);
        }
    }

    /// From now on, or no more: nothing is signalled. For one other thread. False where the thread itself is just switching: then to be tried again, for a
    /// debugger may have stopped it there.
    pub(crate) fn suspend(&self, on: bool) -> bool {
        if self.is_suspended() == on {
            return true;
        }
        let armed = match self.armed.try_lock() {
            Ok(armed) => armed,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        // While they are switched handlers let everything through. On a thread that runs each of them takes an interrupt, which is a stop more for its
        // debugger; but if they stayed on, every stop would be a switch, and that the next stop: the thread would not get on at all.
        if on {
            self.suspended.store(true, Ordering::SeqCst);
        }
        if *armed {
            // Fails only for a descriptor that is none.
            let _ = self.traps.enable(!on);
        }
        self.suspended.store(on, Ordering::SeqCst);
        if self.has_ended() {
            return true;
        }
        if on {
            self.open_for_good();
        } else if self.traps_calls.load(Ordering::Relaxed) {
            self.gate.rest.store(SHUT, Ordering::Relaxed);
            // The thread shuts the gate: it may just now be making a call that is meant.
            self.raise(attention::SHUT_GATE);
        }
        true
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::SeqCst)
    }

    pub(crate) fn tid(&self) -> i32 {
        self.tid
    }

    pub(crate) fn allowed_entries(&self) -> u64 {
        self.allowed.load(Ordering::Relaxed)
    }

    pub(crate) fn skipped_records(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// How many of these there were.
    pub(crate) fn counted(&self, source: Source) -> u64 {
        self.counts[source.number() as usize].load(Ordering::Relaxed)
    }
}
