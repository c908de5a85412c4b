//! The books on the frames that one queue has given to the kernel.
//!
//! An address on a ring is only a number until the ledger turns it back into the [`Frame`] that we gave away under it. A
//! number we did not give, or gave and got back already, is nothing: a kernel or a device gone wrong cannot make us use
//! a frame twice, or one of somebody else.
#![forbid(unsafe_code)]

use crate::memory::{Frame, Pool};
use std::mem;

/// Frames that are with the kernel, by their number, each with a note.
pub(super) struct Ledger<Note> {
    entries: Vec<Option<(Frame, Note)>>,
    len: usize,
    pool: u32,
    frame_shift: u32,
}

impl<Note> Ledger<Note> {
    /// An empty ledger for frames of `pool`.
    pub(super) fn new(pool: &Pool) -> Self {
        Self {
            entries: (0..pool.frames()).map(|_| None).collect(),
            len: 0,
            pool: pool.number(),
            frame_shift: pool.frame_size().trailing_zeros(),
        }
    }

    /// A ledger that takes no frame: what is left where a ledger was taken away.
    pub(super) fn closed() -> Self {
        Self { entries: Vec::new(), len: 0, pool: u32::MAX, frame_shift: 0 }
    }

    /// How many frames are with the kernel.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Enters a frame of the ledger's pool and returns the address of its first byte in the UMEM; gives back one of
    /// another pool.
    #[inline(always)]
    pub(super) fn enter(&mut self, frame: Frame, note: Note) -> Result<u64, Frame> {
        let address = frame.region_offset();
        if frame.pool_number() != self.pool {
            return Err(frame);
        }
        let Some(entry) = self.entries.get_mut((address >> self.frame_shift) as usize) else {
            return Err(frame);
        };
        let before = entry.replace((frame, note));
        debug_assert!(before.is_none(), "a frame that is with the kernel was entered again");
        // A frame exists once, so there was none; and this may run where nothing must be freed (`Pool::allocate_frames`).
        mem::forget(before);
        self.len += 1;
        Ok(address)
    }

    /// Takes the frame back that `address` lies in, with its note and the address's offset in it; `None` where it is not
    /// with the kernel.
    #[inline(always)]
    pub(super) fn settle(&mut self, address: u64) -> Option<(Frame, Note, usize)> {
        let index = usize::try_from(address >> self.frame_shift).ok()?;
        let (frame, note) = self.entries.get_mut(index)?.take()?;
        self.len -= 1;
        Some((frame, note, (address & ((1 << self.frame_shift) - 1)) as usize))
    }

    /// Looks at the notes of all that are with the kernel.
    pub(super) fn for_each_note(&self, mut each: impl FnMut(&Note)) {
        self.entries.iter().flatten().for_each(|(_, note)| each(note));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PoolConfig;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn property_only_what_was_entered_comes_back_and_once(
            entered in 1_usize..64,
            addresses in proptest::collection::vec(
                prop_oneof![any::<u64>(), 0_u64..1 << 18], 0..300),
        ) {
            let pool = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
            let mut ledger = Ledger::new(&pool);
            let mut model = std::collections::HashSet::new();
            for note in 0..entered {
                model.insert(ledger.enter(pool.allocate_frame().unwrap(), note).unwrap());
            }
            for address in addresses {
                let base = address & !2047;
                match ledger.settle(address) {
                    None => prop_assert!(!model.contains(&base)),
                    Some((frame, _, offset)) => {
                        prop_assert!(model.remove(&base));
                        prop_assert_eq!(frame.region_offset() + offset as u64, address);
                    }
                }
                prop_assert_eq!(ledger.len(), model.len());
                prop_assert_eq!(pool.audit().held, model.len());
            }
            drop(ledger);
            prop_assert_eq!(pool.audit().held, 0);
        }
    }

    #[test]
    fn a_frame_of_another_pool_is_given_back() {
        let config = PoolConfig { frames: 64, ..PoolConfig::default() };
        let (ours, other) = (Pool::new(&config).unwrap(), Pool::new(&config).unwrap());
        let mut ledger = Ledger::new(&ours);
        assert!(ledger.enter(other.allocate_frame().unwrap(), ()).is_err());
        assert_eq!((ledger.len(), other.audit().held), (0, 0));
    }
}
