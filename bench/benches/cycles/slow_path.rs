//! What it costs a worker to hand a job to the slow path.
#![forbid(unsafe_code)]

use bench::Ticks;
use criterion::Criterion;
use dataplane::slow_path::{Class, SlowPath, SlowPathConfig, Submitter};
use percpu::{CpuList, Topology, tsc};
use std::hint::{black_box, spin_loop};
use std::thread;

/// Submitted in one go: as a worker might in a loop turn, and so many that what it costs to begin does not count.
const BULKS: [usize; 2] = [16, 256];
/// Where one is submitted now and then, as many may be on their way: none is ever refused.
const MOST_OUTSTANDING: usize = 900;

pub(crate) fn benches(criterion: &mut Criterion<Ticks>) {
    // As in a dataplane: the worker's CPU is its own, where there are two.
    let allowed: Vec<usize> =
        Topology::read().map(|topology| topology.allowed.iter().collect()).unwrap_or_default();
    let (Some(&first), Some(&last)) = (allowed.first(), allowed.last()) else { return };
    let config = SlowPathConfig { capacity: 1024, threads: 4, ..SlowPathConfig::default() };
    let cpus = CpuList::from_iter([first]);
    let (Ok(slow_path), Ok(_pinned)) = (SlowPath::start(config, &cpus), percpu::pin_on_cpu(last)) else {
        return;
    };
    let Ok(mut submitter) = slow_path.submitter() else { return };
    let mut group = criterion.benchmark_group("slow_path");
    for bulk in BULKS {
        group.bench_function(format!("submit, bulk {bulk}"), |bencher| {
            bencher.iter_custom(|rounds| {
                let submit = |submitter: &mut Submitter| {
                    for number in 0..bulk as u64 {
                        let captured = [black_box(number); 5];
                        let _ =
                            black_box(submitter.submit(Class(0), move || [captured.iter().sum(), 0, 0, 0]));
                    }
                };
                median(rounds, &mut submitter, submit) / bulk as f64
            });
        });
    }
    // As a worker mostly does: one now and then, so that the line it goes to was the other CPU's, and has had time to come.
    group.bench_function("submit, one every 5 us", |bencher| {
        bencher.iter_custom(|rounds| apart(&mut submitter) * rounds as f64);
    });
    group.finish();
}

/// Ticks of a submission that is some microseconds from the next, by the middle half of some; what it takes to read the counter is not in it.
fn apart(submitter: &mut Submitter) -> f64 {
    let wait = tsc::from_ns(5_000);
    let mut one = |submits: bool| {
        let costs = (0..2000_u64).map(|number| {
            let captured = [black_box(number); 5];
            let start = tsc::now_in_order();
            if submits {
                let _ = black_box(submitter.submit(Class(0), move || [captured.iter().sum(), 0, 0, 0]));
            }
            let end = tsc::now_in_order();
            while tsc::now().wrapping_sub(end) < wait || submitter.outstanding() > MOST_OUTSTANDING {
                let _ = black_box(submitter.poll());
            }
            end.wrapping_sub(start)
        });
        middle_half(costs.collect())
    };
    let reading = one(false);
    // Nothing costs nothing; and a criterion without time is an error.
    (one(true) - reading).max(1.0)
}

/// The mean of all but the lowest and the highest quarter: the counter itself goes in steps of some ticks.
fn middle_half(mut costs: Vec<u64>) -> f64 {
    costs.sort_unstable();
    let middle = &costs[costs.len() / 4..costs.len() * 3 / 4];
    middle.iter().sum::<u64>() as f64 / middle.len() as f64
}

/// Ticks of `rounds` bulks, by the median of some; what is submitted in between is waited for outside the measurement.
///
/// A worker has its CPU to itself. Bulks in front of which this thread lost it do not count, where there are enough others: they would
/// measure what somebody else left of the caches.
fn median(rounds: u64, submitter: &mut Submitter, mut bulk: impl FnMut(&mut Submitter)) -> f64 {
    let long = tsc::from_ns(30_000);
    let (mut kept, mut all) = (Vec::new(), Vec::new());
    let mut undisturbed = false;
    while all.len() < 512 && kept.len() < rounds.clamp(32, 256) as usize {
        let start = tsc::now_in_order();
        bulk(submitter);
        let end = tsc::now_in_order();
        let cost = end.wrapping_sub(start);
        if undisturbed {
            kept.push(cost);
        }
        all.push(cost);
        let (mut last, mut longest) = (end, 0);
        while submitter.outstanding() > 0 {
            let _ = black_box(submitter.poll());
            let now = tsc::now();
            longest = longest.max(now.wrapping_sub(last));
            last = now;
            // With one CPU there is nobody else to answer.
            if longest > long {
                thread::yield_now();
            }
            spin_loop();
        }
        undisturbed = longest < long;
    }
    let mut costs = if kept.len() < 32 { all } else { kept };
    let middle = costs.len() / 2;
    *costs.select_nth_unstable(middle).1 as f64 * rounds as f64
}
