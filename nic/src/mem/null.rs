//! `mem:null`: the cost of the framework and of nothing else.
//!
//! Receiving allocates frames and does not write them; sending frees them. It is what DPDK's `net_null` is, for the same use.
#![forbid(unsafe_code)]

use super::port::MemPort;
use crate::counters::QueueCounters;
use crate::memory::{BATCH_SIZE, Batch, Pool};
use crate::port::{OpenContext, OpenPort, PortError, PortId, PortPlan, RxQueue, TxQueue};
use crate::spec::PortSpec;
use std::sync::Arc;

struct NullPlan {
    spec: PortSpec,
    size: usize,
    queues: usize,
}

pub(super) fn check(spec: &PortSpec) -> Result<Box<dyn PortPlan>, PortError> {
    spec.check_keys(&["size", "queues"])?;
    Ok(Box::new(NullPlan {
        spec: spec.clone(),
        size: spec.number("size", 14..=1526, 64)? as usize,
        queues: spec.number("queues", 1..=64, 1)? as usize,
    }))
}

impl PortPlan for NullPlan {
    fn rx_queues(&self) -> usize {
        self.queues
    }

    fn max_tx_queues(&self) -> usize {
        usize::MAX
    }

    fn frames(&self, _tx_queues: usize) -> usize {
        0
    }

    fn open(self: Box<Self>, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
        let rx = || -> Box<dyn RxQueue> {
            Box::new(NullRx {
                pool: context.pool.clone(),
                port: context.id,
                size: self.size,
                counters: Arc::default(),
            })
        };
        let tx = || -> Box<dyn TxQueue> { Box::new(NullTx { counters: Arc::default() }) };
        Ok(OpenPort {
            port: Box::new(MemPort {
                name: self.spec.name(),
                mode: format!("{}-byte frames", self.size),
                id: context.id,
                max_packet_len: usize::from(u16::MAX),
                sinks: Vec::new(),
            }),
            rx: (0..self.queues).map(|_| rx()).collect(),
            tx: (0..context.tx_queues).map(|_| tx()).collect(),
        })
    }
}

struct NullRx {
    pool: Pool,
    port: PortId,
    size: usize,
    counters: Arc<QueueCounters>,
}

impl RxQueue for NullRx {
    fn receive(&mut self, batch: &mut Batch) {
        let count = self.pool.allocate_batch(batch, BATCH_SIZE, self.size, self.port);
        self.counters.packets.add(count as u64);
        self.counters.bytes.add((count * self.size) as u64);
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

struct NullTx {
    counters: Arc<QueueCounters>,
}

impl TxQueue for NullTx {
    fn transmit(&mut self, batch: &mut Batch) {
        self.counters.packets.add(batch.len() as u64);
        self.counters.bytes.add(batch.clear_counted());
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}
