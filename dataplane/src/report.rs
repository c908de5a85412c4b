//! What a run counted, as JSON and as text. The keys are stable.
#![forbid(unsafe_code)]

use crate::loop_gap::LoopGapNs;
use crate::registry::{PortEntry, PortSample};
use crate::slow_path::SlowPathReport;
use nic::memory::Audit;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything a run counted.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// From the first worker's start to the last one's end.
    pub duration_s: f64,
    /// Ticks of the time stamp counter in a second: what `tsc_per_packet` is to be divided by for seconds.
    pub tsc_hz: u64,
    /// The ports, by number.
    pub ports: Vec<PortReport>,
    /// The workers, by number.
    pub workers: Vec<WorkerReport>,
    /// The packet memory, counted frame by frame when every port was closed.
    pub pool: PoolReport,
    /// Who woke the kernel for the workers' queues: `control` or `worker`.
    pub kick: &'static str,
    /// The slow path, where the application started one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_path: Option<SlowPathReport>,
    /// How the workers were kept from the kernel, and how well that went.
    pub isolation: IsolationReport,
    /// Violations of their isolation, by cause.
    pub violations: BTreeMap<String, u64>,
}

/// Isolation, over all workers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct IsolationReport {
    /// `off`, `soft` or `strict`.
    pub mode: String,
    /// The classes of kernel entries that were signalled.
    pub signal: String,
    /// Whether every worker's CPU can stop its tick (`nohz_full`).
    pub tickless: bool,
    /// What the machine does not give, and soft isolation goes on without.
    pub lacks: Vec<String>,
    /// Debuggers that suspended it.
    pub suspended_by: Vec<String>,
    /// Signals by what they were for; one interruption may have several.
    pub signals: BTreeMap<String, u64>,
    /// Kernel entries that were allowed, and not signalled.
    pub allowed: u64,
    /// Signals that were counted, and not logged one by one, since they came too fast.
    pub not_recorded: u64,
    /// Interrupts on the workers' CPUs while they were isolated, whomever they hit.
    pub interrupts: u64,
    /// Soft interrupts there.
    pub softirqs: u64,
    /// Times that another task had a worker's CPU.
    pub threads: u64,
    /// Records of the kernel's trace that there was no room for.
    pub trace_lost: u64,
    /// Long loop gaps with no event of the kernel in them: the hypervisor's, or the firmware's.
    pub unexplained_gaps: u64,
    /// Altogether.
    pub unexplained_ns: u64,
    /// The longest.
    pub unexplained_longest_ns: u64,
    /// Packets that violations cost.
    pub dropped: u64,
    /// Packets that were dropped for other reasons: overload, and what cannot be a violation's.
    pub dropped_without_violation: u64,
    /// What could not be known, and why.
    pub cannot_know: Vec<String>,
}

/// One port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortReport {
    /// Its name: `afxdp:eth0`.
    pub name: String,
    /// Its driver: `afxdp`.
    pub driver: String,
    /// How it ran: `zero-copy, native XDP`.
    pub mode: String,
    /// Packets received by workers.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets handed to the port.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Lost packets by reason; reasons that never happened are left out.
    pub drops: BTreeMap<String, u64>,
    /// Received packets that were handed to the port's exception port: `rx_packets` has them, and what became of them is in that one's numbers.
    pub punted: u64,
    /// Times the kernel was woken for this port.
    pub doorbells: u64,
    /// Numbers of the driver's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, u64>,
}

/// One worker.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerReport {
    /// The CPU it ran on.
    pub cpu: usize,
    /// Packets it received.
    pub packets: u64,
    /// TSC ticks a packet, over the loop turns in which packets moved; `null` where none did.
    pub tsc_per_packet: Option<f64>,
    /// Loop turns.
    pub turns: u64,
    /// Times it slept for want of packets (`--idle`).
    pub sleeps: u64,
    /// How long it was away from polling.
    pub loop_gap_ns: LoopGapNs,
    /// How often somebody else changed its affinity mask, as far as was seen: the control core looks once a second.
    pub affinity_changes: u64,
    /// How often it stood still for as long as the watchdog waits.
    pub stalls: u64,
}

/// The packet memory.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PoolReport {
    /// Frames it has.
    pub frames: usize,
    /// Frames that were free at the end.
    pub free: usize,
    /// Frames that the kernel did not let go of when the ports were closed: 0, or a driver of the kernel hangs.
    pub held: usize,
    /// Frames that nobody gave back: 0, or there is a bug.
    pub leaked: usize,
}

impl PoolReport {
    pub(crate) fn new(audit: Audit) -> Self {
        let held = audit.withheld.min(audit.held);
        Self { frames: audit.frames, free: audit.free, held, leaked: audit.held - held + audit.duplicated }
    }
}

impl PortReport {
    pub(crate) fn new(entry: &PortEntry) -> Self {
        let extra = entry.port.extra_counters().into_iter().collect();
        Self::of(entry.port.name(), entry.port.driver(), entry.port.mode(), &entry.sample(), extra)
    }

    /// From a port's numbers at one moment, and what is known of it besides.
    pub(crate) fn of(
        name: &str,
        driver: &str,
        mode: String,
        sample: &PortSample,
        extra: BTreeMap<String, u64>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            driver: driver.to_owned(),
            mode,
            rx_packets: sample.rx_packets,
            rx_bytes: sample.rx_bytes,
            tx_packets: sample.tx_packets,
            tx_bytes: sample.tx_bytes,
            drops: sample.drops.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect(),
            punted: sample.punted,
            doorbells: sample.doorbells,
            extra,
        }
    }
}
