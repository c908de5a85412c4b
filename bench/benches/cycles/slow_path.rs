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
                        let captured = [black_box(number); 8];
                        let _ =
                            black_box(submitter.submit(Class(0), move || [captured.iter().sum(), 0, 0, 0]));
                    }
                };
                median(rounds, &mut submitter, submit) / bulk as f64
            });
        });
    }
    group.finish();
}

/// Ticks of `rounds` bulks, by the median of some; what is submitted in between is waited for outside the measurement.
fn median(rounds: u64, submitter: &mut Submitter, mut bulk: impl FnMut(&mut Submitter)) -> f64 {
    let mut costs: Vec<u64> = (0..rounds.clamp(32, 256))
        .map(|_| {
            let start = tsc::now();
            bulk(submitter);
            let cost = tsc::now().wrapping_sub(start);
            // As a worker does: it does not give its CPU away. With one CPU there is nobody else to answer.
            let mut polls = 0_u32;
            while submitter.outstanding() > 0 {
                if submitter.poll().is_none() {
                    polls = polls.wrapping_add(1);
                    if polls.is_multiple_of(1 << 16) { thread::yield_now() } else { spin_loop() }
                }
            }
            cost
        })
        .collect();
    let middle = costs.len() / 2;
    let (_, median, _) = costs.select_nth_unstable(middle);
    *median as f64 * rounds as f64
}
