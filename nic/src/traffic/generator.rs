//! A paced stream of test packets in frames of a pool.
#![forbid(unsafe_code)]

use super::builder::{Addresses, FrameBuilder};
use super::pacer::Pacer;
use super::sizes::{SizeSequence, Sizes};
use crate::memory::{BATCH_SIZE, Batch, Packet, Pool};
use crate::port::PortId;

/// What a port's worth of traffic is like.
#[derive(Clone, Debug)]
pub struct TrafficConfig {
    /// Who sends to whom.
    pub addresses: Addresses,
    /// How long the packets are.
    pub sizes: Sizes,
    /// Flows, sent in turn.
    pub flows: u16,
    /// Packets a second; 0 is as fast as asked.
    pub rate_pps: u64,
    /// Packets in all; `None` is without end.
    pub count: Option<u64>,
    /// Whether to fill in the UDP checksum.
    pub udp_checksum: bool,
}

/// Makes the packets of one queue.
#[derive(Debug)]
pub struct Generator {
    builder: FrameBuilder,
    sizes: SizeSequence,
    largest: usize,
    pacer: Pacer,
    left: u64,
    /// The next number of each of this queue's flows.
    next: Vec<u64>,
    cursor: usize,
    first_flow: u16,
    flow_step: u16,
}

impl Generator {
    /// The generator of queue number `queue` out of `queues`: it has the flows `queue`, `queue + queues` and so on, and its share
    /// of the rate and of the count. There must be at least as many flows as queues.
    pub fn new(config: &TrafficConfig, queue: u16, queues: u16) -> Self {
        assert!(queue < queues && queues <= config.flows, "queue {queue} of {queues} would have no flow");
        let share =
            |whole: u64| whole / u64::from(queues) + u64::from(u64::from(queue) < whole % u64::from(queues));
        // A pacer's 0 is "no limit", which a share of next to nothing must not become.
        let rate_pps = if config.rate_pps == 0 { 0 } else { share(config.rate_pps).max(1) };
        Self {
            builder: FrameBuilder::new(&config.addresses, config.udp_checksum),
            sizes: config.sizes.sequence(),
            largest: config.sizes.largest().into(),
            pacer: Pacer::new(rate_pps),
            left: config.count.map_or(u64::MAX, share),
            next: (queue..config.flows).step_by(queues.into()).map(|_| 0).collect(),
            cursor: 0,
            first_flow: queue,
            flow_step: queues,
        }
    }

    /// True once all packets have been made.
    #[inline]
    pub fn is_finished(&self) -> bool {
        self.left == 0
    }

    /// How many packets of each flow have been made.
    pub fn sent(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        (self.first_flow..).step_by(self.flow_step.into()).zip(self.next.iter().copied())
    }

    /// Adds the packets that are due to `batch`, as many as it has room and the pool has frames for.
    #[inline]
    pub fn generate(&mut self, pool: &Pool, batch: &mut Batch, port: PortId) {
        let wanted = self.pacer.due(batch.room()).min(usize::try_from(self.left).unwrap_or(BATCH_SIZE));
        if wanted == 0 {
            return;
        }
        let count = if self.largest <= pool.data_room() {
            self.generate_whole(pool, batch, port, wanted)
        } else {
            (0..wanted).take_while(|_| self.generate_chain(pool, batch, port).is_some()).count()
        };
        self.pacer.gave(count);
        self.left -= count as u64;
    }

    #[inline]
    fn generate_whole(&mut self, pool: &Pool, batch: &mut Batch, port: PortId, wanted: usize) -> usize {
        let before = batch.len();
        let count = pool.allocate_batch(batch, wanted, self.largest, port);
        for packet in &mut batch.as_mut_slice()[before..] {
            let surplus = self.largest - usize::from(self.sizes.next());
            packet.trim(surplus);
            let (flow, sequence) = self.number();
            self.builder.write(packet.data_mut(), flow, sequence);
            self.advance();
        }
        count
    }

    /// `None` where the pool has not enough frames: then nothing is taken and no number used up.
    fn generate_chain(&mut self, pool: &Pool, batch: &mut Batch, port: PortId) -> Option<()> {
        let length = usize::from(self.sizes.next());
        let (flow, sequence) = self.number();
        let room = pool.data_room();
        let mut first = pool.allocate(length.min(room))?;
        first.set_port(port);
        self.builder.write_first(first.data_mut(), length, flow, sequence);
        // Each packet links behind the last, so the chain is made from its end.
        let mut tail: Option<Packet> = None;
        for position in (room..length).step_by(room).rev() {
            let mut segment = pool.allocate((length - position).min(room))?;
            FrameBuilder::write_rest(segment.data_mut(), position, flow, sequence);
            if let Some(tail) = tail.take() {
                segment.chain(tail);
            }
            tail = Some(segment);
        }
        if let Some(tail) = tail {
            first.chain(tail);
        }
        batch.push(first).ok()?;
        self.advance();
        Some(())
    }

    #[inline(always)]
    fn number(&self) -> (u16, u64) {
        (self.first_flow + self.cursor as u16 * self.flow_step, self.next[self.cursor])
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.next[self.cursor] += 1;
        self.cursor += 1;
        if self.cursor == self.next.len() {
            self.cursor = 0;
        }
    }
}
