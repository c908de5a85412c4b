//! The transmit side.
//!
//! The device wants a header of 12 bytes before each packet. It goes into the packet's headroom, mostly on the line where the packet starts; where there is no
//! room for it, into memory of the queue's own, as a segment by itself. It is all zeros unless the device is to fill in a checksum. A packet
//! is counted as sent when its frames come back.
#![forbid(unsafe_code)]

use super::abi::header;
use super::bursts;
use super::checksum;
use super::ledger::{Entry, Ledger, Sent};
use super::ring::{Ring, RingConfig, Segment};
use super::rx::MAX_SEGMENTS;
use super::trouble::{QueueState, Trouble};
use crate::counters::{DropReason, QueueCounters};
use crate::ethernet::{ETHERNET_HEADER, vlan_bytes};
use crate::memory::{Batch, Frame, Packet, Pool, Returned};
use crate::port::TxQueue;
use crate::vfio::checksum::stays_open;
use crate::vfio::dma::{DmaBuffer, DmaSpace, PoolMapping};
use crate::vfio::gate::Turn;
use crate::vfio::nic::Halt;
use crate::vfio::registers::TailRegister;
use crate::vfio::usual::Usual;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the device may take at the end for what it has begun.
const LAST_COMPLETIONS: Duration = super::patience(50);
/// Bytes between headers in the queue's own memory.
const HEADER_STRIDE: usize = 16;
const ZEROS: [u8; header::BYTES] = [0; header::BYTES];

/// What a transmit queue is made of.
pub(super) struct TxParts {
    pub(super) size: u16,
    pub(super) events: bool,
    /// The device fills in checksums.
    pub(super) checksum: bool,
    /// The longest packet without VLAN tags.
    pub(super) max_len: usize,
    /// The queue's number, which is what is written to notify.
    pub(super) index: u16,
}

/// One descriptor to come.
struct Part {
    frame: Option<Frame>,
    address: u64,
    length: u32,
}

/// A transmit queue.
pub(super) struct VirtioTx<R: Ring> {
    ring: R,
    ledger: Ledger<Sent>,
    returned: Returned,
    frames: Arc<PoolMapping>,
    pool: Pool,
    pool_number: u32,
    usual: Usual,
    headers: DmaBuffer,
    parts: TxParts,
    failed: bool,
    /// Looked for what is back since the last turn's end.
    reclaimed: bool,
    notify: Option<TailRegister>,
    state: Arc<QueueState>,
    halt: Arc<Halt>,
}

impl<R: Ring> VirtioTx<R> {
    /// An empty one, to be enabled and given its notification register.
    pub(super) fn new(
        space: &Arc<DmaSpace>,
        frames: &Arc<PoolMapping>,
        parts: TxParts,
        state: Arc<QueueState>,
        halt: Arc<Halt>,
    ) -> io::Result<Self> {
        Ok(Self {
            ring: R::new(space, RingConfig { size: parts.size, events: parts.events, buffer: 0 })?,
            ledger: Ledger::new(parts.size, Sent::new(parts.size)),
            returned: Returned::default(),
            frames: Arc::clone(frames),
            pool: frames.pool().clone(),
            pool_number: frames.pool().number(),
            usual: Usual::new(
                frames.pool().number(),
                ETHERNET_HEADER,
                parts.max_len,
                bursts::LEAST_OFFSET,
                parts.checksum,
            ),
            headers: space.allocate(usize::from(parts.size) * HEADER_STRIDE)?,
            parts,
            failed: false,
            reclaimed: false,
            notify: None,
            state,
            halt,
        })
    }

    /// The ring.
    pub(super) fn ring(&self) -> &R {
        &self.ring
    }

    /// Where to notify of packets.
    pub(super) fn set_notify(&mut self, register: TailRegister) {
        self.notify = Some(register);
    }

    /// Takes back what the device is done with.
    #[inline(always)]
    fn reclaim(&mut self) {
        if self.ring.look(self.ledger.outstanding()).is_err() {
            return self.fail(Trouble::UsedIndex);
        }
        let (mut packets, mut bytes) = (0, 0);
        loop {
            let done = bursts::reclaim(&mut self.ring, &mut self.ledger);
            packets += done.count as u64;
            bytes += done.bytes;
            let Some(used) = self.ring.used() else { break };
            // Usually nothing is left, unless the ring's end was reached.
            if done.count > 0 {
                continue;
            }
            let Some(length) = self.settle_unusual(used.id) else {
                self.fail(Trouble::UsedId);
                break;
            };
            self.returned.free();
            packets += 1;
            bytes += u64::from(length);
        }
        self.state.looks.add(1);
        self.state.counters.packets.add(packets);
        self.state.counters.bytes.add(bytes);
    }

