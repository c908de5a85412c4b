//! Keeping the kernel away from worker CPUs, and proving it.
//!
//! [`prepare`] and [`Prepared::enter`] put a pinned thread into isolation: whenever the kernel is entered on its behalf or at its cost, a
//! signal handler writes down what it was ([`strict`]). Another thread reads that through [`Watched`], and [`trace`] adds who or what it was,
//! from when to when. It knows CPUs and threads, and nothing of packets.
//!
//! `unsafe` is in `sys`, and in the parts of `strict` and `trace` that are signal handlers or rings.

mod clock;
mod gaps;
pub mod host;
mod kernel;
pub mod memory;
pub mod observer;
mod quiet;
pub mod strict;
mod sys;
pub mod trace;
pub mod tracefs;
pub mod user_stack;
mod vectors;
mod watched;

pub use gaps::{Gap, Unexplained};
pub use kernel::KernelIsolation;
pub use observer::{Observer, Violation};
pub use quiet::timer_interrupts;
pub use strict::{
    Config, Isolated, Mode, Prepared, Refusal, Signals, Source, Strictness, Turn, Window, prepare,
};
pub use watched::Watched;

/// The guide's program, so that it compiles.
#[cfg(doctest)]
#[doc = include_str!("../../docs/isolation.md")]
struct Guide;
