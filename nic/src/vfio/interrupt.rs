//! The one interrupt that a driver has: it tells of the link. Queues have none, workers look at their rings.
//!
//! It is an MSI-X vector, counted in an eventfd that the control thread waits for ([`Nic::events`](super::nic::Nic::events)). A device without MSI-X, or one whose
//! interrupt cannot be kept from the workers' CPUs, is no worse: the control thread looks at the link some times a second in any case.
#![forbid(unsafe_code)]

use super::function::PciFunction;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Vector 0 of a function, if it is to be had.
pub(crate) struct LinkInterrupt(Option<OwnedFd>);

impl LinkInterrupt {
    /// Enables it. The device's own registers are still to be told.
    pub(crate) fn enable(function: &dyn PciFunction) -> Self {
        if function.msix_vectors() == 0 {
            return Self(None);
        }
        match function.enable_msix(1) {
            Ok(events) => Self(events.into_iter().next()),
            Err(error) => {
                tracing::debug!("no MSI-X, so the link is looked at from time to time: {error}");
                Self(None)
            }
        }
    }

    /// There is none any more.
    pub(crate) fn end(&mut self) {
        self.0 = None;
    }

    /// Whether there is one.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What it is counted in.
    pub(crate) fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}
