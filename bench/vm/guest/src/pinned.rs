//! A thread that pins itself, goes on running, and reports where the kernel has it.
#![forbid(unsafe_code)]

use crate::until::until;
use anyhow::{Context, Result, anyhow, ensure};
use percpu::{CpuList, Indexing, Stack, Topology, pin_on_cpu};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
