//! A table that can be replaced while it is read.
//!
//! Readers find it by one pointer. Whoever replaces it puts the whole new one there and keeps the old one until its domain says that nobody can be
//! reading it. References to a table are borrowed from a [`Shared`] too, and the last handle to go frees what is left: then there are none.
#![allow(unsafe_code)]

use super::domain::{Domain, Reader, Retired};
use crate::sync::{AtomicPtr, Ordering};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Old tables that one place keeps at the most. With the one in use and the one that is offered, this bounds its memory.
#[cfg(not(loom))]
pub const MOST_RETIRED: usize = 16;
/// Few, for a model.
#[cfg(loom)]
pub const MOST_RETIRED: usize = 1;

/// How often it is looked whether readers have gone on.
const LOOK_PERIOD: Duration = Duration::from_micros(50);

/// The side that replaces a table: for the control core, or any thread but a reader. Clones replace the same table.
pub struct Published<T>(Arc<Place<T>>);

/// The side that reads: an application keeps one.
pub struct Shared<T>(Arc<Place<T>>);

/// Where a table is found.
struct Place<T> {
    current: AtomicPtr<T>,
    /// The domain's number: readers compare it.
    of: u64,
    domain: Arc<Domain>,
    /// Old ones, with the count that all readers have to see; the oldest first. Held by whoever replaces the current one.
    retired: Mutex<VecDeque<(u64, Owned<T>)>>,
}

/// A table that came from a box and is found by nobody new.
struct Owned<T>(*mut T);

// SAFETY: it is the box it was made of, and a table may be freed by another thread than made it where it may be sent.
unsafe impl<T: Send> Send for Owned<T> {}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw`, and freed here alone; whoever drops it has made sure that nobody reads it.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// The table was not taken: too many old ones cannot be freed yet. The table in use is the one before.
pub struct Refused<T> {
    /// What was offered.
    pub table: T,
    /// Old tables that are kept.
    pub retired: usize,
    /// A reader that has not ended its turn since, by its name.
    pub reader: Option<usize>,
}

impl<T: Send + Sync + 'static> Published<T> {
    /// Publishes the first table of a place, for the readers of that domain.
    pub fn new(domain: &Arc<Domain>, table: T) -> Self {
        let place = Arc::new(Place {
            current: AtomicPtr::new(Box::into_raw(Box::new(table))),
            of: domain.id(),
            domain: Arc::clone(domain),
            retired: Mutex::default(),
        });
        let weak: Weak<Place<T>> = Arc::downgrade(&place);
        domain.adopt(weak);
        Self(place)
    }

    /// Replaces the table. Lookups that begin from now on find the new one; the old one is freed when no reader can hold it, here or by
    /// [`Domain::collect`].
    ///
    /// Where [`MOST_RETIRED`] old ones cannot be freed, waits so long at the most for the readers, and gives the table back if they do not go on.
    pub fn publish(&self, table: T, patience: Duration) -> Result<(), Refused<T>> {
        let start = Instant::now();
        loop {
            let mut retired = self.0.retired();
            self.0.free_unused(&mut retired);
            if retired.len() < MOST_RETIRED {
                // Release: who finds it finds it whole.
                let old = self.0.current.swap(Box::into_raw(Box::new(table)), Ordering::AcqRel);
                retired.push_back((self.0.domain.advance(), Owned(old)));
                // With readers that are quick or away it can go at once.
                self.0.free_unused(&mut retired);
                return Ok(());
            }
            let oldest = retired.front().map_or(0, |(count, _)| *count);
            let waiting = retired.len();
            // Others may collect while this one waits.
            drop(retired);
            let (retired, reader) = (waiting, self.0.domain.holder(oldest));
            if start.elapsed() >= patience {
                return Err(Refused { table, retired, reader });
            }
            thread::sleep(LOOK_PERIOD.min(patience));
        }
    }

    /// Frees old tables that nobody can be reading any more; gives how many are left.
    pub fn collect(&self) -> usize {
        let mut retired = self.0.retired();
        self.0.free_unused(&mut retired);
        retired.len()
    }
}

impl<T> Published<T> {
    /// A handle to read it by.
    pub fn shared(&self) -> Shared<T> {
        Shared(Arc::clone(&self.0))
    }
}

impl<T: Send + Sync> Shared<T> {
    /// The table as it is now, for this turn at the most. Two calls within one turn can give two tables: who needs one for a whole batch
    /// keeps the reference.
    ///
    /// # Panics
    /// Where the reader is outside, or of another domain.
    #[inline(always)]
    pub fn get<'a>(&'a self, reader: &'a Reader) -> &'a T {
        if reader.of() != self.0.of {
            wrong_reader();
        }
        // Acquire: what it points to was written before it was put there.
        let table = self.0.current.load(Ordering::Acquire);
        // SAFETY: it came from a box. The reader is inside and of this domain, so whoever replaces the table keeps it until the reader's next
        // quiescent state or end, each of which takes `&mut Reader`, and the reference borrows that. The place frees what it has when its last
        // handle goes, and the reference borrows this one.
        unsafe { &*table }
    }
}

#[cold]
#[inline(never)]
fn wrong_reader() -> ! {
    panic!("a table is read within a turn, by a reader of the domain it was published in");
}

impl<T> Place<T> {
    fn retired(&self) -> MutexGuard<'_, VecDeque<(u64, Owned<T>)>> {
        // A table whose drop panicked has left the list before.
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free_unused(&self, retired: &mut VecDeque<(u64, Owned<T>)>) {
        while retired.front().is_some_and(|(count, _)| self.domain.holder(*count).is_none()) {
            // It was taken from `current` before that count, and all readers have seen the count: nobody reads it.
            drop(retired.pop_front());
        }
    }
}

impl<T: Send + Sync> Retired for Place<T> {
    fn collect(&self) -> Option<(usize, u64)> {
        let mut retired = self.retired();
        self.free_unused(&mut retired);
        retired.front().map(|(count, _)| (retired.len(), *count))
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        // No handle is left, and so no reference; the old ones go by themselves.
        drop(Owned(self.current.load(Ordering::Acquire)));
    }
}

impl<T> Clone for Published<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Published<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Published").field("domain", &self.0.of).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("domain", &self.0.of).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Refused<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Refused")
            .field("retired", &self.retired)
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Display for Refused<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} old tables cannot be freed yet", self.retired)?;
        if let Some(reader) = self.reader {
            write!(formatter, ": worker {reader} has not ended its turn since")?;
        }
        formatter.write_str("; replace the table more seldom, or offer it again")
    }
}

impl<T> std::error::Error for Refused<T> {}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
