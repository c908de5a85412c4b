//! Fibers: jobs with a small stack of their own, for what only computes or waits on events, in numbers that threads are too large for.
//!
//! The fibers of a class share one thread, their *host*, which is to everybody else a job of that class: it has a slot while a fiber runs, is stopped
//! when its turn is over, and gives its slot up where no fiber can go on. As all of a class are on one thread, which they never leave, what is
//! on a fiber's stack needs not be `Send`. Events are signalled through [`Marks`](nic::ring::Marks): by a worker too.
#![forbid(unsafe_code)]

mod event;
mod host;
mod run;

pub use event::Event;
pub(super) use host::{Counts, Host, Hosts};

use super::sys::now_ns;
use corosensei::Yielder;
use std::sync::Arc;
use std::thread::panicking;
use std::time::Duration;

/// Why a fiber goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The event was signalled.
    Signalled,
    /// The time was over.
    TimedOut,
    /// The fiber did not wait: it is being unwound, by a panic or at the end, and this was called by something that is dropped.
    Unwinding,
}

/// What a fiber waits for.
#[derive(Clone, Copy, Debug)]
enum Wait {
    /// Its next turn.
    Turn,
    /// An event, by its number, or a time, or whichever is first.
    For { event: Option<u32>, until_ns: Option<u64> },
}

/// What a fiber's body is given: how it waits. Nothing else in a fiber should: what blocks its thread holds up all fibers of the class.
pub struct Fiber<'a> {
    yielder: &'a Yielder<Woken, Wait>,
    host: &'a Arc<Host>,
}

impl Fiber<'_> {
    fn suspend(&self, wait: Wait) -> Woken {
        // Whoever is dropped meanwhile may not leave this stack half unwound: the next panic of this thread would be taken for one within it.
        if panicking() {
            return Woken::Unwinding;
        }
        self.yielder.suspend(wait)
    }

    fn wait_until(&self, event: &Event, until_ns: Option<u64>) -> Woken {
        let Some(index) = event.index_at(self.host) else {
            panic!("a fiber waits for an event of another class");
        };
        self.suspend(Wait::For { event: Some(index), until_ns })
    }

    /// Waits until the event is signalled. One signal wakes one fiber, once; one that came before is not lost.
    ///
    /// # Panics
    /// Where the event is of another class or slow path.
    pub fn wait(&self, event: &Event) -> Woken {
        self.wait_until(event, None)
    }

    /// The same, for so long at the most.
    ///
    /// # Panics
    /// Where the event is of another class or slow path.
    pub fn wait_for(&self, event: &Event, limit: Duration) -> Woken {
        self.wait_until(event, Some(after(limit)))
    }

    /// Whether the slow path is closed: fibers are unwound where they wait. One that catches unwinding, to go on after a panic, must end then, for
    /// each wait begins it anew.
    pub fn is_ending(&self) -> bool {
        self.host.is_closed()
    }

    /// Lets others run for so long.
    pub fn sleep(&self, time: Duration) {
        self.suspend(Wait::For { event: None, until_ns: Some(after(time)) });
    }

    /// Lets those run that could: one that computes for long should, now and then.
    pub fn give_way(&self) {
        self.suspend(Wait::Turn);
    }
}

fn after(time: Duration) -> u64 {
    now_ns().saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
