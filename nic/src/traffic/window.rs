//! Which of the last sequence numbers of a flow have come: a sliding bitmap.
#![forbid(unsafe_code)]

/// How many numbers back from the highest one seen are remembered. A packet that comes back within it is told apart as new
/// (reordered) or a duplicate; an older one is only known to be late.
pub const WINDOW: u64 = 1024;

/// What a sequence number turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The next one, or one further on; so many were passed over.
    Ahead {
        /// Numbers between the highest so far and this one.
        gap: u64,
    },
    /// Passed over earlier, and come after all: reordered (RFC 4737).
    Behind,
    /// Come before: a duplicate (RFC 5560).
    Again,
    /// Too old to tell.
    Late,
}

#[derive(Clone, Debug)]
pub(super) struct Window {
    /// Bit `sequence % WINDOW`, for the last [`WINDOW`] numbers below `next`.
    seen: [u64; (WINDOW / 64) as usize],
    /// The number behind the highest seen.
    next: u64,
    /// No number under it is known of.
    start: u64,
}

impl Window {
    /// A window that expects `start` first.
    pub(super) fn new(start: u64) -> Self {
        Self { seen: [0; _], next: start, start }
    }

    /// How many numbers have been passed, seen or not.
    pub(super) fn passed(&self) -> u64 {
        self.next - self.start
    }

    /// Passes over every number below `next`, and says how many those are.
    pub(super) fn pass(&mut self, next: u64) -> u64 {
        let gap = next.saturating_sub(self.next);
        if gap >= WINDOW {
            self.seen.fill(0);
        } else {
            (self.next..self.next + gap).map(place).for_each(|(word, bit)| self.seen[word] &= !bit);
        }
        self.next += gap;
        gap
    }

    /// Takes note of a number, which is less than `u64::MAX`.
    #[inline(always)]
    pub(super) fn note(&mut self, sequence: u64) -> Arrival {
        let (word, bit) = place(sequence);
        if sequence == self.next {
            self.seen[word] |= bit;
            self.next = sequence + 1;
            return Arrival::Ahead { gap: 0 };
        }
        self.note_out_of_order(sequence)
    }

    #[inline(never)]
    fn note_out_of_order(&mut self, sequence: u64) -> Arrival {
        let (word, bit) = place(sequence);
        if sequence > self.next {
            let gap = self.pass(sequence);
            self.seen[word] |= bit;
            self.next = sequence + 1;
            return Arrival::Ahead { gap };
        }
        if self.next - sequence > WINDOW || sequence < self.start {
            return Arrival::Late;
        }
        if self.seen[word] & bit != 0 {
            return Arrival::Again;
        }
        self.seen[word] |= bit;
        Arrival::Behind
    }
}

#[inline(always)]
fn place(sequence: u64) -> (usize, u64) {
    ((sequence % WINDOW / 64) as usize, 1 << (sequence % 64))
}
