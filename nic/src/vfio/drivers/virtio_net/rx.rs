//! The receive side.
//!
//! A buffer begins 12 bytes before where the packet is to be: the device writes its header there, and the packet behind it. The packet starts 16 bytes
//! into a cache line, so that its header and the first 48 bytes of the packet, which is all that forwarding looks at, are one line. From
//! buffer to buffer it moves on by a line (a *colour*, as fresh packets of a pool have), or all headers would share few sets of the first-level cache.
//! The device's header is not even read, unless packets may be in several buffers or checksums are asked for.
#![forbid(unsafe_code)]

use super::abi::header;
use super::bursts::{self, Done};
use super::checksum;
use super::ledger::{Entry, Ledger, Starts};
use super::ring::{Ring, RingConfig, Used};
use super::trouble::{QueueState, Trouble};
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{BATCH_SIZE, Batch, Checksum, Packet};
use crate::port::{PortId, RxQueue};
use crate::vfio::dma::{DmaSpace, PoolMapping};
use crate::vfio::gate::Turn;
use crate::vfio::nic::Halt;
use crate::vfio::registers::TailRegister;
use std::io;
use std::sync::Arc;

/// Segments of a packet at most: what 64 KiB need in frames of 2 KiB.
pub(super) const MAX_SEGMENTS: usize = 48;
/// Where in a cache line a packet starts.
const LINE_OFFSET: usize = 16;
const LINE: usize = 64;
/// Offsets that packets start at, at the most.
const COLOURS: usize = 8;
/// Fewer free descriptors than this wait for more: the pool gives in bulk.
const REFILL: u32 = 32;

/// Where packets start in their frames, and how long they may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    first: u32,
    last: u32,
    /// Bytes of data that fit behind each of them.
    pub(super) room: u32,
}

impl Placement {
    /// For frames of this size and headroom; as many colours as leave `wanted` bytes of room, if there are so many.
    pub(super) fn new(frame_size: usize, headroom: usize, wanted: usize) -> Self {
        let first = headroom.next_multiple_of(LINE) + LINE_OFFSET;
        let spare = frame_size.saturating_sub(first + wanted) / LINE;
        let last = first + spare.min(COLOURS - 1) * LINE;
        Self { first: first as u32, last: last as u32, room: (frame_size.saturating_sub(last)) as u32 }
    }

    /// The most that fits at all.
    pub(super) fn most(frame_size: usize, headroom: usize) -> usize {
        frame_size.saturating_sub(headroom.next_multiple_of(LINE) + LINE_OFFSET)
    }

    /// Where the packets of `size` descriptors start: from one to the next a line further, up to the last place and from the first again.
    fn offsets(self, size: u16) -> impl Iterator<Item = u32> {
        (self.first..=self.last).step_by(LINE).cycle().take(size.into())
    }

    /// Bytes of a buffer, with the header.
    pub(super) fn buffer(self) -> u32 {
        self.room + header::BYTES as u32
    }
}

/// What a receive queue is made of.
pub(super) struct RxParts {
    pub(super) size: u16,
    pub(super) events: bool,
    pub(super) placement: Placement,
    /// Packets may be in several buffers.
    pub(super) mergeable: bool,
    /// The device says what it thinks of checksums.
    pub(super) checksum: bool,
    pub(super) id: PortId,
    /// The longest packet, tags included.
    pub(super) max_packet_len: usize,
    /// The queue's number, which is what is written to notify.
    pub(super) index: u16,
}

/// What is to be done before the usual.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Usual,
    /// The device has to hear of the buffers: it has just been set up.
    Fresh,
    /// The device did what it must not: nothing until it was reset.
    Failed,
}

/// A receive queue.
pub(super) struct VirtioRx<R: Ring> {
    ring: R,
    ledger: Ledger<Starts>,
    frames: Arc<PoolMapping>,
    parts: RxParts,
    /// The header has to be read.
    reads_header: bool,
    condition: Condition,
    /// A packet whose last buffer has not come, how many are to come, and whether they are to be dropped.
    chain: Option<Packet>,
    left: u32,
    skipping: bool,
    /// Where the checksum of that packet starts that we are to fill in, and where from there it is put.
    to_complete: Option<(u16, u16)>,
    notify: Option<TailRegister>,
    state: Arc<QueueState>,
    halt: Arc<Halt>,
}

