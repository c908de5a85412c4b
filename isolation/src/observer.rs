//! Joins what workers' signal handlers wrote down with what the kernel's trace says: from both come violations.
//!
//! A signal knows where the worker was and what it called or touched; the trace knows who took the CPU, and for how long. Both come a little
//! later than what they tell of, and in no order, so an interruption is held back until the signal for it must have come.
//!
//! It runs on a housekeeping CPU. All it needs is read when it is opened, before any worker is isolated.
#![forbid(unsafe_code)]

use crate::clock::Clock;
use crate::gaps::{Gap, Unexplained};
use crate::strict::{Record, Signals, Source};
use crate::trace::{Cause, Interruption, Totals, Trace, TraceError};
use crate::user_stack::UserStacks;
use crate::watched::Watched;
use percpu::tsc;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};
use syscalls::Sysno;

/// How long after an interruption its signal may come.
const HOLD_NS: u64 = 5_000_000;
/// How long interruptions are remembered, for gaps that are told of late.
const MEMORY_NS: u64 = 1_000_000_000;
/// Gaps and interruptions that are remembered.
const MOST: usize = 4096;
/// Debuggers' stays that are remembered: the trace is not behind by more.
const MOST_SUSPENSIONS: usize = 16;

/// One entry of the kernel, or one absence from the CPU, of an isolated worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Violation {
    /// When it began, in nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// The same by CLOCK_MONOTONIC.
    pub start_ns: u64,
    /// When it was over; `start_ns` where that is not known.
    pub end_ns: u64,
    /// The worker's number.
    pub worker: usize,
    /// Its CPU.
    pub cpu: usize,
    /// What it was, in a word that can be counted: `syscall:write`, `irq:local_timer`, `task:ksoftirqd/1`.
    pub cause: String,
    /// More of it, in words: numbers, names, the sender.
    pub detail: String,
    /// How long it took, where that is known.
    pub duration_ns: Option<u64>,
    /// The address that faulted, or that the system call was made from.
    pub address: Option<u64>,
    /// Where the worker was, innermost first.
    pub user_stack: Vec<String>,
    /// Where the kernel was, innermost first: at an interrupt from another CPU the sender's.
    pub kernel_stack: Vec<String>,
}

/// What is known of one worker.
struct Worker {
    watched: Watched,
    /// Signals of interrupts that wait for their interruption.
    signals: VecDeque<(u64, Record)>,
    /// Interruptions that wait for their signal.
    held: VecDeque<Interruption>,
    /// When they were, for gaps.
    recent: VecDeque<(u64, u64)>,
    /// Gaps that wait for an explanation.
    gaps: VecDeque<Gap>,
    unexplained: Unexplained,
    /// From when until when debuggers were attached, the latest last.
    suspensions: VecDeque<(u64, u64)>,
    skipped: u64,
}

/// Looks after the isolated workers of a process.
pub struct Observer {
    workers: Vec<Worker>,
    trace: Option<Trace>,
    knows_causes: bool,
    stacks: Option<UserStacks>,
    clock: Clock,
    /// Of CLOCK_MONOTONIC's zero.
    epoch_unix_ns: u64,
    limits: Vec<String>,
    suspended_by: BTreeMap<String, u64>,
    found: Vec<(usize, Interruption)>,
    /// Workers that were moved and not signalled, to be told.
    moved: Vec<usize>,
}

