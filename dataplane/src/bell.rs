//! Who rings the doorbells of a worker's queues: the worker itself, or the kicker for it.
//!
//! A worker that is to make no system call leaves word: one flag for each queue, so there is always room for it, and a queue that
//! asks twice before it is served is woken once. The kicker is a thread on the control core's CPU that does nothing but look at these flags; not the
//! control core's own thread, whose table a slow terminal can hold up.
//!
//! In copy mode the call is the sending: then it is the kicker that copies packets, and not the worker.
#![forbid(unsafe_code)]

use crate::error::Error;
use crate::worker::RunState;
use isolation::Window;
use nic::port::{Doorbell, PortGone};
use nic::{PortId, QueueCounters};
use percpu::tsc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A queue's bell, in the hands of the worker that runs the queue.
pub(crate) struct Bell {
    port: PortId,
    counters: Arc<QueueCounters>,
    way: Way,
}

enum Way {
    /// The worker rings it, through this window where it is isolated.
    Worker(Arc<dyn Doorbell>, Option<Window>),
    /// The kicker does.
    Control(Arc<Request>),
}

/// A worker's word that a queue is to be woken. Two cache lines to itself: the CPU fetches them in pairs.
#[repr(align(128))]
struct Request {
    wanted: AtomicBool,
    port: PortId,
    doorbell: Arc<dyn Doorbell>,
}

/// What bells are made by: it remembers those that the kicker is to look at.
pub(crate) struct Bells {
    by_control: bool,
    requests: Vec<Arc<Request>>,
}

impl Bells {
    pub(crate) fn new(by_control: bool) -> Self {
        Self { by_control, requests: Vec::new() }
    }

    /// The bell of a queue that has a doorbell.
    pub(crate) fn make(
        &mut self,
        port: PortId,
        doorbell: Arc<dyn Doorbell>,
        counters: &Arc<QueueCounters>,
    ) -> Bell {
        let way = if self.by_control {
            let request = Arc::new(Request { wanted: AtomicBool::new(false), port, doorbell });
            self.requests.push(Arc::clone(&request));
            Way::Control(request)
        } else {
            Way::Worker(doorbell, None)
        };
        Bell { port, counters: Arc::clone(counters), way }
    }

    /// Starts the kicker on this CPU, where it has anything to look at.
    pub(crate) fn start(self, cpu: usize, state: &Arc<RunState>) -> Result<Option<Kicker>, Error> {
        if self.requests.is_empty() {
            return Ok(None);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (requests, state, stopped) = (self.requests, Arc::clone(state), Arc::clone(&stop));
        let body = move || {
            // Elsewhere it would do no harm, but for the workers it might disturb: those have their CPUs to themselves.
            let _pinned = percpu::pin_on_cpu(cpu);
            // Or every sleep would be 50 us longer.
            let _ = nix::sys::prctl::set_timerslack(1);
            serve(&requests, &state, &stopped);
        };
        let thread = thread::Builder::new().name("kicker".into()).spawn(body);
        Ok(Some(Kicker {
            stop,
            thread: Some(thread.map_err(Error::system("cannot start the kicker's thread"))?),
        }))
    }
}

impl Bell {
    /// From now on the worker rings it through this window.
    pub(crate) fn set_window(&mut self, window: Option<&Window>) {
        if let Way::Worker(_, own) = &mut self.way {
            *own = window.cloned();
        }
    }

