//! What the slow path counted, and what it says in the log.
#![forbid(unsafe_code)]

use super::thread::Unstopped;
use super::{Shared, SlowPath, fiber};
use serde::Serialize;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often the log's thread looks.
const LOG_PERIOD: Duration = Duration::from_millis(20);

/// One class. `submitted` is the sum of `refused`, `done`, `panicked`, `abandoned`, and those that have not ended.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct SlowPathClassReport {
    /// Its name.
    pub name: String,
    /// Jobs that workers wanted to have run.
    pub submitted: u64,
    /// Of these, not taken: too many were on their way.
    pub refused: u64,
    /// Returned.
    pub done: u64,
    /// Panicked.
    pub panicked: u64,
    /// Not begun when the slow path was closed.
    pub abandoned: u64,
    /// Begun, and not ended.
    pub under_way: usize,
    /// Took longer than the class's bound, whether they returned later or not; and times that a fiber ran on for longer.
    pub overdue: u64,
    /// Fibers that were to be started: the sum of those below.
    pub fibers_spawned: u64,
    /// Of these, not taken: there were too many.
    pub fibers_refused: u64,
    /// Returned.
    pub fibers_done: u64,
    /// Panicked.
    pub fibers_panicked: u64,
    /// Unwound where they waited, or not begun, when the slow path was closed.
    pub fibers_unwound: u64,
    /// Not ended.
    pub fibers_under_way: u64,
    /// CPU time, in nanoseconds.
    pub cpu_ns: u64,
}

/// The slow path.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct SlowPathReport {
    /// How it saw that jobs blocked: `trace` or `wrapped`.
    pub detection: &'static str,
    /// Jobs that ran at once, at the most.
    pub slots: usize,
    /// Threads.
    pub threads: usize,
    /// The most that ran at once, or were seen to run: `slots`, and one more where one woke up.
    pub most_running: usize,
    /// Times that a slot was given up by a wrapped call.
    pub wrapped_blocks: u64,
    /// Times that a slot was taken from a job that was seen to block.
    pub seen_blocks: u64,
    /// Times that a job was stopped: its turn was over, its class's cap was reached, or it woke up and there was no slot.
    pub stopped: u64,
    /// From a block to its being seen by the kernel's records, in nanoseconds: the median; 0 where none was.
    pub detect_ns_p50: u64,
    /// Slots that passed from a job that blocked to a job that began.
    pub reused: u64,
    /// From the block to the next job's beginning, in nanoseconds: the median.
    pub reuse_ns_p50: u64,
    /// The 99th percentile.
    pub reuse_ns_p99: u64,
    /// Records of the kernel that there was no room for.
    pub records_lost: u64,
    /// The classes.
    pub classes: Vec<SlowPathClassReport>,
}

impl SlowPath {
    /// Closes it, and says what was counted.
    pub(crate) fn end(&self) -> SlowPathReport {
        self.close();
        self.report()
    }

    /// What was counted so far.
    pub fn report(&self) -> SlowPathReport {
        let _unstopped = Unstopped::begin();
        let shared = &*self.shared;
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let sources = self.sources();
        let class = |index: usize| {
            // What ended before what came, or more would have ended than had come.
            let (cpu_ns, under_way) = shared.gate.class(index);
            let ended = &shared.ended[index];
            let (done, panicked) = (load(&ended.done), load(&ended.panicked));
            let (abandoned, overdue) = (load(&ended.abandoned), load(&ended.overdue));
            let refused = sources.iter().map(|entry| entry.source.counts[index].refused.get()).sum();
            let submitted = sources.iter().map(|entry| entry.source.counts[index].submitted.get()).sum();
            let name = shared.config.classes[index].name.to_owned();
            let counts = shared.hosts.get(index).map(|host| &host.counts);
            let fibers = |of: fn(&fiber::Counts) -> &AtomicU64| counts.map_or(0, |counts| load(of(counts)));
            let fibers_ended = [
                fibers(|c| &c.refused),
                fibers(|c| &c.done),
                fibers(|c| &c.panicked),
                fibers(|c| &c.unwound),
            ];
            let fibers_spawned = fibers(|c| &c.spawned);
            let [fibers_refused, fibers_done, fibers_panicked, fibers_unwound] = fibers_ended;
            SlowPathClassReport {
                name,
                submitted,
                refused,
                done,
                panicked,
                abandoned,
                under_way,
                overdue,
                fibers_spawned,
                fibers_refused,
                fibers_done,
                fibers_panicked,
                fibers_unwound,
                fibers_under_way: fibers_spawned.saturating_sub(fibers_ended.iter().sum()),
                cpu_ns,
            }
        };
        let classes = (0..shared.config.classes.len()).map(class).collect();
        let tally = shared.gate.tally();
        let (reused, reuse_ns_p50, reuse_ns_p99) = shared.gate.reuse_ns();
        SlowPathReport {
            detection: if self.is_traced() { "trace" } else { "wrapped" },
            slots: shared.slots,
            threads: shared.config.threads,
            most_running: tally.most_running,
            wrapped_blocks: tally.wrapped,
            seen_blocks: tally.seen,
            stopped: tally.stopped,
            detect_ns_p50: shared.gate.detect_ns_p50(),
            reused,
            reuse_ns_p50,
            reuse_ns_p99,
            records_lost: load(&shared.lost_records),
            classes,
        }
    }
}

/// Starts the thread that writes to the log what the dispatcher found; the dispatcher itself must not.
pub(super) fn start_log(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name("slow-log".into()).spawn(move || {
        let _ = super::sys::stay_on(&shared.cpus);
        loop {
            let ends = shared.stop.load(Ordering::Acquire);
            while let Some(overdue) = shared.overdue.pop() {
                if overdue.fiber {
                    tracing::warn!(
                        "slow path: a fiber of class {} has run for {:.3} s, and all others of the class wait",
                        shared.config.classes[overdue.class].name,
                        overdue.age_ns as f64 / 1e9,
                    );
                    continue;
                }
                tracing::warn!(
                    "slow path: a job of class {} has not returned after {:.3} s: thread {} {}",
                    shared.config.classes[overdue.class].name,
                    overdue.age_ns as f64 / 1e9,
                    overdue.tid,
                    if overdue.blocked { "waits in the kernel" } else { "runs, or waits for a slot" },
                );
            }
            if ends {
                return;
            }
            thread::sleep(LOG_PERIOD);
        }
    })
}