impl Observer {
    /// Opens what there is to know these workers by. What is not to be had is said by [`limits`](Self::limits).
    pub fn open(watched: Vec<Watched>, signals: Signals) -> Self {
        let mut limits = Vec::new();
        let threads: Vec<(usize, i32)> =
            watched.iter().map(|watched| (watched.cpu(), watched.tid())).collect();
        let (mut trace, mut knows_causes) = (None, false);
        if signals.contains(Signals::INTERRUPTS) {
            match Trace::open(&threads).and_then(started) {
                Ok(open) => (trace, knows_causes) = (Some(open), true),
                Err(why) => {
                    limits.push(why.to_string());
                    match Trace::unprivileged(&threads).and_then(started) {
                        Ok(open) => trace = Some(open),
                        Err(error) => limits.push(error.to_string()),
                    }
                }
            }
        }
        limits.extend(trace.iter().flat_map(|trace| trace.limits().iter().cloned()));
        let stacks =
            UserStacks::read().map_err(|error| limits.push(format!("stacks have no names: {error}"))).ok();
        let now_unix_ns =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        let worker = |watched| Worker {
            watched,
            signals: VecDeque::new(),
            held: VecDeque::new(),
            recent: VecDeque::new(),
            gaps: VecDeque::new(),
            unexplained: Unexplained::default(),
            suspensions: VecDeque::new(),
            skipped: 0,
        };
        Self {
            workers: watched.into_iter().map(worker).collect(),
            trace,
            knows_causes,
            stacks,
            clock: Clock::start(),
            epoch_unix_ns: now_unix_ns.saturating_sub(tsc::monotonic_ns()),
            limits,
            suspended_by: BTreeMap::new(),
            found: Vec::new(),
            moved: Vec::new(),
        }
    }

    /// What cannot be known here, and why.
    pub fn limits(&self) -> &[String] {
        &self.limits
    }

    /// Debuggers that were seen at a worker, and how often they came.
    pub fn suspended_by(&self) -> &BTreeMap<String, u64> {
        &self.suspended_by
    }

    /// What has happened on a worker's CPU while the worker was isolated, whomever it hit.
    pub fn totals(&self, worker: usize) -> Totals {
        self.trace.as_ref().map(|trace| trace.totals(worker)).unwrap_or_default()
    }

    /// The worker's time that nothing here explains.
    pub fn unexplained(&self, worker: usize) -> Unexplained {
        self.workers.get(worker).map(|worker| worker.unexplained).unwrap_or_default()
    }

    /// Since when a worker is off its CPU (CLOCK_MONOTONIC); `None` while it runs, or where that cannot be known.
    pub fn away_since(&self, worker: usize) -> Option<u64> {
        self.trace.as_ref().and_then(|trace| trace.away_since(worker))
    }

    /// What another thread sees of a worker.
    pub fn watched(&self, worker: usize) -> Option<&Watched> {
        self.workers.get(worker).map(|worker| &worker.watched)
    }

    /// A worker's loop stood still (in ticks of the time stamp counter). That is explained by interruptions, or counted. Gives the gap in
    /// nanoseconds of the monotonic clock; `None` where causes are not known.
    pub fn gap(&mut self, worker: usize, gap: Gap) -> Option<Gap> {
        let (clock, knows_causes) = (self.clock, self.knows_causes);
        let worker = self.workers.get_mut(worker).filter(|_| knows_causes)?;
        let gap = gap.map(|tsc| clock.to_ns(tsc), tsc::to_ns);
        worker.gaps.push_back(gap);
        if worker.gaps.len() > MOST {
            worker.gaps.pop_front();
        }
        Some(gap)
    }

