//! A receive queue: a ring of buffers that the device fills in order.
//!
//! One load of 8 bytes says whether the next descriptor is done, how long its data is and what is wrong with it; of a packet nothing is touched. Buffers are given
//! back many at a time, with one write of the tail register a burst; a place for which the pool has no frame stays ours.
#![forbid(unsafe_code)]

use super::DESCRIPTOR_BYTES;
use super::format::RxFormat;
use super::ring::{Buffers, Descriptors, FrameRing};
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{BATCH_SIZE, Batch, Frame, Fresh, Packet};
use crate::port::{PortId, RxQueue};
use crate::vfio::dma::{PoolMapping, observe};
use crate::vfio::gate::{Gate, Turn};
use crate::vfio::nic::Halt;
use crate::vfio::registers::TailRegister;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

/// Buffers that are given back at once, unless the ring is small.
const REFILL: usize = 32;

/// What a receive queue is made of.
pub(crate) struct RxParts<'a> {
    /// Descriptors, a power of two.
    pub(crate) size: u16,
    /// The most bytes that the device was told to put into one buffer; no more than a frame has room for behind any colour
    /// ([`Pool::data_room`](crate::memory::Pool::data_room)).
    pub(crate) buffer_bytes: usize,
    /// The longest packet in bytes; it decides how long a chain may be.
    pub(crate) max_packet_len: usize,
    /// The device looks at checksums.
    pub(crate) checksum: bool,
    /// The frames.
    pub(crate) frames: &'a Arc<PoolMapping>,
    /// The port's number.
    pub(crate) id: PortId,
    /// RDT.
    pub(crate) tail: TailRegister,
    /// The port's halt.
    pub(crate) halt: &'a Arc<Halt>,
    /// This queue's gate.
    pub(crate) gate: Arc<Gate>,
}

/// The queue; `F` is how it reads its descriptors.
pub(crate) struct IntelRx<F: RxFormat> {
    gate: Arc<Gate>,
    ring: Descriptors,
    frames: FrameRing,
    mapping: Arc<PoolMapping>,
    fresh: Fresh,
    refill: usize,
    buffer_bytes: usize,
    checksum: bool,
    /// The rebuilt ring's tail is still to be written.
    restarted: bool,
    chain: Chain,
    counters: Arc<QueueCounters>,
    tail: TailRegister,
    halt: Arc<Halt>,
    format: PhantomData<fn() -> F>,
}

/// A packet under way that is longer than a buffer.
#[derive(Default)]
struct Chain {
    /// Its segments so far.
    packet: Option<Packet>,
    /// How many.
    segments: usize,
    /// The most it may have.
    limit: usize,
    /// What is left of it is to be dropped: it has been counted.
    skipping: bool,
}

impl<F: RxFormat> IntelRx<F> {
    /// A queue whose ring is filled, and whose tail is not written yet ([`start`](Self::start)).
    pub(crate) fn new(parts: RxParts<'_>) -> io::Result<Self> {
        let mapping = Arc::clone(parts.frames);
        let pool = mapping.pool();
        let fresh = pool.fresh(0, parts.id);
        let buffer = parts.halt.function().dma().allocate(usize::from(parts.size) * DESCRIPTOR_BYTES)?;
        let mut queue = Self {
            gate: parts.gate,
            ring: Descriptors::new(buffer, parts.size),
            frames: FrameRing::of_buffers(parts.size),
            fresh,
            refill: REFILL.min(usize::from(parts.size) / 4).max(1),
            buffer_bytes: parts.buffer_bytes.min(pool.data_room()),
            checksum: parts.checksum,
            restarted: false,
            chain: Chain {
                // One more: a buffer that was too small by the frame check sequence.
                limit: parts.max_packet_len.div_ceil(parts.buffer_bytes.max(1)) + 1,
                ..Chain::default()
            },
            counters: Arc::default(),
            tail: parts.tail,
            halt: Arc::clone(parts.halt),
            format: PhantomData,
            mapping,
        };
        queue.fill();
        queue.counters.held.set(queue.frames.len() as u64);
        Ok(queue)
    }

    /// The device's address of the ring, and its length in bytes.
    pub(crate) fn ring(&self) -> (u64, usize) {
        self.ring.place()
    }

    /// Gives the device the buffers: after the queue was enabled.
    pub(crate) fn start(&self) {
        self.tail.write32(self.frames.tail_index());
    }

    /// Its counters, for what the device counts.
    pub(crate) fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    /// Puts frames into places that are free, many at a time, as long as the pool has any; whether there were some.
    #[inline]
    fn fill(&mut self) -> bool {
        let before = self.frames.tail();
        let buffers = Buffers { pool: self.mapping.pool(), origin: self.mapping.origin(), fresh: self.fresh };
        while self.frames.free() >= self.refill {
            if self.frames.give_buffers(&self.ring, &buffers, BATCH_SIZE) == 0 {
                break;
            }
            // It gives no more than up to the ring's end at once.
            if self.frames.tail_index() == 0 {
                self.frames.give_buffers(&self.ring, &buffers, BATCH_SIZE);
            }
        }
        self.frames.tail() != before
    }

