//! What the fibers of one class share with everybody else: who came, what was signalled, what was counted.
#![forbid(unsafe_code)]

use super::super::config::SlowPathConfig;
use super::super::sys;
use super::super::thread::Unstopped;
use super::event::Event;
use super::{Fiber, Wait, Woken};
use corosensei::Coroutine;
use corosensei::stack::DefaultStack;
use crossbeam_queue::{ArrayQueue, SegQueue};
use crossbeam_utils::CachePadded;
use nic::ring::Marks;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Events for each fiber that there may be.
const EVENTS_PER_FIBER: usize = 2;

/// A fiber as its thread has it.
pub(super) type Routine = Coroutine<Woken, Wait, (), DefaultStack>;
type Body = Box<dyn FnOnce(&Fiber<'_>) + Send>;

/// A fiber that has not begun.
pub(super) struct New {
    stack: DefaultStack,
    body: Body,
}

impl New {
    pub(super) fn begin(self, host: &Arc<Host>) -> Routine {
        let (body, host) = (self.body, Arc::clone(host));
        Routine::with_stack(self.stack, move |yielder, _| body(&Fiber { yielder, host: &host }))
    }
}

/// How fibers ended, or why they did not begin.
#[derive(Default)]
pub(in super::super) struct Counts {
    pub(in super::super) spawned: AtomicU64,
    pub(in super::super) refused: AtomicU64,
    pub(in super::super) done: AtomicU64,
    pub(in super::super) panicked: AtomicU64,
    pub(in super::super) unwound: AtomicU64,
}

/// A thread without an end is left alone with its fibers; all others end.
const NOT_BEGUN: u32 = 0;
const BEGUN: u32 = 1;
const ENDED: u32 = 2;

/// The fibers of one class.
pub(in super::super) struct Host {
    class: usize,
    pub(super) marks: Marks,
    events: u32,
    free_events: ArrayQueue<u32>,
    pub(super) new: SegQueue<New>,
    /// Of fibers that have ended, for those to come: to unmap memory would disturb workers.
    stacks: ArrayQueue<DefaultStack>,
    /// 1 while its thread has nothing to do; it sleeps on it.
    pub(super) parked: AtomicU32,
    life: AtomicU32,
    /// When the fiber that runs went on; 0 where none does.
    pub(super) resumed_ns: AtomicU64,
    /// Which of those has been told of.
    told_ns: AtomicU64,
    /// Of all classes.
    live: Arc<AtomicUsize>,
    closed: Arc<CachePadded<AtomicBool>>,
    pub(in super::super) counts: Counts,
}

impl Host {
    fn new(class: usize, hosts: &Hosts) -> Arc<Self> {
        let events = hosts.most * EVENTS_PER_FIBER;
        let free_events = ArrayQueue::new(events);
        for index in 0..events as u32 {
            let _ = free_events.push(index);
        }
        Arc::new(Self {
            class,
            // A second one for each, that says it is nobody's any more.
            marks: Marks::new(2 * events as u32),
            events: events as u32,
            free_events,
            new: SegQueue::new(),
            stacks: ArrayQueue::new(hosts.most),
            parked: AtomicU32::new(0),
            life: AtomicU32::new(NOT_BEGUN),
            resumed_ns: AtomicU64::new(0),
            told_ns: AtomicU64::new(0),
            live: Arc::clone(&hosts.live),
            closed: Arc::clone(&hosts.closed),
            counts: Counts::default(),
        })
    }

    /// An event, where there is one left.
    pub(in super::super) fn event(self: &Arc<Self>) -> Option<Event> {
        self.free_events.pop().map(|index| Event::new(self, index))
    }

    /// Nobody can wait for it or signal it any more. The host's thread gives it out again, behind the signals that are still on their way.
    pub(super) fn give_event_back(&self, index: u32) {
        // There is no such thread before the first fiber, nor may there ever be.
        if self.life.load(Ordering::Acquire) == NOT_BEGUN && !self.marks.is_set(index) {
            let _unstopped = Unstopped::begin();
            return self.took_back(index);
        }
        self.marks.set(self.events + index);
    }

    /// On the host's thread: of which event a mark is, or which one is nobody's any more. Signals of the latter were set, and so taken, before.
    pub(super) fn read_mark(&self, index: u32) -> Result<u32, u32> {
        index.checked_sub(self.events).map_or(Ok(index), Err)
    }

    /// It may be given out again.
    pub(super) fn took_back(&self, event: u32) {
        let _ = self.free_events.push(event);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(super) fn has_work(&self) -> bool {
        !self.marks.is_empty() || !self.new.is_empty() || self.is_closed()
    }

    /// Wakes the host's thread where there is something for it to do; the dispatcher looks, for a worker must not.
    pub(in super::super) fn rouse(&self) {
        if self.parked.load(Ordering::SeqCst) == 1
            && self.has_work()
            && self.parked.swap(0, Ordering::SeqCst) == 1
        {
            sys::futex_wake(&self.parked, 1);
        }
    }

    /// How long the fiber that runs has done so, where that is longer than it may and has not been told.
    pub(in super::super) fn overdue_ns(&self, now_ns: u64, bound_ns: u64) -> Option<u64> {
        let since = self.resumed_ns.load(Ordering::Relaxed);
        let age = now_ns.saturating_sub(since);
        if since == 0 || age <= bound_ns || self.told_ns.swap(since, Ordering::Relaxed) == since {
            return None;
        }
        Some(age)
    }

    /// Whether its thread has fibers that have not ended.
    pub(in super::super) fn is_under_way(&self) -> bool {
        self.life.load(Ordering::Acquire) == BEGUN
    }

    /// There is no thread for them any more. Those that have not begun never will.
    pub(in super::super) fn has_ended(&self) {
        self.life.store(ENDED, Ordering::SeqCst);
        self.abandon();
    }

    pub(in super::super) fn class(&self) -> usize {
        self.class
    }

    fn abandon(&self) {
        while let Some(new) = self.new.pop() {
            self.count_end(&self.counts.unwound);
            self.keep(new.stack);
        }
    }

    pub(super) fn count_end(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
        self.live.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn keep(&self, stack: DefaultStack) {
        let _ = self.stacks.push(stack);
    }
}

/// The hosts of all classes, each made when it is needed first.
pub(in super::super) struct Hosts {
    list: Vec<OnceLock<Arc<Host>>>,
    most: usize,
    stack_bytes: usize,
    live: Arc<AtomicUsize>,
    /// Threads that may be hosts: all but one, which is for jobs.
    threads: AtomicUsize,
    closed: Arc<CachePadded<AtomicBool>>,
}

impl Hosts {
    pub(in super::super) fn new(config: &SlowPathConfig, closed: &Arc<CachePadded<AtomicBool>>) -> Self {
        Self {
            list: config.classes.iter().map(|_| OnceLock::new()).collect(),
            most: config.fibers,
            stack_bytes: config.fiber_stack_bytes,
            live: Arc::default(),
            threads: AtomicUsize::new(config.threads - 1),
            closed: Arc::clone(closed),
        }
    }

    /// Those that were made.
    pub(in super::super) fn iter(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.list.iter().filter_map(OnceLock::get)
    }

    /// A class's, where one was made.
    pub(in super::super) fn get(&self, class: usize) -> Option<&Arc<Host>> {
        self.list.get(class)?.get()
    }

    /// A class's, where there is such a class, and there may be fibers.
    pub(in super::super) fn of(&self, class: usize) -> Option<&Arc<Host>> {
        let host = self.list.get(class).filter(|_| self.most > 0)?;
        Some(host.get_or_init(|| Host::new(class, self)))
    }

    /// Whether the host has a thread, or takes one of those that there are for hosts: then it needs it now.
    fn find_thread(&self, host: &Host) -> Option<bool> {
        if host.life.load(Ordering::Acquire) != NOT_BEGUN {
            return Some(false);
        }
        let less = |left: usize| left.checked_sub(1);
        self.threads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok()?;
        let begins =
            host.life.compare_exchange(NOT_BEGUN, BEGUN, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !begins {
            self.threads.fetch_add(1, Ordering::Relaxed);
        }
        Some(begins)
    }

    /// Hands a fiber to a class's host; gives it back where there are too many, or no memory for its stack. `Ok(true)` where the host needs a thread.
    pub(in super::super) fn spawn<F>(&self, host: &Arc<Host>, body: F) -> Result<bool, F>
    where
        F: FnOnce(&Fiber<'_>) + Send + 'static,
    {
        host.counts.spawned.fetch_add(1, Ordering::Relaxed);
        let refuse = |body| {
            host.counts.refused.fetch_add(1, Ordering::Relaxed);
            Err(body)
        };
        if host.is_closed() {
            return refuse(body);
        }
        if self.live.fetch_add(1, Ordering::AcqRel) >= self.most {
            self.live.fetch_sub(1, Ordering::AcqRel);
            return refuse(body);
        }
        let Some(stack) = host.stacks.pop().or_else(|| DefaultStack::new(self.stack_bytes).ok()) else {
            self.live.fetch_sub(1, Ordering::AcqRel);
            return refuse(body);
        };
        let Some(begins) = self.find_thread(host) else {
            self.live.fetch_sub(1, Ordering::AcqRel);
            host.keep(stack);
            return refuse(body);
        };
        host.new.push(New { stack, body: Box::new(body) });
        // It may have ended between the look and the push.
        if host.life.load(Ordering::SeqCst) == ENDED {
            host.abandon();
        }
        Ok(begins)
    }
}
