//! The receiving side's books: what came, what is missing, what came twice, late or damaged.
//!
//! A flow's numbers that were passed over count as lost at once and stop doing so when they come after all, so the books are right at
//! every moment. They are exact as long as no packet comes more than [`WINDOW`](super::WINDOW) numbers behind the highest of its flow; one
//! that does counts as `late`, and its number stays lost. A corrupt packet belongs to no flow (its number cannot be trusted),
//! so it is missing in its flow as well. What was sent after the last packet that came is not missed until
//! [`close_flow`](Tracker::close_flow) says how many there were.
//!
//! All memory is there from the start: receiving allocates nothing.
#![forbid(unsafe_code)]

use super::content::{self, Damage, TestPacket};
use super::window::{Arrival, Window};
use crate::counters::Counter;
use crate::memory::{Batch, Packet};

/// Where a flow's numbers are taken to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At 0: what is missing before the first packet that comes is lost.
    Zero,
    /// At the first packet that comes, for a receiver that joins a running stream.
    FirstSeen,
}

/// Sums over all flows. `packets` is the sum of all others but `lost` and `reordered`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Every frame that came, whatever it was.
    pub packets: u64,
    /// Different test packets.
    pub received: u64,
    /// Test packets that were passed over and have not come.
    pub lost: u64,
    /// Packets that had come before.
    pub duplicate: u64,
    /// Received packets that came after one with a higher number.
    pub reordered: u64,
    /// Packets too far behind to tell whether they are new.
    pub late: u64,
    /// Ours, but damaged.
    pub corrupt: u64,
    /// Not ours.
    pub foreign: u64,
    /// Ours, but of more flows than there was room for.
    pub untracked: u64,
}

macro_rules! shared_totals {
    ($($field:ident = $name:literal),+ $(,)?) => {
        /// [`Totals`] as counters: one thread publishes them, any thread reads them.
        #[derive(Debug, Default)]
        pub struct SharedTotals {
            $($field: Counter,)+
        }

        impl SharedTotals {
            /// Publishes.
            #[inline]
            pub fn set(&self, totals: &Totals) {
                $(self.$field.set(totals.$field);)+
            }

            /// Reads; the fields may be of different moments.
            pub fn get(&self) -> Totals {
                Totals { $($field: self.$field.get(),)+ }
            }
        }

        impl Totals {
            /// Each number with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$(($name, self.$field)),+].into_iter()
            }

            /// Adds another receiver's numbers.
            pub fn add(&mut self, other: &Totals) {
                $(self.$field += other.$field;)+
            }
        }
    };
}

shared_totals! {
    packets = "packets",
    received = "received",
    lost = "lost",
    duplicate = "duplicate",
    reordered = "reordered",
    late = "late",
    corrupt = "corrupt",
    foreign = "foreign",
    untracked = "untracked",
}

/// The numbers of one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowReport {
    /// Its sender.
    pub source: u16,
    /// Its number.
    pub flow: u16,
    /// Different packets.
    pub received: u64,
    /// Passed over and not come.
    pub lost: u64,
    /// Come again.
    pub duplicate: u64,
    /// Come after a higher number.
    pub reordered: u64,
    /// Too far behind to tell.
    pub late: u64,
}

#[derive(Debug)]
struct Flow {
    key: u32,
    window: Window,
    received: u64,
    duplicate: u64,
    reordered: u64,
    late: u64,
}

impl Flow {
    fn lost(&self) -> u64 {
        self.window.passed() - self.received
    }
}

/// Receives test packets and keeps the books.
#[derive(Debug)]
pub struct Tracker {
    start: Start,
    totals: Totals,
    flows: Vec<Flow>,
    capacity: usize,
    /// Open addressing: `flows` index + 1 at the hash of the key, 0 for none; at most half full.
    index: Box<[u32]>,
    shift: u32,
    last: usize,
}

