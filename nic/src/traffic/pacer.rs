//! So many packets a second, by the time stamp counter and without sleeping.
#![forbid(unsafe_code)]

use percpu::tsc;

/// Says how many packets are due. It owes exactly `rate * t` packets (rounded down) `t` seconds after it was first asked; who asks late gets all
/// that has become due, so a stall is followed by a burst and the mean stays right.
#[derive(Debug)]
pub struct Pacer {
    rate_pps: u64,
    tsc_hz: u64,
    started_tsc: Option<u64>,
    given: u64,
}

impl Pacer {
    /// A pacer of `rate_pps` packets a second; 0 is as many as asked for. The first one in a process measures the time stamp
    /// counter, which takes 20 ms.
    pub fn new(rate_pps: u64) -> Self {
        Self { rate_pps, tsc_hz: tsc::frequency_hz(), started_tsc: None, given: 0 }
    }

    /// How many of the `most` wanted packets are due now. The caller says with [`gave`](Self::gave) how many it really sent.
    #[inline]
    pub fn due(&mut self, most: usize) -> usize {
        if self.rate_pps == 0 { most } else { self.due_at(tsc::now(), most) }
    }

    /// `count` of the packets that were due are on their way.
    #[inline]
    pub fn gave(&mut self, count: usize) {
        self.given += count as u64;
    }

    fn due_at(&mut self, now_tsc: u64, most: usize) -> usize {
        // Counters of two CPUs may differ by a little: time does not run backwards here.
        let elapsed = now_tsc.saturating_sub(*self.started_tsc.get_or_insert(now_tsc));
        let total = u128::from(elapsed) * u128::from(self.rate_pps) / u128::from(self.tsc_hz);
        total.saturating_sub(u128::from(self.given)).min(most as u128) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn property_the_mean_is_kept_whenever_it_is_asked(
            rate_pps in 1..50_000_000_u64,
            gaps_tsc in proptest::collection::vec(0..3_000_000_u64, 1..200),
            most in 1..64_usize,
        ) {
            let mut pacer = Pacer::new(rate_pps);
            let hz = u128::from(pacer.tsc_hz);
            let (start, mut now, mut sent) = (77, 77, 0_u64);
            prop_assert_eq!(pacer.due_at(start, most), 0);
            for gap in gaps_tsc {
                now += gap;
                let count = pacer.due_at(now, most);
                pacer.gave(count);
                sent += count as u64;
                let owed = u128::from(now - start) * u128::from(rate_pps) / hz;
                prop_assert!(u128::from(sent) <= owed);
                prop_assert!(count == most || u128::from(sent) == owed);
            }
        }
    }

    #[test]
    fn no_rate_is_no_limit_and_time_never_runs_backwards() {
        assert_eq!(Pacer::new(0).due(64), 64);
        let mut pacer = Pacer::new(1_000_000);
        assert_eq!(pacer.due_at(1_000_000, 64), 0);
        assert_eq!(pacer.due_at(5, 64), 0);
    }
}
