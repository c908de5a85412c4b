//! What we count against what the kernel's own `osnoise` tracer counts (Documentation/trace/osnoise-tracer.rst): the same interrupts and
//! the same tasks, on the same CPU in the same seconds.
#![forbid(unsafe_code)]

use super::helper::{Helper, PULSES};
use super::scene::{Scene, Stay};
use super::{CPU, LIMIT};
use crate::Lacks;
use crate::until::until;
use anyhow::{Context, Result, ensure};
use isolation::Config;
use isolation::trace::Totals;
use percpu::tsc;
use std::fs;
use std::path::Path;
use std::time::Duration;

const TRACING: &str = "/sys/kernel/tracing";
/// How far both may be apart: one in this many.
const APART: u64 = 50;

fn set(file: &str, value: &str) -> Result<()> {
    let path = Path::new(TRACING).join(file);
    fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
}

/// The tracer, which runs until this is dropped.
struct Osnoise;

impl Osnoise {
    /// Looks on, without the thread of its own by which it otherwise measures.
    fn start() -> Result<Self> {
        let tracers = fs::read_to_string(Path::new(TRACING).join("available_tracers"))?;
        if !tracers.split_whitespace().any(|tracer| tracer == "osnoise") {
            return Err(
                Lacks("this kernel has no osnoise tracer: boot the one with PREEMPT_RT".into()).into()
            );
        }
        let this = Self;
        set("osnoise/options", "NO_OSNOISE_WORKLOAD")?;
        set("osnoise/cpus", &CPU.to_string())?;
        // Ours, so that both can be asked for the same time.
        set("trace_clock", "mono")?;
        set("buffer_size_kb", "8192")?;
        for event in ["irq_noise", "thread_noise"] {
            set(&format!("events/osnoise/{event}/enable"), "1")?;
        }
        set("current_tracer", "osnoise")?;
        Ok(this)
    }

    /// Interrupts and tasks from then to then (CLOCK_MONOTONIC, microseconds), without the worker and the idle task.
    fn count(&self, from_us: u64, to_us: u64, worker: i32) -> Result<(u64, u64)> {
        set("tracing_on", "0")?;
        let text = fs::read_to_string(Path::new(TRACING).join(format!("per_cpu/cpu{CPU}/trace")))?;
        let lost = fs::read_to_string(Path::new(TRACING).join(format!("per_cpu/cpu{CPU}/stats")))?;
        let overrun = lost.lines().find_map(|line| line.strip_prefix("overrun:"));
        ensure!(overrun.is_some_and(|count| count.trim() == "0"), "osnoise has lost records: {lost}");
        let (mut irqs, mut threads) = (0, 0);
        for line in text.lines() {
            let Some((head, what)) = line.split_once("_noise: ") else { continue };
            // `   kworker/1:0-30      [001] d..2.    13.500000: thread_noise: kworker/1:0:30 start ...`
            let mut words = head.split_whitespace().rev();
            let (event, time) = (words.next(), words.next().unwrap_or_default().trim_end_matches(':'));
            let time_us: u64 =
                time.replace('.', "").parse().with_context(|| format!("no time in \"{line}\""))?;
            if !(from_us..to_us).contains(&time_us) {
                continue;
            }
            match event {
                Some("irq") => irqs += 1,
                Some("thread") => {
                    let task = what.split(" start ").next().unwrap_or_default();
                    let pid = task.rsplit(':').next().and_then(|pid| pid.parse::<i32>().ok());
                    let pid = pid.with_context(|| format!("no task in \"{line}\""))?;
                    threads += u64::from(pid != 0 && pid != worker);
                }
                _ => {}
            }
        }
        Ok((irqs, threads))
    }
}

impl Drop for Osnoise {
    fn drop(&mut self) {
        // The guest ends where one fails.
        let _ = set("current_tracer", "nop");
        let _ = set("events/osnoise/enable", "0");
        let _ = set("tracing_on", "1");
    }
}

/// Nothing has happened on the worker's CPU for a while: a good moment to begin and to end counting.
fn quiet(scene: &mut Scene) -> Result<Totals> {
    let mut before = scene.observer.totals(0);
    let is_quiet = until(LIMIT, || {
        scene.watch(Duration::from_millis(200));
        let now = scene.observer.totals(0);
        Ok(std::mem::replace(&mut before, now) == now)
    })?;
    ensure!(is_quiet, "the worker's CPU has not become quiet");
    Ok(before)
}

/// Some seconds of timers, real-time tasks that they wake, and work of the kernel: both count the same.
pub(crate) fn osnoise_agrees() -> Result<()> {
    let mut scene = Scene::prepare(Config::default())?;
    let osnoise = Osnoise::start()?;
    let mut pulses = [Helper::start("pulse", scene.tid)?, Helper::start("pulse", scene.tid)?];
    let mut refresher = Helper::start("refresher", scene.tid)?;
    scene.enter()?;
    let before = quiet(&mut scene)?;
    let from_us = tsc::monotonic_ns() / 1000;
    for _ in 0..3 {
        pulses.iter_mut().try_for_each(Helper::begin)?;
        refresher.order()?;
        pulses.iter_mut().try_for_each(Helper::answer)?;
        scene.watch(Duration::from_millis(20));
    }
    let after = quiet(&mut scene)?;
    let to_us = tsc::monotonic_ns() / 1000;
    let (irqs, threads) = osnoise.count(from_us, to_us, scene.tid)?;
    drop(osnoise);
    ensure!(after.lost == 0, "we have lost {} records", after.lost);
    let (our_irqs, our_threads) = (after.irqs - before.irqs, after.threads - before.threads);
    println!("osnoise: {irqs} interrupts and {threads} threads; we: {our_irqs} and {our_threads}");
    // Each pulse is a timer's interrupt and a task; interrupts hit tasks too, and tasks follow tasks.
    ensure!(irqs >= 3 * PULSES as u64 && threads >= 5 * PULSES as u64, "osnoise has seen too little");
    ensure!(our_irqs.abs_diff(irqs) * APART <= irqs, "interrupts: we {our_irqs}, osnoise {irqs}");
    ensure!(our_threads.abs_diff(threads) * APART <= threads, "threads: we {our_threads}, osnoise {threads}");
    ensure!(scene.leave()? == Stay::Whole, "the stay has ended");
    Ok(())
}
