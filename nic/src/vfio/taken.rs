//! The devices that this process drives. VFIO lets one process open a device twice, and two drivers of one device would each write the other's rings.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

static TAKEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A device that is taken, by its address, until this is dropped.
pub(super) struct Taken(String);

impl Taken {
    /// `None` where it is taken already.
    pub(super) fn take(address: &str) -> Option<Self> {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(address.to_owned()).then(|| Self(address.to_owned()))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_taken_once_and_again_when_it_was_given_back() {
        let first = Taken::take("0000:ff:1f.7");
        assert!(
            first.is_some() && Taken::take("0000:ff:1f.7").is_none() && Taken::take("0000:ff:1f.6").is_some()
        );
        drop(first);
        assert!(Taken::take("0000:ff:1f.7").is_some());
    }
}
