//! An isolated worker on CPU 1, and on CPU 0 whoever watches it.
//!
//! All threads, processes and memory that a check needs are made before the worker enters: making them is a disturbance of its own.
#![forbid(unsafe_code)]

use super::quiet::quieten;
use super::{CPU, LIMIT};
use crate::until::until;
use anyhow::{Context, Result, anyhow, bail, ensure};
use isolation::{Config, Isolated, Observer, Signals, Source, Violation, Watched};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use percpu::{pin_on_cpu, tsc};
use std::fs;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long after a violation no other may come.
const AFTERWARDS: Duration = Duration::from_millis(300);

/// How the worker's stay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stay {
    /// It was isolated to the last.
    Whole,
    /// Something had ended it before.
    Ended,
    /// The worker forgot it, and its thread ended in isolation.
    Forgotten,
}

/// What the worker is told, and tells. It only reads these while nobody asks it for anything: what it writes, a fork would share.
#[derive(Default)]
struct Stage {
    wanted: AtomicU32,
    done: AtomicU32,
    entered: AtomicBool,
    /// An address of the worker's stack that it writes to each turn.
    stack: AtomicU64,
    leave: AtomicBool,
}

/// See the module.
pub(crate) struct Scene {
    pub(crate) observer: Observer,
    pub(crate) tid: i32,
    found: Vec<Violation>,
    stage: Arc<Stage>,
    go: Option<Sender<()>>,
    worker: Option<JoinHandle<Result<Stay>>>,
}

/// Sets the calling thread's affinity mask.
pub(crate) fn stay_on(cpus: &[usize]) -> Result<()> {
    let mut mask = CpuSet::new();
    cpus.iter().try_for_each(|cpu| mask.set(*cpu))?;
    sched_setaffinity(Pid::from_raw(0), &mask).with_context(|| format!("cannot stay on CPUs {cpus:?}"))
}

impl Scene {
    /// A worker with nothing to do.
    pub(crate) fn prepare(config: Config) -> Result<Self> {
        Self::with_action(config, |_| Stay::Whole)
    }

    /// A worker that does `action` each time it is asked to. It ends where that gives another stay than a whole one.
    pub(crate) fn with_action(
        config: Config,
        action: impl FnMut(&mut Isolated) -> Stay + Send + 'static,
    ) -> Result<Self> {
        quieten()?;
        // What violations are to call this thread.
        fs::write("/proc/self/comm", "check")?;
        // A process is not given isolated CPUs by itself.
        stay_on(&[0, CPU])?;
        let stage = Arc::new(Stage::default());
        let (ready, is_ready) = channel();
        let (go, may_go) = channel();
        let worker = thread::Builder::new().name("worker".into()).spawn({
            let stage = Arc::clone(&stage);
            move || work(&stage, config, action, &ready, &may_go)
        })?;
        let Ok(watched) = is_ready.recv() else {
            let why = worker.join().map_err(|_| anyhow!("the worker panicked"))?;
            bail!("the worker was not isolated: {:#}", why.err().context("and did not say why")?);
        };
        let tid = watched.tid();
        // Only now: the worker has its mask from this thread.
        stay_on(&[0])?;
        let observer = Observer::open(vec![watched], Signals::ALL);
        ensure!(observer.limits().is_empty(), "there is something it cannot know: {:?}", observer.limits());
        Ok(Self { observer, tid, found: Vec::new(), stage, go: Some(go), worker: Some(worker) })
    }

