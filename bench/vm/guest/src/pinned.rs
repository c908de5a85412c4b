//! A thread that pins itself, goes on running, and reports where the kernel has it.
#![forbid(unsafe_code)]

use crate::until::until;
use anyhow::{Context, Result, anyhow, ensure};
use percpu::pin::Outsider;
use percpu::{CpuList, Indexing, Stack, Topology, pin_on_cpu};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long the kernel may take to move a thread.
const LIMIT: Duration = Duration::from_secs(5);

/// Where a thread is: its CPU, and its mask as percpu reads it; or what kept it from saying so.
type Whereabouts = Result<(usize, CpuList), String>;

/// A busy thread, pinned by percpu. It ends with this.
pub(crate) struct Watched {
    latest: Arc<Mutex<Option<Whereabouts>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watched {
    /// Starts the thread, and returns once it runs on `cpu` and on no other.
    pub(crate) fn pin_on(cpu: usize) -> Result<Self> {
        let latest = Arc::new(Mutex::new(None));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (latest, stop) = (Arc::clone(&latest), Arc::clone(&stop));
            move || {
                let report = |whereabouts| {
                    *latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(whereabouts);
                };
                let _pinned = match pin_on_cpu(cpu) {
                    Ok(pinned) => pinned,
                    Err(error) => return report(Err(error.to_string())),
                };
                while !stop.load(Ordering::Relaxed) {
                    report(whereabouts().map_err(|error| error.to_string()));
                }
            }
        });
        let watched = Self { latest, stop, thread: Some(thread) };
        watched.comes_to(&CpuList::from_iter([cpu]))?;
        Ok(watched)
    }

    /// Waits until the thread's mask is `allowed`, and it runs on one of these CPUs.
    pub(crate) fn comes_to(&self, allowed: &CpuList) -> Result<()> {
        let latest = || self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone().transpose();
        let there = until(LIMIT, || {
            let latest = latest().map_err(|why| anyhow!(why))?;
            Ok(latest.is_some_and(|(cpu, mask)| mask == *allowed && allowed.contains(cpu)))
        })?;
        ensure!(there, "the thread was to be on {allowed}: after {LIMIT:?} (CPU, mask): {:?}", latest());
        Ok(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it is on the console, and whoever waits for its report misses it.
            let _ = thread.join();
        }
    }
}

fn whereabouts() -> Result<(usize, CpuList)> {
    let cpu = nix::sched::sched_getcpu().context("sched_getcpu")?;
    Ok((cpu, Topology::read()?.allowed))
}

/// What was said of a thread's loss of its CPU.
pub(crate) struct Noticed {
    pub(crate) by_thread: Outsider,
    pub(crate) by_watch: Outsider,
}

/// Pins two busy threads to a CPU, has it taken away, and waits until the guard of one and the watch of the other say so.
pub(crate) fn notices(cpu: usize, take_away: impl FnOnce() -> Result<()>) -> Result<Noticed> {
    // Whoever of the two notices first keeps it from the other: so a thread for each.
    let stop = AtomicBool::new(false);
    let (watch_in, watch) = mpsc::channel();
    let (found_in, found) = mpsc::channel();
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let stop = &stop;
        scope.spawn(move || {
            let Ok(pinned) = pin_on_cpu(cpu) else { return };
            let _ = watch_in.send(pinned.watch());
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let watch = watch.recv_timeout(LIMIT).context("the watched thread was not pinned")?;
        let (ready_in, ready) = mpsc::channel();
        scope.spawn(move || {
            let Ok(pinned) = pin_on_cpu(cpu) else { return };
            let _ = ready_in.send(());
            while !stop.load(Ordering::Relaxed) {
                if let Err(outsider) = pinned.check() {
                    let _ = found_in.send(outsider);
                    return;
                }
            }
        });
        ready.recv_timeout(LIMIT).context("the checking thread was not pinned")?;
        ensure!(watch.check()?.is_none(), "noticed too early");
        take_away()?;
        let mut by_watch = None;
        until(LIMIT, || {
            by_watch = watch.check()?;
            Ok(by_watch.is_some())
        })?;
        Ok(Noticed {
            by_thread: found.recv_timeout(LIMIT).context("the thread did not notice")?,
            by_watch: by_watch.context("the watch did not notice")?,
        })
    })
}

/// Has the threads of a scope end, also where something fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Leaves items on CPU 1's stack, has that CPU taken away, and wants them back.
pub(crate) fn strand(take_away: impl FnOnce() -> Result<()>) -> Result<()> {
    const CPU: usize = 1;
    let items: Vec<u64> = (0..100).collect();
    let stack = Stack::<u64>::new(200, items.len(), Indexing::Cpu);
    thread::scope(|scope| {
        let left = scope.spawn(|| pin_on_cpu(CPU).map(|_pinned| stack.push(&items)));
        left.join()
            .map_err(|_| anyhow!("the thread that leaves items behind panicked"))?
            .context("leaving items")
    })?;
    ensure!(stack.stack_len(CPU) == items.len(), "{} items on CPU {CPU}", stack.stack_len(CPU));
    ensure!(stack.drain_stranded()? == 0, "items were taken from a CPU that can be used");
    take_away()?;
    let drained = stack.drain_stranded()?;
    ensure!(drained == items.len(), "{drained} of {} items were found", items.len());
    let mut back: Vec<u64> = std::iter::from_fn(|| stack.pop_one()).collect();
    back.sort_unstable();
    ensure!(back == items, "not what was left: {back:?}");
    Ok(())
}
