//! Restartable sequences: a few instructions that the kernel starts over, or sends elsewhere, when it takes the CPU away in the middle.
//!
//! That makes a plain store as good as an atomic one among the threads of a CPU: whoever is interrupted before the last store has done
//! nothing. `registration` finds out whether a thread can have it, `thread` keeps where its area is, `section` has
//! the sequences themselves.

pub(crate) mod abi;
pub(crate) mod registration;
pub(crate) mod section;
mod sys;
pub(crate) mod thread;

pub use abi::CriticalSection;
pub use registration::{Registration, has_concurrency_ids, registration};
pub use section::critical_sections;
pub use thread::{area_address, attach, cpu_here, give_up, has_given_up, take_up_again};
