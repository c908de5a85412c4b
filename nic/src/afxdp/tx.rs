//! The transmit side: puts packets on the transmit ring and takes their frames back from the completion ring.
//!
//! A packet is counted as sent when its frames come back, for only then has the kernel taken it; until then it is held. Packets that the kernel
//! took and the device refused come back as well: the doorbell is told how many, and they move from sent to `tx_dropped`
//! (their bytes stay in `bytes`: which ones they were, nobody says). What is still on the ring at the end is `tx_unsent`.
#![forbid(unsafe_code)]

use super::ledger::{Garbage, Ledger};
use super::ring::{ConsumerRing, Hostile, ProducerRing};
use super::rx::MAX_SEGMENTS;
use super::socket::{Socket, TxSide};
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{Batch, Packet, Pool};
use crate::port::{Doorbell, TxQueue};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const ETHERNET_HEADER: usize = 14;
/// While the interface is down, the doorbell is rung this seldom, to see whether it is back.
const TURNS_BETWEEN_TRIES: u32 = 1024;
/// Doorbells rung at the end for what is still on the ring.
const LAST_TRIES: usize = 64;

/// The rings' worker, apart from the socket: all of it can be tested without one.
pub(super) struct Sender {
    ring: ProducerRing<libc::xdp_desc>,
    completion: ConsumerRing<u64>,
    /// Note: the packet's length, with the frame that ends it; 0 with the others.
    ledger: Ledger<u32>,
    garbage: Garbage,
    pool: Pool,
    max_segments: usize,
    max_packet_len: usize,
    /// Packets whose frames came back.
    completed: u64,
    hostile: bool,
    counters: Arc<QueueCounters>,
}

impl Sender {
    pub(super) fn new(side: TxSide, pool: Pool, max_segments: usize) -> Self {
        Self {
            ring: side.ring,
            completion: side.completion,
            ledger: side.ledger,
            garbage: Garbage::default(),
            pool,
            max_segments,
            max_packet_len: 0,
            completed: 0,
            hostile: false,
            counters: Arc::default(),
        }
    }

    fn note_hostile(&mut self) {
        if !mem::replace(&mut self.hostile, true) {
            self.counters.drops(DropReason::TxInvalidDescriptor).add(0);
            tracing::debug!("the kernel's ring index is out of range");
        }
    }

    /// Takes back the frames that the kernel is done with. `refused`: how many packets of all were not sent.
    #[inline]
    fn reclaim(&mut self, refused: u64) {
        let filled = match self.completion.filled() {
            Ok(filled) => filled,
            Err(Hostile) => return self.note_hostile(),
        };
        let mut bytes = 0;
        for ahead in 0..filled {
            // An address that is not in the books is nothing to us.
            if let Some((frame, length, _)) = self.ledger.settle(self.completion.read(ahead)) {
                self.completed += u64::from(length > 0);
                bytes += u64::from(length);
                self.garbage.add(frame);
            }
        }
        if filled > 0 {
            self.completion.release(filled);
            self.garbage.free();
            self.counters.bytes.add(bytes);
        }
        self.counters.packets.set(self.completed.saturating_sub(refused));
        self.counters.drops(DropReason::TxDropped).set(refused);
        self.counters.held.set(self.ledger.len() as u64);
    }

    /// Puts packets from the front of `batch` on the ring, as many as there is room for.
    #[inline]
    fn send(&mut self, batch: &mut Batch) {
        let Ok(free) = self.ring.free((batch.len() * self.max_segments) as u32) else {
            return self.note_hostile();
        };
        let count = fitting(batch, free as usize);
        let mut written = 0;
        batch.drain_front(count, |packet| written = self.put(packet, written));
        if written > 0 {
            self.ring.submit(written);
            self.counters.held.set(self.ledger.len() as u64);
        }
    }

    /// Writes a packet's descriptors behind the `written` ones; returns how many there are then.
    #[inline(always)]
    fn put(&mut self, packet: Packet, written: u32) -> u32 {
        let length = packet.len();
        // One comparison for the packet that is like all others.
        if length.wrapping_sub(ETHERNET_HEADER) > self.max_packet_len.wrapping_sub(ETHERNET_HEADER)
            || packet.is_chained()
        {
            return self.put_unusual(packet, written);
        }
        self.put_single(packet, written)
    }

