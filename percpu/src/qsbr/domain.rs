//! Who reads, and since when: each reader's last quiescent state, and what has to wait for it.
//!
//! Time is counted in replacements. A reader writes down the count it saw at its last quiescent state; what was replaced at count n is out of use
//! when every reader that is within a turn has seen n.
#![forbid(unsafe_code)]

use crate::sync::{AtomicU64, Mutex, Ordering, fence};
use std::fmt;
use std::ops::DerefMut;
use std::sync::atomic::AtomicU64 as PlainU64;
use std::sync::{Arc, LockResult, Mutex as PlainMutex, PoisonError, Weak};

/// What a reader has seen that is in no turn.
const OUTSIDE: u64 = u64::MAX;

/// An atomic with the two lines that a CPU fetches together.
#[repr(align(128))]
struct Line(AtomicU64);

/// One reader's own line.
struct Slot {
    seen: Line,
    /// What its owner calls it.
    name: usize,
}

/// Old tables of one place, to be freed when their time has come.
pub(super) trait Retired: Send + Sync {
    /// Frees what is out of use, and gives what is left: how many, and when the oldest was replaced.
    fn collect(&self) -> Option<(usize, u64)>;
}

/// Readers and the tables they read: a table waits for the readers of its own domain, and can be read by no other.
pub struct Domain {
    /// How many tables have been replaced. Read by all readers at each quiescent state.
    replaced: Line,
    id: u64,
    readers: Mutex<Vec<Arc<Slot>>>,
    tables: PlainMutex<Vec<Weak<dyn Retired>>>,
}

/// Old tables that cannot be freed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// How many.
    pub tables: usize,
    /// A reader that has not had a quiescent state since the oldest was replaced, by the name it was given; `None` where it just had.
    pub by: Option<usize>,
}

/// A thread's leave to read the tables of a domain, within the turns of its loop.
///
/// It begins outside: nothing can be read, and nothing waits for it.
pub struct Reader {
    domain: Arc<Domain>,
    slot: Arc<Slot>,
    /// The domain's number while it may read, else 0, which is no domain's.
    of: u64,
}

/// What a mutex guards: nothing here panics half-way.
fn locked<G: DerefMut>(lock: LockResult<G>) -> G {
    lock.unwrap_or_else(PoisonError::into_inner)
}

impl Domain {
    /// One without readers.
    pub fn new() -> Arc<Self> {
        static DOMAINS: PlainU64 = PlainU64::new(1);
        Arc::new(Self {
            replaced: Line(AtomicU64::new(0)),
            id: DOMAINS.fetch_add(1, Ordering::Relaxed),
            readers: Mutex::new(Vec::new()),
            tables: PlainMutex::default(),
        })
    }

    /// A new reader, outside. The name is for messages.
    pub fn reader(self: &Arc<Self>, name: usize) -> Reader {
        let slot = Arc::new(Slot { seen: Line(AtomicU64::new(OUTSIDE)), name });
        locked(self.readers.lock()).push(Arc::clone(&slot));
        Reader { domain: Arc::clone(self), slot, of: 0 }
    }

    /// Whether any reader of this name is within its turns.
    pub fn is_inside(&self, name: usize) -> bool {
        locked(self.readers.lock())
            .iter()
            .any(|slot| slot.name == name && slot.seen.0.load(Ordering::Relaxed) != OUTSIDE)
    }

    /// Frees the old tables of all places that nobody can be reading any more; says what cannot be freed yet.
    ///
    /// To be called now and then: a table that is never replaced again is freed here.
    pub fn collect(&self) -> Option<Held> {
        let tables: Vec<Arc<dyn Retired>> = {
            let mut tables = locked(self.tables.lock());
            tables.retain(|table| table.strong_count() > 0);
            tables.iter().filter_map(Weak::upgrade).collect()
        };
        let held: Vec<(usize, u64)> = tables.iter().filter_map(|table| table.collect()).collect();
        let oldest = held.iter().map(|(_, since)| *since).min()?;
        Some(Held { tables: held.iter().map(|(count, _)| count).sum(), by: self.holder(oldest) })
    }

    pub(super) fn adopt(&self, table: Weak<dyn Retired>) {
        locked(self.tables.lock()).push(table);
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Something was taken from where readers find it. Gives the count that all have to see before it may be freed.
    pub(super) fn advance(&self) -> u64 {
        // Release: who sees the count sees that it was taken.
        let count = self.replaced.0.fetch_add(1, Ordering::AcqRel) + 1;
        // Pairs with that of `begin`: a reader that is taken for outside after this finds what is there now.
        fence(Ordering::SeqCst);
        count
    }

    /// A reader that has not seen this count, by its name; `None` when all have, and what was taken then is out of use.
    pub(super) fn holder(&self, count: u64) -> Option<usize> {
        // Acquire: what a reader read is read before it is freed.
        locked(self.readers.lock())
            .iter()
            .find(|slot| slot.seen.0.load(Ordering::Acquire) < count)
            .map(|slot| slot.name)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Domain").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Reader {
    /// The first turn begins: from now on tables can be read, and wait for the quiescent states.
    pub fn begin(&mut self) {
        // Release: what was read before an `end` is read, also for who finds this and not the end.
        self.slot.seen.0.store(self.domain.replaced.0.load(Ordering::Acquire), Ordering::Release);
        // Either whoever replaces a table sees that this reader is inside, or this reader sees the new table.
        fence(Ordering::SeqCst);
        self.of = self.domain.id;
    }

    /// A turn has ended and the next begins: nothing that was read is held any more. One load and one store, and no lock or fence.
    #[inline(always)]
    pub fn quiescent(&mut self) {
        debug_assert_ne!(self.of, 0, "outside there are no turns");
        // Acquire: a count that is seen comes with the tables that were new then. Release: what was read before is read.
        self.slot.seen.0.store(self.domain.replaced.0.load(Ordering::Acquire), Ordering::Release);
    }

    /// The last turn has ended: nothing waits for this reader any more.
    pub fn end(&mut self) {
        self.of = 0;
        self.slot.seen.0.store(OUTSIDE, Ordering::Release);
    }

    /// The number of the domain whose tables it may read now.
    #[inline(always)]
    pub(super) fn of(&self) -> u64 {
        self.of
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end();
        locked(self.domain.readers.lock()).retain(|slot| !Arc::ptr_eq(slot, &self.slot));
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Reader").field("name", &self.slot.name).field("of", &self.of).finish()
    }
}
