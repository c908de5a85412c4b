//! The one registry of counters: what the live table, the report and every later exporter read, so that they can never disagree.
#![forbid(unsafe_code)]

use crate::loop_gap::Gaps;
use crate::punt::Addresses;
use crate::telemetry::View;
use crate::worker::WorkerCounters;
use nic::port::{LinkState, Port};
use nic::{DropReason, PortId, QueueCounters};
use percpu::pin::Watch;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A port with the counters of its queues.
pub(crate) struct PortEntry {
    pub(crate) port: Box<dyn Port>,
    pub(crate) rx: Vec<Arc<QueueCounters>>,
    pub(crate) tx: Vec<Arc<QueueCounters>>,
    pub(crate) link: LinkState,
    /// Set by who takes the port out of use while it is open.
    pub(crate) down: Arc<AtomicBool>,
    /// Where it is the exception port of another.
    pub(crate) exception: Option<ExceptionEntry>,
}

/// What belongs to an exception port.
pub(crate) struct ExceptionEntry {
    /// Whose it is.
    pub(crate) of: PortId,
    /// The number of the interface, whose name may change.
    pub(crate) ifindex: u32,
    /// Those that the interface has.
    pub(crate) addresses: Arc<Addresses>,
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
    /// What clients see, where there may be any.
    pub(crate) view: Option<Arc<View>>,
}

/// A port's numbers at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortSample {
    pub(crate) rx_packets: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_packets: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) doorbells: u64,
    pub(crate) punted: u64,
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
    pub(crate) turns: u64,
    pub(crate) sleeps: u64,
    pub(crate) longest_gap_tsc: u64,
    /// Of the whole run.
    pub(crate) longest_of_all_tsc: u64,
}

impl PortEntry {
    pub(crate) fn sample(&self) -> PortSample {
        PortSample::of(&self.rx, &self.tx)
    }
}

impl PortSample {
    /// Reads the counters of a port's queues, now.
    pub(crate) fn of(rx: &[Arc<QueueCounters>], tx: &[Arc<QueueCounters>]) -> Self {
        let sum = |queues: &[Arc<QueueCounters>], of: fn(&QueueCounters) -> u64| {
            queues.iter().map(|queue| of(queue)).sum()
        };
        let mut drops = BTreeMap::new();
        for (reason, count) in rx.iter().chain(tx).flat_map(|queue| queue.all_drops()) {
            if count > 0 {
                *drops.entry(reason).or_default() += count;
            }
        }
        Self {
            rx_packets: sum(rx, |queue| queue.packets.get()),
            rx_bytes: sum(rx, |queue| queue.bytes.get()),
            tx_packets: sum(tx, |queue| queue.packets.get()),
            tx_bytes: sum(tx, |queue| queue.bytes.get()),
            punted: sum(rx, |queue| queue.punted.get()),
            doorbells: sum(rx, |queue| queue.doorbells.get()) + sum(tx, |queue| queue.doorbells.get()),
            drops,
        }
    }
}

impl WorkerEntry {
    /// Reads the counters and starts the search for the longest gap anew.
    pub(crate) fn sample(&self) -> WorkerSample {
        let sample = WorkerSample::of(&self.counters);
        self.counters.gap_seen.store(true, Ordering::Relaxed);
        sample
    }
}

impl WorkerSample {
    /// Reads a worker's counters, now, and changes nothing.
    pub(crate) fn of(counters: &WorkerCounters) -> Self {
        Self {
            packets: counters.packets.get(),
            busy_tsc: counters.busy_tsc.get(),
            turns: counters.turns.get(),
            sleeps: counters.sleeps.get(),
            longest_gap_tsc: counters.longest_gap_tsc.get(),
            longest_of_all_tsc: counters.longest_of_all_tsc.get(),
        }
    }

    /// Ticks a packet, over the loop turns in which packets moved; `None` where none did.
    pub(crate) fn tsc_per_packet(&self) -> Option<f64> {
        let per_packet = self.busy_tsc as f64 / self.packets as f64;
        per_packet.is_finite().then_some((per_packet * 100.0).round() / 100.0)
    }
}
