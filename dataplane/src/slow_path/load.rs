//! For tests that claim times: how much of this machine others took meanwhile.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use super::sys;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Others may take so much of all CPUs before a time says nothing any more.
const MUCH: f64 = 0.15;

/// From its making on. Tests that have one run one after another: they would be each other's load.
pub(super) struct Load {
    started: Instant,
    own_ns: u64,
    idle_ns: u64,
    _alone: MutexGuard<'static, ()>,
}

/// Idle time of all CPUs, and how many there are.
fn idle() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/stat").unwrap();
    let cpus = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    let mut all = text.lines().next().unwrap().split_whitespace().skip(4);
    let mut next = || all.next().unwrap().parse::<u64>().unwrap();
    // Idle, and idle with a disk at work, in hundredths of a second.
    ((next() + next()) * 10_000_000, cpus as u64)
}

impl Load {
    pub(super) fn begin() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let own_ns = sys::clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID);
        Self { started: Instant::now(), own_ns, idle_ns: idle().0, _alone: alone }
    }

    /// The share of all CPUs that was neither idle nor this process's.
    pub(super) fn of_others(&self) -> f64 {
        let (idle_ns, cpus) = idle();
        let all = self.started.elapsed().as_nanos() as f64 * cpus as f64;
        let own = sys::clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID) - self.own_ns;
        ((all - own as f64 - idle_ns.saturating_sub(self.idle_ns) as f64) / all).max(0.0)
    }

    /// Fails the test, or says why that would mean nothing here.
    #[track_caller]
    pub(super) fn excuse(&self, what: &str) {
        let others = self.of_others();
        assert!(others > MUCH, "{what}, though others took only {:.0} % of this machine", others * 1e2);
        println!("{what}, on a machine of which others took {:.0} %: it says nothing", others * 1e2);
    }
}
