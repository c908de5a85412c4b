//! The perf events of one thread that send it SIGTRAP: page faults, and whatever takes the CPU from it.
//!
//! A thread opens them for itself, before it enters; while it is isolated they only ever fire. What they count is what the thread suffers,
//! and nothing of other tasks of its CPU.
#![forbid(unsafe_code)]

use super::handler::TAG;
use super::source::{Signals, Source};
use super::sys;
use crate::tracefs::Tracefs;
use crate::vectors::VECTORS;
use perf_event_open_sys::bindings as perf;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use thiserror::Error;

/// Why the events cannot be had.
#[derive(Debug, Error)]
pub enum TrapError {
    /// Page faults in user mode: asked for without privilege.
    #[error(
        "the kernel does not let this process signal page faults: {0}; it takes perf events with sigtrap (Linux 5.13) that no seccomp filter forbids, and kernel.perf_event_paranoid at most 2 or CAP_PERFMON; or leave \"exceptions\" out of --signal"
    )]
    Faults(#[source] io::Error),
    /// Interrupts and preemption.
    #[error(
        "the kernel does not let this process signal {what}: {source}; run as root or with CAP_PERFMON (setcap cap_perfmon+ep), or leave \"interrupts\" out of --signal"
    )]
    Interrupts {
        /// The event.
        what: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The trace events' numbers cannot be looked up.
    #[error(
        "{0}, and interrupts are signalled by trace events: run as root, mount tracefs, or leave \"interrupts\" out of --signal"
    )]
    Tracefs(#[source] io::Error),
}

impl TrapError {
    /// The signals that cannot be had.
    pub(super) fn class(&self) -> Signals {
        match self {
            Self::Faults(_) => Signals::EXCEPTIONS,
            Self::Interrupts { .. } | Self::Tracefs(_) => Signals::INTERRUPTS,
        }
    }
}

/// The events of the calling thread.
#[derive(Debug, Default)]
pub(super) struct Traps {
    /// Page faults, where they are signalled.
    faults: Option<OwnedFd>,
    interrupts: Vec<OwnedFd>,
}

fn key(source: Source) -> u64 {
    TAG << 32 | u64::from(source.number())
}

impl Traps {
    /// Opens those of these classes, switched off.
    pub(super) fn open(signals: Signals) -> Result<Self, TrapError> {
        let mut traps = Self::default();
        if signals.contains(Signals::EXCEPTIONS) {
            let faults = perf::PERF_COUNT_SW_PAGE_FAULTS.into();
            let event = sys::open_trap(perf::PERF_TYPE_SOFTWARE, faults, key(Source::PageFault), false);
            traps.faults = Some(event.map_err(TrapError::Faults)?);
        }
        if signals.contains(Signals::INTERRUPTS) {
            traps.open_interrupts(&Tracefs::open().map_err(TrapError::Tracefs)?)?;
        }
        Ok(traps)
    }

    fn open_interrupts(&mut self, tracefs: &Tracefs) -> Result<(), TrapError> {
        let refused = |what: &str| {
            let what = what.to_owned();
            move |source| TrapError::Interrupts { what, source }
        };
        let migrations = perf::PERF_COUNT_SW_CPU_MIGRATIONS.into();
        let event = sys::open_trap(perf::PERF_TYPE_SOFTWARE, migrations, key(Source::Migration), true);
        self.interrupts.push(event.map_err(refused("migrations"))?);
        let trace =
            [(Source::Switch, "sched/sched_switch"), (Source::DeviceInterrupt, "irq/irq_handler_entry")];
        let mut trace: Vec<(Source, String)> =
            trace.iter().map(|(source, name)| (*source, (*name).to_owned())).collect();
        trace.extend(VECTORS.iter().map(|name| (Source::Vector(name), format!("irq_vectors/{name}_entry"))));
        for (source, name) in trace {
            // A vector that this kernel does not trace is one that it does not have.
            let Some(id) = tracefs.event_id(&name).map_err(TrapError::Tracefs)? else { continue };
            let event = sys::open_trap(perf::PERF_TYPE_TRACEPOINT, id, key(source), true);
            self.interrupts.push(event.map_err(refused(&name))?);
        }
        Ok(())
    }

    /// Switches all of them.
    pub(super) fn enable(&self, on: bool) -> io::Result<()> {
        self.faults.iter().chain(&self.interrupts).try_for_each(|event| sys::enable(event.as_fd(), on))
    }

    /// Page faults so far, by the kernel's count, which misses none; `None` where they are not signalled.
    pub(super) fn faults(&self) -> Option<u64> {
        let mut count = [0; 8];
        let read = nix::unistd::read(self.faults.as_ref()?, &mut count);
        (read == Ok(count.len())).then(|| u64::from_ne_bytes(count))
    }
}
