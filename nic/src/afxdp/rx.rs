//! The receive side: takes filled frames off the receive ring and puts empty ones on the fill ring.
#![forbid(unsafe_code)]

use super::doorbell::Brake;
use super::ledger::Ledger;
use super::ring::{ConsumerRing, Hostile, ProducerRing};
use super::socket::{RxSide, Socket, top_up};
use super::stall::Stall;
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{Batch, Packet, Pool};
use crate::port::{Doorbell, PortId, RxQueue};
use std::mem;
use std::os::fd::BorrowedFd;
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
    stall: Stall,
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
            stall: Stall::default(),
            counters,
        }
    }

    /// Where it leaves word of an index that cannot be.
    pub(super) fn stall(&self) -> &Stall {
        &self.stall
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
                    self.stall.report();
                    self.counters.drops(DropReason::RxInvalidDescriptor).add(1);
                }
                0
            }
        };
        if filled > 0 {
            self.take(filled, batch);
        }
        if top_up(&mut self.fill, &mut self.ledger, &self.pool).is_err() {
            self.stall.report();
        }
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
            let settled = self.ledger.settle(descriptor.addr);
            let (length, port) = (descriptor.len as usize, self.port);
            let more = descriptor.options & libc::XDP_PKT_CONTD != 0;
            if !more && self.chain.is_none() && !self.skipping {
                if settled.is_some_and(|(frame, (), offset)| batch.push_frame(frame, offset, length, port)) {
                    bytes += u64::from(descriptor.len);
                } else {
                    self.counters.drops(DropReason::RxInvalidDescriptor).add(1);
                }
                continue;
            }
            let segment = settled.and_then(|(frame, (), offset)| frame.into_packet(offset, length));
            if let Some(mut packet) = self.chain(segment, more) {
                packet.set_port(port);
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

    /// Counts the packets on the ring that nobody will read. A packet whose first segments were read is one of them only as
    /// far as its end goes: it is `rx_truncated`, or was dropped before.
    fn settle_unread(&mut self) {
        // No more than the ring has entries; none where the kernel's index cannot be.
        let filled = self.ring.filled().unwrap_or(0);
        let mut ends = 0;
        for ahead in 0..filled {
            if self.ring.read(ahead).options & libc::XDP_PKT_CONTD == 0 {
                ends += 1;
            }
        }
        if self.chain.is_some() || self.skipping {
            ends = u64::saturating_sub(ends, 1);
        }
        self.counters.drops(DropReason::RxUnread).add(ends);
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
    brake: Brake,
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
        Self { receiver, busy_poll, brake: Brake::default(), doorbell, socket }
    }
}

impl RxQueue for AfxdpRx {
    #[inline]
    fn receive(&mut self, batch: &mut Batch) {
        self.receiver.receive(batch);
    }

    #[inline]
    fn needs_doorbell(&mut self) -> bool {
        if !self.busy_poll && !self.receiver.fill.needs_wakeup() || self.socket.gone.load(Ordering::Relaxed) {
            return false;
        }
        self.brake.lets_ring(self.socket.link_down.load(Ordering::Relaxed))
    }

    fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        Some(self.doorbell.clone())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.fd())
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.receiver.counters
    }
}

