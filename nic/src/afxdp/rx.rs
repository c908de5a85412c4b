//! The receive side: takes filled frames off the receive ring and puts empty ones on the fill ring.
#![forbid(unsafe_code)]

use super::ledger::Ledger;
use super::ring::{ConsumerRing, Hostile, ProducerRing};
use super::socket::{RxSide, Socket, top_up};
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{Batch, Packet, Pool};
use crate::port::{Doorbell, PortId, RxQueue};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Frames of one packet at most: what a socket buffer of the kernel can hold.
pub(super) const MAX_SEGMENTS: usize = 17;

/// The rings' worker, apart from the socket: all of it can be tested without one.
pub(super) struct Receiver {
    ring: ConsumerRing<libc::xdp_desc>,
    fill: ProducerRing<u64>,
    ledger: Ledger<()>,
    pool: Pool,
    port: PortId,
    /// The segments so far of a packet whose last one has not come.
    chain: Option<Packet>,
    /// Segments in it.
    segments: usize,
    /// The rest of a packet that was dropped is to be dropped too.
    skipping: bool,
    /// The kernel's index was out of range when last seen: counted once.
    hostile: bool,
    counters: Arc<QueueCounters>,
}

impl Receiver {
    pub(super) fn new(side: RxSide, pool: Pool, port: PortId) -> Self {
        let counters = Arc::new(QueueCounters::default());
        counters.held.set(side.ledger.len() as u64);
        Self {
            ring: side.ring,
            fill: side.fill,
            ledger: side.ledger,
            pool,
            port,
            chain: None,
            segments: 0,
            skipping: false,
            hostile: false,
            counters,
        }
    }

    #[inline]
    fn receive(&mut self, batch: &mut Batch) {
        let filled = match self.ring.filled() {
            Ok(filled) => {
                self.hostile = false;
                filled
            }
            Err(Hostile) => {
                if !mem::replace(&mut self.hostile, true) {
                    self.counters.drops(DropReason::RxInvalidDescriptor).add(1);
                }
                0
            }
        };
        if filled > 0 {
            self.take(filled, batch);
        }
        top_up(&mut self.fill, &mut self.ledger, &self.pool);
        self.counters.held.set(self.ledger.len() as u64);
    }

    /// Takes packets from the next `filled` entries, as many as the batch has room for.
    #[inline]
    fn take(&mut self, filled: u32, batch: &mut Batch) {
        let before = batch.len();
        let mut bytes = 0;
        let mut taken = 0;
        while taken < filled && batch.room() > 0 {
            let descriptor = self.ring.read(taken);
            taken += 1;
            let segment = self
                .ledger
                .settle(descriptor.addr)
                .and_then(|(frame, (), offset)| frame.into_packet(offset, descriptor.len as usize));
            let more = descriptor.options & libc::XDP_PKT_CONTD != 0;
            let whole = if !more && self.chain.is_none() && !self.skipping {
                segment.or_else(|| {
                    self.counters.drops(DropReason::RxInvalidDescriptor).add(1);
                    None
                })
            } else {
                self.chain(segment, more)
            };
            if let Some(mut packet) = whole {
                packet.set_port(self.port);
                bytes += packet.total_len() as u64;
                // There is room, as the loop has seen.
                drop(batch.push(packet));
            }
        }
        self.ring.release(taken);
        self.counters.packets.add((batch.len() - before) as u64);
        self.counters.bytes.add(bytes);
    }

    /// Adds a segment to the packet under way, and returns the packet when it is whole.
    #[cold]
    fn chain(&mut self, segment: Option<Packet>, more: bool) -> Option<Packet> {
        if self.skipping {
            self.skipping = more;
            return None;
        }
        self.segments += 1;
        let reason = match &segment {
            None => Some(DropReason::RxInvalidDescriptor),
            Some(_) if self.segments > MAX_SEGMENTS => Some(DropReason::RxOversize),
            Some(_) => None,
        };
        if let Some(reason) = reason {
            self.counters.drops(reason).add(1);
            self.chain = None;
            self.segments = 0;
            self.skipping = more;
            return None;
        }
        match (&mut self.chain, segment) {
            (Some(chain), Some(segment)) => chain.chain(segment),
            (chain, segment) => *chain = segment,
        }
        if more {
            return None;
        }
        self.segments = 0;
        self.chain.take()
    }

    /// The books, for whoever keeps them until the socket is closed.
    fn give_up_ledger(&mut self) -> Ledger<()> {
        if self.chain.take().is_some() {
            self.counters.drops(DropReason::RxTruncated).add(1);
        }
        mem::replace(&mut self.ledger, Ledger::closed())
    }
}

/// The receive queue.
pub(super) struct AfxdpRx {
    receiver: Receiver,
    /// Ring at every turn: the doorbell does the polling.
    busy_poll: bool,
    doorbell: Arc<dyn Doorbell>,
    /// Last, so that the rings are unmapped when the socket is closed.
    socket: Arc<Socket>,
}

impl AfxdpRx {
    pub(super) fn new(
        receiver: Receiver,
        busy_poll: bool,
        doorbell: Arc<dyn Doorbell>,
        socket: Arc<Socket>,
    ) -> Self {
        Self { receiver, busy_poll, doorbell, socket }
    }
}

impl RxQueue for AfxdpRx {
    #[inline]
    fn receive(&mut self, batch: &mut Batch) {
        self.receiver.receive(batch);
    }

    #[inline]
    fn needs_doorbell(&mut self) -> bool {
        (self.busy_poll || self.receiver.fill.needs_wakeup()) && !self.socket.gone.load(Ordering::Relaxed)
    }

    fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        Some(self.doorbell.clone())
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.receiver.counters
    }
}

impl Drop for AfxdpRx {
    fn drop(&mut self) {
        self.socket.park_rx(self.receiver.give_up_ledger());
    }
}
