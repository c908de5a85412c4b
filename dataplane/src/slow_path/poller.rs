//! Who sees at once that a job blocks: on each housekeeping CPU a thread that runs only when the CPU has nothing better to do.
//!
//! When a job blocks its CPU is idle, so that is when the poller runs there. It looks at the kernel's records, and wakes the dispatcher. It takes no
//! lock, for it may lose its CPU at any time and for long. It looks only while a slot is taken and somebody waits for one.
#![forbid(unsafe_code)]

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
    pub(super) fn start(shared: &Arc<Shared>, peeks: Vec<Peek>) -> io::Result<Self> {
        let mut pollers = Self::default();
        for cpu in shared.cpus.iter() {
            let (own, peeks) = (Arc::clone(shared), peeks.clone());
            let body = move || {
                // Where it cannot have the lowest priority it would take the jobs' time.
                if sys::run_when_idle().is_ok() && sys::stay_on(&CpuList::from_iter([cpu])).is_ok() {
                    poll(&own, &peeks);
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

fn poll(shared: &Shared, peeks: &[Peek]) {
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
        if shared.bell.load(Ordering::Relaxed) == 0
            && peeks.iter().any(Peek::has_more)
            && shared.bell.swap(1, Ordering::AcqRel) == 0
        {
            sys::futex_wake(&shared.bell, 1);
        }
        (0..8).for_each(|_| spin_loop());
    }
}