    /// Has the queue woken, at once or soon; says so where its port is gone.
    #[cold]
    pub(crate) fn ring(&self) -> Option<(PortId, PortGone)> {
        let rung = match &self.way {
            Way::Worker(doorbell, Some(window)) => window.allow(|| doorbell.ring()),
            Way::Worker(doorbell, None) => doorbell.ring(),
            Way::Control(request) => {
                if request.wanted.load(Ordering::Relaxed) {
                    return None;
                }
                // Release: what the worker wrote to the ring is there when the kicker makes its call.
                request.wanted.store(true, Ordering::Release);
                Ok(())
            }
        };
        self.counters.doorbells.add(1);
        rung.err().map(|gone| (self.port, gone))
    }
}

/// The kicker's thread; dropped, it ends when no word is left.
pub(crate) struct Kicker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Kicker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// As long as there is word it does not sleep, and for so long afterwards.
const AWAKE_NS: u64 = 50_000;
/// Then so long at a time: what a first packet waits.
const NAP: Duration = Duration::from_micros(50);
/// After so long without word, longer.
const QUIET_NS: u64 = 100_000_000;
const LONG_NAP: Duration = Duration::from_micros(250);

fn serve(requests: &[Arc<Request>], state: &RunState, stop: &AtomicBool) {
    let (awake, quiet) = (tsc::from_ns(AWAKE_NS), tsc::from_ns(QUIET_NS));
    let mut last = tsc::now();
    loop {
        // Before the flags: what was asked for before the end is done.
        let ends = stop.load(Ordering::Acquire);
        let mut rang = false;
        for request in requests {
            // Acquire: see `Bell::ring`. Cleared before the call: word that is left during it is for another one.
            if request.wanted.load(Ordering::Relaxed) && request.wanted.swap(false, Ordering::Acquire) {
                rang = true;
                if let Err(gone) = request.doorbell.ring() {
                    // A full queue of events means that the control core has plenty to say already.
                    let _ = state.events.push((request.port, gone));
                }
            }
        }
        let now = tsc::now();
        if rang {
            last = now;
        } else if ends {
            return;
        } else {
            match now.wrapping_sub(last) {
                idle if idle < awake => thread::yield_now(),
                idle if idle < quiet => thread::sleep(NAP),
                _ => thread::sleep(LONG_NAP),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OnViolation;
    use nic::{Pool, PoolConfig};
    use std::sync::atomic::AtomicU64;

    /// Counts, and is gone from the third time on.
    #[derive(Default)]
    struct Counting(AtomicU64);

    impl Doorbell for Counting {
        fn ring(&self) -> Result<(), PortGone> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => Ok(()),
                _ => Err(PortGone { port: "test".into(), reason: "gone".into() }),
            }
        }
    }

    fn state() -> Arc<RunState> {
        let pool = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
        Arc::new(RunState::new(pool, OnViolation::Log))
    }

    #[test]
    fn what_is_asked_for_before_the_end_is_done_and_a_lost_port_is_told_of() {
        let (state, counting, counters) = (state(), Arc::new(Counting::default()), Arc::default());
        let mut bells = Bells::new(true);
        let bell = bells.make(PortId(3), Arc::clone(&counting) as Arc<dyn Doorbell>, &counters);
        for (ring, gone) in [(1, 0), (2, 0), (3, 1)] {
            assert_eq!(bell.ring(), None);
            let bells = Bells { by_control: true, requests: bells.requests.clone() };
            drop(bells.start(0, &state).unwrap());
            assert_eq!((counting.0.load(Ordering::Relaxed), state.events.len()), (ring, gone));
        }
        assert_eq!(
            state.events.pop().map(|(port, gone)| (port, gone.reason)),
            Some((PortId(3), "gone".into()))
        );
        assert_eq!(counters.doorbells.get(), 3);
    }

    #[test]
    fn who_asks_twice_is_served_once() {
        let (state, counting, counters) = (state(), Arc::new(Counting::default()), Arc::default());
        let mut bells = Bells::new(true);
        let bell = bells.make(PortId(0), Arc::clone(&counting) as Arc<dyn Doorbell>, &counters);
        assert_eq!([bell.ring(), bell.ring()], [None, None]);
        drop(bells.start(0, &state).unwrap());
        assert_eq!((counting.0.load(Ordering::Relaxed), counters.doorbells.get()), (1, 1));
    }

    #[test]
    fn a_worker_that_rings_itself_needs_no_kicker() {
        let (counting, counters) = (Arc::new(Counting::default()), Arc::default());
        let mut bells = Bells::new(false);
        let bell = bells.make(PortId(1), Arc::clone(&counting) as Arc<dyn Doorbell>, &counters);
        let rung = [bell.ring(), bell.ring(), bell.ring()];
        assert!(rung[..2] == [None, None] && rung[2].as_ref().is_some_and(|(port, _)| *port == PortId(1)));
        assert!(bells.start(0, &state()).unwrap().is_none());
    }
}
