//! Staying on one CPU.
#![forbid(unsafe_code)]

use crate::{CpuList, Topology, sys};
use std::io;
use std::marker::PhantomData;
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

/// A thread's stay on one CPU. Dropped (on that thread), it gives the affinity mask back that was there before.
#[must_use = "the thread leaves the CPU when this is dropped"]
#[derive(Debug)]
pub struct Pinned {
    before: CpuList,
    /// The mask belongs to the thread that was pinned: the guard must not leave it.
    _not_send: PhantomData<*const ()>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Fails only where the cpuset has shrunk to none of these; then there is nothing to go back to.
        let _ = sys::set_affinity(&self.before);
    }
}

/// Binds the calling thread to `cpu` for as long as the guard lives.
///
/// A CPU outside the thread's present affinity mask is refused even where the kernel would
/// allow it: whoever started us with that mask meant it.
pub fn pin_on_cpu(cpu: usize) -> Result<Pinned, PinError> {
    let topology = Topology::read().map_err(|source| PinError::Refused { cpu, source })?;
    if let Some(why) = topology.why_unusable(cpu) {
        return Err(PinError::Unusable(why));
    }
    let one = CpuList::from_iter([cpu]);
    sys::set_affinity(&one).map_err(|source| PinError::Refused { cpu, source })?;
    Ok(Pinned { before: topology.allowed, _not_send: PhantomData })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinning_binds_refuses_others_and_ends_with_the_guard() {
        let before = Topology::read().unwrap();
        let cpu = before.allowed.iter().last().unwrap();
        let pinned = pin_on_cpu(cpu).unwrap();
        let after = Topology::read().unwrap();
        assert_eq!(after.allowed.iter().collect::<Vec<_>>(), [cpu]);
        assert!(matches!(pin_on_cpu(cpu + 1), Err(PinError::Unusable(_))));
        drop(pinned);
        assert_eq!(Topology::read().unwrap().allowed, before.allowed);
    }
}