impl Drop for AfxdpRx {
    /// Stops what comes in before it counts what has.
    fn drop(&mut self) {
        let ring = &self.receiver.ring;
        // Nothing is taken off it meanwhile, so that this is where the producer stands.
        self.socket.stop_receiving(|| ring.filled());
        self.receiver.settle_unread();
        self.socket.park_rx(self.receiver.give_up_ledger());
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::model::Peer;
    use super::super::stall::Stalls;
    use super::*;
    use crate::memory::PoolConfig;
    use proptest::prelude::*;

    /// The kernel's part of the receive side.
    struct Kernel {
        rx: Peer<libc::xdp_desc>,
        fill: Peer<u64>,
        produced: u32,
        consumed: u32,
    }

    impl Kernel {
        fn new(pool: &Pool) -> (Self, Receiver) {
            let kernel = Self { rx: Peer::new(64), fill: Peer::new(128), produced: 0, consumed: 0 };
            let mut side = RxSide {
                ring: kernel.rx.consumer(),
                fill: kernel.fill.producer(),
                ledger: Ledger::new(pool),
            };
            top_up(&mut side.fill, &mut side.ledger, pool).unwrap();
            (kernel, Receiver::new(side, pool.clone(), PortId(5)))
        }

        /// Receives a packet in so many segments; false where there is no room.
        fn receive(&mut self, segments: u32, length: u32) -> bool {
            let filled = self.fill.producer_index().wrapping_sub(self.consumed);
            let room = 64_u32.saturating_sub(self.produced.wrapping_sub(self.rx.consumer_index()));
            if filled < segments || room < segments {
                return false;
            }
            for left in (0..segments).rev() {
                let addr = self.fill.get(self.consumed) + 256;
                self.consumed = self.consumed.wrapping_add(1);
                let options = if left > 0 { libc::XDP_PKT_CONTD } else { 0 };
                self.put(libc::xdp_desc { addr, len: length, options });
            }
            self.fill.set_consumer(self.consumed);
            self.rx.set_producer(self.produced);
            true
        }

        fn put(&mut self, descriptor: libc::xdp_desc) {
            self.rx.put(self.produced, descriptor);
            self.produced = self.produced.wrapping_add(1);
        }
    }

    fn pool() -> Pool {
        Pool::new(&PoolConfig { frames: 512, ..PoolConfig::default() }).unwrap()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Honest { segments: u32, length: u32 },
        Descriptor { addr: u64, len: u32, options: u32 },
        Producer(u32),
        FillConsumer(u32),
        Poll,
    }

    fn honest() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1_u32..20, 0_u32..1793).prop_map(|(segments, length)| Step::Honest { segments, length }),
            4 => (0_u32..1793).prop_map(|length| Step::Honest { segments: 1, length }),
            1 => Just(Step::Poll),
        ]
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let address =
            prop_oneof![0_u64..512 * 2048, any::<u64>(), (0_u64..512).prop_map(|frame| frame * 2048 + 256)];
        let length = prop_oneof![0_u32..2048, any::<u32>()];
        prop_oneof![
            4 => honest(),
            4 => (address, length, 0_u32..2).prop_map(|(addr, len, options)| Step::Descriptor { addr, len, options }),
            1 => any::<u32>().prop_map(Step::Producer),
            1 => any::<u32>().prop_map(Step::FillConsumer),
            2 => Just(Step::Poll),
        ]
    }

    proptest! {
        #[test]
        fn property_all_that_the_kernel_receives_comes_out_in_order(steps in proptest::collection::vec(honest(), 1..200)) {
            let pool = pool();
            let (mut kernel, mut receiver) = Kernel::new(&pool);
            let (mut wanted, mut got) = (Vec::new(), Vec::new());
            let mut too_long = 0;
            for step in steps.into_iter().chain([Step::Poll, Step::Poll]) {
                match step {
                    Step::Honest { segments, length } if kernel.receive(segments, length) => {
                        if segments as usize > MAX_SEGMENTS {
                            too_long += 1;
                        } else {
                            wanted.push((segments as usize, (segments * length) as usize));
                        }
                    }
                    _ => {
                        let mut batch = Batch::new();
                        receiver.receive(&mut batch);
                        got.extend(batch.iter().map(|packet| (packet.segment_count(), packet.total_len())));
                    }
                }
            }
            prop_assert_eq!(&got, &wanted);
            let counters = receiver.counters.clone();
            prop_assert_eq!(counters.packets.get(), wanted.len() as u64);
            prop_assert_eq!(counters.bytes.get(), wanted.iter().map(|(_, bytes)| *bytes as u64).sum::<u64>());
            prop_assert_eq!(counters.drops(DropReason::RxOversize).get(), too_long);
            prop_assert_eq!(counters.drops(DropReason::RxInvalidDescriptor).get(), 0);
            prop_assert_eq!(pool.audit().held as u64, counters.held.get());
            drop(receiver);
            prop_assert_eq!(pool.audit().held, 0);
        }

        #[test]
        fn property_whatever_the_kernel_writes_no_frame_is_used_twice_or_lost(
            steps in proptest::collection::vec(any_step(), 1..200),
        ) {
            let pool = pool();
            let (mut kernel, mut receiver) = Kernel::new(&pool);
            let mut kept = Vec::new();
            for step in steps {
                match step {
                    Step::Honest { segments, length } => drop(kernel.receive(segments, length)),
                    Step::Descriptor { addr, len, options } => {
                        kernel.put(libc::xdp_desc { addr, len, options });
                        kernel.rx.set_producer(kernel.produced);
                    }
                    Step::Producer(value) => {
                        kernel.produced = value;
                        kernel.rx.set_producer(value);
                    }
                    Step::FillConsumer(value) => kernel.fill.set_consumer(value),
                    Step::Poll => {
                        let mut batch = Batch::new();
                        receiver.receive(&mut batch);
                        for packet in &mut batch {
                            // Debug builds of the pool catch a frame that is handed out or freed twice.
                            packet.data_mut().fill(1);
                        }
                        kept.push(batch);
                        kept.truncate(3);
                    }
                }
            }
            kept.clear();
            drop(receiver);
            let audit = pool.audit();
            prop_assert_eq!((audit.held, audit.duplicated), (0, 0));
        }
    }

    #[test]
    fn what_nobody_read_is_counted_by_the_packet() {
        let pool = pool();
        let (mut kernel, mut receiver) = Kernel::new(&pool);
        assert!(kernel.receive(1, 60) && kernel.receive(3, 60) && kernel.receive(1, 60));
        receiver.settle_unread();
        let unread = |receiver: &Receiver| receiver.counters.drops(DropReason::RxUnread).get();
        assert_eq!(unread(&receiver), 3);
        // Of a packet under way, the rest is no packet more.
        let (mut kernel, mut receiver) = Kernel::new(&pool);
        assert!(kernel.receive(3, 60) && kernel.receive(1, 60));
        let mut batch = Batch::new();
        receiver.take(2, &mut batch);
        receiver.settle_unread();
        drop(receiver.give_up_ledger());
        let truncated = receiver.counters.drops(DropReason::RxTruncated).get();
        assert_eq!((batch.len(), unread(&receiver), truncated), (0, 1, 1));
        // An index that cannot be says nothing.
        kernel.rx.set_producer(1 << 20);
        receiver.settle_unread();
        assert_eq!(unread(&receiver), 1);
    }

    #[test]
    fn a_fill_ring_that_cannot_be_filled_is_told_of() {
        let pool = pool();
        let (mut kernel, mut receiver) = Kernel::new(&pool);
        let mut stalls = Stalls::default();
        stalls.watch("it".into(), receiver.stall());
        // Something is missing, so that the ring is looked at.
        assert!(kernel.receive(1, 60));
        kernel.fill.set_consumer(1 << 20);
        receiver.receive(&mut Batch::new());
        assert_eq!(stalls.news().len(), 1);
    }

    #[test]
    fn an_index_out_of_range_is_counted_and_the_queue_goes_on() {
        let pool = pool();
        let (mut kernel, mut receiver) = Kernel::new(&pool);
        let mut batch = Batch::new();
        let mut stalls = Stalls::default();
        stalls.watch("it".into(), receiver.stall());
        assert!(stalls.news().is_empty());
        kernel.rx.set_producer(65);
        receiver.receive(&mut batch);
        assert_eq!(stalls.news().len(), 1);
        receiver.receive(&mut batch);
        assert_eq!((batch.len(), kernel.rx.consumer_index()), (0, 0));
        assert_eq!(receiver.counters.drops(DropReason::RxInvalidDescriptor).get(), 1);
        assert!(kernel.receive(1, 60));
        receiver.receive(&mut batch);
        assert_eq!((batch.len(), batch.as_slice()[0].port()), (1, PortId(5)));
    }
}
