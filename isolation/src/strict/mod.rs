//! Strict mode: a thread that is signalled when it enters the kernel.
//!
//! System calls are trapped by Syscall User Dispatch and come as SIGSYS; page faults, interrupts, preemption and migration are perf events
//! that send SIGTRAP. A handler writes down what happened, lets it happen, and the thread goes on, or learns at its next turn that its
//! isolation has ended. `docs/isolation.md` tells the whole story.

#[cfg(target_arch = "x86_64")]
mod dispatch;
mod guard;
#[cfg(target_arch = "x86_64")]
mod handler;
#[cfg(not(target_arch = "x86_64"))]
#[path = "handler_elsewhere.rs"]
mod handler;
pub(crate) mod record;
mod refusal;
pub(crate) mod shared;
mod source;
#[cfg(target_arch = "x86_64")]
mod stub;
mod sys;
mod traps;

pub use guard::{Config, Isolated, Mode, Prepared, Strictness, Turn, Window, prepare};
pub use record::Record;
pub use refusal::Refusal;
pub use source::{Signals, Source};
pub use traps::TrapError;