    /// Takes back a chain, or what comes out of order; the packet's length.
    #[cold]
    #[inline(never)]
    fn settle_unusual(&mut self, id: u32) -> Option<u32> {
        let (returned, mut length) = (&mut self.returned, 0);
        let descriptors = self.ledger.settle_any(id, |entry| {
            length += entry.note();
            if let Some(frame) = entry.frame() {
                returned.add(frame);
            }
        });
        self.ring.consume(1, descriptors);
        (descriptors > 0).then_some(length)
    }

    /// Puts packets from the front of `batch` on the ring, as many as there is room for.
    #[inline(always)]
    fn send(&mut self, batch: &mut Batch) {
        if !bursts::send(&mut self.ring, &mut self.ledger, batch, &self.usual, &self.frames) {
            self.send_unusual(batch);
        }
        if self.ring.publish(self.ledger.next()) {
            self.notify();
        }
    }

    #[cold]
    #[inline(never)]
    fn send_unusual(&mut self, batch: &mut Batch) {
        let count = fitting(batch, self.ledger.room() as usize);
        batch.drain_front(count, |packet| self.put_unusual(packet));
    }

    /// Any packet: chained, of an odd length, of another pool, without headroom, or to have its checksum filled in.
    #[cold]
    #[inline(never)]
    fn put_unusual(&mut self, mut packet: Packet) {
        let total = packet.total_len();
        let reason = if total < ETHERNET_HEADER {
            Some(DropReason::TxUndersize)
        } else if total > self.parts.max_len + vlan_bytes(packet.data())
            || packet.segment_count() > MAX_SEGMENTS
        {
            Some(DropReason::TxOversize)
        } else {
            None
        };
        if let Some(reason) = reason {
            return self.state.counters.drops(reason).add(1);
        }
        let mut head = ZEROS;
        if self.parts.checksum && packet.wants_checksum() {
            // A packet that has no such checksum goes as it is.
            if let Some((start, offset)) = checksum::prepare(&mut packet) {
                head[header::FLAGS] = header::NEEDS_CSUM;
                head[header::CSUM_START..][..2].copy_from_slice(&start.to_le_bytes());
                head[header::CSUM_OFFSET..][..2].copy_from_slice(&offset.to_le_bytes());
            } else if stays_open(&packet) {
                return self.state.counters.drops(DropReason::TxChecksum).add(1);
            }
        }
        let mut parts: [Option<Part>; MAX_SEGMENTS + 1] = [const { None }; MAX_SEGMENTS + 1];
        let Some(count) = self.take_apart(packet, head, &mut parts) else {
            return self.state.counters.drops(DropReason::TxForeignPool).add(1);
        };
        let first = self.ledger.next();
        for (index, part) in parts.into_iter().take(count).flatten().enumerate() {
            let Part { frame, address, length } = part;
            let at = self.ledger.next();
            let more = index + 1 < count;
            self.ring.put_segment(at, address, length, Segment { head: first, more, writable: false });
            self.ledger.enter(match frame {
                Some(frame) if count == 1 => Entry::single(frame, total as u32),
                frame if index == 0 => Entry::head(frame, total as u32),
                Some(frame) => Entry::member(frame),
                None => continue,
            });
        }
    }

    /// A packet as descriptors: the header, and the segments that are not empty. Those of another pool are copied; `None`, and all are freed, where
    /// that cannot be done.
    fn take_apart(
        &self,
        packet: Packet,
        head: [u8; header::BYTES],
        parts: &mut [Option<Part>; MAX_SEGMENTS + 1],
    ) -> Option<usize> {
        let mut count = 0;
        let mut rest = Some(packet);
        while let Some(mut segment) = rest {
            rest = segment.split_first();
            if segment.is_empty() {
                continue;
            }
            if segment.pool_number() != self.pool_number {
                let mut copy = self.pool.allocate(segment.len())?;
                copy.data_mut().copy_from_slice(segment.data());
                segment = copy;
            }
            if count == 0 {
                match segment.prepend(header::BYTES) {
                    Some(room) => room.copy_from_slice(&head),
                    None => {
                        parts[0] = Some(self.own_header(head));
                        count = 1;
                    }
                }
            }
            let (offset, length) = (segment.offset() as u64, segment.len() as u32);
            let frame = segment.into_frame();
            let address = self.frames.iova(&frame) + offset;
            *parts.get_mut(count)? = Some(Part { frame: Some(frame), address, length });
            count += 1;
        }
        Some(count)
    }