    /// The worker enters. From here on this process makes nothing new.
    pub(crate) fn enter(&mut self) -> Result<()> {
        self.go = None;
        let entered = until(LIMIT, || {
            self.poll();
            Ok(self.stage.entered.load(Ordering::Relaxed) || self.has_ended())
        })?;
        if self.has_ended() {
            self.leave()?;
        }
        ensure!(entered, "the worker was not isolated within {LIMIT:?}");
        self.watch(Duration::from_millis(50));
        ensure!(self.found.is_empty(), "before anything was done: {:#?}", self.found);
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.worker.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn poll(&mut self) {
        self.observer.poll(&mut self.found);
    }

    /// Watches for so long.
    pub(crate) fn watch(&mut self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            self.poll();
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Has the worker do its action once.
    pub(crate) fn act(&mut self) -> Result<()> {
        let wanted = self.stage.wanted.load(Ordering::Relaxed) + 1;
        self.stage.wanted.store(wanted, Ordering::Relaxed);
        let done = until(LIMIT, || {
            self.poll();
            Ok(self.stage.done.load(Ordering::Relaxed) == wanted || self.has_ended())
        })?;
        ensure!(done, "the worker has not done it within {LIMIT:?}");
        Ok(())
    }

    /// Waits for the first violation, and for whatever comes after it.
    pub(crate) fn violations(&mut self) -> Result<Vec<Violation>> {
        let start = Instant::now();
        until(LIMIT, || {
            self.poll();
            if start.elapsed() > Duration::from_secs(1) {
                // As a control core does ten times a second; here the signal has its time first.
                self.observer.watch_debuggers();
            }
            Ok(!self.found.is_empty())
        })?;
        self.watch(AFTERWARDS);
        Ok(std::mem::take(&mut self.found))
    }

    /// How many of these were signalled.
    pub(crate) fn count(&self, source: Source) -> u64 {
        self.watched().map_or(0, |watched| watched.count(source))
    }

    pub(crate) fn watched(&self) -> Option<&Watched> {
        self.observer.watched(0)
    }

    /// Whether an address is in the page of its stack that the worker writes to.
    pub(crate) fn is_on_stack(&self, address: u64) -> bool {
        address / 4096 == self.stage.stack.load(Ordering::Relaxed) / 4096
    }

    /// Whether the worker is isolated just now.
    pub(crate) fn is_isolated(&self) -> bool {
        self.watched().is_some_and(|watched| watched.was_isolated(tsc::now()))
    }

    /// Ends the stay, and tells how it was.
    pub(crate) fn leave(&mut self) -> Result<Stay> {
        self.stage.leave.store(true, Ordering::Relaxed);
        let worker = self.worker.take().context("it has left before")?;
        ensure!(until(LIMIT, || Ok(worker.is_finished()))?, "the worker has not left within {LIMIT:?}");
        worker.join().map_err(|_| anyhow!("the worker panicked"))?
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A worker that hangs ends with the process.
        if self.worker.is_some() {
            let _ = self.leave();
        }
    }
}

fn work(
    stage: &Stage,
    config: Config,
    mut action: impl FnMut(&mut Isolated) -> Stay,
    ready: &Sender<Watched>,
    go: &Receiver<()>,
) -> Result<Stay> {
    let _pinned = pin_on_cpu(CPU)?;
    let prepared = isolation::prepare(CPU, &config)?;
    ready.send(prepared.watched()).context("nobody waits for the worker")?;
    // An error, when the other end is dropped.
    let _ = go.recv();
    let mut guard = prepared.enter()?;
    let (mut done, mut turns) = (0, 0_u64);
    stage.stack.store(&raw const turns as u64, Ordering::Relaxed);
    stage.entered.store(true, Ordering::Relaxed);
    while !stage.leave.load(Ordering::Relaxed) {
        guard.turn();
        // The stack is in use.
        *black_box(&mut turns) += 1;
        if stage.wanted.load(Ordering::Relaxed) != done {
            done += 1;
            let stay = action(&mut guard);
            if stay != Stay::Whole {
                std::mem::forget(guard);
                return Ok(stay);
            }
            stage.done.store(done, Ordering::Relaxed);
        }
    }
    let stay = if guard.is_isolated() { Stay::Whole } else { Stay::Ended };
    drop(guard);
    Ok(stay)
}
