//! One thread of the slow path as others see it: whether it may run, and how to stop it.
#![forbid(unsafe_code)]

use super::sys;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

const MAY_RUN: u32 = 0;
const MUST_WAIT: u32 = 1;

/// Two cache lines to itself: the CPU fetches them in pairs.
#[repr(align(128))]
pub(super) struct Seat {
    /// What the thread goes by; it sleeps on it.
    order: AtomicU32,
    /// Whether it runs a job, and not the slow path's own code.
    in_job: AtomicBool,
    /// By how many it is about to be woken.
    owed: AtomicU32,
    pub(super) index: usize,
    tid: AtomicI32,
    clock: AtomicI32,
}

impl Seat {
    pub(super) fn new(index: usize) -> Self {
        Self {
            order: AtomicU32::new(MUST_WAIT),
            in_job: AtomicBool::new(false),
            owed: AtomicU32::new(0),
            index,
            tid: AtomicI32::new(0),
            clock: AtomicI32::new(0),
        }
    }

    /// Called by the thread itself when it begins.
    pub(super) fn sit_down(&self, tid: i32, clock: libc::clockid_t) {
        self.tid.store(tid, Ordering::Relaxed);
        self.clock.store(clock, Ordering::Release);
    }

    pub(super) fn tid(&self) -> i32 {
        self.tid.load(Ordering::Relaxed)
    }

    /// CPU time that the thread has had, in nanoseconds.
    pub(super) fn cpu_ns(&self) -> u64 {
        sys::clock_ns(self.clock.load(Ordering::Acquire))
    }

    /// Lets the thread run; `wake` when the lock is given back.
    pub(super) fn grant(&self) {
        self.order.store(MAY_RUN, Ordering::Release);
    }

    pub(super) fn wake(&self) {
        sys::futex_wake(&self.order, 1);
    }

    /// The thread is to wait from now on; where it runs a job, a signal is to follow.
    pub(super) fn hold(&self) {
        self.order.store(MUST_WAIT, Ordering::Release);
    }

    /// Waits, on the thread itself, until it may run.
    pub(super) fn wait(&self) {
        while self.order.load(Ordering::Acquire) == MUST_WAIT {
            sys::futex_wait(&self.order, MUST_WAIT, None);
        }
    }

    /// From here on the thread runs a job's code, and may be stopped.
    pub(super) fn enter_job(&self) {
        // Not a job's code yet, while it waits for a slot.
        self.wait();
        self.in_job.store(true, Ordering::SeqCst);
        // An order whose signal came while it was not obeyed.
        self.wait();
    }

    /// Whether it runs a job's code, or waits to go on with it.
    pub(super) fn is_in_job(&self) -> bool {
        self.in_job.load(Ordering::SeqCst)
    }

    /// From here on it runs the slow path's, and may not.
    pub(super) fn leave_job(&self) {
        self.in_job.store(false, Ordering::SeqCst);
    }

    /// In the signal's handler: waits where the thread runs a job and must.
    pub(super) fn obey(&self) {
        if self.in_job.load(Ordering::SeqCst) {
            self.wait();
        }
    }
}

/// Seats to be woken when the lock is given back.
#[derive(Default)]
pub(super) struct Wakes {
    seats: [Option<&'static Seat>; 8],
}

impl Wakes {
    pub(super) fn add(&mut self, seat: &'static Seat) {
        match self.seats.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(seat),
            None => seat.wake(),
        }
    }

    pub(super) fn deliver(self) {
        self.seats.into_iter().flatten().for_each(Seat::wake);
    }

    /// The same, by a thread that gives its own priority away first, so that who is woken takes its CPU; and that may lose it before it has woken anybody.
    /// In between the seats are `owed` their wake-up, and [`pay`] gives it too.
    pub(super) fn deliver_after(self, owed: &AtomicU32, give_way: impl FnOnce()) {
        let seats = || self.seats.iter().flatten();
        let any = u32::from(seats().next().is_some());
        for seat in seats() {
            seat.owed.fetch_add(1, Ordering::Relaxed);
        }
        owed.fetch_add(any, Ordering::Release);
        give_way();
        seats().for_each(|seat| seat.wake());
        for seat in seats() {
            seat.owed.fetch_sub(1, Ordering::Relaxed);
        }
        owed.fetch_sub(any, Ordering::Release);
    }
}

/// Wakes all seats that are owed it.
pub(super) fn pay(seats: &[&'static Seat], owed: &AtomicU32) {
    if owed.load(Ordering::Acquire) > 0 {
        seats.iter().filter(|seat| seat.owed.load(Ordering::Relaxed) > 0).for_each(|seat| seat.wake());
    }
}

/// The kernel's word on a thread, without an allocation once it is open.
pub(super) struct ThreadState(Option<File>);

impl ThreadState {
    pub(super) fn open(tid: i32) -> Self {
        Self(File::open(format!("/proc/self/task/{tid}/stat")).ok())
    }

    /// Whether it waits for something in the kernel (`S`, `D`), and neither runs nor could.
    pub(super) fn is_blocked(&self) -> Option<bool> {
        let mut text = [0; 256];
        let length = self.0.as_ref()?.read_at(&mut text, 0).ok()?;
        // The name, in parentheses, may have any character in it.
        let text = text.get(..length)?;
        let end = text.iter().rposition(|byte| *byte == b')')?;
        text.get(end + 2).map(|state| matches!(state, b'S' | b'D'))
    }
}
