//! Reads the kernel's records of who was switched out and in, and has the gate act on them. Whoever sees that there are some does it: a poller at
//! once, the dispatcher at its next look.
#![forbid(unsafe_code)]

use super::seat::Wakes;
use super::{Shared, sys};
use isolation::trace::{Peek, Switch, Switches};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, TryLockError};

/// Records that are taken in at once.
const MOST_SWITCHES: usize = 8192;

/// The reader of the records, one thread at a time.
pub(super) struct Seer(Mutex<Inner>);

struct Inner {
    switches: Switches,
    peeks: Vec<Peek>,
    seats: HashMap<i32, usize>,
    found: Vec<Switch>,
    stop: Vec<i32>,
}

impl Seer {
    pub(super) fn new(switches: Switches, tids: &[i32]) -> Self {
        Self(Mutex::new(Inner {
            peeks: switches.peeks(),
            switches,
            seats: tids.iter().enumerate().map(|(index, tid)| (*tid, index)).collect(),
            found: Vec::with_capacity(MOST_SWITCHES),
            stop: Vec::with_capacity(tids.len()),
        }))
    }

    /// Whether there are records, for pollers.
    pub(super) fn peeks(&self) -> Vec<Peek> {
        match self.0.lock() {
            Ok(inner) => inner.peeks.clone(),
            Err(poisoned) => poisoned.into_inner().peeks.clone(),
        }
    }

    /// Takes in what the kernel noted, stops who woke up without a slot, and gives away slots that were given up. Nothing where another thread is at it.
    pub(super) fn see(&self, shared: &Shared) -> Wakes {
        let mut inner = match self.0.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Wakes::default(),
        };
        let Inner { switches, peeks, seats, found, stop } = &mut *inner;
        if !peeks.iter().any(Peek::has_more) {
            return Wakes::default();
        }
        switches.read(found);
        shared.lost_records.store(switches.lost(), Ordering::Relaxed);
        found.sort_unstable_by_key(|switch| switch.time_ns);
        let wakes = shared.gate.saw(found, |tid| seats.get(&tid).copied(), stop);
        found.clear();
        stop.drain(..).for_each(sys::signal);
        wakes
    }
}
