//! The look at a pinned thread's mask, from itself or from another thread.
//!
//! What is known of a stay is shared by the guard and its watches, so that a change is reported once, by whoever sees it
//! first. It sits behind a lock that the mask is read under: then a look cannot mistake the guard's own repinning, or its end, for
//! an outsider, and the thread's number cannot belong to another thread meanwhile. The pinned thread touches the lock only
//! when something has happened.
#![forbid(unsafe_code)]

use super::{Outsider, Policy};
use crate::{CpuList, sys};
use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Nothing has happened.
const UNDISTURBED: u8 = 0;
/// Another mask was seen.
const CHANGED: u8 = 1;
/// The thread was seen elsewhere.
const MOVED: u8 = 2;

/// A thread's stay on a CPU, and what is known of it.
#[derive(Debug)]
pub(super) struct Stay {
    pub(super) tid: i32,
    pub(super) cpu: usize,
    pub(super) policy: Policy,
    /// A copy of what is behind the lock, for the thread's own quick check. No data hangs on it.
    state: AtomicU8,
    given_up: AtomicBool,
    changes: AtomicU64,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    ended: bool,
    /// The mask when it was last looked at.
    mask: CpuList,
    /// The thread was seen elsewhere under this mask.
    moved: bool,
    /// The last change; what [`Policy::Error`] reports until the thread repins.
    finding: Option<Outsider>,
}

impl Stay {
    pub(super) fn new(tid: i32, cpu: usize, policy: Policy) -> Self {
        let mask = CpuList::from_iter([cpu]);
        Self {
            tid,
            cpu,
            policy,
            state: AtomicU8::new(UNDISTURBED),
            given_up: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            known: Mutex::new(Known { ended: false, mask, moved: false, finding: None }),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(super) fn is_undisturbed(&self) -> bool {
        self.state.load(Ordering::Relaxed) == UNDISTURBED
    }

    pub(super) fn given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    pub(super) fn finding(&self) -> Option<Outsider> {
        self.known().finding.clone()
    }

    /// The pinned thread finds itself at `here`. Once that is known, it is looked into no more.
    #[cold]
    pub(super) fn moved(&self, here: Option<usize>) {
        if here.is_some_and(|cpu| cpu != self.cpu) && self.state.load(Ordering::Relaxed) != MOVED {
            self.look_from_inside();
        }
    }

    /// The pinned thread looks.
    pub(super) fn look_from_inside(&self) {
        let mut known = self.known();
        // A sandbox that forbids to look hides the mask, not the move.
        let mask = sys::get_affinity().unwrap_or_else(|_| known.mask.clone());
        let finding = self.compare(&mut known, mask, sys::current_cpu());
        self.announce(known, finding.as_ref());
    }

    /// Another thread looks.
    fn look_from_outside(&self) -> io::Result<Option<Outsider>> {
        let mut known = self.known();
        if known.ended {
            return Ok(None);
        }
        let mask = sys::get_affinity_of(self.tid)?;
        // With its own mask it can only be on its own CPU.
        let here = if mask.iter().eq([self.cpu]) { Some(self.cpu) } else { processor_of(self.tid) };
        let finding = self.compare(&mut known, mask, here);
        self.announce(known, finding.as_ref());
        Ok(finding)
    }

    /// A change is another mask than the last one seen, or the first move under the same mask.
    fn compare(&self, known: &mut Known, mask: CpuList, here: Option<usize>) -> Option<Outsider> {
        let moved_to = here.filter(|&cpu| cpu != self.cpu);
        if mask == known.mask && (moved_to.is_none() || known.moved) {
            return None;
        }
        let mask_before = std::mem::replace(&mut known.mask, mask.clone());
        known.moved = moved_to.is_some();
        let finding = Outsider { tid: self.tid, cpu_pinned: self.cpu, mask_before, mask_now: mask, moved_to };
        known.finding = Some(finding.clone());
        self.state.store(if known.moved { MOVED } else { CHANGED }, Ordering::Relaxed);
        self.changes.fetch_add(1, Ordering::Relaxed);
        Some(finding)
    }

    /// Without the lock: a callback may do what it likes.
    fn announce(&self, known: MutexGuard<'_, Known>, finding: Option<&Outsider>) {
        drop(known);
        match (&self.policy, finding) {
            (Policy::Callback(callback), Some(finding)) => callback(finding),
            (Policy::GiveUp, Some(_)) => self.given_up.store(true, Ordering::Relaxed),
            _ => {}
        }
    }

    /// Runs `bind`; where it succeeds, nothing is known any more.
    pub(super) fn begin_anew<E>(&self, bind: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut known = self.known();
        bind()?;
        *known = Known { ended: false, mask: CpuList::from_iter([self.cpu]), moved: false, finding: None };
        self.state.store(UNDISTURBED, Ordering::Relaxed);
        self.given_up.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// From now on the thread's mask and number are nobody's business.
    pub(super) fn end(&self) {
        self.known().ended = true;
    }
}

/// Where a thread of this process last ran: the field `processor` of `/proc/self/task/TID/stat`, `proc(5)`. `None` where there is no such thread.
pub fn processor_of(tid: i32) -> Option<usize> {
    let text = fs::read(format!("/proc/self/task/{tid}/stat")).ok()?;
    // The name before it may hold anything, parentheses and spaces too.
    let end_of_name = text.iter().rposition(|&byte| byte == b')')?;
    let fields = std::str::from_utf8(&text[end_of_name + 1..]).ok()?;
    // Field 3 is the first behind the name; this is field 39.
    fields.split_ascii_whitespace().nth(36)?.parse().ok()
}

/// Looks after a pinned thread from another one, so that the pinned thread makes no system call for it.
///
/// It is right as long as the guard lives. A guard that was forgotten (`std::mem::forget`) never ends: when its thread has, the
/// thread's number may become another's.
#[derive(Clone, Debug)]
pub struct Watch(Arc<Stay>);

impl Watch {
    pub(super) fn new(stay: Arc<Stay>) -> Self {
        Self(stay)
    }

    /// Asks the kernel for the thread's mask (one system call) and follows the thread's policy where it was changed. Gives what
    /// nobody has noticed before; nothing more once the guard is gone.
    pub fn check(&self) -> io::Result<Option<Outsider>> {
        self.0.look_from_outside()
    }

    /// The thread's number.
    pub fn tid(&self) -> i32 {
        self.0.tid
    }

    /// The CPU it is pinned to.
    pub fn cpu(&self) -> usize {
        self.0.cpu
    }

    /// How many changes from outside were noticed so far, by any thread.
    pub fn changes(&self) -> u64 {
        self.0.changes()
    }
}
