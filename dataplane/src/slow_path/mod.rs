//! The slow path: jobs that may block, away from the workers.
//!
//! A worker hands over a closure and polls for its reply; threads on the housekeeping CPUs run it as ordinary blocking code. A fixed number of
//! *slots* says how many jobs run at once, however many are under way: when one blocks in the kernel its slot passes to the next, and when it
//! is awake it queues again. Classes share the slots' CPU time by weights, under caps. `docs/slow-path.md` says how to use it, and what it costs.

mod classes;
mod config;
mod dispatcher;
mod fiber;
mod gate;
mod poller;
mod report;
mod ring;
mod seat;
mod seer;
mod submitter;
mod sys;
mod thread;

pub use config::{ClassConfig, Detection, SlowPathConfig};
pub use fiber::{Event, Fiber, Woken};
pub use report::{SlowPathClassReport, SlowPathReport};
pub use ring::{JOB_BYTES, Message};
pub use submitter::{Class, Outcome, Refused, Reply, Submitter, Ticket};
pub use thread::blocking;

use crate::error::Error;
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use dispatcher::Dispatcher;
use fiber::Hosts;
use gate::{Gate, Overdue};
use isolation::trace::Switches;
use percpu::CpuList;
use poller::Pollers;
use ring::Task;
use seat::{Seat, ThreadState};
use seer::Seer;
use std::fmt;
use std::io;
use std::iter;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use submitter::{Entry, From, Pending, Source};
use thread::Unstopped;

/// The most submitters that there can be.
const MOST_SUBMITTERS: usize = 256;
/// How long threads have to begin.
const BEGIN: Duration = Duration::from_secs(10);
/// How long jobs have to end at the end.
const END: Duration = Duration::from_secs(1);

/// Of one class, by the threads that run its jobs.
#[derive(Default)]
struct Ended {
    done: AtomicU64,
    panicked: AtomicU64,
    abandoned: AtomicU64,
    overdue: AtomicU64,
}

/// What all threads of a slow path share.
struct Shared {
    config: SlowPathConfig,
    slots: usize,
    cpus: CpuList,
    gate: Gate,
    seats: Vec<&'static Seat>,
    ended: Vec<Ended>,
    /// The dispatcher never waits for it.
    sources: Mutex<Vec<Entry>>,
    hosts: Hosts,
    overdue: ArrayQueue<Overdue>,
    /// No more submissions.
    closed: Arc<CachePadded<AtomicBool>>,
    /// The dispatcher's and the pollers' end.
    stop: AtomicBool,
    /// Rung by pollers; the dispatcher sleeps on it.
    bell: AtomicU32,
    /// Whether polling is of use; pollers sleep on it.
    wanted: AtomicU32,
    /// Pollers that are about to wake somebody.
    owed: AtomicU32,
    lost_records: AtomicU64,
}

/// Threads that run jobs. Dropped, it gives what is under way a second to end.
pub struct SlowPath {
    shared: Arc<Shared>,
    traced: bool,
    helpers: Mutex<Option<Helpers>>,
}

/// The threads.
struct Helpers {
    jobs: Vec<JoinHandle<()>>,
    dispatcher: Option<JoinHandle<()>>,
    reporter: Option<JoinHandle<()>>,
    pollers: Pollers,
}

impl fmt::Debug for SlowPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { config, slots, cpus, .. } = &*self.shared;
        write!(f, "SlowPath({} threads, {slots} slots, CPUs {cpus})", config.threads)
    }
}

