//! The transmit side of `mem:gen`, and `mem:sink`: takes everything, and checks what it takes.
#![forbid(unsafe_code)]

use super::port::MemPort;
use crate::counters::QueueCounters;
use crate::memory::Batch;
use crate::port::{OpenContext, OpenPort, PortError, PortPlan, RxQueue, TxQueue};
use crate::spec::PortSpec;
use crate::traffic::{MAX_FLOWS, SharedTotals, Start, Tracker};
use std::fmt;
use std::sync::Arc;

/// Flows a sink keeps books on unless more are asked for.
const DEFAULT_FLOWS: usize = 1024;

/// How a sink is to work.
#[derive(Clone, Copy)]
pub(super) struct SinkConfig {
    /// Flows to keep books on; `None` only counts packets.
    flows: Option<usize>,
}

impl SinkConfig {
    /// Reads the option `check`. Several senders with `flows` flows each are to have room.
    pub(super) fn read(spec: &PortSpec, flows: u16) -> Result<Self, PortError> {
        let check = spec.switch("check", true)?;
        Ok(Self { flows: check.then(|| (usize::from(flows) * 4).max(DEFAULT_FLOWS)) })
    }
}

impl fmt::Display for SinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.flows.is_some() { "checking sink" } else { "sink without checks" })
    }
}

/// The queues of a sink, and what they publish.
pub(super) struct Sink {
    pub(super) queues: Vec<Box<dyn TxQueue>>,
    pub(super) totals: Vec<Arc<SharedTotals>>,
}

impl Sink {
    pub(super) fn new(config: SinkConfig, queues: usize) -> Self {
        let mut sink = Self { queues: Vec::new(), totals: Vec::new() };
        for _ in 0..queues {
            let Some(flows) = config.flows else {
                sink.queues.push(Box::new(CountingTx { counters: Arc::default() }));
                continue;
            };
            let totals = Arc::new(SharedTotals::default());
            sink.totals.push(totals.clone());
            let tracker = Tracker::new(flows, Start::Zero);
            sink.queues.push(Box::new(CheckingTx { tracker, totals, counters: Arc::default() }));
        }
        sink
    }
}

/// Counts and frees.
struct CountingTx {
    counters: Arc<QueueCounters>,
}

impl TxQueue for CountingTx {
    fn transmit(&mut self, batch: &mut Batch) {
        self.counters.packets.add(batch.len() as u64);
        self.counters.bytes.add(batch.total_bytes());
        batch.clear();
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

/// Checks, counts and frees. Each queue has books of its own: a flow is to be sent by one worker, as it is when it is received by one.
struct CheckingTx {
    tracker: Tracker,
    totals: Arc<SharedTotals>,
    counters: Arc<QueueCounters>,
}

impl TxQueue for CheckingTx {
    fn transmit(&mut self, batch: &mut Batch) {
        if batch.is_empty() {
            return;
        }
        self.counters.packets.add(batch.len() as u64);
        self.counters.bytes.add(batch.total_bytes());
        self.tracker.receive_batch(batch);
        self.totals.set(self.tracker.totals());
        batch.clear();
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

struct SinkPlan {
    spec: PortSpec,
    queues: usize,
    config: SinkConfig,
}

pub(super) fn check(spec: &PortSpec) -> Result<Box<dyn PortPlan>, PortError> {
    spec.check_keys(&["flows", "queues", "check"])?;
    let flows = spec.number("flows", 1..=MAX_FLOWS.into(), 1)? as u16;
    Ok(Box::new(SinkPlan {
        spec: spec.clone(),
        queues: spec.number("queues", 1..=64, 1)? as usize,
        config: SinkConfig::read(spec, flows)?,
    }))
}

impl PortPlan for SinkPlan {
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
        let sink = Sink::new(self.config, context.tx_queues);
        let silent = || -> Box<dyn RxQueue> { Box::new(SilentRx { counters: Arc::default() }) };
        Ok(OpenPort {
            port: Box::new(MemPort {
                name: self.spec.name(),
                mode: self.config.to_string(),
                id: context.id,
                max_packet_len: usize::from(u16::MAX),
                sinks: sink.totals,
            }),
            rx: (0..self.queues).map(|_| silent()).collect(),
            tx: sink.queues,
        })
    }
}

/// Never receives.
struct SilentRx {
    counters: Arc<QueueCounters>,
}

impl RxQueue for SilentRx {
    fn receive(&mut self, _batch: &mut Batch) {}

    fn is_finished(&self) -> bool {
        true
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}
