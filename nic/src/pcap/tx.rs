//! The transmit side: packets are copied into blocks in the format of the file, and their frames are free at once.
#![forbid(unsafe_code)]

use super::MAX_PACKET_BYTES;
use super::output::{BLOCK_BYTES, BLOCKS, Block, Channel};
use super::writer::{packet_block_bytes, write_packet_block};
use crate::counters::{DropReason, QueueCounters};
use crate::memory::Batch;
use crate::port::{Doorbell, TxQueue};
use percpu::tsc;
use std::sync::Arc;

/// A packet waits in a block no longer than this before the doorbell is asked for.
const MAX_AGE_NS: u64 = 10_000_000;

/// Writes to the port's output file. Dropping it writes what is left.
pub(super) struct FileTx {
    channel: Arc<Channel>,
    /// The block being filled.
    current: Option<Block>,
    /// When its first packet came, in counter ticks.
    filling_since: u64,
    max_age: u64,
    /// The latest stamp: the clock may be set back, a queue's stamps never go back.
    last_ns: u64,
    counters: Arc<QueueCounters>,
}

impl FileTx {
    pub(super) fn new(channel: Channel) -> Self {
        Self {
            channel: Arc::new(channel),
            current: None,
            filling_since: 0,
            max_age: tsc::from_ns(MAX_AGE_NS),
            last_ns: 0,
            counters: Arc::default(),
        }
    }

    /// A block with room for `bytes` more, in `current`; false where there is none.
    #[inline]
    fn make_room(&mut self, bytes: usize) -> bool {
        match &self.current {
            Some(block) if BLOCK_BYTES - block.used >= bytes => return true,
            _ => self.post(),
        }
        self.current = self.channel.empty.pop();
        self.filling_since = tsc::now();
        self.current.is_some()
    }

    /// Gives the current block to the doorbell.
    fn post(&mut self) {
        if let Some(block) = self.current.take() {
            // There are as many places as blocks.
            let _ = self.channel.full.push(block);
        }
    }

    /// The file is lost: packets that were taken and not written count as dropped.
    #[cold]
    fn account_lost(&mut self) {
        self.post();
        let Channel { full, empty, .. } = &*self.channel;
        while let Some(block) = full.pop() {
            // There are as many places as blocks.
            let _ = empty.push(block);
        }
        for _ in 0..BLOCKS {
            let Some(mut block) = empty.pop() else {
                break;
            };
            self.counters.packets.set(self.counters.packets.get() - block.packets);
            self.counters.bytes.set(self.counters.bytes.get() - block.packet_bytes);
            self.counters.drops(DropReason::TxPortDown).add(block.packets);
            block.clear();
            let _ = empty.push(block);
        }
    }
}

impl TxQueue for FileTx {
    fn transmit(&mut self, batch: &mut Batch) {
        if batch.is_empty() {
            return;
        }
        if self.channel.output.failure().is_some() {
            self.account_lost();
            self.counters.drops(DropReason::TxPortDown).add(batch.len() as u64);
            return batch.clear();
        }
        self.last_ns = self.last_ns.max(self.channel.output.now_ns());
        let (mut taken, mut oversize, mut bytes) = (0, 0, 0);
        for packet in batch.iter() {
            let length = packet.total_len();
            if length > MAX_PACKET_BYTES {
                oversize += 1;
                taken += 1;
                continue;
            }
            let size = packet_block_bytes(length);
            if !self.make_room(size) {
                break;
            }
            let Some(block) = &mut self.current else {
                break;
            };
            let space = &mut block.bytes[block.used..block.used + size];
            write_packet_block(space, self.last_ns, length, packet.segments());
            block.used += size;
            block.packets += 1;
            block.packet_bytes += length as u64;
            bytes += length as u64;
            taken += 1;
        }
        self.counters.packets.add((taken - oversize) as u64);
        self.counters.bytes.add(bytes);
        self.counters.drops(DropReason::TxOversize).add(oversize as u64);
        if taken == batch.len() {
            batch.clear();
        } else {
            batch.drain_front(taken, drop);
        }
    }

    #[inline]
    fn needs_doorbell(&mut self) -> bool {
        let aged =
            |block: &Block| block.used > 0 && tsc::now().wrapping_sub(self.filling_since) > self.max_age;
        if self.current.as_ref().is_some_and(aged) {
            self.post();
        }
        !self.channel.full.is_empty()
    }

    fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        Some(Arc::clone(&self.channel) as Arc<dyn Doorbell>)
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

impl Drop for FileTx {
    fn drop(&mut self) {
        self.post();
        // The port says it: its link is gone, and its output lost.
        if self.channel.ring().is_err() {
            self.account_lost();
        }
    }
}

/// Counts and frees.
pub(super) struct NoFileTx {
    pub(super) counters: Arc<QueueCounters>,
}

impl TxQueue for NoFileTx {
    fn transmit(&mut self, batch: &mut Batch) {
        self.counters.packets.add(batch.len() as u64);
        self.counters.bytes.add(batch.clear_counted());
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}
