//! Staying on one CPU, and noticing when somebody else ends the stay.
//!
//! Anybody with the right to do so may change a thread's affinity at any time: `taskset`, a container manager that shrinks a
//! cpuset, CPU hot-unplug. A thread that relies on its CPU must learn of it, at two speeds. A *migration* is seen at once and
//! costs a few loads: [`Pinned::check`]. A mask that was *widened without a move* changes nothing that the thread could see:
//! only `sched_getaffinity(2)` tells. Since a worker makes no system calls, another thread asks for it: [`Watch::check`].
//!
//! What then happens is the caller's [`Policy`]: an error from the next check, a callback, or to give up per-CPU data for
//! good. Two more ways exist beside it: a signal at the moment of the migration ([`signal`]), and an error for the one who
//! tries to change the affinity ([`crate::veto`]).

mod guard;
mod outsider;
mod policy;
pub mod signal;
mod sys;
mod watch;

pub use guard::{PinError, Pinned, pin_on_cpu, pin_with_policy};
pub use outsider::Outsider;
pub use policy::Policy;
pub use watch::{Watch, processor_of};