    /// The header in memory of the queue's own: that of the descriptor it will have.
    fn own_header(&self, head: [u8; header::BYTES]) -> Part {
        let slot = self.ledger.next() as usize % usize::from(self.parts.size);
        let place = slot * HEADER_STRIDE;
        head.iter().enumerate().for_each(|(index, byte)| self.headers.write8(place + index, *byte));
        let address = self.headers.iova() + place as u64;
        Part { frame: None, address, length: header::BYTES as u32 }
    }

    #[cold]
    #[inline(never)]
    fn notify(&self) {
        if let Some(register) = &self.notify {
            register.write16(self.parts.index);
            self.state.notified.add(1);
        }
    }

    #[cold]
    #[inline(never)]
    fn fail(&mut self, trouble: Trouble) {
        self.state.report(trouble);
        self.failed = true;
    }

    /// Whether the queue stands still; empties the ring where that is asked for.
    #[inline(always)]
    fn stands_still(&mut self) -> bool {
        (self.failed || self.state.gate.closed().is_some()) && self.stay()
    }

    #[cold]
    #[inline(never)]
    fn stay(&mut self) -> bool {
        match self.state.gate.closed() {
            Some(Turn::Rebuild) => {
                self.settle_unsent();
                self.ring.reset();
                self.failed = false;
                self.state.gate.ready();
                true
            }
            Some(Turn::Wait) => true,
            None => self.failed,
        }
    }

    /// Takes everything back from a device that is stopped: it has not sent it, as far as we know.
    fn settle_unsent(&mut self) {
        let (returned, mut unsent) = (&mut self.returned, 0);
        self.ledger.drain(|entry| {
            unsent += u64::from(entry.note() > 0);
            if let Some(frame) = entry.frame() {
                returned.add(frame);
            }
        });
        self.returned.free();
        self.state.counters.drops(DropReason::TxUnsent).add(unsent);
        self.state.counters.held.set(0);
    }
}

/// How many packets from the front have no more than `room` descriptors together.
#[cold]
#[inline(never)]
fn fitting(batch: &Batch, room: usize) -> usize {
    let mut left = room;
    batch
        .iter()
        .take_while(|packet| {
            // The header may need one more. Longer ones are dropped, and must not wait for room that there never is.
            let own = usize::from(packet.headroom() < header::BYTES || packet.is_chained());
            let descriptors = packet.segment_count().min(MAX_SEGMENTS) + own;
            let fits = descriptors <= left;
            left = left.saturating_sub(descriptors);
            fits
        })
        .count()
}

impl<R: Ring> TxQueue for VirtioTx<R> {
    #[inline]
    fn transmit(&mut self, batch: &mut Batch) {
        if self.stands_still() {
            self.state.counters.drops(DropReason::TxPortDown).add(batch.len() as u64);
            return batch.clear();
        }
        self.reclaim();
        self.reclaimed = true;
        if !self.failed {
            self.send(batch);
        }
        self.state.counters.held.set(self.ledger.outstanding().into());
    }

    /// Never; but asked once a turn, also while nothing is sent: what comes back then is free for others.
    #[inline]
    fn needs_doorbell(&mut self) -> bool {
        if !std::mem::take(&mut self.reclaimed) && !self.stands_still() && self.ledger.outstanding() > 0 {
            self.reclaim();
            self.state.counters.held.set(self.ledger.outstanding().into());
        }
        false
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.state.counters
    }
}

impl<R: Ring> Drop for VirtioTx<R> {
    /// Waits a little for what is under way, stops the device, and settles the accounts.
    fn drop(&mut self) {
        let deadline = Instant::now() + LAST_COMPLETIONS;
        let works = |queue: &mut Self| !queue.failed && queue.state.gate.closed().is_none();
        while works(self) && !self.halt.is_halted() && self.ledger.outstanding() > 0 {
            self.reclaim();
            if Instant::now() >= deadline || self.halt.function().is_going() {
                break;
            }
            std::thread::yield_now();
        }
        self.halt.halt();
        if works(self) {
            self.reclaim();
        }
        self.settle_unsent();
    }
}
