//! Working on a slot from outside: claim it, make sure that nobody is inside, work, let go.
//!
//! The slot's own threads look up its address inside their critical section. Who has the claim diverts them: they find the address of a slot that
//! refuses everything, and go to the shared path; they never wait. That alone is not enough, for a section may have looked just
//! before. The fence (membarrier with `PRIVATE_EXPEDITED_RSEQ`) is: when it returns, every section that began before it has stored its last word or
//! never will, and what it stored is visible here.
//!
//! Where there is no rseq the claim alone is what every operation works under, for no section can be inside.
#![forbid(unsafe_code)]

use crate::sync::{AtomicU32, AtomicUsize, Ordering};

/// The claim on one slot; all zeroes is free.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Claim(AtomicU32);

impl Default for Claim {
    fn default() -> Self {
        Self(AtomicU32::new(0))
    }
}

/// The right to work on a slot; dropping it gives the slot back, after what its fence has set up.
#[derive(Debug)]
pub(crate) struct Claimed<'a, F = ()> {
    // Fields are dropped in this order.
    _fenced: F,
    _release: Release<'a>,
}

#[derive(Debug)]
struct Release<'a>(&'a Claim);

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
    pub(crate) fn try_claim<F, E>(
        &self,
        fence: impl FnOnce() -> Result<F, E>,
    ) -> Result<Claimed<'_, F>, Unclaimed<E>> {
        // Acquire: what the last one did to the slot under its claim.
        self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).map_err(|_| Unclaimed::Busy)?;
        let _release = Release(self);
        let _fenced = fence().map_err(Unclaimed::Refused)?;
        Ok(Claimed { _fenced, _release })
    }
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        // Release: who claims it next sees what was done to the slot.
        self.0.0.store(0, Ordering::Release);
    }
}

/// A word that sections read: of a slot, its address.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Word(AtomicUsize);

impl Word {
    pub(crate) fn new(value: usize) -> Self {
        Self(AtomicUsize::new(value))
    }

    /// Shows sections another address from now on, until dropped. For the one who has the slot's claim.
    pub(crate) fn divert(&self, address: usize) -> Diverted<'_> {
        // SeqCst: it is there before the fence.
        Diverted { word: self, own: self.0.swap(address, Ordering::SeqCst) }
    }

    /// As a section reads it.
    #[cfg(loom)]
    fn read(&self) -> usize {
        // Acquire, as every load of x86 is.
        self.0.load(Ordering::Acquire)
    }
}

/// See [`Word::divert`].
#[derive(Debug)]
pub(crate) struct Diverted<'a> {
    word: &'a Word,
    own: usize,
}

impl Drop for Diverted<'_> {
    fn drop(&mut self) {
        // Release: a section that finds the slot again sees what was done to it.
        self.word.0.store(self.own, Ordering::Release);
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
        /// 1, unless sections are diverted.
        word: Word,
        len: AtomicU32,
        epoch: Mutex<u32>,
    }

    impl Slot {
        fn of(len: u32) -> Self {
            Self {
                claim: Claim::default(),
                word: Word::new(1),
                len: AtomicU32::new(len),
                epoch: Mutex::new(0),
            }
        }

        /// Takes one item as a critical section does; `None` where the slot is empty, claimed, or it was interrupted.
        fn pop(&self) -> Option<u32> {
            let began = *self.epoch.lock().unwrap();
            if self.word.read() != 1 {
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

        /// What is done between the claim and the work; `true` is as it should be.
        fn fence(&self, whole: bool) -> Result<Diverted<'_>, ()> {
            let diverted = self.word.divert(0);
            if whole {
                *self.epoch.lock().unwrap() += 1;
            }
            Ok(diverted)
        }

        /// Takes all items from outside.
        fn drain(&self, fence: bool) -> u32 {
            let Ok(_claimed) = self.claim.try_claim(|| self.fence(fence)) else { return 0 };
            let len = self.len.load(Ordering::Relaxed);
            self.len.store(0, Ordering::Relaxed);
            len
        }
    }

    fn model(fence: bool, pops: u32, other_drains: bool) {
        loom::model(move || {
            let slot = Arc::new(Slot::of(2));
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
            Self { slot: Slot::of(items.len() as u32), items: [first, second], shared: Depot::new(3) }
        }

        /// Puts one item on the slot as a critical section does; false where the slot is full, claimed, or it was interrupted.
        fn push_in_section(&self, item: u32) -> bool {
            let began = *self.slot.epoch.lock().unwrap();
            if self.slot.word.read() != 1 {
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
            let Ok(_claimed) = self.slot.claim.try_claim(|| self.slot.fence(fence)) else { return };
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
