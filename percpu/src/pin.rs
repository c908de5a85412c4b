//! Staying on one CPU.
#![forbid(unsafe_code)]

use crate::{Topology, sys};
use std::io;
use thiserror::Error;

/// Why a thread could not be pinned.
#[derive(Debug, Error)]
pub enum PinError {
    /// The CPU cannot be used by this process; the text says why and what to do.
    #[error("{0}")]
    Unusable(String),
    /// The kernel refused for another reason.
    #[error("cannot pin to CPU {cpu}: {source}")]
    Refused {
        /// The CPU asked for.
        cpu: usize,
        /// The errno of `sched_setaffinity(2)`.
        source: io::Error,
    },
}

/// Binds the calling thread to `cpu` until it is bound elsewhere.
///
/// A CPU outside the thread's present affinity mask is refused even where the kernel would
/// allow it: whoever started us with that mask meant it.
pub fn pin_current_thread(cpu: usize) -> Result<(), PinError> {
    let topology = Topology::read().map_err(|source| PinError::Refused { cpu, source })?;
    if let Some(why) = topology.why_unusable(cpu) {
        return Err(PinError::Unusable(why));
    }
    sys::set_affinity(cpu).map_err(|source| PinError::Refused { cpu, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinning_binds_and_then_refuses_others() {
        let before = Topology::read().unwrap();
        let cpu = before.allowed.iter().last().unwrap();
        pin_current_thread(cpu).unwrap();
        let after = Topology::read().unwrap();
        assert_eq!(after.allowed.iter().collect::<Vec<_>>(), [cpu]);
        assert!(matches!(pin_current_thread(cpu + 1), Err(PinError::Unusable(_))));
    }
}
