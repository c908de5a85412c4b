//! What took the CPU from a worker: the finding, as plain data.
#![forbid(unsafe_code)]

use crate::vectors::VECTORS;
use std::fmt;

/// Who or what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An interrupt of the CPU's own or from another CPU, by its vector.
    Vector(&'static str),
    /// A device's interrupt.
    Irq {
        /// Its number, as in `/proc/interrupts`.
        irq: i32,
        /// What its driver calls it.
        name: String,
    },
    /// Work that an interrupt left to be done before the thread goes on.
    Softirq(&'static str),
    /// A non-maskable interrupt.
    Nmi,
    /// Another task had the CPU.
    Task {
        /// Its thread number.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// The thread itself waited for something in the kernel.
    Blocked,
    /// Another task; which one cannot be known without privilege.
    Preempted,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vector(name) => write!(f, "irq:{name}"),
            Self::Irq { name, .. } => write!(f, "irq:{name}"),
            Self::Softirq(name) => write!(f, "softirq:{name}"),
            Self::Nmi => f.write_str("nmi"),
            Self::Task { comm, .. } => write!(f, "task:{comm}"),
            Self::Blocked => f.write_str("blocked"),
            Self::Preempted => f.write_str("task:unknown"),
        }
    }
}

/// Who sent an interrupt from another CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The CPU it came from.
    pub cpu: usize,
    /// The thread that ran there.
    pub tid: i32,
    /// Its name, where it still lives.
    pub comm: String,
    /// The kernel's function that sent it.
    pub callsite: u64,
    /// The function to be run, 0 for a plain reschedule.
    pub callback: u64,
    /// The sender's kernel stack, innermost first.
    pub stack: Vec<u64>,
}

/// A stretch of time in which the kernel, or another task, had a worker's CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interruption {
    /// CLOCK_MONOTONIC.
    pub start_ns: u64,
    /// The same.
    pub end_ns: u64,
    /// What it was, or what took longest of it.
    pub cause: Cause,
    /// What else happened in it, in order.
    pub also: Vec<Cause>,
    /// The functions that a work queue's thread ran.
    pub work: Vec<u64>,
    /// The kernel's stack, innermost first.
    pub stack: Vec<u64>,
    /// Where an interrupt came from another CPU.
    pub sender: Option<Sender>,
}

impl Interruption {
    /// How long it was.
    pub fn duration_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }
}

/// What happened on a CPU while it was looked at, whomever it hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Interrupts: vectors and devices' handlers.
    pub irqs: u64,
    /// Soft interrupts.
    pub softirqs: u64,
    /// Times that a task other than the worker got the CPU, idling apart.
    pub threads: u64,
    /// Records that the kernel had no room for.
    pub lost: u64,
}

pub(super) fn vector(index: usize) -> Cause {
    Cause::Vector(VECTORS.get(index).copied().unwrap_or("unknown"))
}
