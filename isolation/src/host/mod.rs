//! What can disturb a worker on this machine, and how to change it and put it back.
//!
//! [`check`] reads every condition there is and changes nothing. [`prepare()`] changes what can be changed while the machine runs, after it has
//! written down all old values; [`restore`] puts them back, after a crash too. What only the kernel's command line changes, a check
//! names. `docs/isolation-host.md` explains each condition.
//!
//! All reads and writes go through a [`Host`], which tests point at a folder of their own.
#![forbid(unsafe_code)]

mod conditions;
mod error;
mod finding;
mod irq;
mod mask;
mod prepare;
mod report;
mod tree;
mod values;
mod workers;

pub use conditions::{CONDITIONS, Condition};
pub use error::HostError;
pub use finding::{BootWord, Finding, Mend, Verdict};
pub use prepare::{
    Change, Note, Options, Outcome, Plan, Restored, STAGES, Stage, StateFile, Undone, plan, prepare, restore,
};
pub use report::{Report, check};
pub use tree::{Host, Unread};
pub use workers::to_check;

#[cfg(test)]
mod tests;
