//! Who sees at once that a job blocks: on each housekeeping CPU a thread that runs only when the CPU has nothing better to do.
//!
//! When a job blocks its CPU is idle, so that is when the poller runs there. It looks whether the kernel has noted something, only while a slot is taken and
//! somebody waits for one; and then acts on it itself, as the dispatcher would, to spare the next job the time in which that one wakes up. Of the lowest
//! priority it might lose its CPU in the middle, and for long, with a lock that everybody needs: so it has the dispatcher's for as long as
//! that takes, and where it may not (CAP_SYS_NICE, RLIMIT_NICE) it wakes the dispatcher.
#![forbid(unsafe_code)]

use super::seer::Seer;
use super::{Shared, sys};
use isolation::trace::Peek;
use percpu::CpuList;
use std::hint::spin_loop;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Without anything to look for it looks so many times more, about half a millisecond.
const LINGER: u32 = 10_000;
const NAP: Duration = Duration::from_millis(100);

/// The pollers.
#[derive(Default)]
pub(super) struct Pollers(Vec<JoinHandle<()>>);

impl Pollers {
    pub(super) fn start(shared: &Arc<Shared>, seer: &Arc<Seer>) -> io::Result<Self> {
        let mut pollers = Self::default();
        for cpu in shared.cpus.iter() {
            // Not on its own thread: of the lowest priority, it would keep the lock for long.
            let (own, seer, peeks) = (Arc::clone(shared), Arc::clone(seer), seer.peeks());
            let body = move || {
                // Where it cannot have the lowest priority it would take the jobs' time.
                let first = sys::run_first().is_ok();
                if sys::run_when_idle().is_ok() && sys::stay_on(&CpuList::from_iter([cpu])).is_ok() {
                    poll(&own, &seer, &peeks, first);
                }
            };
            match thread::Builder::new().name(format!("slow-poll-{cpu}")).spawn(body) {
                Ok(thread) => pollers.0.push(thread),
                Err(error) => {
                    shared.stop.store(true, Ordering::Release);
                    pollers.end(shared);
                    return Err(error);
                }
            }
        }
        Ok(pollers)
    }

    /// Waits for them, when `stop` is set.
    pub(super) fn end(&mut self, shared: &Shared) {
        sys::futex_wake(&shared.wanted, i32::MAX);
        for thread in self.0.drain(..) {
            let _ = thread.join();
        }
    }
}

/// `first`: it may have the dispatcher's priority.
fn poll(shared: &Shared, seer: &Seer, peeks: &[Peek], mut first: bool) {
    let mut unwanted = 0;
    while !shared.stop.load(Ordering::Acquire) {
        if shared.wanted.load(Ordering::Relaxed) == 1 {
            unwanted = 0;
        } else {
            unwanted += 1;
            if unwanted > LINGER {
                sys::futex_wait(&shared.wanted, 0, Some(NAP));
                continue;
            }
        }
        if shared.bell.load(Ordering::Relaxed) == 0 && peeks.iter().any(Peek::has_more) {
            first = first && sys::run_as_others().is_ok();
            if first {
                let mut idle = Ok(());
                seer.see(shared).deliver_after(&shared.owed, || idle = sys::run_when_idle());
                if idle.is_err() {
                    return;
                }
            } else if shared.bell.swap(1, Ordering::AcqRel) == 0 {
                sys::futex_wake(&shared.bell, 1);
            }
        }
        (0..8).for_each(|_| spin_loop());
    }
}
