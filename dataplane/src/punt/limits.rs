//! How many packets of each class a worker may punt: token buckets that run by the time stamp counter.
#![forbid(unsafe_code)]

use super::class::Class;
use nic::spec::parse_number;
use percpu::tsc;
use std::str::FromStr;

/// A bucket holds what flows into it in so many milliseconds ...
const BURST_MS: u64 = 50;
/// ... but so many packets at least, for a host that says several things at once, and at most: a quarter of the ring behind it, so that the
/// bursts of all classes fit.
const LEAST_BURST: u64 = 32;
const MOST_BURST: u64 = 256;
/// More is no limit.
const MOST_PPS: u64 = 100_000_000;

/// Packets a second of each class that a worker punts at most: `arp=1000,icmp=1000,tcp=50k,other=2k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PuntLimits {
    pps: [u64; Class::COUNT],
}

impl Default for PuntLimits {
    fn default() -> Self {
        Self { pps: [1000, 1000, 50_000, 2000] }
    }
}

impl FromStr for PuntLimits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut limits = Self::default();
        for part in text.split(',') {
            let wrong = || {
                format!(
                    "\"{part}\": write CLASS=PACKETS_A_SECOND, with CLASS one of {}, and at most 100M",
                    Class::NAMES.join(", ")
                )
            };
            let (name, number) = part.split_once('=').ok_or_else(wrong)?;
            let class = Class::NAMES.iter().position(|known| *known == name).ok_or_else(wrong)?;
            limits.pps[class] =
                parse_number(number).filter(|number| *number <= MOST_PPS).ok_or_else(wrong)?;
        }
        Ok(limits)
    }
}

/// One class's bucket. Tokens are ticks: a packet costs those in which the next one comes due.
#[derive(Clone, Debug)]
struct Bucket {
    tokens: u64,
    last: u64,
    cost: u64,
    most: u64,
}

impl Bucket {
    /// One that is full; `None` where nothing may pass.
    fn new(pps: u64, hz: u64, now: u64) -> Option<Self> {
        let cost = (hz / pps.max(1)).max(1);
        let most = cost * (pps * BURST_MS / 1000).clamp(LEAST_BURST, MOST_BURST);
        (pps > 0).then_some(Self { tokens: most, last: now, cost, most })
    }

    fn admit(&mut self, now: u64) -> bool {
        // Another CPU's counter may be behind a little.
        let passed = now.saturating_sub(self.last);
        self.last = self.last.max(now);
        self.tokens = self.tokens.saturating_add(passed).min(self.most);
        let admitted = self.tokens >= self.cost;
        if admitted {
            self.tokens -= self.cost;
        }
        admitted
    }
}

/// The buckets of one worker and one port.
#[derive(Clone, Debug)]
pub(super) struct Buckets([Option<Bucket>; Class::COUNT]);

impl Buckets {
    pub(super) fn new(limits: PuntLimits) -> Self {
        let (hz, now) = (tsc::frequency_hz(), tsc::now());
        Self(limits.pps.map(|pps| Bucket::new(pps, hz, now)))
    }

    /// Whether one more packet of this class may pass.
    pub(super) fn admit(&mut self, class: Class) -> bool {
        self.0[class as usize].as_mut().is_some_and(|bucket| bucket.admit(tsc::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn limits_are_read_and_what_is_not_named_keeps_its_own() {
        let limits: PuntLimits = "tcp=5k,arp=0".parse().unwrap();
        assert_eq!(limits.pps, [0, 1000, 5000, 2000]);
        for wrong in ["", "tcp", "tcp=", "tcp=-1", "udp=5", "tcp=1G", "tcp=1,,arp=2"] {
            assert!(wrong.parse::<PuntLimits>().unwrap_err().contains("arp, icmp, tcp, other"), "{wrong}");
        }
    }

    #[test]
    fn nothing_passes_where_the_limit_is_zero_and_classes_have_their_own() {
        let mut buckets = Buckets::new("arp=0,icmp=1".parse().unwrap());
        assert!(!buckets.admit(Class::Arp));
        let passed = (0..1000).filter(|_| buckets.admit(Class::Icmp)).count();
        // Its burst, and what a slow machine took a second for.
        assert!((32..40).contains(&passed), "{passed}");
        assert!(buckets.admit(Class::Tcp));
    }

    proptest! {
        /// Over any time, and however they come, no more pass than the burst and the rate; and all that come more slowly do.
        #[test]
        fn property_a_bucket_holds_its_rate(
            pps in 1_u64..200_000,
            gaps in proptest::collection::vec(0_u64..3_000_000, 1..400),
        ) {
            const HZ: u64 = 2_000_000_000;
            let mut bucket = Bucket::new(pps, HZ, 7).unwrap();
            let (cost, burst) = (bucket.cost, bucket.most / bucket.cost);
            prop_assert!((LEAST_BURST..=MOST_BURST).contains(&burst));
            let (mut now, mut passed) = (7, 0);
            for gap in &gaps {
                now += gap;
                passed += u64::from(bucket.admit(now));
            }
            prop_assert!(passed <= burst + (now - 7) / cost, "{passed} of {burst} and {}", (now - 7) / cost);
            for _ in 0..100 {
                now += cost;
                prop_assert!(bucket.admit(now));
            }
            // A counter that goes back gives nothing.
            let mut back = Bucket::new(pps, HZ, now).unwrap();
            back.tokens = 0;
            prop_assert!(!back.admit(now - 5));
            prop_assert!(!back.admit(now));
        }
    }
}
