//! Who or what took the CPU from a worker, and from when to when: the kernel's trace events, read from another CPU.
//!
//! Each CPU has a ring of its own, which the kernel writes and which is only looked at: nobody is woken, and nothing on a worker's
//! CPU is asked for. Opening the events interrupts every CPU once, so that is done before workers are isolated. A signal tells a worker at once
//! that the kernel was entered; what is here tells afterwards why.

mod event;
mod interruption;
mod names;
mod ring;
mod switches;
mod symbols;
mod sys;
mod traced;
mod tracker;

pub use interruption::{Cause, Interruption, Sender, Totals};
pub use ring::Peek;
pub use switches::{Switch, SwitchKind, Switches};
pub use symbols::KernelSymbols;
pub use traced::{Trace, TraceError};
