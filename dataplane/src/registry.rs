//! The one registry of counters: what the live table, the report and every later exporter read, so that they can never disagree.
#![forbid(unsafe_code)]

use crate::loop_gap::Gaps;
use crate::worker::WorkerCounters;
use nic::port::{LinkState, Port};
use nic::{DropReason, QueueCounters};
use percpu::pin::Watch;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A port with the counters of its queues.
pub(crate) struct PortEntry {
    pub(crate) port: Box<dyn Port>,
    pub(crate) rx: Vec<Arc<QueueCounters>>,
    pub(crate) tx: Vec<Arc<QueueCounters>>,
    pub(crate) link: LinkState,
}

/// A worker with its counters.
pub(crate) struct WorkerEntry {
    pub(crate) cpu: usize,
    pub(crate) counters: Arc<WorkerCounters>,
    /// Looks after its affinity; `None` before it runs.
    pub(crate) watch: Option<Watch>,
    /// How often somebody else changed that.
    pub(crate) affinity_changes: u64,
    /// How often it stood still for as long as the watchdog waits.
    pub(crate) stalls: u64,
    /// Its loop's long gaps, where it is isolated.
    pub(crate) gaps: Arc<Gaps>,
}

/// All counters of a run.
pub(crate) struct Registry {
    pub(crate) ports: Vec<PortEntry>,
    pub(crate) workers: Vec<WorkerEntry>,
}

/// A port's numbers at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortSample {
    pub(crate) rx_packets: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_packets: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) doorbells: u64,
    pub(crate) drops: BTreeMap<DropReason, u64>,
}

impl PortSample {
    pub(crate) fn dropped(&self) -> u64 {
        self.drops.values().sum()
    }
}

/// A worker's numbers at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WorkerSample {
    pub(crate) packets: u64,
    pub(crate) busy_tsc: u64,
    pub(crate) longest_gap_tsc: u64,
}

impl PortEntry {
    pub(crate) fn sample(&self) -> PortSample {
        let sum = |queues: &[Arc<QueueCounters>], of: fn(&QueueCounters) -> u64| {
            queues.iter().map(|queue| of(queue)).sum()
        };
        let mut drops = BTreeMap::new();
        for (reason, count) in self.rx.iter().chain(&self.tx).flat_map(|queue| queue.all_drops()) {
            if count > 0 {
                *drops.entry(reason).or_default() += count;
            }
        }
        PortSample {
            rx_packets: sum(&self.rx, |queue| queue.packets.get()),
            rx_bytes: sum(&self.rx, |queue| queue.bytes.get()),
            tx_packets: sum(&self.tx, |queue| queue.packets.get()),
            tx_bytes: sum(&self.tx, |queue| queue.bytes.get()),
            doorbells: sum(&self.rx, |queue| queue.doorbells.get())
                + sum(&self.tx, |queue| queue.doorbells.get()),
            drops,
        }
    }
}

impl WorkerEntry {
    /// Reads the counters and starts the search for the longest gap anew.
    pub(crate) fn sample(&self) -> WorkerSample {
        let sample = WorkerSample {
            packets: self.counters.packets.get(),
            busy_tsc: self.counters.busy_tsc.get(),
            longest_gap_tsc: self.counters.longest_gap_tsc.get(),
        };
        self.counters.gap_seen.store(true, Ordering::Relaxed);
        sample
    }
}
