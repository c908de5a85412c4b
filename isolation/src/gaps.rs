//! Time that a worker was away from its loop with no event of this kernel in it: the hypervisor's, or the firmware's (SMI).
#![forbid(unsafe_code)]

/// What was counted of such time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unexplained {
    /// How often.
    pub gaps: u64,
    /// Altogether.
    pub total_ns: u64,
    /// The longest.
    pub longest_ns: u64,
}

/// A worker's loop stood still for longer than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Since when.
    pub from: u64,
    /// Until when.
    pub to: u64,
    /// A gap is looked into when it is longer than this.
    pub limit: u64,
}

impl Gap {
    /// The same in another unit of time.
    pub(crate) fn map(self, clock: impl Fn(u64) -> u64, length: impl Fn(u64) -> u64) -> Self {
        Self { from: clock(self.from), to: clock(self.to), limit: length(self.limit) }
    }

    /// How much of it lies in none of the interruptions, which come in their order. What is left of a gap may be a turn as any other:
    /// it counts where it is longer than the limit by itself.
    pub fn unexplained(&self, interruptions: impl Iterator<Item = (u64, u64)>) -> u64 {
        let (mut covered, mut until) = (0, self.from.min(self.to));
        for (start, end) in interruptions {
            let (start, end) = (start.max(until), end.min(self.to));
            covered += end.saturating_sub(start);
            until = until.max(end);
        }
        Some(self.to.saturating_sub(self.from) - covered).filter(|rest| *rest > self.limit).unwrap_or(0)
    }
}

impl Unexplained {
    /// Counts what no interruption explains.
    pub(crate) fn count(&mut self, gap: &Gap, interruptions: impl Iterator<Item = (u64, u64)>) {
        let rest_ns = gap.unexplained(interruptions);
        self.gaps += u64::from(rest_ns > 0);
        self.total_ns += rest_ns;
        self.longest_ns = self.longest_ns.max(rest_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_explained_by_what_lies_in_it_as_far_as_that_goes() {
        let gap = Gap { from: 1_000, to: 10_000, limit: 20 };
        for (interruptions, rest) in [
            (&[][..], 9_000),
            // Another time's.
            (&[(100, 900), (10_100, 10_200)], 9_000),
            // The tick at the end of what the hypervisor took.
            (&[(9_950, 9_990)], 8_960),
            // All but what a turn takes.
            (&[(1_010, 9_995)], 0),
            // Over its edges; and clocks are exact to a part of a microsecond.
            (&[(0, 3_000), (2_990, 4_000), (8_000, 20_000)], 4_000),
        ] {
            let mut all = Unexplained::default();
            all.count(&gap, interruptions.iter().copied());
            let expected = Unexplained { gaps: u64::from(rest > 0), total_ns: rest, longest_ns: rest };
            assert_eq!(all, expected, "{interruptions:?}");
        }
    }
}