    /// Takes the next one where it is no whole packet in one buffer; false where there is none.
    #[cold]
    #[inline(never)]
    fn receive_unusual(&mut self, batch: &mut Batch, bytes: &mut u64) -> bool {
        let word = self.ring.read(self.frames.head());
        if word & F::DONE == 0 {
            return false;
        }
        // None where the device says so of a place that has no frame.
        let Some(frame) = self.frames.pop() else { return false };
        *bytes += self.unusual(frame, word, batch);
        true
    }

    /// What a descriptor says that is not alone.
    fn unusual(&mut self, frame: Frame, word: u64, batch: &mut Batch) -> u64 {
        let (end, length) = (word & F::END != 0, F::length(word));
        if self.chain.skipping {
            self.chain.skipping = !end;
            return 0;
        }
        let first = self.chain.packet.is_none();
        let reason = if word & F::DAMAGED != 0 && end {
            Some(DropReason::RxDamaged)
        } else if length > self.buffer_bytes || length == 0 && (first || !end) {
            Some(DropReason::RxInvalidDescriptor)
        } else if self.chain.segments >= self.chain.limit {
            Some(DropReason::RxOversize)
        } else {
            None
        };
        if let Some(reason) = reason {
            self.counters.drops(reason).add(1);
            self.chain = Chain { limit: self.chain.limit, skipping: !end, ..Chain::default() };
            return 0;
        }
        let offset = self.fresh.offset(frame.handle());
        // An empty last buffer is where the frame check sequence was.
        let segment =
            (length > 0).then(|| Packet::new(frame.into_handle(), offset, length as u16, self.fresh.port));
        match (&mut self.chain.packet, segment) {
            (Some(packet), Some(segment)) => packet.chain(segment),
            (chain @ None, segment) => *chain = segment,
            (Some(_), None) => {}
        }
        self.chain.segments += 1;
        if !end {
            return 0;
        }
        self.chain.segments = 0;
        let Some(mut packet) = self.chain.packet.take() else { return 0 };
        if self.checksum {
            packet.set_checksum(F::checksum(word));
        }
        let bytes = packet.total_len() as u64;
        // There is room, as the loop has seen.
        drop(batch.push(packet));
        bytes
    }

    /// Packets that the device has received and nobody will read.
    fn count_unread(&mut self) {
        let mut ends = 0;
        for ahead in 0..self.frames.len() {
            let word = self.ring.read(self.frames.head().wrapping_add(ahead as u32));
            if word & F::DONE == 0 {
                break;
            }
            // What is left of a packet that was counted is none.
            ends += u64::from(word & F::END != 0 && !self.chain.skipping);
            self.chain.skipping &= word & F::END == 0;
        }
        if self.chain.packet.take().is_some() {
            // Its end may be among them.
            self.counters.drops(DropReason::RxTruncated).add(1);
            ends = u64::saturating_sub(ends, 1);
        }
        self.counters.drops(DropReason::RxUnread).add(ends);
    }

    /// What the queue does while its gate is not open.
    #[cold]
    fn at_the_gate(&mut self, turn: Turn) {
        if turn == Turn::Rebuild {
            self.count_unread();
            self.chain = Chain { limit: self.chain.limit, ..Chain::default() };
            self.frames.rewind();
            let buffers =
                Buffers { pool: self.mapping.pool(), origin: self.mapping.origin(), fresh: self.fresh };
            self.frames.give_again(&self.ring, &buffers);
            self.restarted = true;
            self.gate.ready();
        }
    }
}

impl<F: RxFormat> RxQueue for IntelRx<F> {
    #[inline]
    fn receive(&mut self, batch: &mut Batch) {
        if let Some(turn) = self.gate.closed() {
            return self.at_the_gate(turn);
        }
        let before = batch.len();
        let mut bytes = 0;
        loop {
            if self.chain.is_idle() {
                let (ring, port, most) = (&self.ring, self.fresh.port, self.buffer_bytes);
                bytes += if self.checksum {
                    self.frames.receive_whole::<F>(ring, batch, port, most, true)
                } else {
                    self.frames.receive_whole::<F>(ring, batch, port, most, false)
                };
            }
            // The next one is not done yet, as a rule.
            let done = self.ring.read(self.frames.head()) & F::DONE != 0;
            if !done || batch.room() == 0 || !self.receive_unusual(batch, &mut bytes) {
                break;
            }
        }
        observe();
        if batch.len() > before {
            self.counters.packets.add((batch.len() - before) as u64);
            self.counters.bytes.add(bytes);
        }
        if self.frames.free() >= self.refill && self.fill() || self.restarted {
            self.restarted = false;
            self.start();
        }
        self.counters.held.set(self.frames.len() as u64);
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

impl Chain {
    #[inline(always)]
    fn is_idle(&self) -> bool {
        self.packet.is_none() && !self.skipping
    }
}

impl<F: RxFormat> Drop for IntelRx<F> {
    /// Stops what comes in before it counts what has; only then are frames and ring freed.
    fn drop(&mut self) {
        self.halt.halt();
        self.count_unread();
        self.counters.held.set(0);
    }
}