impl Tracker {
    /// A tracker of up to `flows` flows.
    pub fn new(flows: usize, start: Start) -> Self {
        let capacity = flows.max(1);
        let bits = (capacity * 2).next_power_of_two().trailing_zeros();
        Self {
            start,
            totals: Totals::default(),
            flows: Vec::with_capacity(capacity),
            capacity,
            index: vec![0; 1 << bits].into_boxed_slice(),
            shift: u32::BITS - bits,
            last: 0,
        }
    }

    /// Takes note of every packet of a batch, which stays as it is.
    #[inline]
    pub fn receive_batch(&mut self, batch: &Batch) {
        for packet in batch {
            self.receive(packet);
        }
    }

    /// Takes note of one packet.
    #[inline]
    pub fn receive(&mut self, packet: &Packet) {
        self.note(content::read_packet(packet));
    }

    /// Takes note of one frame that lies in one piece.
    #[inline]
    pub fn receive_frame(&mut self, frame: &[u8]) {
        self.note(content::read(frame));
    }

    /// The sums now.
    #[inline]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The numbers of each flow, in the order in which they first came.
    pub fn flows(&self) -> impl Iterator<Item = FlowReport> + '_ {
        self.flows.iter().map(|flow| FlowReport {
            source: (flow.key >> 16) as u16,
            flow: flow.key as u16,
            received: flow.received,
            lost: flow.lost(),
            duplicate: flow.duplicate,
            reordered: flow.reordered,
            late: flow.late,
        })
    }

    /// The sender says that it sent `sent` packets of a flow, from 0 on: what is missing at the end is lost too.
    pub fn close_flow(&mut self, source: u16, flow: u16, sent: u64) {
        let Some(index) = self.find(u32::from(source) << 16 | u32::from(flow), 0) else {
            // No room for it: nothing is known of the flow.
            return;
        };
        let flow = &mut self.flows[index];
        self.totals.lost += flow.window.pass(sent);
    }

    #[inline(always)]
    fn note(&mut self, result: Result<TestPacket, Damage>) {
        self.totals.packets += 1;
        match result {
            Ok(packet) => self.note_packet(packet),
            Err(Damage::Foreign) => self.totals.foreign += 1,
            Err(Damage::Corrupt) => self.totals.corrupt += 1,
        }
    }

    #[inline(always)]
    fn note_packet(&mut self, packet: TestPacket) {
        let key = u32::from(packet.source) << 16 | u32::from(packet.flow);
        let Some(index) = self.find(key, packet.sequence) else {
            self.totals.untracked += 1;
            return;
        };
        let (flow, totals) = (&mut self.flows[index], &mut self.totals);
        let new = match flow.window.note(packet.sequence) {
            Arrival::Ahead { gap } => {
                totals.lost += gap;
                1
            }
            Arrival::Behind => {
                totals.lost -= 1;
                totals.reordered += 1;
                flow.reordered += 1;
                1
            }
            Arrival::Again => {
                totals.duplicate += 1;
                flow.duplicate += 1;
                0
            }
            Arrival::Late => {
                totals.late += 1;
                flow.late += 1;
                0
            }
        };
        totals.received += new;
        flow.received += new;
    }

    /// Where the flow is; a new one is begun with `sequence` as its first packet.
    #[inline(always)]
    fn find(&mut self, key: u32, sequence: u64) -> Option<usize> {
        if self.flows.get(self.last).is_some_and(|flow| flow.key == key) {
            return Some(self.last);
        }
        let mask = self.index.len() - 1;
        let mut place = (key.wrapping_mul(0x9E37_79B1) >> self.shift) as usize;
        loop {
            let index = match self.index[place & mask] {
                0 => return self.begin(place & mask, key, sequence),
                index => index as usize - 1,
            };
            if self.flows[index].key == key {
                self.last = index;
                return Some(index);
            }
            place += 1;
        }
    }

    #[cold]
    fn begin(&mut self, place: usize, key: u32, sequence: u64) -> Option<usize> {
        if self.flows.len() == self.capacity {
            return None;
        }
        let start = if self.start == Start::Zero { 0 } else { sequence };
        let window = Window::new(start);
        self.flows.push(Flow { key, window, received: 0, duplicate: 0, reordered: 0, late: 0 });
        self.last = self.flows.len() - 1;
        self.index[place] = self.flows.len() as u32;
        Some(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Addresses, FrameBuilder, WINDOW};
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// Packets as they come: (sender, flow, sequence).
    type Arrivals = Vec<(u16, u16, u64)>;

    fn receive(tracker: &mut Tracker, arrivals: &Arrivals) {
        let mut frame = [0; 60];
        for (sender, flow, sequence) in arrivals {
            let addresses = Addresses { sender: *sender, ..Addresses::default() };
            FrameBuilder::new(&addresses, false).write(&mut frame, *flow, *sequence);
            tracker.receive_frame(&frame);
        }
    }

    /// Keeps the whole list, and no bitmap.
    #[derive(Default)]
    struct Oracle {
        seen: BTreeSet<u64>,
        duplicate: u64,
        reordered: u64,
        late: u64,
    }

    impl Oracle {
        fn note(&mut self, sequence: u64) {
            let highest = self.seen.last().copied();
            if highest.is_some_and(|highest| sequence + WINDOW <= highest) {
                self.late += 1;
            } else if !self.seen.insert(sequence) {
                self.duplicate += 1;
            } else if highest.is_some_and(|highest| sequence < highest) {
                self.reordered += 1;
            }
        }

        fn lost(&self, sent: u64) -> u64 {
            sent.max(self.seen.last().map_or(0, |highest| highest + 1)) - self.seen.len() as u64
        }
    }

    fn oracles(arrivals: &Arrivals) -> BTreeMap<(u16, u16), Oracle> {
        let mut oracles: BTreeMap<_, Oracle> = BTreeMap::new();
        arrivals.iter().for_each(|(sender, flow, sequence)| {
            oracles.entry((*sender, *flow)).or_default().note(*sequence);
        });
        oracles
    }

    /// Up to 6000 packets, most of them of one flow, of which some are dropped, some come twice, and some are held up.
    fn arrivals(most_delay: u64) -> impl Strategy<Value = Arrivals> {
        let number = || prop_oneof![8 => Just(0_u16), 1 => 1..3_u16];
        let packet = (number(), number(), 0..100_u8, 0..most_delay, 0..100_u8);
        proptest::collection::vec(packet, 0..6000).prop_map(|packets| {
            let mut next = BTreeMap::new();
            let mut timed = Vec::new();
            for (position, (sender, flow, fate, delay, share)) in packets.into_iter().enumerate() {
                let sequence: &mut u64 = next.entry((sender, flow)).or_default();
                let held_up = if share < 20 { delay } else { 0 };
                let arrival = (sender, flow, *sequence);
                *sequence += 1;
                match fate {
                    0..10 => continue,
                    10..20 => timed.push((position as u64 + held_up / 2, arrival)),
                    _ => {}
                }
                timed.push((position as u64 + held_up, arrival));
            }
            timed.sort_by_key(|(time, _)| *time);
            timed.into_iter().map(|(_, arrival)| arrival).collect()
        })
    }

    fn check(arrivals: &Arrivals) -> Result<Tracker, TestCaseError> {
        let mut tracker = Tracker::new(9, Start::Zero);
        receive(&mut tracker, arrivals);
        let oracles = oracles(arrivals);
        prop_assert_eq!(tracker.flows().count(), oracles.len());
        let mut sum = Totals { packets: arrivals.len() as u64, ..Totals::default() };
        for report in tracker.flows() {
            let oracle = &oracles[&(report.source, report.flow)];
            let expected = FlowReport {
                received: oracle.seen.len() as u64,
                lost: oracle.lost(0),
                duplicate: oracle.duplicate,
                reordered: oracle.reordered,
                late: oracle.late,
                ..report
            };
            prop_assert_eq!(report, expected);
            sum.received += report.received;
            sum.lost += report.lost;
            sum.duplicate += report.duplicate;
            sum.reordered += report.reordered;
            sum.late += report.late;
        }
        prop_assert_eq!(*tracker.totals(), sum);
        prop_assert_eq!(sum.packets, sum.received + sum.duplicate + sum.late);
        Ok(tracker)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn property_the_books_agree_with_the_whole_list(arrivals in arrivals(4 * WINDOW)) {
            check(&arrivals)?;
        }

        #[test]
        fn property_within_the_window_they_are_exact(arrivals in arrivals(WINDOW / 2), unsent in 0..5000_u64) {
            let mut tracker = check(&arrivals)?;
            let distinct: BTreeSet<_> = arrivals.iter().collect();
            let totals = *tracker.totals();
            prop_assert_eq!(totals.received, distinct.len() as u64);
            prop_assert_eq!(totals.duplicate, (arrivals.len() - distinct.len()) as u64);
            prop_assert_eq!(totals.late, 0);
            // The end of each flow is lost, and the sender says so; a flow of which nothing came, too.
            let mut sent = 0;
            for report in tracker.flows().collect::<Vec<_>>() {
                let flow_sent = report.received + report.lost + unsent;
                tracker.close_flow(report.source, report.flow, flow_sent);
                sent += flow_sent;
            }
            prop_assert_eq!(tracker.totals().received + tracker.totals().lost, sent);
            if tracker.flows().count() < 9 {
                tracker.close_flow(9, 9, 5);
                prop_assert_eq!(tracker.totals().received + tracker.totals().lost, sent + 5);
            }
        }
    }

    #[test]
    fn the_window_is_as_long_as_it_says() {
        // The highest number is 5000, so 5001 - WINDOW is the oldest that is remembered.
        let highest = (0, 0, 5000);
        for (back, expected) in [
            (WINDOW - 1, Totals { received: 2, reordered: 1, duplicate: 1, lost: 4999, ..Totals::default() }),
            (WINDOW, Totals { received: 1, late: 2, lost: 5000, ..Totals::default() }),
        ] {
            let old = (0, 0, 5000 - back);
            let mut tracker = Tracker::new(1, Start::Zero);
            receive(&mut tracker, &vec![highest, old, old]);
            assert_eq!(*tracker.totals(), Totals { packets: 3, ..expected });
        }
    }

    #[test]
    fn a_late_joiner_counts_from_the_first_it_sees() {
        let arrivals = vec![(0, 0, 1_000_000), (0, 0, 1_000_002), (0, 0, 999_999), (0, 0, 1_000_001)];
        let mut tracker = Tracker::new(1, Start::FirstSeen);
        receive(&mut tracker, &arrivals);
        let expected =
            Totals { packets: 4, received: 3, lost: 0, reordered: 1, late: 1, ..Totals::default() };
        assert_eq!(*tracker.totals(), expected);
    }

    #[test]
    fn more_flows_than_there_is_room_for_are_said_to_be() {
        let mut tracker = Tracker::new(100, Start::Zero);
        let arrivals: Arrivals = (0..3).flat_map(|n| (0..120).map(move |flow| (7, flow, n))).collect();
        receive(&mut tracker, &arrivals);
        let expected = Totals { packets: 360, received: 300, untracked: 60, ..Totals::default() };
        assert_eq!(*tracker.totals(), expected);
    }

    #[test]
    fn a_jump_to_the_end_of_the_numbers_is_survived() {
        let mut tracker = Tracker::new(1, Start::Zero);
        receive(&mut tracker, &vec![(0, 0, u64::MAX - 1), (0, 0, u64::MAX), (0, 0, 5), (0, 0, u64::MAX - 1)]);
        let lost = u64::MAX - 1;
        let expected =
            Totals { packets: 4, received: 1, lost, duplicate: 1, late: 1, corrupt: 1, ..Totals::default() };
        assert_eq!(*tracker.totals(), expected);
        tracker.close_flow(0, 0, u64::MAX);
    }
}
