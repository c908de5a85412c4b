//! Tells of a worker that does not come round: what keeps it, where it is, and when it is back.

mod cause;
mod occupant;
mod sys;
mod thread;
mod watch;

pub(crate) use watch::Watchdog;
