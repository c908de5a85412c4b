//! The guard of a pinned thread.
#![forbid(unsafe_code)]

use super::watch::Stay;
use super::{Outsider, Policy, Watch};
use crate::topology::Unusable;
use crate::veto::{Protection, Veto, VetoError};
use crate::{CpuList, Topology, rseq, sys};
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use thiserror::Error;

/// Why a thread could not be pinned.
#[derive(Debug, Error)]
pub enum PinError {
    /// The CPU cannot be used by this process.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The kernel refused for another reason.
    #[error("cannot pin to CPU {cpu}: {source}")]
    Refused {
        /// The CPU asked for.
        cpu: usize,
        /// The errno of `sched_setaffinity(2)`.
        source: io::Error,
    },
}

/// A thread's stay on one CPU.
///
/// Dropped (on that thread), it gives the affinity mask back that was there before; a mask that somebody else has
/// set meanwhile stays.
#[must_use = "the thread leaves the CPU when this is dropped"]
#[derive(Debug)]
pub struct Pinned {
    stay: Arc<Stay>,
    before: CpuList,
    protection: Option<Protection>,
    /// The mask belongs to the thread that was pinned: the guard must not leave it.
    _not_send: PhantomData<*const ()>,
}

/// Binds the calling thread to `cpu` for as long as the guard lives, with [`Policy::Error`].
///
/// A CPU outside the thread's present affinity mask is refused even where the kernel would
/// allow it: whoever started us with that mask meant it.
pub fn pin_on_cpu(cpu: usize) -> Result<Pinned, PinError> {
    pin_with_policy(cpu, Policy::Error)
}

/// Like [`pin_on_cpu`], with another policy for an outsider's change.
pub fn pin_with_policy(cpu: usize, policy: Policy) -> Result<Pinned, PinError> {
    let topology = Topology::read().map_err(|source| PinError::Refused { cpu, source })?;
    if let Some(why) = topology.why_unusable(cpu) {
        return Err(why.into());
    }
    bind(cpu)?;
    rseq::take_up_again();
    let stay = Arc::new(Stay::new(nix::unistd::gettid().as_raw(), cpu, policy));
    Ok(Pinned { stay, before: topology.allowed, protection: None, _not_send: PhantomData })
}

/// The kernel says EINVAL for a CPU that went off line or out of the cpuset meanwhile: says which.
fn bind(cpu: usize) -> Result<(), PinError> {
    sys::set_affinity(&CpuList::from_iter([cpu])).map_err(|source| {
        match Topology::read().ok().and_then(|topology| topology.why_unusable(cpu)) {
            Some(
                why @ (Unusable::Missing { .. } | Unusable::Offline { .. } | Unusable::OutsideCpuset { .. }),
            ) => PinError::Unusable(why),
            _ => PinError::Refused { cpu, source },
        }
    })
}

impl Pinned {
    /// The CPU that the thread was pinned to.
    pub fn cpu(&self) -> usize {
        self.stay.cpu
    }

    /// Is the thread still where it was pinned? Costs a few loads as long as it is.
    ///
    /// Sees every migration, and what a full check has found, by whichever thread. With [`Policy::Error`] the error comes back
    /// until [`Pinned::repin`]; with the other policies there is none.
    ///
    /// It is as true as anything about CPUs can be: the thread may be moved right after. What must not be torn by a migration belongs into an
    /// rseq critical section; this check is for what is slow, or wrong in a way that matters, elsewhere.
    #[inline]
    pub fn check(&self) -> Result<(), Outsider> {
        let here = sys::current_cpu();
        if here == Some(self.stay.cpu) && self.stay.is_undisturbed() {
            return Ok(());
        }
        self.stay.moved(here);
        self.verdict()
    }

    /// [`Pinned::check`], and asks the kernel for the mask: one system call.
    pub fn check_fully(&self) -> Result<(), Outsider> {
        self.stay.look_from_inside();
        self.verdict()
    }

    #[cold]
    fn verdict(&self) -> Result<(), Outsider> {
        match self.stay.policy {
            Policy::Error => self.stay.finding().map_or(Ok(()), Err),
            Policy::Callback(_) => Ok(()),
            Policy::GiveUp => {
                if self.given_up() {
                    rseq::give_up();
                }
                Ok(())
            }
        }
    }

    /// True where the policy is [`Policy::GiveUp`] and an outsider's change was noticed, by this thread or another.
    ///
    /// [`rseq::has_given_up`] says the same to the thread's own code from its next check on.
    pub fn given_up(&self) -> bool {
        self.stay.given_up()
    }

    /// How many changes from outside were noticed.
    pub fn changes(&self) -> u64 {
        self.stay.changes()
    }

    /// For another thread to look after this one: full checks without a system call here.
    pub fn watch(&self) -> Watch {
        Watch::new(Arc::clone(&self.stay))
    }

    /// Goes back to the CPU after an outsider's change, and begins anew: nothing found, nothing given up.
    ///
    /// Fails where the CPU has gone off line or left the cpuset; then all stays as it is.
    pub fn repin(&self) -> Result<(), PinError> {
        self.stay.begin_anew(|| bind(self.stay.cpu))?;
        rseq::take_up_again();
        Ok(())
    }

    /// From now on, until the guard is dropped, other processes get EPERM when they try to change this thread's affinity. See
    /// [`crate::veto`] for what that takes and covers.
    pub fn forbid_outsiders(&mut self, veto: &Veto) -> Result<(), VetoError> {
        // Twice by the same one is once: there is one entry a thread, which the first protection would take along when it goes.
        if self.protection.as_ref().is_some_and(|protection| protection.is_by(veto)) {
            return Ok(());
        }
        self.protection = Some(veto.protect(self.stay.tid)?);
        Ok(())
    }

    /// How often an outsider was refused, where [`Pinned::forbid_outsiders`] was called.
    pub fn refused(&self) -> u64 {
        self.protection.as_ref().map_or(0, Protection::refused)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Before the mask changes, so that nobody takes this for an outsider.
        self.stay.end();
        self.protection = None;
        if sys::get_affinity().is_ok_and(|mask| mask == CpuList::from_iter([self.stay.cpu])) {
            // Fails only where the cpuset has shrunk to none of these; then there is nothing to go back to.
            let _ = sys::set_affinity(&self.before);
        }
    }
}

#[cfg(test)]
mod tests;