impl<R: Ring> VirtioRx<R> {
    /// With a full ring. It has to be enabled, and given its notification register.
    pub(super) fn new(
        space: &Arc<DmaSpace>,
        frames: &Arc<PoolMapping>,
        parts: RxParts,
        state: Arc<QueueState>,
        halt: Arc<Halt>,
    ) -> io::Result<Self> {
        let config = RingConfig { size: parts.size, events: parts.events, buffer: parts.placement.buffer() };
        let mut queue = Self {
            ring: R::new(space, config)?,
            ledger: Ledger::new(parts.size, Starts::new(parts.placement.offsets(parts.size))),
            frames: Arc::clone(frames),
            reads_header: parts.mergeable || parts.checksum,
            parts,
            condition: Condition::Fresh,
            chain: None,
            left: 0,
            skipping: false,
            to_complete: None,
            notify: None,
            state,
            halt,
        };
        queue.fill();
        Ok(queue)
    }

    /// The ring.
    pub(super) fn ring(&self) -> &R {
        &self.ring
    }

    /// Where to notify of new buffers.
    pub(super) fn set_notify(&mut self, register: TailRegister) {
        self.notify = Some(register);
    }

    /// Takes what has come.
    #[inline(always)]
    fn take(&mut self, batch: &mut Batch) {
        let before = batch.len();
        let mut bytes = 0;
        if self.ring.look(self.ledger.outstanding()).is_err() {
            return self.fail(Trouble::UsedIndex);
        }
        while batch.len() < BATCH_SIZE {
            let mut done = Done::default();
            if !self.reads_header {
                let (room, port) = (self.parts.placement.room, self.parts.id.0);
                done = bursts::receive(&mut self.ring, &mut self.ledger, batch, room, port);
                bytes += done.bytes;
            }
            let Some(used) = self.ring.used() else { break };
            // Usually nothing is left, unless the ring's end was reached.
            if done.count > 0 || batch.len() == BATCH_SIZE {
                continue;
            }
            match self.take_one(used) {
                Ok(Some(packet)) => {
                    bytes += packet.total_len() as u64;
                    drop(batch.push(packet));
                }
                Ok(None) => {}
                Err(trouble) => {
                    self.fail(trouble);
                    break;
                }
            }
        }
        let counters = &self.state.counters;
        counters.packets.add((batch.len() - before) as u64);
        counters.bytes.add(bytes);
    }

    /// Takes a buffer that may be anything.
    #[inline(never)]
    fn take_one(&mut self, used: Used) -> Result<Option<Packet>, Trouble> {
        let entry = self.settle(used.id).ok_or(Trouble::UsedId)?;
        self.ring.consume(1, 1);
        self.take_with_header(entry, used.length)
    }

    /// A buffer in order or not.
    fn settle(&mut self, id: u32) -> Option<Entry> {
        let mut settled = None;
        self.ledger.settle_any(id, |entry| settled = Some(entry));
        settled
    }

    /// Takes a buffer whose header is to be read, if it has one: it is the first of a packet. The packet, once it is whole.
    fn take_with_header(&mut self, entry: Entry, written: u32) -> Result<Option<Packet>, Trouble> {
        let start = entry.note() as usize - header::BYTES;
        let Some(frame) = entry.frame() else { return Err(Trouble::UsedId) };
        // A packet without a byte is none; of a later buffer, nothing would be left out.
        let least = if self.left > 0 { 1 } else { header::BYTES as u32 + 1 };
        if !(least..=self.parts.placement.buffer()).contains(&written) {
            return Err(Trouble::UsedLength);
        }
        let Some(mut packet) = frame.into_packet(start, written as usize) else {
            return Err(Trouble::UsedLength);
        };
        packet.set_port(self.parts.id);
        if self.left > 0 {
            self.left -= 1;
            if !self.skipping {
                match &mut self.chain {
                    Some(chain) => chain.chain(packet),
                    None => self.chain = Some(packet),
                }
            }
        } else {
            let Some(head) = packet.data().first_chunk::<{ header::BYTES }>().copied() else {
                return Err(Trouble::UsedLength);
            };
            if packet.adj(header::BYTES).is_none() {
                return Err(Trouble::UsedLength);
            }
            let word = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
            let buffers = if self.parts.mergeable { u32::from(word(header::NUM_BUFFERS)) } else { 1 };
            if buffers == 0 || buffers >= u32::from(self.parts.size) {
                return Err(Trouble::NumBuffers);
            }
            self.left = buffers - 1;
            self.skipping = buffers as usize > MAX_SEGMENTS;
            if self.skipping {
                self.state.counters.drops(DropReason::RxOversize).add(1);
            } else {
                if self.parts.checksum && head[header::FLAGS] & header::NEEDS_CSUM != 0 {
                    self.to_complete = Some((word(header::CSUM_START), word(header::CSUM_OFFSET)));
                } else if self.parts.checksum && head[header::FLAGS] & header::DATA_VALID != 0 {
                    packet.set_checksum(Checksum::Good);
                }
                self.chain = Some(packet);
            }
        }
        if self.left > 0 {
            return Ok(None);
        }
        self.skipping = false;
        let to_complete = self.to_complete.take();
        let Some(mut packet) = self.chain.take() else { return Ok(None) };
        if packet.is_chained() && packet.total_len() > self.parts.max_packet_len {
            self.state.counters.drops(DropReason::RxOversize).add(1);
            return Ok(None);
        }
        if let Some((start, offset)) = to_complete {
            // Of a neighbour on the same host, which has left it to a device: right, as soon as it is there.
            let done = checksum::complete(&mut packet, start.into(), offset.into());
            packet.set_checksum(if done { Checksum::Good } else { Checksum::Unknown });
        }
        Ok(Some(packet))
    }

