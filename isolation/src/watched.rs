//! What the control core sees of an isolated thread, without touching it.
#![forbid(unsafe_code)]

use crate::strict::Source;
use crate::strict::record::Record;
use crate::strict::shared::Shared;
use percpu::tsc;
use std::fs;
use std::sync::Arc;

/// A view of one isolated thread.
pub struct Watched {
    shared: Arc<Shared>,
    cpu: usize,
}

impl Watched {
    pub(crate) fn new(shared: Arc<Shared>, cpu: usize) -> Self {
        Self { shared, cpu }
    }

    /// The CPU it stays on.
    pub fn cpu(&self) -> usize {
        self.cpu
    }

    /// Its thread number.
    pub fn tid(&self) -> i32 {
        self.shared.tid()
    }

    /// How many kernel entries of this kind were signalled.
    pub fn count(&self, source: Source) -> u64 {
        self.shared.counted(source)
    }

    /// Kernel entries that were allowed, and not signalled.
    pub fn allowed(&self) -> u64 {
        self.shared.allowed_entries()
    }

    /// Records that were counted and not kept, because the reader was behind.
    pub fn skipped(&self) -> u64 {
        self.shared.skipped_records()
    }

    /// Whether the thread was isolated at that time (time stamp counter).
    pub fn was_isolated(&self, at: u64) -> bool {
        self.shared.was_isolated(at)
    }

    /// The oldest record that was not taken yet.
    pub fn take_record(&self) -> Option<Record> {
        self.shared.ring.pop()
    }

    /// The debugger that is attached to the thread, by its process number; `None` where there is none.
    pub fn debugger(&self) -> Option<i32> {
        let status = fs::read_to_string(format!("/proc/self/task/{}/status", self.tid())).ok()?;
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim().parse().ok()?;
        (tracer != 0).then_some(tracer)
    }

    /// The CPU that the thread runs on, or ran on last; `None` where it has ended.
    pub(crate) fn runs_on(&self) -> Option<usize> {
        percpu::pin::processor_of(self.tid())
    }

    /// Ends the stay of a thread that was moved and got no signal; false where there is none to end.
    pub(crate) fn end_moved(&self) -> bool {
        self.was_isolated(tsc::now()) && self.shared.end_elsewhere(Source::Migration)
    }

    /// Lets everything through unsignalled while a debugger is attached, and signals again afterwards. False where the thread itself is just switching
    /// that: then to be tried again.
    pub fn suspend(&self, on: bool) -> bool {
        self.shared.suspend(on)
    }

    /// Whether it does.
    pub fn is_suspended(&self) -> bool {
        self.shared.is_suspended()
    }
}
