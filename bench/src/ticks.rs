//! Benchmarks in ticks of the time stamp counter, the unit that packet processing is counted in: a worker at 2.6 GHz that
//! is to move 20 million packets a second has 130 of them for each.
#![forbid(unsafe_code)]

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{Bencher, Criterion, Throughput};
use percpu::tsc;
use std::time::Duration;

/// Measures in ticks of the time stamp counter.
pub struct Ticks;

impl Measurement for Ticks {
    type Intermediate = u64;
    type Value = f64;

    fn start(&self) -> u64 {
        tsc::now()
    }

    fn end(&self, start: u64) -> f64 {
        tsc::now().wrapping_sub(start) as f64
    }

    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &TicksFormatter
    }
}

struct TicksFormatter;

impl ValueFormatter for TicksFormatter {
    fn scale_values(&self, _typical: f64, _values: &mut [f64]) -> &'static str {
        "tsc"
    }

    fn scale_throughputs(&self, _typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        if let Throughput::Elements(elements) = throughput {
            values.iter_mut().for_each(|value| *value /= *elements as f64);
        }
        "tsc/element"
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "tsc"
    }
}

/// Benchmarks that take about a second each.
pub fn criterion() -> Criterion<Ticks> {
    Criterion::default()
        .with_measurement(Ticks)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(30)
        .without_plots()
}

/// Stretches that a measurement is cut into.
const STRETCHES: u64 = 32;

/// Runs `work`, which handles `items` items a call, and reports ticks an item: the median of short stretches, for what another
/// process does on this CPU in the meantime is not the work's cost.
pub fn per_item(bencher: &mut Bencher<'_, Ticks>, items: usize, mut work: impl FnMut()) {
    bencher.iter_custom(|rounds| {
        let stretch = rounds.div_ceil(STRETCHES);
        let mut costs: Vec<u64> = (0..rounds.div_ceil(stretch))
            .map(|_| {
                let start = tsc::now();
                (0..stretch).for_each(|_| work());
                tsc::now().wrapping_sub(start)
            })
            .collect();
        let middle = costs.len() / 2;
        let (_, median, _) = costs.select_nth_unstable(middle);
        *median as f64 / (stretch * items as u64) as f64 * rounds as f64
    });
}
