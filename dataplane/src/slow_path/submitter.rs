//! How jobs come and replies go: a pair of bounded rings for each submitter, without a lock, an allocation or a system call.
#![forbid(unsafe_code)]

use super::fiber::Host;
use super::ring::{Consumer, Message, Producer, Task, ring};
use super::thread::Unstopped;
use crossbeam_utils::CachePadded;
use nic::Counter;
use nic::ring::Mailbox;
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

const REPLY_WORDS: usize = 6;

impl Reply {
    fn to_words(self) -> [u64; REPLY_WORDS] {
        let (kind, [a, b, c, d]) = match self.outcome {
            Outcome::Done(message) => (0, message),
            Outcome::Panicked => (1, Message::default()),
            Outcome::Abandoned => (2, Message::default()),
        };
        [self.ticket.0, (self.class.0 as u64) << 2 | kind, a, b, c, d]
    }

    fn from_words([ticket, kind, a, b, c, d]: [u64; REPLY_WORDS]) -> Self {
        let outcome = match kind & 3 {
            0 => Outcome::Done([a, b, c, d]),
            1 => Outcome::Panicked,
            _ => Outcome::Abandoned,
        };
        Self { ticket: Ticket(ticket), class: Class((kind >> 2) as usize), outcome }
    }
}

/// A job that was not taken, given back: too many are on their way, or the slow path has been closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused<F>(pub F);

/// What a submitter counts of one class: on lines of its own, so that nobody else's writes take them away.
#[derive(Default)]
pub(super) struct Counts {
    /// Refused ones too.
    pub(super) submitted: Counter,
    pub(super) refused: Counter,
}

/// What a submitter and the slow path share.
pub(super) struct Source {
    replies: Mailbox<REPLY_WORDS>,
    /// For each class; the submitter writes them.
    pub(super) counts: Box<[CachePadded<Counts>]>,
    pub(super) closed: Arc<CachePadded<AtomicBool>>,
}

/// The slow path's end of a submitter.
pub(super) struct Entry {
    jobs: Consumer,
    pub(super) source: Arc<Source>,
    /// Jobs come in the order of their tickets, and so need not carry them.
    next: u64,
}

/// A job that waits for its turn, and knows whom to answer.
pub(super) struct Pending {
    pub(super) task: Task,
    pub(super) from: From,
}

/// Where a job comes from.
pub(super) enum From {
    Submitter(Arc<Source>, Ticket),
    /// It runs a class's fibers. Nobody waits for its end, and it is not counted as a job.
    Fibers(Arc<Host>),
}

impl Pending {
    pub(super) fn class(&self) -> usize {
        self.task.class()
    }

    pub(super) fn is_host(&self) -> bool {
        matches!(self.from, From::Fibers(_))
    }
}

impl Entry {
    pub(super) fn pop(&mut self) -> Option<Pending> {
        let task = self.jobs.pop()?;
        let ticket = Ticket(self.next);
        self.next += 1;
        Some(Pending { task, from: From::Submitter(Arc::clone(&self.source), ticket) })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
}

impl Source {
    pub(super) fn new(capacity: usize, classes: usize, closed: Arc<CachePadded<AtomicBool>>) -> Self {
        let counts = (0..classes).map(|_| CachePadded::default()).collect();
        Self { replies: Mailbox::new(capacity), counts, closed }
    }

    /// There is room: no more jobs are on their way than there are places.
    pub(super) fn answer(&self, ticket: Ticket, class: usize, outcome: Outcome) {
        self.replies.post(Reply { ticket, class: Class(class), outcome }.to_words());
    }
}

/// One thread's way into the slow path, and the replies' way back.
pub struct Submitter {
    jobs: Producer,
    source: Arc<Source>,
    capacity: u64,
    /// Of the jobs that were put in, those that were heard of again.
    answered: u64,
}

impl Submitter {
    /// Both ends.
    pub(super) fn pair(source: Source, capacity: usize) -> (Self, Entry) {
        let (producer, jobs) = ring(capacity);
        let source = Arc::new(source);
        let entry = Entry { jobs, source: Arc::clone(&source), next: 0 };
        (Self { jobs: producer, source, capacity: capacity as u64, answered: 0 }, entry)
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
        let counts = &source.counts[class.0];
        counts.submitted.add(1);
        if self.jobs.pushed() - self.answered >= self.capacity || source.closed.load(Ordering::Relaxed) {
            counts.refused.add(1);
            return Err(Refused(job));
        }
        // There are 64 classes at the most. And there is room: no more are on their way than there are places.
        let ticket = Ticket(self.jobs.pushed());
        match self.jobs.push(class.0 as u8, job) {
            Ok(()) => Ok(ticket),
            Err(job) => {
                counts.refused.add(1);
                Err(Refused(job))
            }
        }
    }

    /// The next reply, in the order in which jobs ended. A few loads and a store where there is none.
    #[inline]
    pub fn poll(&mut self) -> Option<Reply> {
        self.jobs.take_line();
        if self.jobs.pushed() == self.answered {
            return None;
        }
        let words = self.source.replies.get(self.answered)?;
        self.answered += 1;
        Some(Reply::from_words(words))
    }

    /// Jobs that are on their way.
    pub fn outstanding(&self) -> usize {
        (self.jobs.pushed() - self.answered) as usize
    }
}
