//! The receive side: the doorbell reads what the kernel sent into frames of the pool, the queue takes them from a ring.
#![forbid(unsafe_code)]

use super::{MAX_SEGMENTS, RX_RING, Tap};
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{BATCH_SIZE, Batch, Packet, Pool};
use crate::port::{Doorbell, PortGone, PortId, RxQueue};
use crate::ring::{Consumer, Observer, Producer, ring};
use percpu::tsc;
use std::io::{ErrorKind, IoSliceMut, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How often the kernel is asked while packets come, and when none have come for a while: a `read(2)` that finds nothing, and
/// whoever makes it stays awake for it.
const POLL_NS: u64 = 50_000;
const IDLE_POLL_NS: u64 = 1_000_000;
/// So long after the last packet it is a while.
const IDLE_AFTER_NS: u64 = 10_000_000;
/// Packets that one doorbell reads at most: a worker that rings it has other queues.
const READ_BUDGET: usize = 32;

/// The doorbell's end of the ring to the queue.
pub(super) struct RxChannel {
    tap: Arc<Tap>,
    pool: Pool,
    port: PortId,
    /// Bytes of the longest packet, and one.
    room: usize,
    reader: Mutex<Reader>,
    /// Longer than any packet may be; counted by the queue.
    oversize: AtomicU64,
}

/// What a reader needs; locked, so that two who ring at a time keep the order.
struct Reader {
    received: Producer<Packet>,
    ring: Observer<Packet>,
    /// Packets as long as their frames, to be read into.
    empty: Batch,
    /// The queue has gone: nobody would take what is read.
    closed: bool,
}

enum Outcome {
    Packet(Packet),
    Oversize,
    Nothing,
}

impl RxChannel {
    fn read(&self, empty: &mut Batch) -> Outcome {
        let frame = self.pool.data_room();
        let segments = self.room.div_ceil(frame).min(MAX_SEGMENTS);
        if empty.len() < segments {
            self.pool.allocate_batch(empty, segments - empty.len(), frame, self.port);
        }
        if empty.len() < segments {
            // It waits in the interface until there are frames, and is dropped there if there are none for long.
            return Outcome::Nothing;
        }
        let mut slices = [const { None }; MAX_SEGMENTS];
        let mut left = self.room;
        for (slice, packet) in slices.iter_mut().zip(&mut *empty).take(segments) {
            let length = left.min(frame);
            *slice = Some(IoSliceMut::new(&mut packet.data_mut()[..length]));
            left -= length;
        }
        let mut slices = slices.map(|slice| slice.unwrap_or_else(|| IoSliceMut::new(&mut [])));
        let length = match (&self.tap.file).read_vectored(&mut slices[..segments]) {
            // An interface that has been removed may say so by an end.
            Ok(0) => return Outcome::Nothing,
            Ok(length) if length >= self.room => return Outcome::Oversize,
            Ok(length) => length,
            Err(error) => {
                if error.kind() != ErrorKind::WouldBlock {
                    self.tap.is_removal(&error);
                }
                return Outcome::Nothing;
            }
        };
        Self::assemble(empty, length, frame).map_or(Outcome::Nothing, Outcome::Packet)
    }

    /// Makes one packet of the frames that the first `length` bytes are in.
    fn assemble(empty: &mut Batch, length: usize, frame: usize) -> Option<Packet> {
        let (mut whole, mut left): (Option<Packet>, usize) = (None, length);
        empty.drain_front(length.div_ceil(frame), |mut packet| {
            let part = left.min(frame);
            left -= part;
            // It is as long as a frame.
            let _ = packet.trim(frame - part);
            match &mut whole {
                None => whole = Some(packet),
                Some(head) => head.chain(packet),
            }
        });
        whole
    }
}

impl Doorbell for RxChannel {
    fn ring(&self) -> Result<(), PortGone> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if reader.closed {
            return Ok(());
        }
        for _ in 0..READ_BUDGET {
            if reader.ring.len() >= RX_RING || self.tap.is_gone() {
                break;
            }
            match self.read(&mut reader.empty) {
                // There is room, and the lock keeps other readers away.
                Outcome::Packet(packet) => drop(reader.received.push(packet)),
                Outcome::Oversize => {
                    self.oversize.fetch_add(1, Ordering::Relaxed);
                }
                Outcome::Nothing => break,
            }
        }
        drop(reader);
        self.tap.state()
    }
}

/// Receives what the kernel sends by the interface.
pub(super) struct TapRx {
    received: Consumer<Packet>,
    ring: Observer<Packet>,
    channel: Arc<RxChannel>,
    counters: Arc<QueueCounters>,
    asked: u64,
    last_packet: u64,
    poll: u64,
    idle_poll: u64,
    idle_after: u64,
}

impl TapRx {
    pub(super) fn new(tap: &Arc<Tap>, pool: &Pool, port: PortId, room: usize) -> Self {
        let (producer, received) = ring(RX_RING);
        let reader =
            Reader { ring: producer.observer(), received: producer, empty: Batch::new(), closed: false };
        let channel = RxChannel {
            tap: Arc::clone(tap),
            pool: pool.clone(),
            port,
            room,
            reader: Mutex::new(reader),
            oversize: AtomicU64::new(0),
        };
        Self {
            ring: received.observer(),
            received,
            channel: Arc::new(channel),
            counters: Arc::default(),
            asked: tsc::now(),
            last_packet: tsc::now(),
            poll: tsc::from_ns(POLL_NS),
            idle_poll: tsc::from_ns(IDLE_POLL_NS),
            idle_after: tsc::from_ns(IDLE_AFTER_NS),
        }
    }
}

impl RxQueue for TapRx {
    fn receive(&mut self, batch: &mut Batch) {
        let (mut packets, mut bytes) = (0, 0);
        while batch.room() > 0
            && let Some(packet) = self.received.pop()
        {
            packets += 1;
            bytes += packet.total_len() as u64;
            // There is room.
            drop(batch.push(packet));
        }
        self.counters.packets.add(packets);
        self.counters.bytes.add(bytes);
    }

    #[inline]
    fn needs_doorbell(&mut self) -> bool {
        let (now, waiting) = (tsc::now(), self.ring.len());
        if waiting > 0 {
            self.last_packet = now;
        }
        let idle = now.wrapping_sub(self.last_packet) > self.idle_after;
        let period = if idle { self.idle_poll } else { self.poll };
        if now.wrapping_sub(self.asked) < period || self.channel.tap.is_gone() {
            return false;
        }
        self.asked = now;
        self.counters.held.set(waiting as u64);
        self.counters.drops(DropReason::RxOversize).set(self.channel.oversize.load(Ordering::Relaxed));
        waiting + BATCH_SIZE <= RX_RING
    }

    fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        Some(Arc::clone(&self.channel) as Arc<dyn Doorbell>)
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

impl Drop for TapRx {
    fn drop(&mut self) {
        let channel = &*self.channel;
        let mut reader = channel.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.closed = true;
        let mut unread = 0;
        while let Some(packet) = self.received.pop() {
            drop(packet);
            unread += 1;
        }
        reader.empty.clear();
        self.counters.held.set(0);
        self.counters.drops(DropReason::RxUnread).add(unread);
        self.counters.drops(DropReason::RxOversize).set(channel.oversize.load(Ordering::Relaxed));
    }
}
