//! Whose turn it is: classes by weight, under their caps.
//!
//! A class's *virtual time* is the CPU time it had, divided by its weight; the one that is furthest behind is next. A class that comes back
//! from having nothing to do starts where the others are: it saves nothing up. A cap is a bucket that fills with time and is emptied by use; what is
//! used beyond it is owed, so that over a second the cap holds whatever the grain of the accounting.
#![forbid(unsafe_code)]

use super::config::ClassConfig;
use std::collections::VecDeque;

/// What a cap's bucket holds, in time that fills it: what a class that was idle may use at once.
const BUCKET_NS: f64 = 20e6;

/// One class; `J` is a job that has not begun.
pub(super) struct Class<J> {
    pub(super) config: ClassConfig,
    virtual_ns: u64,
    bucket_ns: f64,
    /// Threads that woke up and could go on, oldest first.
    ready: VecDeque<usize>,
    /// Threads that were stopped when their turn was over.
    stopped: VecDeque<usize>,
    /// Jobs that have not begun.
    pub(super) fresh: VecDeque<J>,
    /// Whether a stopped thread was the last to go on, and it is a new job's turn.
    fresh_is_next: bool,
    /// Jobs that have begun and not ended.
    pub(super) under_way: usize,
    /// Of these, those that run fibers.
    pub(super) hosts: usize,
    /// Of all, those with a slot.
    pub(super) running: usize,
    pub(super) cpu_ns: u64,
}

/// What gets a slot.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<J> {
    /// A thread that goes on.
    Seat(usize),
    /// A job that begins.
    Job(J),
}

/// All classes.
pub(super) struct Classes<J> {
    pub(super) list: Vec<Class<J>>,
    floor_ns: u64,
    filled_at_ns: u64,
    /// No caps any more: the end.
    pub(super) unbounded: bool,
}

impl<J> Class<J> {
    fn can_begin(&self, idle: bool) -> bool {
        // The thread of a class's fibers is one more: it never ends, and jobs would wait for ever.
        idle && !self.fresh.is_empty() && self.under_way - self.hosts < self.config.threads
    }

    fn has_work(&self, idle: bool) -> bool {
        !self.ready.is_empty() || !self.stopped.is_empty() || self.can_begin(idle)
    }

    fn is_quiet(&self) -> bool {
        self.ready.is_empty() && self.stopped.is_empty() && self.fresh.is_empty() && self.running == 0
    }

    /// Whose turn it is within the class: those that woke up, for they need little more; then, in turn, new jobs and those that were stopped, so
    /// that neither a job without an end nor a flood of new ones holds up the other.
    pub(super) fn pop(&mut self, idle: bool) -> Option<Next<J>> {
        if let Some(seat) = self.ready.pop_front() {
            return Some(Next::Seat(seat));
        }
        if self.can_begin(idle) && (self.fresh_is_next || self.stopped.is_empty()) {
            self.fresh_is_next = false;
            return self.fresh.pop_front().map(Next::Job);
        }
        self.fresh_is_next = true;
        self.stopped.pop_front().map(Next::Seat)
    }

    /// It waits for a slot no more.
    pub(super) fn forget(&mut self, seat: usize) {
        self.ready.retain(|ready| *ready != seat);
        self.stopped.retain(|stopped| *stopped != seat);
    }

    pub(super) fn is_spent(&self) -> bool {
        self.config.cap.is_some() && self.bucket_ns <= 0.0
    }
}

impl<J> Classes<J> {
    pub(super) fn new(configs: &[ClassConfig], threads: usize, now_ns: u64) -> Self {
        let class = |config: &ClassConfig| Class {
            virtual_ns: 0,
            bucket_ns: config.cap.unwrap_or(0.0) * BUCKET_NS,
            ready: VecDeque::with_capacity(threads),
            stopped: VecDeque::with_capacity(threads),
            // For the one that runs fibers; whoever brings others makes room for them.
            fresh: VecDeque::with_capacity(1),
            fresh_is_next: true,
            under_way: 0,
            hosts: 0,
            running: 0,
            cpu_ns: 0,
            config: config.clone(),
        };
        Self {
            list: configs.iter().map(class).collect(),
            floor_ns: 0,
            filled_at_ns: now_ns,
            unbounded: false,
        }
    }

    /// Before a class gets work.
    fn awaken(&mut self, class: usize) {
        let floor = self.floor_ns;
        let class = &mut self.list[class];
        if class.is_quiet() {
            class.virtual_ns = class.virtual_ns.max(floor);
        }
    }

    pub(super) fn push_ready(&mut self, class: usize, seat: usize) {
        self.awaken(class);
        self.list[class].ready.push_back(seat);
    }

    pub(super) fn push_stopped(&mut self, class: usize, seat: usize) {
        self.awaken(class);
        self.list[class].stopped.push_back(seat);
    }

    pub(super) fn push_fresh(&mut self, class: usize, job: J) {
        self.awaken(class);
        self.list[class].fresh.push_back(job);
    }