    #[inline(always)]
    fn put_single(&mut self, packet: Packet, written: u32) -> u32 {
        let (offset, length) = (packet.offset(), packet.len() as u32);
        match self.ledger.enter(packet.into_frame(), length) {
            Ok(address) => {
                let addr = address + offset as u64;
                self.ring.write(written, libc::xdp_desc { addr, len: length, options: 0 });
                written + 1
            }
            Err(frame) => match frame.into_packet(offset, length as usize) {
                Some(packet) => self.put_chain(packet, length as usize, 1, written),
                None => written,
            },
        }
    }

    /// A packet that is chained, short or long.
    #[cold]
    fn put_unusual(&mut self, packet: Packet, written: u32) -> u32 {
        let total = packet.total_len();
        let drop = |reason| {
            self.counters.drops(reason).add(1);
            written
        };
        if total < ETHERNET_HEADER {
            return drop(DropReason::TxUndersize);
        }
        if total > self.max_packet_len + vlan_bytes(packet.data()) {
            return drop(DropReason::TxOversize);
        }
        if !packet.is_chained() {
            return self.put_single(packet, written);
        }
        // The kernel refuses empty segments; a packet without them is the same packet.
        let segments = packet.segments().filter(|segment| !segment.is_empty()).count();
        if segments > self.max_segments {
            return drop(DropReason::TxOversize);
        }
        self.put_chain(packet, total, segments, written)
    }

    /// Puts the segments that are not empty. One of another pool goes out as a copy; where that cannot be made, none does.
    fn put_chain(&mut self, packet: Packet, total: usize, segments: usize, written: u32) -> u32 {
        let mut addresses = [0; MAX_SEGMENTS];
        let mut done = 0;
        let mut rest = Some(packet);
        while let Some(mut segment) = rest {
            rest = segment.split_first();
            if segment.is_empty() {
                continue;
            }
            let (offset, len) = (segment.offset(), segment.len() as u32);
            let is_last = done + 1 == segments;
            let note = if is_last { total as u32 } else { 0 };
            let entered = match self.ledger.enter(segment.into_frame(), note) {
                Ok(address) => Some(address + offset as u64),
                Err(frame) => self.enter_copy(frame.into_packet(offset, len as usize), note),
            };
            let Some(addr) = entered else {
                addresses[..done].iter().for_each(|address| drop(self.ledger.settle(*address)));
                self.counters.drops(DropReason::TxForeignPool).add(1);
                return written;
            };
            let options = if is_last { 0 } else { libc::XDP_PKT_CONTD };
            self.ring.write(written + done as u32, libc::xdp_desc { addr, len, options });
            addresses[done] = addr;
            done += 1;
        }
        written + done as u32
    }

    /// Enters a frame of ours with what is in one that is not.
    #[cold]
    fn enter_copy(&mut self, segment: Option<Packet>, note: u32) -> Option<u64> {
        let segment = segment?;
        let mut copy = self.pool.allocate(segment.len())?;
        copy.data_mut().copy_from_slice(segment.data());
        let offset = copy.offset() as u64;
        self.ledger.enter(copy.into_frame(), note).ok().map(|address| address + offset)
    }
}

/// How many packets from the front have no more than `free` segments together.
#[inline(always)]
fn fitting(batch: &Batch, free: usize) -> usize {
    if batch.iter().fold(false, |chained, packet| chained | packet.is_chained()) {
        let mut left = free;
        return batch
            .iter()
            .take_while(|packet| {
                let segments = packet.segment_count();
                let fits = segments <= left;
                left = left.saturating_sub(segments);
                fits
            })
            .count();
    }
    batch.len().min(free)
}

/// Bytes of VLAN tags, which do not count against the MTU: up to two.
fn vlan_bytes(data: &[u8]) -> usize {
    let is_tag = |at: usize| matches!(data.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8]));
    match (is_tag(12), is_tag(16)) {
        (false, _) => 0,
        (true, false) => 4,
        (true, true) => 8,
    }
}

