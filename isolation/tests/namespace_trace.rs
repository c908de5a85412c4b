//! What the trace says of real disturbances. It needs root: the names begin with `namespace_`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{isolated, soft};
use isolation::trace::{Cause, Interruption, Totals, Trace};
use isolation::{Signals, Source};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Ends the worker, also after a panic.
struct AtTheEnd<'a>(&'a AtomicBool);

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What was found of it.
struct Followed {
    found: Vec<Interruption>,
    /// Signals that it got for interrupts.
    signals: u64,
    totals: Totals,
    /// What the kernel itself counted on that CPU.
    interrupts: u64,
}

/// Follows a worker that does nothing but run for `time`, while `disturb` runs elsewhere with its CPU and thread number.
fn follow(signals: Signals, time: Duration, disturb: impl FnOnce(usize, i32) + Send) -> Followed {
    isolated(&soft(signals), |guard| {
        let watched = guard.watched().unwrap();
        let (cpu, tid) = (watched.cpu(), watched.tid());
        let mut found = (Vec::new(), Totals::default(), 0);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // A new thread has the mask of the one that makes it.
            let control = scope.spawn(|| {
                let _end = AtTheEnd(&done);
                let others = percpu::Topology::read().unwrap().online;
                let mask: nix::sched::CpuSet = others.iter().filter(|other| *other != cpu).fold(
                    nix::sched::CpuSet::new(),
                    |mut set, cpu| {
                        set.set(cpu).unwrap();
                        set
                    },
                );
                nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &mask).unwrap();
                let mut trace = Trace::open(&[(cpu, tid)]).unwrap();
                trace.start().unwrap();
                // What starting takes is not of interest.
                trace.poll(&mut Vec::new());
                let (before, seen) = (interrupts(cpu), trace.totals(0).irqs);
                disturb(cpu, tid);
                let (mut found, start) = (Vec::new(), Instant::now());
                while start.elapsed() < time {
                    trace.poll(&mut found);
                    std::thread::sleep(Duration::from_millis(1));
                }
                for line in trace.limits() {
                    eprintln!("{line}");
                }
                trace.poll(&mut found);
                let totals = trace.totals(0);
                (found, Totals { irqs: totals.irqs - seen, ..totals }, interrupts(cpu) - before)
            });
            while !done.load(Ordering::Relaxed) {
                guard.turn();
                std::hint::spin_loop();
            }
            found = control.join().unwrap();
        });
        let interrupts = Source::all().filter(|source| source.class() == Signals::INTERRUPTS);
        let signals = interrupts.map(|source| watched.count(source)).sum();
        let (found, totals, interrupts) = found;
        Followed { found: found.into_iter().map(|(_, found)| found).collect(), signals, totals, interrupts }
    })
}

fn skip(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED {test}: needs root to trace");
    } else if percpu::Topology::read().unwrap().allowed.len() < 2 {
        eprintln!("SKIPPED {test}: needs a second CPU");
    } else {
        return false;
    }
    true
}

/// All interrupts of a CPU that the kernel counts and has trace events for, from `/proc/interrupts`.
fn interrupts(cpu: usize) -> u64 {
    let text = std::fs::read_to_string("/proc/interrupts").unwrap();
    let column = text.lines().next().unwrap().split_whitespace().position(|head| head == format!("CPU{cpu}"));
    let rows = text.lines().skip(1).filter_map(|line| {
        let (name, counts) = line.trim().split_once(':')?;
        let traced = name.parse::<u32>().is_ok() || ["LOC", "RES", "CAL", "IWI"].contains(&name);
        traced.then(|| {
            counts.split_whitespace().nth(column.unwrap()).and_then(|count| count.parse::<u64>().ok())
        })?
    });
    rows.sum()
}

#[test]
fn namespace_every_interrupt_of_the_cpu_is_seen() {
    const TEST: &str = "namespace_every_interrupt_of_the_cpu_is_seen";
    if skip(TEST) {
        return;
    }
    // A machine so busy that the reader does not come round in time loses records, and says so.
    let attempt = || follow(Signals::INTERRUPTS, Duration::from_secs(1), |_, _| {});
    let followed = (0..5).map(|_| attempt()).find(|followed| followed.totals.lost == 0);
    let followed = followed.expect("records were lost five times over");
    let by_kernel = followed.interrupts;
    let by_us = followed.totals.irqs;
    // Reading the file takes time, in which some more come.
    assert!(by_us.abs_diff(by_kernel) * 50 <= by_kernel, "{by_us} of {by_kernel}");
    // What hit the worker was signalled too.
    let ours = followed.found.len() as u64;
    assert!(ours > 20 && followed.signals >= ours / 2, "{ours} found, {} signalled", followed.signals);
    let tick = Cause::Vector("local_timer");
    let ticks = followed.found.iter().filter(|one| one.cause == tick || one.also.contains(&tick));
    assert!(ticks.clone().count() > 10);
    assert!(ticks.clone().all(|one| one.duration_ns() > 100), "{:?}", ticks.collect::<Vec<_>>());
}
