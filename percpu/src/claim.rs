//! Working on a slot from outside: claim it, make sure that nobody is inside, work, let go.
//!
//! The slot's own threads look at the claim inside their critical section and go to the shared path while there is one: they never wait.
//! A claim alone is not enough, for a section may have looked just before. The fence (membarrier with `PRIVATE_EXPEDITED_RSEQ`) is: when it
//! returns, every section that began before it has stored its last word or never will, and what it stored is visible here.
//!
//! Where there is no rseq the claim alone is what every operation works under, for no section can be inside.
#![forbid(unsafe_code)]

use crate::sync::{AtomicU32, Ordering};

/// The claim on one slot; all zeroes is free.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Claim(AtomicU32);

impl Default for Claim {
    fn default() -> Self {
        Self(AtomicU32::new(0))
    }
}

/// The right to work on a slot; dropping it gives the slot back.
#[derive(Debug)]
pub(crate) struct Claimed<'a>(&'a Claim);

/// Why there is no such right.
#[derive(Debug)]
pub(crate) enum Unclaimed<E> {
    /// Somebody else has it.
    Busy,
    /// The fence failed.
    Refused(E),
}

impl Claim {
    /// Takes the slot. Never waits for another claim.
    pub(crate) fn try_claim<E>(
        &self,
        fence: impl FnOnce() -> Result<(), E>,
    ) -> Result<Claimed<'_>, Unclaimed<E>> {
        // Acquire: what the last one did to the slot under its claim. SeqCst: the claim is visible before the fence.
        self.0.compare_exchange(0, 1, Ordering::SeqCst, Ordering::Relaxed).map_err(|_| Unclaimed::Busy)?;
        let claimed = Claimed(self);
        fence().map_err(Unclaimed::Refused)?;
        Ok(claimed)
    }

    /// Whether somebody has it, as a section sees it.
    #[cfg(loom)]
    pub(crate) fn is_taken(&self) -> bool {
        // Acquire, as every load of x86 is.
        self.0.load(Ordering::Acquire) != 0
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        // Release: a section that sees the slot free sees what was done to it.
        self.0.0.store(0, Ordering::Release);
    }
}

#[cfg(all(test, loom))]
mod tests {
    use super::*;
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    /// A slot as the kernel lets it be used: `epoch` is what membarrier moves on, and a section's last store goes through only in the
    /// epoch it began in. The lock makes that test and that store one, as the kernel does; the rest of a section is not under it.
    struct Slot {
        claim: Claim,
        len: AtomicU32,
        epoch: Mutex<u32>,
    }

    impl Slot {
        /// Takes one item as a critical section does; `None` where the slot is empty, claimed, or it was interrupted.
        fn pop(&self) -> Option<u32> {
            let began = *self.epoch.lock().unwrap();
            if self.claim.is_taken() {
                return None;
            }
            let len = self.len.load(Ordering::Relaxed);
            let left = len.checked_sub(1)?;
            let epoch = self.epoch.lock().unwrap();
            if *epoch != began {
                return None;
            }
            self.len.store(left, Ordering::Relaxed);
            Some(left)
        }

        fn fence(&self) -> Result<(), ()> {
            *self.epoch.lock().unwrap() += 1;
            Ok(())
        }

        /// Takes all items from outside.
        fn drain(&self, fence: bool) -> u32 {
            let fence = || if fence { self.fence() } else { Ok(()) };
            let Ok(_claimed) = self.claim.try_claim(fence) else { return 0 };
            let len = self.len.load(Ordering::Relaxed);
            self.len.store(0, Ordering::Relaxed);
            len
        }
    }

    fn model(fence: bool, pops: u32, other_drains: bool) {
        loom::model(move || {
            let slot =
                Arc::new(Slot { claim: Claim::default(), len: AtomicU32::new(2), epoch: Mutex::new(0) });
            let owner = thread::spawn({
                let slot = slot.clone();
                move || (0..pops).map(|_| u32::from(slot.pop().is_some())).sum::<u32>()
            });
            let other = other_drains.then(|| {
                let slot = slot.clone();
                thread::spawn(move || slot.drain(fence))
            });
            let drained = slot.drain(fence) + other.map_or(0, |other| other.join().unwrap());
            let taken = owner.join().unwrap() + drained;
            assert_eq!(taken + slot.len.load(Ordering::Relaxed), 2, "an item was lost, or was there twice");
        });
    }

    #[test]
    fn no_item_is_lost_between_an_owner_and_a_drain() {
        model(true, 3, false);
    }

    #[test]
    fn no_item_is_lost_between_an_owner_and_two_drains() {
        model(true, 1, true);
    }

    #[test]
    #[should_panic(expected = "there twice")]
    fn without_the_fence_one_would_be() {
        model(false, 1, false);
    }
}
