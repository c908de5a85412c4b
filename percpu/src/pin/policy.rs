//! What happens when an outsider changes a pinned thread's affinity.
#![forbid(unsafe_code)]

use super::Outsider;
use std::fmt;
use std::sync::Arc;

/// The caller's choice.
#[derive(Clone)]
pub enum Policy {
    /// [`Pinned::check`](super::Pinned::check) gives an error that the caller can act on, until it repins.
    Error,
    /// Called once a change, by the thread that noticed it, which may be another than the pinned one. It may repin only on the pinned
    /// thread.
    Callback(Arc<dyn Fn(&Outsider) + Send + Sync>),
    /// The thread gives up per-CPU data: [`has_given_up`](crate::rseq::has_given_up) is true from its next check on, and data structures
    /// take the path that all threads share.
    GiveUp,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "Error",
            Self::Callback(_) => "Callback",
            Self::GiveUp => "GiveUp",
        })
    }
}
