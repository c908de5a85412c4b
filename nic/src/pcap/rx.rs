//! The receive side: packets are copied out of the capture when they are due.
//!
//! A pool without a free frame makes the capture wait, since a file can, but not for ever: after a tenth of a second packets are
//! dropped under their reason, until there are frames again.
#![forbid(unsafe_code)]

use super::capture::{Capture, Entry};
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{Batch, Packet, Pool};
use crate::port::{PortId, RxQueue};
use percpu::tsc;
use std::sync::Arc;

/// How long an empty pool is waited for.
const PATIENCE_NS: u64 = 100_000_000;
/// Time stamps further apart than this (36 years) are held to it: in ticks it is still far from wrapping.
const LONGEST_NS: u64 = 1 << 60;
/// Shorter than its own header a packet is no Ethernet packet.
const ETHERNET_HEADER_BYTES: usize = 14;

/// How a capture is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Replay {
    /// By the capture's time stamps; else as fast as asked for.
    pub(super) paced: bool,
    /// How many times; `None`: for ever.
    pub(super) passes: Option<u64>,
    /// Packets that were captured only in part are delivered as they are.
    pub(super) deliver_partial: bool,
}

/// Replays a capture.
pub(super) struct FileRx {
    bytes: Vec<u8>,
    /// `time_ns` is replaced by the counter ticks since the first packet.
    entries: Vec<Entry>,
    replay: Replay,
    /// The next packet.
    next: usize,
    passes_left: Option<u64>,
    /// When this pass began, in counter ticks; unknown before the first call.
    pass_start: Option<u64>,
    /// Ticks from the start of one pass to that of the next.
    pass_ticks: u64,
    /// Since when the pool has had no frame, in counter ticks.
    starved_since: Option<u64>,
    patience: u64,
    pool: Pool,
    port: PortId,
    counters: Arc<QueueCounters>,
}

/// What became of a packet that is due.
enum Outcome {
    Delivered(Packet),
    Dropped(DropReason),
    NoFrame,
}

impl FileRx {
    pub(super) fn new(capture: Capture, replay: Replay, pool: &Pool, port: PortId) -> Self {
        let Capture { bytes, mut entries, .. } = capture;
        let (first_ns, span_ns) = span_ns(&entries);
        for entry in &mut entries {
            entry.time_ns = tsc::from_ns(entry.time_ns.saturating_sub(first_ns).min(LONGEST_NS));
        }
        // Between the last packet and the first one again lies the mean distance.
        let mean_ns = span_ns / (entries.len().saturating_sub(1).max(1) as u64);
        let finished = entries.is_empty();
        Self {
            bytes,
            entries,
            replay,
            next: 0,
            passes_left: if finished { Some(0) } else { replay.passes },
            pass_start: None,
            pass_ticks: tsc::from_ns(span_ns.saturating_add(mean_ns).min(LONGEST_NS)),
            starved_since: None,
            patience: tsc::from_ns(PATIENCE_NS),
            pool: pool.clone(),
            port,
            counters: Arc::default(),
        }
    }

    /// How many packets, at most `most` and of this pass, are due.
    #[inline]
    fn due(&mut self, most: usize) -> usize {
        let waiting = &self.entries[self.next..];
        let waiting = &waiting[..most.min(waiting.len())];
        if !self.replay.paced {
            return waiting.len();
        }
        let now = tsc::now();
        let start = *self.pass_start.get_or_insert(now);
        waiting.iter().take_while(|entry| is_reached(now, start.wrapping_add(entry.time_ns))).count()
    }

    /// One packet was dealt with.
    #[inline]
    fn advance(&mut self) {
        self.next += 1;
        if self.next == self.entries.len() {
            self.next = 0;
            self.pass_start = self.pass_start.map(|start| start.wrapping_add(self.pass_ticks));
            self.passes_left = self.passes_left.map(|left| left - 1);
        }
    }

