//! Who may run: slots, and the seats that have one.
//!
//! All decisions are made here, under one lock. Nothing allocates, frees or logs under it: a job may have been stopped inside the allocator,
//! and must get its next turn from here.
#![forbid(unsafe_code)]

use super::classes::{Classes, Next};
use super::config::SlowPathConfig;
use super::seat::{Seat, ThreadState, Wakes};
use super::submitter::Pending;
use super::sys::{self, now_ns};
use hdrhistogram::Histogram;
use isolation::trace::{Switch, SwitchKind};
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// CPU time after which one that runs makes room where others wait.
const TURN_NS: u64 = 4_000_000;
/// One that runs and has had no CPU time for so long is looked at.
const STILL_NS: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Has no job.
    Idle,
    /// Has a slot.
    Running,
    /// Waits in the kernel, and has said so before.
    Wrapped,
    /// Waits in the kernel, as was seen.
    Blocked,
    /// Could go on, and waits for a slot.
    Ready,
}

/// What is known of a seat's thread.
struct Place {
    seat: &'static Seat,
    state: State,
    class: usize,
    /// The CPU clock up to which its class was charged.
    charged_ns: u64,
    /// CPU time since it got its slot.
    turn_ns: u64,
    granted_ns: u64,
    began_ns: u64,
    overdue: bool,
    /// What it runs are fibers.
    is_host: bool,
    job: Option<Pending>,
    /// When the slot that it got was given up.
    slot_free_ns: u64,
    last: Option<Switch>,
    kernel: Option<ThreadState>,
}

/// What the scheduler did, altogether.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) wrapped: u64,
    pub(super) seen: u64,
    pub(super) stopped: u64,
    /// The most that ran, or were seen to, at once.
    pub(super) most_running: usize,
}

/// A job that takes longer than its class allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Overdue {
    pub(super) class: usize,
    /// And not a job: a fiber that does not let others go on.
    pub(super) fiber: bool,
    pub(super) tid: i32,
    pub(super) age_ns: u64,
    pub(super) blocked: bool,
}

struct Inner {
    places: Vec<Place>,
    idle: Vec<usize>,
    slots: usize,
    running: usize,
    /// Hosts of fibers of which none can go on.
    parked: usize,
    classes: Classes<Pending>,
    wakes: Wakes,
    tally: Tally,
    reuse_ns: Histogram<u64>,
    detect_ns: Histogram<u64>,
    stopping: bool,
}

/// The scheduler.
pub(super) struct Gate(Mutex<Inner>);

impl Inner {
    fn charge(&mut self, index: usize) {
        let place = &mut self.places[index];
        let now = place.seat.cpu_ns();
        let used = now.saturating_sub(place.charged_ns);
        place.charged_ns = now.max(place.charged_ns);
        place.turn_ns += used;
        self.classes.charge(place.class, used);
    }

    /// Takes it from where it is: it has no slot and waits for none afterwards.
    fn leave(&mut self, index: usize, state: State) {
        self.charge(index);
        let place = &mut self.places[index];
        let before = mem::replace(&mut place.state, state);
        let class = &mut self.classes.list[place.class];
        match before {
            State::Running => {
                self.running -= 1;
                class.running -= 1;
            }
            State::Ready => class.forget(index),
            State::Idle | State::Wrapped | State::Blocked => {}
        }
    }

    /// It could go on; it must wait until it is granted a slot.
    fn queue(&mut self, index: usize, stopped: bool) {
        let place = &mut self.places[index];
        place.state = State::Ready;
        place.seat.hold();
        match stopped {
            true => self.classes.push_stopped(place.class, index),
            false => self.classes.push_ready(place.class, index),
        }
    }

