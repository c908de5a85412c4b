//! How long a worker was away from polling: the time from the start of one loop turn to the start of the next.
//!
//! The histogram belongs to the worker and counts TSC ticks; it is read when the worker has ended. For the live table the
//! worker also keeps the longest gap where the control core can see it.
#![forbid(unsafe_code)]

use crossbeam_queue::ArrayQueue;
use hdrhistogram::Histogram;
use isolation::Gap;
use percpu::tsc;
use serde::Serialize;

/// Ten minutes at 5 GHz: longer gaps are counted as this one.
const MAX_TICKS: u64 = 10 * 60 * 5_000_000_000;

/// Long gaps of one isolated worker, for the control core to look into, in ticks of the time stamp counter.
pub(crate) type Gaps = ArrayQueue<Gap>;

pub(crate) struct LoopGap(Histogram<u64>);

/// Percentiles of the loop gap, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoopGapNs {
    /// Half of the gaps were at most this long.
    pub p50: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// 99.99 %.
    pub p9999: u64,
    /// The longest.
    pub max: u64,
}

impl LoopGap {
    pub(crate) fn new() -> Self {
        // Bounds of 1 and MAX_TICKS with two digits are always valid; the fallback resizes by itself.
        Self(
            Histogram::new_with_max(MAX_TICKS, 2)
                .unwrap_or_else(|_| Histogram::<u64>::new(2).unwrap_or_else(|_| unreachable!())),
        )
    }

    #[inline(always)]
    pub(crate) fn record(&mut self, ticks: u64) {
        self.0.saturating_record(ticks);
    }

    pub(crate) fn percentiles_ns(&self) -> LoopGapNs {
        let at = |quantile| tsc::to_ns(self.0.value_at_quantile(quantile));
        LoopGapNs {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: tsc::to_ns(self.0.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut gap = LoopGap::new();
        for ns in 1..=1000 {
            gap.record(tsc::from_ns(ns * 1000));
        }
        gap.record(u64::MAX);
        let ns = gap.percentiles_ns();
        assert!(ns.p50.abs_diff(500_000) < 10_000, "{ns:?}");
        assert!(ns.p99.abs_diff(990_000) < 20_000, "{ns:?}");
        assert!(ns.max > 60_000_000_000, "{ns:?}");
    }
}
