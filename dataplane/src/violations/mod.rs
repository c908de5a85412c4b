//! What the control core does for isolated workers: looks, joins, tells.
//!
//! About every millisecond it reads what handlers and the kernel's trace have written, and the drop counters of each worker's queues, on
//! its own CPU and without a word to the workers.
#![forbid(unsafe_code)]

mod drop_join;
mod log;

use crate::error::Error;
use crate::isolation_args::{IsolationArgs, IsolationMode};
use crate::loop_gap::Gaps;
use crate::registry::Registry;
use crate::report::IsolationReport;
use drop_join::{DropJoin, Joined, Losses};
use isolation::{KernelIsolation, Observer, Violation, Watched};
use log::{ViolationLog, total};
use nic::{DropReason, QueueCounters};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How often it looks.
pub(crate) const LOOK_PERIOD: Duration = Duration::from_millis(1);
/// How often it looks for debuggers, in looks.
const DEBUGGER_LOOKS: u32 = 100;

/// One queue of a worker.
pub(crate) struct Place {
    pub(crate) port: String,
    pub(crate) queue: usize,
    pub(crate) receives: bool,
    pub(crate) counters: Arc<QueueCounters>,
}

/// See the module.
pub(crate) struct Watcher {
    mode: IsolationMode,
    args: IsolationArgs,
    log: ViolationLog,
    observer: Option<Observer>,
    workers: Vec<WatchedWorker>,
    looks: u32,
    found: Vec<Violation>,
    joined: Vec<Joined>,
    tickless: bool,
    lacks: Vec<String>,
}

struct WatchedWorker {
    places: Vec<Place>,
    join: DropJoin,
    gaps: Option<Arc<Gaps>>,
    /// Dropped for reasons that are nobody's absence.
    others: u64,
}

/// What is lost because a worker was away. Other reasons are the application's or a packet's own; `rx_missed` is known about once a second, too
/// late to say when it was.
const BY_ABSENCE: [DropReason; 5] = [
    DropReason::RxRingFull,
    DropReason::RxDropped,
    DropReason::RxNoFrame,
    DropReason::TxRingFull,
    DropReason::TxDropped,
];

impl Watcher {
    /// Opens the violations' file.
    pub(crate) fn new(args: &IsolationArgs) -> Result<Self, Error> {
        Ok(Self {
            mode: args.isolation,
            args: args.clone(),
            log: ViolationLog::open(args.violations.as_deref())?,
            observer: None,
            workers: Vec::new(),
            looks: 0,
            found: Vec::new(),
            joined: Vec::new(),
            tickless: false,
            lacks: Vec::new(),
        })
    }

    /// What a worker's isolation lacks on this machine.
    pub(crate) fn lacks(&mut self, worker: usize, what: String) {
        tracing::warn!("worker {worker}: {what}");
        // The same words for another worker say nothing new.
        if !self.lacks.contains(&what) {
            self.lacks.push(what);
        }
    }

    /// Opens the trace of these workers.
    pub(crate) fn open(&mut self, watched: Vec<Watched>, places: Vec<Vec<Place>>, registry: &Registry) {
        let nohz_full = KernelIsolation::read().nohz_full;
        self.tickless = registry.workers.iter().all(|worker| nohz_full.contains(worker.cpu));
        if watched.is_empty() {
            return;
        }
        let observer = Observer::open(watched, self.args.signals());
        for limit in observer.limits() {
            tracing::warn!("isolation: {limit}");
        }
        self.observer = Some(observer);
        let worker = |places| WatchedWorker { places, join: DropJoin::default(), gaps: None, others: 0 };
        self.workers = places.into_iter().map(worker).collect();
        for (worker, entry) in self.workers.iter_mut().zip(&registry.workers) {
            worker.gaps = Some(Arc::clone(&entry.gaps));
        }
    }

    /// Whether there is anything to look at.
    pub(crate) fn is_on(&self) -> bool {
        self.observer.is_some()
    }