    /// Gives free slots away. `free_ns` is when the last one was given up.
    fn dispatch(&mut self, now: u64, free_ns: u64) {
        while self.running < self.slots {
            let idle = self.idle.last().copied();
            let Some(class) = self.classes.next(idle.is_some()) else { return };
            let entry = &mut self.classes.list[class];
            let (index, job) = match (entry.pop(idle.is_some()), idle) {
                (Some(Next::Seat(index)), _) => (index, None),
                (Some(Next::Job(job)), Some(index)) => {
                    self.idle.pop();
                    entry.under_way += 1;
                    entry.hosts += usize::from(job.is_host());
                    (index, Some(job))
                }
                _ => return,
            };
            entry.running += 1;
            self.running += 1;
            self.tally.most_running = self.tally.most_running.max(self.running);
            let place = &mut self.places[index];
            if let Some(job) = &job {
                place.class = class;
                place.is_host = job.is_host();
                place.charged_ns = place.seat.cpu_ns();
                place.began_ns = now;
                place.overdue = false;
            }
            // One that has a job has not had the time to take it; others have none.
            if job.is_some() {
                place.job = job;
            }
            place.state = State::Running;
            place.turn_ns = 0;
            place.slot_free_ns = free_ns;
            place.seat.grant();
            self.wakes.add(place.seat);
            // After the grant: it sleeps on that no more, so a later record of its blocking is of another wait.
            place.granted_ns = now_ns();
        }
    }
}

