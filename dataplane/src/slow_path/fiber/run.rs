//! A host's thread: whose turn it is among the fibers of a class, and what each waits for.
//!
//! All that fibers wait for is known to this thread alone, so nothing in here is shared or locked.
#![forbid(unsafe_code)]

use super::super::sys::{self, now_ns};
use super::super::thread::{Unstopped, blocking, words};
use super::host::{Host, Routine};
use super::{Wait, Woken};
use corosensei::CoroutineResult;
use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// So many fibers go on before it is looked who came, what was signalled, and whose time is over.
const ROUND: usize = 64;

struct Suspended {
    routine: Routine,
    event: Option<u32>,
    until_ns: Option<u64>,
}

#[derive(Default)]
struct Waiters {
    fibers: VecDeque<usize>,
    /// Signals that nobody has waited for yet.
    signals: u64,
}

struct Run<'a> {
    host: &'a Arc<Host>,
    class_name: &'static str,
    fibers: Vec<Option<Suspended>>,
    free: Vec<usize>,
    ready: VecDeque<(usize, Woken)>,
    timers: BTreeSet<(u64, usize)>,
    /// By the events' numbers, as far as any was used.
    events: Vec<Waiters>,
}

impl Host {
    /// Runs fibers until the slow path is closed, and unwinds those that are left.
    pub(in super::super) fn run(self: &Arc<Self>, class_name: &'static str) {
        let mut run = Run {
            host: self,
            class_name,
            fibers: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            events: Vec::new(),
        };
        while !self.is_closed() {
            run.look();
            if run.ready.is_empty() {
                run.park();
            }
            for _ in 0..ROUND {
                let Some((index, why)) = run.ready.pop_front() else { break };
                run.resume(index, why);
            }
        }
        run.unwind();
        self.has_ended();
    }
}

impl Run<'_> {
    /// Who came, what was signalled, whose time is over.
    fn look(&mut self) {
        for _ in 0..ROUND {
            let new = {
                // Stopped in the middle of it, it would hold up those who start fibers.
                let _unstopped = Unstopped::begin();
                self.host.new.pop()
            };
            let Some(new) = new else { break };
            let fiber = Suspended { routine: new.begin(self.host), event: None, until_ns: None };
            let index = self.free.pop().unwrap_or_else(|| {
                self.fibers.push(None);
                self.fibers.len() - 1
            });
            self.fibers[index] = Some(fiber);
            self.ready.push_back((index, Woken::Signalled));
        }
        let host = self.host;
        // Stopped while it gives an event's number back, it would hold up those who want one.
        let unstopped = Unstopped::begin();
        host.marks.take(|mark, signals| {
            let event = match host.read_mark(mark) {
                Ok(event) => event,
                Err(event) => {
                    *waiters(&mut self.events, event) = Waiters::default();
                    host.took_back(event);
                    return;
                }
            };
            let waiters = waiters(&mut self.events, event);
            waiters.signals += signals;
            while waiters.signals > 0
                && let Some(index) = waiters.fibers.pop_front()
            {
                waiters.signals -= 1;
                if let Some(fiber) = &mut self.fibers[index] {
                    fiber.event = None;
                    if let Some(until) = fiber.until_ns.take() {
                        self.timers.remove(&(until, index));
                    }
                }
                self.ready.push_back((index, Woken::Signalled));
            }
        });
        drop(unstopped);
        if self.timers.is_empty() {
            return;
        }
        let now = now_ns();
        while let Some(&(until, index)) = self.timers.first()
            && until <= now
        {
            self.timers.pop_first();
            if let Some(fiber) = &mut self.fibers[index] {
                fiber.until_ns = None;
                if let Some(event) = fiber.event.take() {
                    waiters(&mut self.events, event).fibers.retain(|waits| *waits != index);
                }
            }
            self.ready.push_back((index, Woken::TimedOut));
        }
    }

    /// Sleeps without a slot until there is something to do, or a fiber's time is over.
    fn park(&self) {
        let host = self.host;
        let timeout =
            self.timers.first().map(|(until, _)| Duration::from_nanos(until.saturating_sub(now_ns())));
        host.parked.store(1, Ordering::SeqCst);
        // Whoever comes after this sees that it is parked.
        if !host.has_work() {
            blocking(|| sys::futex_wait(&host.parked, 1, timeout));
        }
        host.parked.store(0, Ordering::SeqCst);
    }

    fn resume(&mut self, index: usize, why: Woken) {
        let Some(fiber) = &mut self.fibers[index] else { return };
        self.host.resumed_ns.store(now_ns(), Ordering::Relaxed);
        let ended = catch_unwind(AssertUnwindSafe(|| fiber.routine.resume(why)));
        self.host.resumed_ns.store(0, Ordering::Relaxed);
        match ended {
            Ok(CoroutineResult::Yield(Wait::Turn)) => self.ready.push_back((index, Woken::Signalled)),
            Ok(CoroutineResult::Yield(Wait::For { event, until_ns })) => {
                if let Some(event) = event {
                    let waiters = waiters(&mut self.events, event);
                    if waiters.signals > 0 {
                        waiters.signals -= 1;
                        self.ready.push_back((index, Woken::Signalled));
                        return;
                    }
                    waiters.fibers.push_back(index);
                }
                fiber.event = event;
                fiber.until_ns = until_ns;
                if let Some(until) = until_ns {
                    self.timers.insert((until, index));
                }
            }
            Ok(CoroutineResult::Return(())) => self.end(index, false),
            Err(panic) => {
                let name = self.class_name;
                tracing::error!("slow path: a fiber of class {name} panicked: {}", words(&*panic));
                // What it threw may panic when it is dropped.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(panic)));
                self.end(index, true);
            }
        }
    }

    fn end(&mut self, index: usize, panicked: bool) {
        let Some(fiber) = self.fibers[index].take() else { return };
        self.free.push(index);
        let counts = &self.host.counts;
        // Others start fibers with it.
        let _unstopped = Unstopped::begin();
        self.host.keep(fiber.routine.into_stack());
        self.host.count_end(if panicked { &counts.panicked } else { &counts.done });
    }

    /// All that wait, and those that could go on. What is on their stacks is dropped.
    fn unwind(&mut self) {
        for fiber in &mut self.fibers {
            let Some(mut fiber) = fiber.take() else { continue };
            self.host.resumed_ns.store(now_ns(), Ordering::Relaxed);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| fiber.routine.force_unwind())) {
                let name = self.class_name;
                tracing::error!("slow path: a fiber of class {name} panicked at its end: {}", words(&*panic));
                let _ = catch_unwind(AssertUnwindSafe(|| drop(panic)));
            }
            self.host.resumed_ns.store(0, Ordering::Relaxed);
            let _unstopped = Unstopped::begin();
            if fiber.routine.done() {
                self.host.keep(fiber.routine.into_stack());
            }
            self.host.count_end(&self.host.counts.unwound);
        }
    }
}

fn waiters(events: &mut Vec<Waiters>, event: u32) -> &mut Waiters {
    let index = event as usize;
    if events.len() <= index {
        events.resize_with(index + 1, Waiters::default);
    }
    &mut events[index]
}
