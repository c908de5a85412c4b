//! Opens the trace events of every CPU and follows the workers by them.
#![forbid(unsafe_code)]

use super::event::{Event, Kind, Layout, What, decode};
use super::interruption::{Cause, Interruption, Sender, Totals};
use super::names::IRQ_WORK;
use super::ring::Ring;
use super::symbols::KernelSymbols;
use super::sys;
use super::tracker::Tracker;
use crate::tracefs::Tracefs;
use crate::vectors::VECTORS;
use percpu::Topology;
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use thiserror::Error;

/// A worker's CPU makes about 100 bytes an event.
const WORKER_RING_BYTES: usize = 1 << 20;
/// Other CPUs only say what they send.
const OTHER_RING_BYTES: usize = 256 << 10;
/// Sent interrupts that are remembered.
const MOST_SENDS: usize = 4096;
/// How long a sent interrupt takes at most: where the CPU is a virtual one, its host may be busy with others.
const SEND_NS: u64 = 1_000_000_000;

/// Why there is no trace.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The list of trace events cannot be read.
    #[error("{0}")]
    Tracefs(#[source] io::Error),
    /// The events cannot be opened.
    #[error("the kernel does not let this process trace {what}: {source}; it takes root or CAP_PERFMON")]
    Refused {
        /// The event.
        what: String,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// One CPU's ring, and the events that write to it.
#[derive(Debug)]
struct CpuRing {
    cpu: usize,
    ring: Ring,
    events: Vec<OwnedFd>,
}

/// An interrupt that was sent.
#[derive(Debug)]
struct Sent {
    cpu: usize,
    event: Event,
}

/// The trace of some workers.
#[derive(Debug)]
pub struct Trace {
    rings: Vec<CpuRing>,
    layouts: HashMap<u64, Layout>,
    /// By worker: its CPU, and what is known of it.
    workers: Vec<(usize, Tracker)>,
    sent: VecDeque<Sent>,
    symbols: KernelSymbols,
    /// The addresses of the function that all system calls go through.
    call_entry: Option<std::ops::Range<u64>>,
    /// What is not known, and why.
    limits: Vec<String>,
    found: Vec<Interruption>,
}

/// A CPU's events: how to read each, its name, whether with the kernel's stack.
fn worker_events() -> Vec<(Kind, String, bool)> {
    let mut events: Vec<(Kind, String, bool)> = Vec::new();
    for (index, vector) in VECTORS.iter().enumerate() {
        events.push((Kind::VectorEntry(index), format!("irq_vectors/{vector}_entry"), true));
        events.push((Kind::VectorExit, format!("irq_vectors/{vector}_exit"), false));
    }
    events.push((Kind::IrqWork, format!("irq_vectors/{IRQ_WORK}_entry"), true));
    let others = [
        (Kind::IrqEntry, "irq/irq_handler_entry", true),
        (Kind::IrqExit, "irq/irq_handler_exit", false),
        (Kind::SoftirqEntry, "irq/softirq_entry", true),
        (Kind::SoftirqExit, "irq/softirq_exit", false),
        (Kind::Switch, "sched/sched_switch", true),
        (Kind::Work, "workqueue/workqueue_execute_start", false),
        (Kind::Nmi, "nmi/nmi_handler", false),
    ];
    events.extend(others.map(|(kind, name, stack)| (kind, name.to_owned(), stack)));
    events
}

fn send_events() -> [(Kind, String, bool); 2] {
    [
        (Kind::SendToOne, "ipi/ipi_send_cpu".to_owned(), true),
        (Kind::SendToMany, "ipi/ipi_send_cpumask".to_owned(), true),
    ]
}

impl Trace {
    /// Opens what these workers (CPU and thread number of each) need; switched off.
    pub fn open(workers: &[(usize, i32)]) -> Result<Self, TraceError> {
        let tracefs = Tracefs::open().map_err(TraceError::Tracefs)?;
        let mut this = Self::empty(workers);
        let online: Vec<usize> = match Topology::read() {
            Ok(topology) => topology.online.iter().collect(),
            Err(_) => workers.iter().map(|(cpu, _)| *cpu).collect(),
        };
        let (worker_events, send_events) = (worker_events(), send_events());
        for cpu in online {
            let is_worker = workers.iter().any(|(worker, _)| *worker == cpu);
            let wanted = send_events.iter().chain(is_worker.then_some(&worker_events).into_iter().flatten());
            let bytes = if is_worker { WORKER_RING_BYTES } else { OTHER_RING_BYTES };
            this.open_cpu(cpu, wanted, bytes, &tracefs)?;
        }
        if !this.layouts.values().any(|layout| layout.kind == Kind::SendToOne) {
            this.limits.push(
                "who sent an interrupt cannot be known: this kernel does not trace it (Linux 6.4 does)"
                    .into(),
            );
        }
        match KernelSymbols::read() {
            Ok(symbols) if symbols.name(u64::MAX).is_some() => this.symbols = symbols,
            _ => this.limits.push(
                "the kernel's functions have no names here: \"sysctl kernel.kptr_restrict=0\" shows them to root".into(),
            ),
        }
        this.call_entry = this.symbols.range("do_syscall_64");
        Ok(this)
    }

    /// What can be known without privilege: when each worker was off its CPU.
    pub fn unprivileged(workers: &[(usize, i32)]) -> Result<Self, TraceError> {
        let mut this = Self::empty(workers);
        let refused = |source| TraceError::Refused { what: "its own threads".into(), source };
        for &(cpu, tid) in workers {
            let event = sys::open_switches(tid).map_err(refused)?;
            let ring = Ring::new(event.as_fd(), 64 << 10).map_err(refused)?;
            this.rings.push(CpuRing { cpu, ring, events: vec![event] });
        }
        this.limits.push(
            "which task or interrupt it was cannot be known without CAP_PERFMON (setcap cap_perfmon+ep), only when".into(),
        );
        Ok(this)
    }

    fn empty(workers: &[(usize, i32)]) -> Self {
        Self {
            rings: Vec::new(),
            layouts: HashMap::new(),
            workers: workers.iter().map(|&(cpu, tid)| (cpu, Tracker::new(tid))).collect(),
            sent: VecDeque::with_capacity(MOST_SENDS),
            symbols: KernelSymbols::default(),
            call_entry: None,
            limits: Vec::new(),
            found: Vec::new(),
        }
    }

    fn open_cpu<'a>(
        &mut self,
        cpu: usize,
        wanted: impl Iterator<Item = &'a (Kind, String, bool)>,
        bytes: usize,
        tracefs: &Tracefs,
    ) -> Result<(), TraceError> {
        let (mut ring, mut events): (Option<Ring>, Vec<OwnedFd>) = (None, Vec::new());
        for (kind, name, stack) in wanted {
            let Some(number) = tracefs.event_id(name).map_err(TraceError::Tracefs)? else { continue };
            let format = tracefs.format(name).map_err(TraceError::Tracefs)?.unwrap_or_default();
            let refused = |source| TraceError::Refused { what: name.clone(), source };
            let event = sys::open_on_cpu(cpu, number, *stack).map_err(refused)?;
            match events.first() {
                Some(first) => sys::redirect(event.as_fd(), first.as_fd()).map_err(refused)?,
                None => ring = Some(Ring::new(event.as_fd(), bytes).map_err(refused)?),
            }
            let id = sys::id(event.as_fd()).map_err(refused)?;
            self.layouts.insert(id, Layout { kind: *kind, stack: *stack, format });
            events.push(event);
        }
        self.rings.extend(ring.map(|ring| CpuRing { cpu, ring, events }));
        Ok(())
    }

    /// Switches the events on.
    pub fn start(&self) -> Result<(), TraceError> {
        let refused = |source| TraceError::Refused { what: "what it has opened".into(), source };
        let mut events = self.rings.iter().flat_map(|ring| &ring.events);
        events.try_for_each(|event| sys::enable(event.as_fd()).map_err(refused))
    }

    /// What cannot be known here, and why.
    pub fn limits(&self) -> &[String] {
        &self.limits
    }

    /// The kernel's functions.
    pub fn symbols(&self) -> &KernelSymbols {
        &self.symbols
    }

    /// What has happened on a worker's CPU so far, as far as it was counted.
    pub fn totals(&self, worker: usize) -> Totals {
        self.workers.get(worker).map(|(_, tracker)| tracker.totals).unwrap_or_default()
    }

    /// Since when a worker is off its CPU (CLOCK_MONOTONIC); `None` while it runs.
    pub fn away_since(&self, worker: usize) -> Option<u64> {
        self.workers.get(worker).and_then(|(_, tracker)| tracker.away_since())
    }

    /// Reads all rings. Gives each interruption that is over, with its worker's number.
    pub fn poll(&mut self, out: &mut Vec<(usize, Interruption)>) {
        self.poll_counting(out, |_, _| true);
    }

    /// The same; what happens to a worker's CPU at a time (CLOCK_MONOTONIC) of which `counts` says no is left out of the
    /// [`totals`](Self::totals).
    pub(crate) fn poll_counting(
        &mut self,
        out: &mut Vec<(usize, Interruption)>,
        counts: impl Fn(usize, u64) -> bool,
    ) {
        let now_ns = percpu::tsc::monotonic_ns();
        // Workers first: what was sent to them before is then in the others' rings.
        let mut events: Vec<(usize, Event)> = Vec::new();
        let layouts = &self.layouts;
        let is_worker = |cpu: usize| self.workers.iter().any(|(worker, _)| *worker == cpu);
        for pass in [true, false] {
            for CpuRing { cpu, ring, .. } in self.rings.iter_mut().filter(|ring| is_worker(ring.cpu) == pass)
            {
                ring.read(|raw| {
                    if let Some(event) = decode(raw, |id| layouts.get(&id)) {
                        events.push((*cpu, event));
                    }
                });
            }
        }
        for (cpu, event) in events {
            if matches!(event.what, What::Send { .. }) {
                self.sent.push_back(Sent { cpu, event });
                continue;
            }
            let (entry, found) = (&self.call_entry, &mut self.found);
            let in_call =
                |stack: &[u64]| entry.as_ref().is_some_and(|entry| stack.iter().any(|ip| entry.contains(ip)));
            for (worker, (_, tracker)) in
                self.workers.iter_mut().enumerate().filter(|(_, (worker_cpu, _))| *worker_cpu == cpu)
            {
                let before = tracker.totals;
                tracker.event(event.clone(), in_call, found);
                if !counts(worker, event.time_ns) {
                    tracker.totals = Totals { lost: tracker.totals.lost, ..before };
                }
                out.extend(found.drain(..).map(|found| (worker, found)));
            }
        }
        for (worker, (_, tracker)) in self.workers.iter_mut().enumerate() {
            tracker.flush(now_ns, &mut self.found);
            out.extend(self.found.drain(..).map(|found| (worker, found)));
        }
        for (worker, interruption) in out.iter_mut() {
            if interruption.sender.is_none() {
                let cpu = self.workers[*worker].0;
                interruption.sender = self.sender(interruption, cpu);
            }
        }
        let excess = self.sent.len().saturating_sub(MOST_SENDS);
        self.sent.drain(..excess);
        while self.sent.front().is_some_and(|sent| sent.event.time_ns + 2 * SEND_NS < now_ns) {
            self.sent.pop_front();
        }
    }

    /// Who sent the interrupt that began this: the last one that was sent here before, of the same kind.
    fn sender(&self, interruption: &Interruption, cpu: usize) -> Option<Sender> {
        let first = match &interruption.cause {
            cause @ Cause::Vector(_) => cause,
            _ => interruption.also.first()?,
        };
        let with_callback = match first {
            Cause::Vector("reschedule") => false,
            Cause::Vector("call_function" | "call_function_single") => true,
            _ => return None,
        };
        let is_it = |sent: &&Sent| match &sent.event.what {
            What::Send { to, callback, .. } => {
                to.contains(cpu)
                    && (*callback != 0) == with_callback
                    && sent.event.time_ns <= interruption.start_ns
                    && interruption.start_ns - sent.event.time_ns < SEND_NS
            }
            _ => false,
        };
        let sent = self.sent.iter().filter(is_it).max_by_key(|sent| sent.event.time_ns)?;
        let What::Send { callsite, callback, .. } = &sent.event.what else { return None };
        let comm = match sent.event.tid {
            // Each CPU has one, and `/proc` none.
            0 => "idle".to_owned(),
            tid => fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default().trim_end().to_owned(),
        };
        Some(Sender {
            cpu: sent.cpu,
            tid: sent.event.tid,
            comm,
            callsite: *callsite,
            callback: *callback,
            stack: sent.event.stack.clone(),
        })
    }
}