impl SlowPath {
    /// Starts its threads on these CPUs. Opens what it needs of the kernel; start it before workers are isolated.
    pub fn start(config: SlowPathConfig, cpus: &CpuList) -> Result<Self, Error> {
        config.check()?;
        sys::install_handler().map_err(Error::system("cannot install a handler for SIGURG"))?;
        let slots = match config.slots {
            0 => cpus.len().clamp(1, config.threads),
            slots => slots,
        };
        // Threads whose jobs never return outlive everything, and their signal handler looks at their seat.
        let seats: Vec<&'static Seat> =
            (0..config.threads).map(|index| &*Box::leak(Box::new(Seat::new(index)))).collect();
        let closed = Arc::default();
        let shared = Arc::new(Shared {
            slots,
            hosts: Hosts::new(&config, &closed),
            closed,
            cpus: cpus.clone(),
            gate: Gate::new(&config, slots, &seats),
            seats,
            ended: config.classes.iter().map(|_| Ended::default()).collect(),
            sources: Mutex::new(Vec::with_capacity(MOST_SUBMITTERS)),
            overdue: ArrayQueue::new(64),
            stop: AtomicBool::new(false),
            bell: AtomicU32::new(0),
            wanted: AtomicU32::new(0),
            owed: AtomicU32::new(0),
            lost_records: AtomicU64::new(0),
            config,
        });
        // Dropped on the way out, it ends the threads that there are.
        let mut this = Self { shared: Arc::clone(&shared), traced: false, helpers: Mutex::default() };
        let cannot = "cannot start the slow path's threads";
        let helpers = this.helpers.get_mut().unwrap_or_else(PoisonError::into_inner);
        let helpers = helpers.insert(Helpers {
            jobs: Vec::new(),
            dispatcher: None,
            reporter: None,
            pollers: Pollers::default(),
        });
        let (ready, all_ready) = mpsc::channel();
        for seat in &shared.seats {
            helpers.jobs.push(thread::start(&shared, seat, ready.clone()).map_err(Error::system(cannot))?);
        }
        for _ in &shared.seats {
            let begun = all_ready.recv_timeout(BEGIN).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            begun.map_err(Error::system(cannot))?;
        }
        let tids: Vec<i32> = shared.seats.iter().map(|seat| seat.tid()).collect();
        shared.gate.know(tids.iter().map(|tid| ThreadState::open(*tid)).collect());
        let switches = match shared.config.detection {
            Detection::Wrapped => None,
            Detection::Trace => Switches::open(&tids, cpus)
                .inspect_err(|error| {
                    tracing::warn!(
                        "slow path: the kernel does not tell when jobs block ({error}): wrap what blocks in slow_path::blocking, or a slot is free only after a millisecond or two; CAP_PERFMON or \"sysctl kernel.perf_event_paranoid=2\", and \"ulimit -n\" above threads x CPUs, mend it"
                    );
                })
                .ok(),
        };
        let seer = switches.map(|switches| Arc::new(Seer::new(switches, &tids)));
        if let Some(seer) = &seer {
            helpers.pollers = Pollers::start(&shared, seer).map_err(Error::system(cannot))?;
        }
        this.traced = seer.is_some();
        let dispatcher = Dispatcher::new(&shared, seer);
        helpers.dispatcher = Some(dispatcher.start().map_err(Error::system(cannot))?);
        helpers.reporter = Some(report::start_log(&shared).map_err(Error::system(cannot))?);
        Ok(this)
    }

    /// The class of that name.
    pub fn class(&self, name: &str) -> Option<Class> {
        self.shared.config.classes.iter().position(|class| class.name == name).map(Class)
    }

    /// Whether the kernel tells when jobs block; else only [`blocking`] and a look now and then do.
    pub fn is_traced(&self) -> bool {
        self.traced
    }

    /// How many jobs run at once.
    pub fn slots(&self) -> usize {
        self.shared.slots
    }

    /// A way in, for one thread. Make it when the application is made: this allocates. There may be 256.
    pub fn submitter(&self) -> Result<Submitter, Error> {
        let _unstopped = Unstopped::begin();
        let shared = &*self.shared;
        let classes = shared.config.classes.len();
        let capacity = shared.config.capacity;
        let source = Source::new(capacity, classes, Arc::clone(&shared.closed));
        let (submitter, entry) = Submitter::pair(source, capacity);
        let before = self.sources().len();
        // And for the one that runs a class's fibers.
        shared.gate.reserve(classes, capacity * (before + 1) + 1);
        let mut sources = self.sources();
        if sources.len() != before || before == MOST_SUBMITTERS {
            let why = "slow path: make submitters one after another, and no more than 256";
            return Err(Error::Configuration(why.into()));
        }
        sources.push(entry);
        Ok(submitter)
    }

