//! Which CPU am I on, which may I use, how do I stay there, and how do I have data of its own for it.
//!
//! The lowest layer of Isoplane: it knows CPUs, the time stamp counter and BPF programs, and nothing of packets. `docs/percpu.md` tells in ten minutes how its
//! per-CPU data works; `examples/requests.rs` uses it.
//!
//! `unsafe` is in the modules that touch memory several threads write (`counter`, `depot`, `log`, `qsbr::published`, `rseq::section`, `rseq::thread`, `slots`, `stack`), or ask
//! the kernel or the CPU (`bpf::sys`, `membarrier`, `pin::sys`, `rseq::sys`, `sys`, `tsc`); every other forbids it.

pub mod bpf;
mod claim;
pub mod counter;
pub mod cpu_list;
pub mod depot;
pub mod isolated;
pub mod log;
mod membarrier;
pub mod per_cpu;
pub mod pin;
pub mod qsbr;
pub mod rseq;
pub mod slots;
pub mod stack;
mod sync;
mod sys;
pub mod topology;
pub mod tsc;
pub mod veto;

pub use counter::{Counter, Counters};
pub use cpu_list::CpuList;
pub use depot::{Depot, Shared};
pub use isolated::{IsolatedMark, is_isolated, mark_isolated};
pub use log::{Log, LogError};
pub use per_cpu::PerCpu;
pub use pin::{PinError, Pinned, pin_on_cpu};
pub use slots::Indexing;
pub use stack::{Drained, Item, Stack};
pub use topology::Topology;

/// The guide's programs, so that they run.
#[cfg(doctest)]
#[doc = include_str!("../../docs/percpu.md")]
struct Guide;