    #[inline]
    fn copy(&self, entry: Entry, frames: &mut Batch) -> Outcome {
        let data = &self.bytes[entry.position..entry.position + entry.captured as usize];
        let partial = entry.captured < entry.original && !self.replay.deliver_partial;
        if partial || data.len() < ETHERNET_HEADER_BYTES {
            return Outcome::Dropped(DropReason::RxTruncated);
        }
        if data.len() > self.pool.data_room() {
            return self.copy_to_chain(data, frames);
        }
        match self.fresh(frames) {
            Some(packet) => {
                fill(packet, data).map_or(Outcome::Dropped(DropReason::RxOversize), Outcome::Delivered)
            }
            None => Outcome::NoFrame,
        }
    }

    #[cold]
    fn copy_to_chain(&self, data: &[u8], frames: &mut Batch) -> Outcome {
        let room = self.pool.data_room();
        if data.len().div_ceil(room) > self.pool.frames() {
            return Outcome::Dropped(DropReason::RxOversize);
        }
        // From the last segment to the first: each is linked before the ones that are there.
        let mut chain: Option<Packet> = None;
        for segment in data.chunks(room).rev() {
            let Some(packet) = self.fresh(frames) else {
                return Outcome::NoFrame;
            };
            let Some(mut packet) = fill(packet, segment) else {
                return Outcome::Dropped(DropReason::RxOversize);
            };
            if let Some(tail) = chain.take() {
                packet.chain(tail);
            }
            chain = Some(packet);
        }
        chain.map_or(Outcome::NoFrame, Outcome::Delivered)
    }

    /// An empty packet: of `frames`, which were allocated together, or, where chains have used those up, of the pool.
    #[inline]
    fn fresh(&self, frames: &mut Batch) -> Option<Packet> {
        frames.pop().or_else(|| {
            let mut packet = self.pool.allocate(0)?;
            packet.set_port(self.port);
            Some(packet)
        })
    }

    /// True where the pool has been empty for so long that the packet is given up.
    #[cold]
    fn gives_up(&mut self) -> bool {
        let now = tsc::now();
        let since = *self.starved_since.get_or_insert(now);
        now.wrapping_sub(since) > self.patience
    }
}

/// The earliest stamp, and nanoseconds from it to the latest.
pub(super) fn span_ns(entries: &[Entry]) -> (u64, u64) {
    // The first packet sets the clock's zero: one that is stamped earlier is due at once.
    let first = entries.first().map_or(0, |entry| entry.time_ns);
    let last = entries.iter().map(|entry| entry.time_ns).max().unwrap_or(first);
    (first, last - first)
}

/// Whether the counter has reached `due`; both may have wrapped.
#[inline]
fn is_reached(now: u64, due: u64) -> bool {
    now.wrapping_sub(due).cast_signed() >= 0
}

/// Puts `data` into an empty packet.
#[inline]
fn fill(mut packet: Packet, data: &[u8]) -> Option<Packet> {
    packet.append(data.len())?.copy_from_slice(data);
    Some(packet)
}

impl RxQueue for FileRx {
    fn receive(&mut self, batch: &mut Batch) {
        let mut budget = batch.room();
        let (mut packets, mut bytes) = (0, 0);
        'passes: while budget > 0 && self.passes_left != Some(0) {
            let due = self.due(budget);
            if due == 0 {
                break;
            }
            let mut frames = Batch::new();
            self.pool.allocate_batch(&mut frames, due, 0, self.port);
            for _ in 0..due {
                match self.copy(self.entries[self.next], &mut frames) {
                    Outcome::Delivered(packet) => {
                        self.starved_since = None;
                        packets += 1;
                        bytes += packet.total_len() as u64;
                        // There is room: the budget is what the batch had.
                        let _ = batch.push(packet);
                    }
                    Outcome::Dropped(reason) => self.counters.drops(reason).add(1),
                    Outcome::NoFrame if self.gives_up() => self.counters.drops(DropReason::RxNoFrame).add(1),
                    Outcome::NoFrame => break 'passes,
                }
                self.advance();
            }
            budget -= due;
        }
        self.counters.packets.add(packets);
        self.counters.bytes.add(bytes);
    }

    fn is_finished(&self) -> bool {
        self.passes_left == Some(0)
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

/// Receives nothing: of a port that only writes.
pub(super) struct NoFileRx {
    pub(super) counters: Arc<QueueCounters>,
}

impl RxQueue for NoFileRx {
    fn receive(&mut self, _batch: &mut Batch) {}

    fn is_finished(&self) -> bool {
        true
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}
