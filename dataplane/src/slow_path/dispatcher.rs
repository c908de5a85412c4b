//! The thread that brings jobs in, and sees to caps, turns and bounds; and to what the kernel noted, where no poller does.
//!
//! It naps. It never allocates, frees or logs: a job may have been stopped in the middle of that, and waits for this thread.
#![forbid(unsafe_code)]

use super::gate::Overdue;
use super::seat::pay;
use super::seer::Seer;
use super::{Shared, sys};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often it looks while jobs are under way or have just been: what a job waits for at the most before it is taken in.
const NAP: Duration = Duration::from_micros(100);
/// How often while jobs wait for a slot: where every CPU is busy no poller runs, and who blocks is seen only now.
const SHORT_NAP: Duration = Duration::from_micros(20);
/// How often after a quiet tenth of a second.
const LONG_NAP: Duration = Duration::from_micros(250);
const QUIET_NS: u64 = 100_000_000;
const TICK_NS: u64 = 1_000_000;
/// With the kernel's records, every so many ticks it looks for what they did not tell.
const LOOK_TICKS: u64 = 10;

pub(super) struct Dispatcher {
    shared: Arc<Shared>,
    seer: Option<Arc<Seer>>,
    stop: Vec<i32>,
    overdue: Vec<Overdue>,
}

impl Dispatcher {
    pub(super) fn new(shared: &Arc<Shared>, seer: Option<Arc<Seer>>) -> Self {
        Self {
            shared: Arc::clone(shared),
            seer,
            // Each seat twice in a tick.
            stop: Vec::with_capacity(2 * shared.seats.len()),
            overdue: Vec::with_capacity(16),
        }
    }

    pub(super) fn start(mut self) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name("slow-dispatch".into()).spawn(move || {
            // The same CPUs as the jobs': anywhere else it would disturb workers.
            let _ = sys::stay_on(&self.shared.cpus);
            // Or every nap would be 50 us longer.
            let _ = nix::sys::prctl::set_timerslack(1);
            // It needs microseconds, and many wait for them. Without the right to it they wait longer on a busy machine.
            let _ = sys::run_first();
            self.run();
        })
    }

    fn run(&mut self) {
        let shared = Arc::clone(&self.shared);
        let capacity = shared.config.capacity;
        let (mut busy_at, mut tick_at, mut ticks) = (0, 0, 0_u64);
        while !shared.stop.load(Ordering::Acquire) {
            // Before what it announces is looked at.
            shared.bell.store(0, Ordering::SeqCst);
            // Those that woke up run without a slot: before anything else.
            if let Some(seer) = &self.seer {
                seer.see(&shared).deliver();
                pay(&shared.seats, &shared.owed);
            }
            let mut admitted = 0;
            // Whoever has the lock may be waiting for the allocator, and so for a job that was stopped in it.
            if let Ok(mut sources) = shared.sources.try_lock() {
                for source in sources.iter_mut().filter(|source| !source.is_empty()) {
                    // No more than were there: a submitter that goes on and on does not keep it here.
                    let jobs = std::iter::from_fn(|| source.pop()).take(capacity);
                    admitted += shared.gate.admit(jobs);
                }
            }
            shared.hosts.iter().for_each(|host| host.rouse());
            let (wanted, busy) = shared.gate.interest();
            let now = sys::now_ns();
            if busy || admitted > 0 {
                busy_at = now;
            }
            if busy && now.saturating_sub(tick_at) >= TICK_NS {
                tick_at = now;
                ticks += 1;
                let look = self.seer.is_none() || ticks.is_multiple_of(LOOK_TICKS);
                shared.gate.tick(look, &mut self.stop, &mut self.overdue);
                self.look_at_fibers(now);
                self.tell();
            }
            if shared.wanted.swap(u32::from(wanted), Ordering::Relaxed) == 0 && wanted {
                sys::futex_wake(&shared.wanted, i32::MAX);
            }
            let quiet = now.saturating_sub(busy_at) > QUIET_NS;
            let nap = match (self.seer.is_some() && wanted, quiet) {
                (true, _) => SHORT_NAP,
                (false, false) => NAP,
                (false, true) => LONG_NAP,
            };
            sys::futex_wait(&shared.bell, 0, Some(nap));
        }
    }

    /// Those that run and do not let others go on.
    fn look_at_fibers(&mut self, now_ns: u64) {
        for host in self.shared.hosts.iter() {
            let class = host.class();
            let bound = self.shared.config.classes[class].report_after;
            let bound_ns = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
            if self.overdue.len() < self.overdue.capacity()
                && let Some(age_ns) = host.overdue_ns(now_ns, bound_ns)
            {
                self.overdue.push(Overdue { class, fiber: true, tid: 0, age_ns, blocked: false });
            }
        }
    }

    fn tell(&mut self) {
        for overdue in self.overdue.drain(..) {
            self.shared.ended[overdue.class].overdue.fetch_add(1, Ordering::Relaxed);
            // A full queue means that there is plenty to say already; it is counted.
            let _ = self.shared.overdue.push(overdue);
        }
    }
}
