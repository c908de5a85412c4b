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
    use crate::{Depot, Shared};
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

    /// A slot with its items, and the shared part: what [`Stack`](crate::Stack) is made of.
    struct Whole {
        slot: Slot,
        items: [AtomicU32; 2],
        shared: Depot<u32>,
    }

    impl Whole {
        fn with(items: &[u32]) -> Self {
            let [first, second] = [0, 1].map(|at| AtomicU32::new(items.get(at).copied().unwrap_or(0)));
            Self {
                slot: Slot {
                    claim: Claim::default(),
                    len: AtomicU32::new(items.len() as u32),
                    epoch: Mutex::new(0),
                },
                items: [first, second],
                shared: Depot::new(3),
            }
        }

        /// Puts one item on the slot as a critical section does; false where the slot is full, claimed, or it was interrupted.
        fn push_in_section(&self, item: u32) -> bool {
            let began = *self.slot.epoch.lock().unwrap();
            if self.slot.claim.is_taken() {
                return false;
            }
            let len = self.slot.len.load(Ordering::Relaxed);
            let Some(place) = self.items.get(len as usize) else { return false };
            place.store(item, Ordering::Relaxed);
            let epoch = self.slot.epoch.lock().unwrap();
            if *epoch == began {
                self.slot.len.store(len + 1, Ordering::Relaxed);
            }
            *epoch == began
        }

        fn push(&self, item: u32) {
            if !self.push_in_section(item) {
                self.shared.give(&[item]);
            }
        }

        /// Where there are no sections: under a claim, or to the shared part.
        fn push_claimed(&self, item: u32) {
            let Ok(_claimed) = self.slot.claim.try_claim(|| Ok::<_, ()>(())) else {
                return self.shared.give(&[item]);
            };
            let len = self.slot.len.load(Ordering::Relaxed);
            match self.items.get(len as usize) {
                Some(place) => {
                    place.store(item, Ordering::Relaxed);
                    self.slot.len.store(len + 1, Ordering::Relaxed);
                }
                None => self.shared.give(&[item]),
            }
        }

        fn drain(&self, fence: bool) {
            let fence = || if fence { self.slot.fence() } else { Ok(()) };
            let Ok(_claimed) = self.slot.claim.try_claim(fence) else { return };
            self.shared.give(&self.in_slot());
            self.slot.len.store(0, Ordering::Relaxed);
        }

        fn in_slot(&self) -> Vec<u32> {
            let len = self.slot.len.load(Ordering::Relaxed) as usize;
            self.items[..len].iter().map(|item| item.load(Ordering::Relaxed)).collect()
        }

        /// Everything there is, once all threads have ended.
        fn all(&self) -> Vec<u32> {
            let mut all = [0; 4];
            let count = self.shared.take(&mut all);
            let mut all: Vec<u32> = all[..count].iter().copied().chain(self.in_slot()).collect();
            all.sort_unstable();
            all
        }
    }

    /// An owner pushes while another thread drains: each item is on the slot or in the shared part, with the value it was pushed with.
    fn pushes(fence: bool, push: fn(&Whole, u32)) {
        loom::model(move || {
            let whole = Arc::new(Whole::with(&[1]));
            let owner = thread::spawn({
                let whole = whole.clone();
                move || [2, 3].map(|item| push(&whole, item))
            });
            whole.drain(fence);
            owner.join().unwrap();
            assert_eq!(whole.all(), [1, 2, 3], "an item was lost, or was there twice");
        });
    }

    #[test]
    fn what_an_owner_pushes_during_a_drain_is_there_once() {
        pushes(true, Whole::push);
    }

    #[test]
    #[should_panic(expected = "there twice")]
    fn without_the_fence_a_pushed_item_would_be_lost() {
        pushes(false, Whole::push);
    }

    #[test]
    fn without_sections_the_claim_alone_keeps_every_item() {
        pushes(false, Whole::push_claimed);
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