    /// Looks for debuggers: while one is attached to a worker, that one is not signalled. Looks too for workers that were moved and do not
    /// know: while the kernel delivers another signal to a thread it may miss to count its move. Reads `/proc`: a few times a second.
    pub fn watch_debuggers(&mut self) {
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let cpu = worker.watched.cpu();
            if worker.watched.runs_on().is_some_and(|other| other != cpu) && worker.watched.end_moved() {
                self.moved.push(index);
            }
            let debugger = worker.watched.debugger();
            if debugger.is_some() == worker.watched.is_suspended() {
                continue;
            }
            // What the switching takes is no violation either.
            let since_ns = tsc::monotonic_ns();
            if !worker.watched.suspend(debugger.is_some()) {
                continue;
            }
            match (debugger.is_some(), worker.suspensions.back_mut()) {
                (false, Some((_, until_ns))) => *until_ns = tsc::monotonic_ns(),
                _ => worker.suspensions.push_back((since_ns, u64::MAX)),
            }
            if worker.suspensions.len() > MOST_SUSPENSIONS {
                worker.suspensions.pop_front();
            }
            match debugger {
                Some(pid) => {
                    let name = format!("{}/{pid}", comm(pid));
                    tracing::warn!("worker {index}: {name} is attached to it: its isolation is suspended");
                    *self.suspended_by.entry(name).or_default() += 1;
                }
                None => tracing::warn!("worker {index}: the debugger has gone: isolated again"),
            }
        }
    }

    /// Reads what there is, and gives the violations that are complete. To be called about every millisecond.
    pub fn poll(&mut self, out: &mut Vec<Violation>) {
        self.clock.refresh();
        let now_ns = tsc::monotonic_ns();
        if let Some(trace) = &mut self.trace {
            let (workers, clock) = (&self.workers, self.clock);
            // What entering and leaving take is not part of the stay.
            let counts = |worker: usize, ns| workers[worker].watched.was_isolated(clock.to_tsc(ns));
            trace.poll_counting(&mut self.found, counts);
            for (worker, interruption) in self.found.drain(..) {
                let worker = &mut self.workers[worker];
                worker.recent.push_back((interruption.start_ns, interruption.end_ns));
                let suspended = worker.suspensions.iter().any(|(since_ns, until_ns)| {
                    interruption.end_ns >= *since_ns && interruption.start_ns <= *until_ns
                });
                // In the middle, for its edges are where the stay begins and ends.
                let middle = interruption.start_ns / 2 + interruption.end_ns / 2;
                let isolated = worker.watched.was_isolated(self.clock.to_tsc(middle))
                    || worker.watched.was_isolated(self.clock.to_tsc(interruption.start_ns));
                if isolated && !suspended {
                    worker.held.push_back(interruption);
                }
            }
        }
        for index in std::mem::take(&mut self.moved) {
            let cpu = self.workers[index].watched.cpu();
            out.push(Violation {
                time_unix_ns: self.epoch_unix_ns + now_ns,
                start_ns: now_ns,
                end_ns: now_ns,
                worker: index,
                cpu,
                cause: Source::Migration.to_string(),
                detail: format!("from CPU {cpu}, not signalled: isolation has ended"),
                ..Violation::default()
            });
        }
        for index in 0..self.workers.len() {
            self.take_records(index, out);
            self.finish(index, now_ns, out);
            self.judge_gaps(index, now_ns);
        }
    }

    fn take_records(&mut self, index: usize, out: &mut Vec<Violation>) {
        while let Some(record) = self.workers[index].watched.take_record() {
            let time_ns = self.clock.to_ns(record.tsc);
            match Source::from_number(record.source) {
                Some(Source::Syscall) => {
                    let name = usize::try_from(record.number).ok().and_then(Sysno::new);
                    let name = name.map_or_else(|| record.number.to_string(), |name| name.name().to_owned());
                    out.push(self.signalled(index, &record, time_ns, format!("syscall:{name}")));
                }
                Some(source @ (Source::PageFault | Source::Migration)) => {
                    let mut violation = self.signalled(index, &record, time_ns, source.to_string());
                    if source == Source::Migration {
                        violation.address = None;
                        violation.detail = format!("from CPU {}: isolation has ended", violation.cpu);
                    }
                    out.push(violation);
                }
                Some(source) if self.trace.is_none() => {
                    let mut violation = self.signalled(index, &record, time_ns, source.to_string());
                    violation.address = None;
                    out.push(violation);
                }
                Some(_) => {
                    let signals = &mut self.workers[index].signals;
                    signals.push_back((time_ns, record));
                    if signals.len() > MOST {
                        signals.pop_front();
                    }
                }
                None => {}
            }
        }
        let worker = &mut self.workers[index];
        worker.skipped = worker.watched.skipped();
    }

    /// What a signal alone says.
    fn signalled(&mut self, index: usize, record: &Record, time_ns: u64, cause: String) -> Violation {
        Violation {
            time_unix_ns: self.epoch_unix_ns + time_ns,
            start_ns: time_ns,
            end_ns: time_ns,
            worker: index,
            cpu: self.workers[index].watched.cpu(),
            cause,
            address: Some(record.address),
            user_stack: self.stacks.as_mut().map_or_else(Vec::new, |stacks| stacks.frames(record)),
            ..Violation::default()
        }
    }

    /// Interruptions whose signals have come, or never will.
    fn finish(&mut self, index: usize, now_ns: u64, out: &mut Vec<Violation>) {
        while let Some(held) = self.workers[index].held.pop_front_if(|held| held.end_ns + HOLD_NS < now_ns) {
            let signals = &mut self.workers[index].signals;
            // Older ones belong to interruptions that the trace has lost.
            while signals.pop_front_if(|(time_ns, _)| *time_ns < held.start_ns).is_some() {}
            let first = signals.pop_front_if(|(time_ns, _)| *time_ns <= held.end_ns + HOLD_NS);
            let until = self.workers[index].held.front().map_or(u64::MAX, |next| next.start_ns);
            let until = until.min(held.end_ns + HOLD_NS);
            while self.workers[index].signals.pop_front_if(|(time_ns, _)| *time_ns < until).is_some() {}
            out.push(self.traced(index, held, first.map(|(_, record)| record)));
        }
    }

    /// What the trace says, with where the worker was.
    fn traced(&mut self, index: usize, found: Interruption, record: Option<Record>) -> Violation {
        let name = |address: u64| match &self.trace {
            Some(trace) => trace.symbols().name_or_address(address),
            None => format!("{address:#x}"),
        };
        let mut detail = Vec::new();
        match &found.cause {
            Cause::Task { pid, .. } => detail.push(format!("pid {pid}")),
            Cause::Irq { irq, .. } => detail.push(format!("irq {irq}")),
            Cause::Preempted => detail.push("which task cannot be known without CAP_PERFMON".into()),
            _ => {}
        }
        detail.extend(found.work.iter().map(|&work| format!("work {}", name(work))));
        let mut stack = &found.stack;
        if let Some(sender) = &found.sender {
            let who = if sender.comm.is_empty() { "a task that has ended" } else { &sender.comm };
            let functions =
                std::iter::once(&sender.callsite).chain(&sender.stack).map(|&address| name(address));
            // The first is where the names of all are alike: who wanted it is further out.
            let from = functions.clone().find(|name| !sends_for_others(name)).or(functions.clone().next());
            let from = from.unwrap_or_default();
            detail.push(format!("sent by {who} (pid {}) on CPU {} from {from}", sender.tid, sender.cpu));
            stack = &sender.stack;
        }
        if !found.also.is_empty() {
            let also: Vec<String> = found.also.iter().map(Cause::to_string).collect();
            detail.push(format!("with {}", also.join(" ")));
        }
        Violation {
            time_unix_ns: self.epoch_unix_ns + found.start_ns,
            start_ns: found.start_ns,
            end_ns: found.end_ns,
            worker: index,
            cpu: self.workers[index].watched.cpu(),
            cause: found.cause.to_string(),
            detail: detail.join(", "),
            duration_ns: Some(found.duration_ns()),
            address: None,
            user_stack: match (&mut self.stacks, record) {
                (Some(stacks), Some(record)) => stacks.frames(&record),
                _ => Vec::new(),
            },
            kernel_stack: stack.iter().map(|&address| name(address)).collect(),
        }
    }

    fn judge_gaps(&mut self, index: usize, now_ns: u64) {
        let away = self.away_since(index);
        let worker = &mut self.workers[index];
        while worker.recent.front().is_some_and(|(_, end)| end + MEMORY_NS < now_ns)
            || worker.recent.len() > MOST
        {
            worker.recent.pop_front();
        }
        while let Some(gap) = worker.gaps.pop_front_if(|gap| gap.to + 10 * HOLD_NS < now_ns) {
            if away.is_none_or(|since| since > gap.to) {
                worker.unexplained.count(&gap, worker.recent.iter().copied());
            }
        }
    }
}

/// Whether this is one of the kernel's functions that send interrupts to other CPUs for whoever calls them.
fn sends_for_others(function: &str) -> bool {
    const PREFIXES: [&str; 7] = [
        "smp_call_function",
        "__smp_call_single",
        "generic_exec_single",
        "on_each_cpu",
        "irq_work_queue_on",
        "send_call_function",
        "stop_one_cpu",
    ];
    PREFIXES.iter().any(|prefix| function.starts_with(prefix))
}

fn started(trace: Trace) -> Result<Trace, TraceError> {
    trace.start().map(|()| trace)
}

fn comm(pid: i32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim_end().to_owned()
}