    /// One look.
    pub(crate) fn look(&mut self, registry: &mut Registry) {
        if self.observer.is_none() {
            return;
        }
        registry.ports.iter_mut().for_each(|entry| entry.port.refresh_drops());
        self.sample();
        self.read();
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let away = self.observer.as_ref().and_then(|observer| observer.away_since(index));
            worker.join.settle(percpu::tsc::monotonic_ns(), away, &mut self.joined);
        }
        self.tell();
        self.log.write_out();
    }

    /// The last look, when the workers and the queues have gone and the ports' counters are final.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        if self.observer.is_none() {
            return Ok(());
        }
        // Until the last interruption has its signal: the observer holds them back for 5 ms.
        for _ in 0..10 {
            std::thread::sleep(LOOK_PERIOD);
            self.read();
        }
        self.sample();
        self.workers.iter_mut().for_each(|worker| worker.join.settle_all(&mut self.joined));
        self.tell();
        self.log.flush()
    }

    /// Reads the drop counters.
    fn sample(&mut self) {
        for worker in &mut self.workers {
            let now_ns = percpu::tsc::monotonic_ns();
            let (mut arrived, mut others) = (0, 0);
            let mut losses = Losses::new();
            for (number, place) in worker.places.iter().enumerate() {
                let mut lost = 0;
                for (reason, count) in place.counters.all_drops().filter(|(_, count)| *count > 0) {
                    lost += count;
                    if BY_ABSENCE.contains(&reason) {
                        losses.insert((number, reason), count);
                    } else {
                        others += count;
                    }
                }
                if place.receives {
                    arrived += place.counters.packets.get() + lost;
                }
            }
            worker.join.look(now_ns, arrived, losses);
            worker.others = others;
        }
    }

    /// Reads signals, trace and gaps.
    fn read(&mut self) {
        let Some(observer) = &mut self.observer else { return };
        for (index, worker) in self.workers.iter_mut().enumerate() {
            while let Some(gap) = worker.gaps.as_ref().and_then(|gaps| gaps.pop()) {
                if let Some(gap) = observer.gap(index, gap) {
                    worker.join.stood_still(gap);
                }
            }
        }
        if self.looks.is_multiple_of(DEBUGGER_LOOKS) {
            observer.watch_debuggers();
        }
        self.looks = self.looks.wrapping_add(1);
        observer.poll(&mut self.found);
        for violation in self.found.drain(..) {
            if let Some(worker) = self.workers.get_mut(violation.worker) {
                worker.join.expect(violation);
            }
        }
    }

    fn tell(&mut self) {
        for joined in self.joined.drain(..) {
            let places = &self.workers[joined.violation.worker].places;
            self.log.tell(&joined, |number| (places[number].port.clone(), places[number].queue));
        }
    }

    /// Its name.
    pub(crate) fn mode(&self) -> &'static str {
        self.mode.name()
    }

    /// Violations by cause.
    pub(crate) fn counts(&self) -> &BTreeMap<String, u64> {
        &self.log.counts
    }

    /// How long they took, by cause: altogether, and the longest, in nanoseconds.
    pub(crate) fn times_ns(&self) -> &BTreeMap<String, (u64, u64)> {
        &self.log.times_ns
    }

    /// What the run's report says of isolation.
    pub(crate) fn report(&self) -> IsolationReport {
        let mut report = IsolationReport {
            mode: self.mode.name().to_owned(),
            tickless: self.tickless,
            ..IsolationReport::default()
        };
        let Some(observer) = &self.observer else { return report };
        report.lacks.clone_from(&self.lacks);
        report.signal = self.args.signals().to_string();
        report.suspended_by = observer.suspended_by().keys().cloned().collect();
        report.cannot_know = observer.limits().to_vec();
        report.dropped = self.log.dropped;
        for (index, worker) in self.workers.iter().enumerate() {
            let unexplained = observer.unexplained(index);
            report.unexplained_gaps += unexplained.gaps;
            report.unexplained_ns += unexplained.total_ns;
            report.unexplained_longest_ns = report.unexplained_longest_ns.max(unexplained.longest_ns);
            let totals = observer.totals(index);
            report.interrupts += totals.irqs;
            report.softirqs += totals.softirqs;
            report.threads += totals.threads;
            report.trace_lost += totals.lost;
            if let Some(watched) = observer.watched(index) {
                report.allowed += watched.allowed();
                report.not_recorded += watched.skipped();
                for source in isolation::Source::all().filter(|source| watched.count(*source) > 0) {
                    *report.signals.entry(source.to_string()).or_default() += watched.count(source);
                }
            }
            report.dropped_without_violation += total(&worker.join.unattributed) + worker.others;
        }
        report
    }
}
