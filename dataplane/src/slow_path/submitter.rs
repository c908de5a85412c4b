//! How jobs come and replies go: a pair of bounded rings for each submitter, without a lock, an allocation or a system call.
#![forbid(unsafe_code)]

use super::ring::{Message, Task};
use super::thread::Unstopped;
use crossbeam_queue::ArrayQueue;
use nic::Counter;
use nic::ring::{Consumer, Producer, ring};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A class, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Class(pub usize);

/// A submitter's number for a job; they count up from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It gave this back.
    Done(Message),
    /// It panicked; the panic's words are on standard error.
    Panicked,
    /// The slow path was closed before it began.
    Abandoned,
}

/// The event that says a job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Which.
    pub ticket: Ticket,
    /// Of which class.
    pub class: Class,
    /// How.
    pub outcome: Outcome,
}

/// A job that was not taken, given back: too many are on their way, or the slow path has been closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused<F>(pub F);

/// What a submitter and the slow path share.
pub(super) struct Source {
    pub(super) replies: ArrayQueue<Reply>,
    /// For each class: how many were submitted, refused ones too, and how many were refused. The submitter writes them.
    pub(super) submitted: Box<[Counter]>,
    pub(super) refused: Box<[Counter]>,
    pub(super) closed: Arc<AtomicBool>,
}

/// A job on its way: two cache lines, whole.
#[repr(align(128))]
pub(super) struct Submitted {
    task: Task,
    class: usize,
    ticket: Ticket,
}

const _: () = assert!(size_of::<Submitted>() == 128);

/// The slow path's end of a submitter.
pub(super) struct Entry {
    pub(super) jobs: Consumer<Submitted>,
    pub(super) source: Arc<Source>,
}

/// A job that waits for its turn, and knows whom to answer.
pub(super) struct Pending {
    pub(super) task: Task,
    pub(super) class: usize,
    pub(super) source: Arc<Source>,
    pub(super) ticket: Ticket,
}

impl Entry {
    pub(super) fn pop(&mut self) -> Option<Pending> {
        let Submitted { task, class, ticket } = self.jobs.pop()?;
        Some(Pending { task, class, source: Arc::clone(&self.source), ticket })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.observer().is_empty()
    }
}

impl Source {
    pub(super) fn new(capacity: usize, classes: usize, closed: Arc<AtomicBool>) -> Self {
        let counters = || (0..classes).map(|_| Counter::default()).collect();
        Self { replies: ArrayQueue::new(capacity), submitted: counters(), refused: counters(), closed }
    }

    /// There is room: no more jobs are on their way than there are places.
    pub(super) fn answer(&self, ticket: Ticket, class: usize, outcome: Outcome) {
        let _ = self.replies.push(Reply { ticket, class: Class(class), outcome });
    }
}

/// One thread's way into the slow path, and the replies' way back.
pub struct Submitter {
    jobs: Producer<Submitted>,
    source: Arc<Source>,
    capacity: usize,
    next: u64,
    /// Submitted, and not yet heard of.
    outstanding: usize,
}

impl Submitter {
    /// Both ends.
    pub(super) fn pair(source: Source, capacity: usize) -> (Self, Entry) {
        let (producer, jobs) = ring(capacity);
        let source = Arc::new(source);
        let entry = Entry { jobs, source: Arc::clone(&source) };
        (Self { jobs: producer, source, capacity, next: 0, outstanding: 0 }, entry)
    }

    /// Has a job run by the slow path. Never waits, allocates or makes a system call; a job that captures more than
    /// [`JOB_BYTES`](super::JOB_BYTES) is an error of the compiler. What comes back comes by [`poll`](Self::poll).
    ///
    /// # Panics
    /// Where there is no such class: [`SlowPath::class`](super::SlowPath::class) has those there are.
    #[inline]
    pub fn submit<F>(&mut self, class: Class, job: F) -> Result<Ticket, Refused<F>>
    where
        F: FnOnce() -> Message + Send + 'static,
    {
        // A job may submit jobs; stopped halfway, it would hold up whoever takes them.
        let _unstopped = Unstopped::begin();
        let source = &*self.source;
        source.submitted[class.0].add(1);
        if self.outstanding >= self.capacity || source.closed.load(Ordering::Relaxed) {
            source.refused[class.0].add(1);
            return Err(Refused(job));
        }
        let ticket = Ticket(self.next);
        // There is room: no more are outstanding than there are places.
        let _ = self.jobs.push(Submitted { task: Task::new(job), class: class.0, ticket });
        self.next += 1;
        self.outstanding += 1;
        Ok(ticket)
    }

    /// The next reply, in the order in which jobs ended. Two loads where there is none.
    #[inline]
    pub fn poll(&mut self) -> Option<Reply> {
        if self.outstanding == 0 {
            return None;
        }
        let reply = self.source.replies.pop()?;
        self.outstanding -= 1;
        Some(reply)
    }

    /// Jobs that are on their way.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }
}
