//! Which workers stand still, and for how long.
//!
//! The control core compares each worker's count of turns with the one before. Where it stands still, the thread's own CPU time says which of
//! three it is: the application's code does not come back, another task has the CPU, or the kernel holds the thread. The worker pays nothing.
//!
//! Times count only while the control core looks: where it was away itself (a machine that stood still, a terminal that takes no text), nobody knows
//! whether the worker was.
#![forbid(unsafe_code)]

use super::cause::Finder;
use super::thread;
use crate::registry::{Registry, WorkerEntry};
use percpu::qsbr::Domain;
use std::time::Duration;

/// How often it looks at the least; a short limit wants more.
const LONGEST_PERIOD: Duration = Duration::from_millis(100);
/// Looks within one limit.
const LOOKS: u32 = 4;

/// One worker, as it was when its turns were last seen to move.
struct Seen {
    tid: i32,
    turns: u64,
    /// The thread's CPU time then.
    ran: Option<Duration>,
    /// For how long they have not moved since, as far as anybody looked.
    still: Duration,
    told: bool,
}

/// Looks after all workers of a run.
pub(crate) struct Watchdog {
    /// Zero where it is off.
    limit: Duration,
    period: Duration,
    /// The time of the run: when it looked last, and when it is to look next.
    last: Duration,
    next: Duration,
    workers: Vec<Option<Seen>>,
    finder: Finder,
}

impl Watchdog {
    /// Tells of workers that stand still for so long; never, where that is zero. The workers are on their CPUs.
    pub(crate) fn new(limit: Duration, registry: &Registry) -> Self {
        let period = (limit / LOOKS).min(LONGEST_PERIOD);
        let seen = |worker: &WorkerEntry| {
            let tid = worker.watch.as_ref()?.tid();
            Some(Seen { tid, turns: 0, ran: None, still: Duration::ZERO, told: false })
        };
        let workers = registry.workers.iter().map(seen).collect();
        let next = if limit.is_zero() { Duration::MAX } else { Duration::ZERO };
        Self { limit, period, last: Duration::ZERO, next, workers, finder: Finder::default() }
    }

    /// When it wants to look again, by the time of the run.
    pub(crate) fn next(&self) -> Duration {
        self.next
    }

    /// Looks, where it is time to; `now` is the time of the run.
    pub(crate) fn look(&mut self, registry: &mut Registry, running: &Domain, now: Duration) {
        if now < self.next {
            return;
        }
        // What it missed itself says nothing of the workers.
        let passed = now.saturating_sub(self.last).min(self.period * 2);
        (self.last, self.next) = (now, now + self.period);
        for (index, (entry, seen)) in registry.workers.iter_mut().zip(&mut self.workers).enumerate() {
            let Some(seen) = seen else { continue };
            let turns = entry.counters.turns.get();
            // One that has not begun or has ended has no turns to make.
            let away = running.is_inside(index) && turns == seen.turns;
            if !away {
                if std::mem::take(&mut seen.told) {
                    let ms = (seen.still + passed).as_millis();
                    tracing::warn!("worker {index} is back: it was away for {ms} ms");
                }
                (seen.turns, seen.still, seen.ran) = (turns, Duration::ZERO, thread::cpu_time(seen.tid));
                continue;
            }
            seen.still += passed;
            if !seen.told && seen.still >= self.limit {
                seen.told = true;
                entry.stalls += 1;
                let found = self.finder.find(seen.tid, entry.cpu, seen.still, seen.ran);
                tracing::error!(
                    "worker {index} stands still for {} ms on CPU {}: {found}",
                    seen.still.as_millis(),
                    entry.cpu
                );
            }
        }
    }
}