    /// Puts buffers where there are free descriptors, if there are enough of them.
    #[inline(always)]
    fn refill(&mut self) {
        if self.ledger.room() >= REFILL && self.fill() {
            self.notify();
        }
        self.state.counters.held.set(self.ledger.outstanding().into());
    }

    /// Fills the ring; true where the device wants to hear of it.
    fn fill(&mut self) -> bool {
        let length = self.parts.placement.buffer();
        while bursts::give(&mut self.ring, &mut self.ledger, &self.frames, length) && self.ledger.room() > 0 {
        }
        self.ring.publish(self.ledger.next())
    }

    #[cold]
    #[inline(never)]
    fn notify(&self) {
        if let Some(register) = &self.notify {
            register.write16(self.parts.index);
            self.state.notified.add(1);
        }
    }

    /// The device did what it must not.
    #[cold]
    #[inline(never)]
    fn fail(&mut self, trouble: Trouble) {
        self.state.counters.drops(DropReason::RxInvalidDescriptor).add(1);
        self.state.report(trouble);
        self.condition = Condition::Failed;
    }

    /// The gate is closed, or the device is new or bad. False where nothing is to be received.
    #[cold]
    #[inline(never)]
    fn unusual(&mut self) -> bool {
        match self.state.gate.closed() {
            Some(Turn::Rebuild) => {
                self.rebuild();
                self.state.gate.ready();
                false
            }
            Some(Turn::Wait) => false,
            None if self.condition == Condition::Failed => false,
            None => {
                self.condition = Condition::Usual;
                self.notify();
                true
            }
        }
    }

    /// Empties the ring and fills it anew. The device is stopped.
    fn rebuild(&mut self) {
        self.cut();
        self.ledger.drain(|entry| drop(entry.frame()));
        self.ring.reset();
        self.fill();
        self.state.counters.held.set(self.ledger.outstanding().into());
        self.condition = Condition::Fresh;
    }

    /// Drops a packet that has no end.
    fn cut(&mut self) {
        if self.chain.take().is_some() {
            self.state.counters.drops(DropReason::RxTruncated).add(1);
        }
        (self.left, self.skipping, self.to_complete) = (0, false, None);
    }
}

impl<R: Ring> RxQueue for VirtioRx<R> {
    #[inline]
    fn receive(&mut self, batch: &mut Batch) {
        if (self.state.gate.closed().is_some() || self.condition != Condition::Usual) && !self.unusual() {
            return;
        }
        self.take(batch);
        self.refill();
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.state.counters
    }
}

impl<R: Ring> Drop for VirtioRx<R> {
    /// Stops the device, and counts what it has received and nobody has read.
    fn drop(&mut self) {
        self.halt.halt();
        let counters = Arc::clone(&self.state.counters);
        let (packets, bytes) = (counters.packets.get(), counters.bytes.get());
        let mut unread = 0;
        // It consumes something each time, or is done.
        while self.condition != Condition::Failed && self.state.gate.closed().is_none() {
            let mut batch = Batch::new();
            let before = self.ledger.outstanding();
            self.take(&mut batch);
            unread += batch.len() as u64;
            if batch.is_empty() && self.ledger.outstanding() == before {
                break;
            }
        }
        counters.packets.set(packets);
        counters.bytes.set(bytes);
        counters.drops(DropReason::RxUnread).add(unread);
        self.cut();
        counters.held.set(0);
    }
}