    /// CPU time was used.
    pub(super) fn charge(&mut self, class: usize, ns: u64) {
        let class = &mut self.list[class];
        class.cpu_ns += ns;
        class.virtual_ns += ns * 100 / u64::from(class.config.weight);
        class.bucket_ns -= ns as f64;
    }

    /// Fills the buckets.
    pub(super) fn fill(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.filled_at_ns) as f64;
        self.filled_at_ns = now_ns;
        for class in &mut self.list {
            if let Some(cap) = class.config.cap {
                class.bucket_ns = (class.bucket_ns + cap * passed).min(cap * BUCKET_NS);
            }
        }
    }

    /// The class whose turn it is; `idle` where there is a thread for a job that has not begun.
    pub(super) fn next(&mut self, idle: bool) -> Option<usize> {
        let unbounded = self.unbounded;
        let may = |class: &&(usize, &Class<J>)| class.1.has_work(idle) && (unbounded || !class.1.is_spent());
        let all: (usize, u64) = self
            .list
            .iter()
            .enumerate()
            .filter(|class| may(&class))
            .map(|(index, class)| (index, class.virtual_ns))
            .min_by_key(|(_, virtual_ns)| *virtual_ns)?;
        self.floor_ns = self.floor_ns.max(all.1);
        Some(all.0)
    }

    /// Whether one that runs should make room for another: its cap is reached, or it had its turn and somebody is no further ahead.
    pub(super) fn should_yield(&self, class: usize, had_its_turn: bool, idle: bool) -> bool {
        if self.unbounded {
            return false;
        }
        let own = &self.list[class];
        let waits = |(index, other): (usize, &Class<J>)| {
            other.has_work(idle)
                && !other.is_spent()
                && (index == class || other.virtual_ns <= own.virtual_ns)
        };
        own.is_spent() || (had_its_turn && self.list.iter().enumerate().any(waits))
    }

    /// Whether anybody waits for a slot.
    pub(super) fn has_work(&self, idle: bool) -> bool {
        self.list.iter().any(|class| class.has_work(idle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(configs: &[(u32, Option<f64>)]) -> Classes<()> {
        let config =
            |&(weight, cap): &(u32, Option<f64>)| ClassConfig { weight, cap, ..ClassConfig::new("x") };
        Classes::new(&configs.iter().map(config).collect::<Vec<_>>(), 8, 0)
    }

    /// One slot for a simulated second, a millisecond at a time, each class always with work. Returns each one's share in per cent.
    fn shares(classes: &mut Classes<()>) -> Vec<u64> {
        (0..classes.list.len()).for_each(|class| classes.push_ready(class, class));
        for ms in 0..1000 {
            classes.fill(ms * 1_000_000);
            if let Some(next) = classes.next(false) {
                classes.charge(next, 1_000_000);
            }
        }
        classes.list.iter().map(|class| class.cpu_ns / 10_000_000).collect()
    }

    #[test]
    fn weights_and_caps_share_a_second() {
        assert_eq!(shares(&mut classes(&[(100, None), (300, None)])), [25, 75]);
        let shares_of = shares(&mut classes(&[(10_000, Some(0.2)), (1, None)]));
        assert!((19..=21).contains(&shares_of[0]) && shares_of[0] + shares_of[1] >= 99, "{shares_of:?}");
    }

    #[test]
    fn who_was_quiet_saves_nothing_up() {
        let mut classes = classes(&[(100, None), (100, None)]);
        classes.push_ready(0, 0);
        (0..100).for_each(|_| {
            let next = classes.next(false).unwrap();
            classes.charge(next, 1_000_000);
        });
        classes.push_ready(1, 1);
        let late = (0..100).filter(|_| {
            let next = classes.next(false).unwrap();
            classes.charge(next, 1_000_000);
            next == 1
        });
        assert!((49..=51).contains(&late.count()));
    }

    #[test]
    fn a_class_has_no_more_threads_than_it_may() {
        let mut classes = classes(&[(100, None)]);
        classes.list[0].config.threads = 1;
        classes.push_fresh(0, ());
        assert_eq!((classes.next(false), classes.next(true)), (None, Some(0)));
        classes.list[0].under_way = 1;
        assert_eq!(classes.next(true), None);
    }

    #[test]
    fn who_woke_up_is_first_and_new_jobs_take_turns_with_stopped_ones() {
        let mut classes = classes(&[(100, None)]);
        (0..2).for_each(|_| classes.push_fresh(0, ()));
        classes.push_stopped(0, 5);
        classes.push_stopped(0, 6);
        classes.push_ready(0, 7);
        let class = &mut classes.list[0];
        assert_eq!(class.pop(true), Some(Next::Seat(7)));
        assert_eq!(class.pop(true), Some(Next::Job(())));
        assert_eq!(class.pop(true), Some(Next::Seat(5)));
        assert_eq!(class.pop(true), Some(Next::Job(())));
        class.forget(6);
        assert_eq!(class.pop(true), None);
    }
}