/// The transmit queue.
pub(super) struct AfxdpTx {
    sender: Sender,
    turns_down: u32,
    doorbell: Arc<dyn Doorbell>,
    /// Last, so that the rings are unmapped when the socket is closed.
    socket: Arc<Socket>,
}

impl AfxdpTx {
    pub(super) fn new(sender: Sender, doorbell: Arc<dyn Doorbell>, socket: Arc<Socket>) -> Self {
        Self { sender, turns_down: 0, doorbell, socket }
    }
}

impl TxQueue for AfxdpTx {
    #[inline]
    fn transmit(&mut self, batch: &mut Batch) {
        self.sender.reclaim(self.socket.refused.load(Ordering::Relaxed));
        if self.socket.down.load(Ordering::Relaxed) || self.socket.gone.load(Ordering::Relaxed) {
            self.sender.counters.drops(DropReason::TxPortDown).add(batch.len() as u64);
            return batch.clear();
        }
        self.sender.max_packet_len = self.socket.device.max_packet_len.load(Ordering::Relaxed);
        self.sender.send(batch);
    }

    #[inline]
    fn needs_doorbell(&mut self) -> bool {
        if self.sender.ledger.len() == 0 {
            return false;
        }
        let sender = &mut self.sender;
        // Completions come in when nobody sends, too, and a frame on a ring is one that nobody can use.
        sender.reclaim(self.socket.refused.load(Ordering::Relaxed));
        let stands = sender.ring.needs_wakeup() && sender.ring.unconsumed().is_ok_and(|count| count > 0);
        if !stands || self.socket.gone.load(Ordering::Relaxed) {
            return false;
        }
        if self.socket.down.load(Ordering::Relaxed) {
            self.turns_down = (self.turns_down + 1) % TURNS_BETWEEN_TRIES;
            return self.turns_down == 0;
        }
        true
    }

    fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        Some(self.doorbell.clone())
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.sender.counters
    }
}

impl Drop for AfxdpTx {
    /// Sends what can still be sent without waiting, and settles the accounts.
    fn drop(&mut self) {
        for _ in 0..LAST_TRIES {
            if !self.needs_doorbell() || self.doorbell.ring().is_err() {
                break;
            }
        }
        self.sender.reclaim(self.socket.refused.load(Ordering::Relaxed));
        let invalid = self.socket.statistics().map_or(0, |statistics| statistics.tx_invalid_descs);
        self.sender.settle_unsent(invalid, self.socket.refused.load(Ordering::Relaxed));
        self.socket.park_tx(mem::replace(&mut self.sender.ledger, Ledger::closed()));
    }
}

impl Sender {
    /// Says of each packet that has not come back what became of it. The kernel has no say any more in what was not on its
    /// side of the ring; of the others, it sent all but the `invalid` ones.
    fn settle_unsent(&mut self, invalid: u64, refused: u64) {
        let on_ring = self.ring.unconsumed().unwrap_or(0);
        let mut unsent = 0;
        let mut frames = Vec::new();
        for back in 1..=on_ring {
            let descriptor = self.ring.read_back(back);
            if let Some((frame, length, _)) = self.ledger.settle(descriptor.addr) {
                unsent += u64::from(length > 0);
                frames.push((frame, length));
            }
        }
        let (mut packets, mut bytes) = (0_u64, 0);
        self.ledger.for_each_note(|length| {
            packets += u64::from(*length > 0);
            bytes += u64::from(*length);
        });
        // Back into the books: until the socket is closed the kernel may still read them.
        for (frame, length) in frames {
            drop(self.ledger.enter(frame, length));
        }
        self.completed += packets.saturating_sub(invalid);
        self.counters.packets.set(self.completed.saturating_sub(refused));
        self.counters.bytes.add(bytes);
        self.counters.drops(DropReason::TxDropped).set(refused);
        self.counters.drops(DropReason::TxInvalidDescriptor).set(invalid);
        self.counters.drops(DropReason::TxUnsent).add(unsent);
        self.counters.held.set(0);
    }
}