impl Gate {
    pub(super) fn new(config: &SlowPathConfig, slots: usize, seats: &[&'static Seat]) -> Self {
        let place = |seat: &&'static Seat| Place {
            seat,
            state: State::Idle,
            class: 0,
            charged_ns: 0,
            turn_ns: 0,
            granted_ns: 0,
            began_ns: 0,
            overdue: false,
            is_host: false,
            job: None,
            slot_free_ns: 0,
            last: None,
            kernel: None,
        };
        // With bounds it never grows.
        let histogram = || {
            Histogram::new_with_bounds(1, 60_000_000_000, 2)
                .unwrap_or_else(|_| unreachable!("bounds are constants"))
        };
        Self(Mutex::new(Inner {
            places: seats.iter().map(place).collect(),
            idle: (0..seats.len()).rev().collect(),
            slots,
            running: 0,
            parked: 0,
            classes: Classes::new(&config.classes, seats.len(), now_ns()),
            wakes: Wakes::default(),
            tally: Tally::default(),
            reuse_ns: histogram(),
            detect_ns: histogram(),
            stopping: false,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics under the lock halfway; and jobs would rather go on.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unlock(mut inner: MutexGuard<'_, Inner>) {
        let wakes = mem::take(&mut inner.wakes);
        drop(inner);
        wakes.deliver();
    }

    /// Before jobs come: the kernel's words on the threads.
    pub(super) fn know(&self, kernel: Vec<ThreadState>) {
        let mut inner = self.lock();
        for (place, kernel) in inner.places.iter_mut().zip(kernel) {
            place.kernel = Some(kernel);
        }
    }

    /// Has room for so many jobs of each class. What it allocates, it allocates without the lock.
    pub(super) fn reserve(&self, classes: usize, jobs: usize) {
        for class in 0..classes {
            let mut roomy = std::collections::VecDeque::with_capacity(jobs);
            let mut inner = self.lock();
            let fresh = &mut inner.classes.list[class].fresh;
            if fresh.capacity() < jobs {
                roomy.extend(fresh.drain(..));
                mem::swap(fresh, &mut roomy);
            }
            drop(inner);
        }
    }

    /// On a thread that was granted a slot and has no job yet: `None` where there will be none any more.
    pub(super) fn take(&self, index: usize) -> Option<Pending> {
        let now = now_ns();
        let mut inner = self.lock();
        let place = &mut inner.places[index];
        let (job, free) = (place.job.take(), place.slot_free_ns);
        if job.is_some() && free > 0 {
            let _ = inner.reuse_ns.record(now.saturating_sub(free).max(1));
        }
        job
    }

    /// On a thread: its job has ended.
    pub(super) fn finish(&self, index: usize) {
        let now = now_ns();
        let mut inner = self.lock();
        inner.leave(index, State::Idle);
        let place = &inner.places[index];
        let (class, seat, is_host) = (place.class, place.seat, place.is_host);
        let own = &mut inner.classes.list[class];
        own.under_way -= 1;
        own.hosts -= usize::from(is_host);
        if !inner.stopping {
            seat.hold();
        }
        inner.idle.push(index);
        inner.dispatch(now, 0);
        Self::unlock(inner);
    }

    /// On a thread: what comes now may block.
    pub(super) fn block(&self, index: usize) {
        let now = now_ns();
        let mut inner = self.lock();
        inner.leave(index, State::Wrapped);
        inner.tally.wrapped += 1;
        inner.parked += usize::from(inner.places[index].is_host);
        inner.dispatch(now, now);
        Self::unlock(inner);
    }

    /// On a thread: that is over. The seat says when it may go on.
    pub(super) fn unblock(&self, index: usize) {
        let mut inner = self.lock();
        inner.parked -= usize::from(inner.places[index].is_host);
        inner.queue(index, false);
        inner.dispatch(now_ns(), 0);
        Self::unlock(inner);
    }

    /// Jobs have come. Says how many were taken: none at the end.
    pub(super) fn admit(&self, jobs: impl Iterator<Item = Pending>) -> usize {
        let mut inner = self.lock();
        if inner.stopping {
            return 0;
        }
        let mut count = 0;
        for job in jobs {
            inner.classes.push_fresh(job.class(), job);
            count += 1;
        }
        if count > 0 {
            inner.dispatch(now_ns(), 0);
        }
        Self::unlock(inner);
        count
    }

    /// What the kernel noted, in the order of time; `seat_of` knows threads. Threads that must stop are added to `stop`.
    pub(super) fn saw(
        &self,
        switches: &[Switch],
        seat_of: impl Fn(i32) -> Option<usize>,
        stop: &mut Vec<i32>,
    ) -> Wakes {
        let mut inner = self.lock();
        for switch in switches {
            if let Some(index) = seat_of(switch.tid) {
                inner.places[index].last = Some(*switch);
            }
        }
        let now = now_ns();
        let mut free = 0;
        for index in 0..inner.places.len() {
            let Some(last) = inner.places[index].last.take() else { continue };
            let place = &inner.places[index];
            match (place.state, last.kind) {
                // An older one is of its wait for the slot.
                (State::Running, SwitchKind::Blocked) if last.time_ns > place.granted_ns => {
                    inner.leave(index, State::Blocked);
                    inner.tally.seen += 1;
                    free = last.time_ns;
                    let _ = inner.detect_ns.record(now.saturating_sub(free).max(1));
                }
                (State::Blocked, SwitchKind::In | SwitchKind::Preempted) => inner.wake(index, now, stop),
                _ => {}
            }
        }
        inner.dispatch(now, free);
        mem::take(&mut inner.wakes)
    }

    /// About every millisecond: caps, turns, jobs that are overdue. With `look`, also what nobody has told of: threads that block, and those
    /// that go on. Threads that must stop are in `stop` for the time in between.
    pub(super) fn tick(&self, look: bool, stop: &mut Vec<i32>, overdue: &mut Vec<Overdue>) {
        let now = now_ns();
        let mut inner = self.lock();
        inner.classes.fill(now);
        let mut free = 0;
        for index in 0..inner.places.len() {
            let place = &inner.places[index];
            let (state, before) = (place.state, place.charged_ns);
            match state {
                State::Idle => continue,
                State::Running => {
                    inner.charge(index);
                    let place = &inner.places[index];
                    let still = place.charged_ns == before && now.saturating_sub(place.granted_ns) > STILL_NS;
                    if look && still && place.is_blocked() == Some(true) {
                        // As near as can be said: when it had no more CPU time.
                        free = place.granted_ns + place.turn_ns;
                        inner.leave(index, State::Blocked);
                        inner.tally.seen += 1;
                    }
                }
                State::Blocked if look && place.is_blocked() == Some(false) => inner.wake(index, now, stop),
                _ => {}
            }
            let place = &inner.places[index];
            let age_ns = now.saturating_sub(place.began_ns);
            let bound = inner.classes.list[place.class].config.report_after;
            let place = &mut inner.places[index];
            // Fibers are looked at one by one.
            let late = !place.is_host && !place.overdue && u128::from(age_ns) > bound.as_nanos();
            if late && overdue.len() < overdue.capacity() {
                place.overdue = true;
                let blocked = matches!(place.state, State::Blocked | State::Wrapped);
                let tid = place.seat.tid();
                overdue.push(Overdue { class: place.class, fiber: false, tid, age_ns, blocked });
            }
        }
        inner.dispatch(now, free);
        for index in 0..inner.places.len() {
            let place = &inner.places[index];
            let idle = !inner.idle.is_empty();
            if place.state == State::Running
                && inner.classes.should_yield(place.class, place.turn_ns >= TURN_NS, idle)
            {
                let tid = place.seat.tid();
                inner.leave(index, State::Ready);
                inner.queue(index, true);
                inner.dispatch(now, 0);
                if inner.places[index].state == State::Ready {
                    inner.tally.stopped += 1;
                    stop.push(tid);
                }
            }
        }
        let wakes = mem::take(&mut inner.wakes);
        drop(inner);
        // Whose turn is over stops before the next one starts.
        stop.drain(..).for_each(sys::signal);
        wakes.deliver();
    }

    /// Whether a slot that is given up would be of use to somebody, so that it is worth looking for; and whether anything is under way.
    pub(super) fn interest(&self) -> (bool, bool) {
        let inner = self.lock();
        let waits = inner.running > 0 && inner.classes.has_work(!inner.idle.is_empty());
        let idle = inner.idle.len() + inner.parked;
        (waits, idle < inner.places.len() || inner.classes.has_work(true))
    }

    /// The end: nobody waits for a slot any more. Jobs that have not begun are handed out, one at a time.
    pub(super) fn give_up_fresh(&self) -> Option<Pending> {
        let mut inner = self.lock();
        inner.classes.list.iter_mut().find_map(|class| class.fresh.pop_front())
    }

    /// All seats may run: those without a job end, the others run to their end as they like.
    pub(super) fn open(&self) {
        let mut inner = self.lock();
        inner.stopping = true;
        inner.classes.unbounded = true;
        inner.slots = usize::MAX;
        inner.dispatch(now_ns(), 0);
        for index in 0..inner.places.len() {
            let place = &inner.places[index];
            if place.state == State::Idle {
                let seat = place.seat;
                seat.grant();
                inner.wakes.add(seat);
            }
        }
        Self::unlock(inner);
    }

    pub(super) fn tally(&self) -> Tally {
        self.lock().tally
    }

    /// CPU time of a class, in nanoseconds, and its jobs under way, without the one that is its fibers.
    pub(super) fn class(&self, class: usize) -> (u64, usize) {
        let inner = self.lock();
        let class = &inner.classes.list[class];
        (class.cpu_ns, class.under_way - class.hosts)
    }

    /// The median time from a block to its being seen, by the kernel's records.
    pub(super) fn detect_ns_p50(&self) -> u64 {
        self.lock().detect_ns.value_at_quantile(0.5)
    }

    /// From a block to the next job's first instruction in the slot: how many, the median and the 99th percentile, in nanoseconds.
    pub(super) fn reuse_ns(&self) -> (u64, u64, u64) {
        let inner = self.lock();
        let reuse = &inner.reuse_ns;
        (reuse.len(), reuse.value_at_quantile(0.5), reuse.value_at_quantile(0.99))
    }
}

impl Inner {
    /// One that blocked is awake again, and has no slot.
    fn wake(&mut self, index: usize, now: u64, stop: &mut Vec<i32>) {
        self.queue(index, false);
        self.dispatch(now, 0);
        // It may run for a moment yet.
        if self.places[index].state == State::Ready {
            self.tally.stopped += 1;
            self.tally.most_running = self.tally.most_running.max(self.running + 1);
            stop.push(self.places[index].seat.tid());
        }
    }
}

impl Place {
    fn is_blocked(&self) -> Option<bool> {
        self.kernel.as_ref().and_then(ThreadState::is_blocked)
    }
}