    /// Starts a fiber of this class: a job that only computes, or waits by what it is given, of which there can be ten thousand. Gives it back where
    /// there are as many as there may be, no memory for its stack, no such class, or the slow path is closed; and where it is the first of its class, and
    /// would need the last thread, which is for jobs.
    ///
    /// For any thread but a worker's: it makes memory, and system calls for that.
    pub fn spawn_fiber<F>(&self, class: Class, body: F) -> Result<(), Refused<F>>
    where
        F: FnOnce(&Fiber<'_>) + Send + 'static,
    {
        let _unstopped = Unstopped::begin();
        let shared = &*self.shared;
        let Some(host) = shared.hosts.of(class.0) else { return Err(Refused(body)) };
        if shared.hosts.spawn(host, body).map_err(Refused)? {
            let (own, name) = (Arc::clone(host), shared.config.classes[class.0].name);
            // There are 64 classes at the most.
            let task = Task::new(class.0 as u8, move || {
                own.run(name);
                [0; 4]
            });
            let job = Pending { task, from: From::Fibers(Arc::clone(host)) };
            if shared.gate.admit(iter::once(job)) == 0 {
                host.has_ended();
            }
        }
        Ok(())
    }

    /// An event for fibers of this class to wait for. There may be twice as many as fibers, in each class.
    pub fn event(&self, class: Class) -> Result<Event, Error> {
        let _unstopped = Unstopped::begin();
        let event = self.shared.hosts.of(class.0).and_then(|host| host.event());
        event.ok_or_else(|| {
            Error::Configuration("slow path: no such class, no fibers, or too many events".into())
        })
    }

    fn sources(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.shared.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it: takes no more jobs, gives those that were taken a second, abandons those that have not begun, and leaves threads alone whose
    /// jobs never return. Says how many those are.
    pub fn close(&self) -> usize {
        let _unstopped = Unstopped::begin();
        let shared = &*self.shared;
        shared.closed.store(true, Ordering::SeqCst);
        let helpers = self.helpers.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut helpers) = helpers else { return 0 };
        let started = Instant::now();
        // Only where there is a dispatcher do jobs move.
        while helpers.dispatcher.is_some() && started.elapsed() < END {
            let waiting = self.sources().iter().any(|source| !source.is_empty());
            let fibers = shared.hosts.iter().any(|host| host.is_under_way());
            if !waiting && !fibers && !shared.gate.interest().1 {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        shared.stop.store(true, Ordering::Release);
        let ended = helpers.dispatcher.take().into_iter().chain(helpers.reporter.take());
        ended.for_each(|thread| drop(thread.join()));
        helpers.pollers.end(shared);
        self.abandon();
        shared.gate.open();
        let mut left = 0;
        for thread in helpers.jobs {
            while !thread.is_finished() && started.elapsed() < END + END / 2 {
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                let _ = thread.join();
            } else {
                left += 1;
            }
        }
        for (index, class) in shared.config.classes.iter().enumerate() {
            let (_, under_way) = shared.gate.class(index);
            if under_way > 0 {
                tracing::error!(
                    "slow path: {under_way} jobs of class {} have not returned, and are left alone",
                    class.name
                );
            }
        }
        for host in shared.hosts.iter().filter(|host| host.is_under_way()) {
            tracing::error!(
                "slow path: a fiber of class {} does not end, and is left alone with all of its class",
                shared.config.classes[host.class()].name
            );
        }
        left
    }

    /// Answers for the jobs that will never begin.
    fn abandon(&self) {
        let taken = std::iter::from_fn(|| self.shared.gate.give_up_fresh());
        let mut sources = self.sources();
        let waiting = sources.iter_mut().flat_map(|source| std::iter::from_fn(|| source.pop()));
        for job in taken.chain(waiting) {
            let class = job.class();
            let (source, ticket) = match job.from {
                From::Submitter(source, ticket) => (source, ticket),
                From::Fibers(host) => {
                    host.has_ended();
                    continue;
                }
            };
            self.shared.ended[class].abandoned.fetch_add(1, Ordering::Relaxed);
            source.answer(ticket, class, Outcome::Abandoned);
        }
    }
}

impl Drop for SlowPath {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod load;
#[cfg(test)]
mod tests;
