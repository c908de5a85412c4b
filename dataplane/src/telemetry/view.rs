//! What clients see of a run: the registry's counters, read where the workers write them, and what the control core last said.
//!
//! Every answer, in whichever format, is made of one [`Snapshot`], and that by the functions that the live table and the report go by.
#![forbid(unsafe_code)]

use super::protocol::{
    ApplicationSetting, Drops, IsolationStatus, PoolStatus, PortSetting, PortStatus, SettingStatus,
    Violations, WorkerStatus,
};
use super::settings::Settings;
use crate::registry::{PortSample, Registry, WorkerSample};
use crate::report::PortReport;
use crate::violations::Watcher;
use crate::worker::WorkerCounters;
use crossbeam_queue::ArrayQueue;
use nic::port::LinkState;
use nic::{DropReason, Pool, QueueCounters};
use percpu::tsc;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::SystemTime;

/// See the module.
pub(crate) struct View {
    ports: Vec<PortView>,
    workers: Vec<(usize, Arc<WorkerCounters>)>,
    pool: Pool,
    started: SystemTime,
    said: Mutex<Said>,
    settings: Settings,
    /// What clients changed, in words, for the log.
    changed: ArrayQueue<String>,
}

/// So many changes wait for the log; of a client that changes things faster not each is told.
const CHANGES: usize = 16;

struct PortView {
    name: String,
    driver: &'static str,
    mode: String,
    rx: Vec<Arc<QueueCounters>>,
    tx: Vec<Arc<QueueCounters>>,
    down: Arc<AtomicBool>,
}

/// What only the control core knows.
#[derive(Clone, Default)]
struct Said {
    links: Vec<&'static str>,
    extras: Vec<BTreeMap<String, u64>>,
    affinity_changes: Vec<u64>,
    isolation: IsolationStatus,
}

/// Everything at one moment.
pub(super) struct Snapshot {
    pub(super) ports: Vec<PortStatus>,
    pub(super) workers: Vec<WorkerStatus>,
    pub(super) pool: PoolStatus,
    pub(super) isolation: IsolationStatus,
    pub(super) started: SystemTime,
}

impl Registry {
    /// Lets clients see what has changed.
    pub(crate) fn publish(&self, watcher: &Watcher) {
        if let Some(view) = &self.view {
            view.publish(self, Some(watcher));
        }
    }
}

impl View {
    pub(super) fn new(registry: &Registry, pool: &Pool, settings: Settings) -> Self {
        let port = |entry: &crate::registry::PortEntry| PortView {
            name: entry.port.name().to_owned(),
            driver: entry.port.driver(),
            mode: entry.port.mode(),
            rx: entry.rx.clone(),
            tx: entry.tx.clone(),
            down: Arc::clone(&entry.down),
        };
        let workers = registry.workers.iter().map(|entry| (entry.cpu, Arc::clone(&entry.counters)));
        let view = Self {
            ports: registry.ports.iter().map(port).collect(),
            workers: workers.collect(),
            pool: pool.clone(),
            started: SystemTime::now(),
            said: Mutex::default(),
            settings,
            changed: ArrayQueue::new(CHANGES),
        };
        view.publish(registry, None);
        view
    }

    /// The control core's word. It does not wait: where a client's answer is being made, the next word is soon enough.
    fn publish(&self, registry: &Registry, watcher: Option<&Watcher>) {
        self.log_changes();
        let mut said = match self.said.try_lock() {
            Ok(said) => said,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let link = |state: &LinkState| match state {
            LinkState::Up { .. } => "up",
            LinkState::Down => "down",
            LinkState::Gone(_) => "gone",
        };
        said.links.clear();
        said.links.extend(registry.ports.iter().map(|entry| link(&entry.link)));
        said.extras.clear();
        said.extras
            .extend(registry.ports.iter().map(|entry| entry.port.extra_counters().into_iter().collect()));
        said.affinity_changes.clear();
        said.affinity_changes.extend(registry.workers.iter().map(|entry| entry.affinity_changes));
        if let Some(watcher) = watcher {
            said.isolation.mode = watcher.mode().to_owned();
            for (cause, &count) in watcher.counts() {
                let (total_ns, longest_ns) = watcher.times_ns().get(cause).copied().unwrap_or_default();
                let violations = Violations { count, total_ns, longest_ns };
                match said.isolation.causes.get_mut(cause) {
                    Some(known) => *known = violations,
                    None => drop(said.isolation.causes.insert(cause.clone(), violations)),
                }
            }
        }
    }

    /// The log is the control core's, which may wait for whoever reads it.
    fn log_changes(&self) {
        for _ in 0..CHANGES {
            let Some(words) = self.changed.pop() else { return };
            tracing::info!("{words} by a client");
        }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let said = self.said().clone();
        let ports = self.ports.iter().enumerate().map(|(number, port)| {
            let extra = said.extras.get(number).cloned().unwrap_or_default();
            let sample = PortSample::of(&port.rx, &port.tx);
            PortStatus {
                number,
                link: said.links.get(number).copied().unwrap_or("up").to_owned(),
                enabled: !port.down.load(Ordering::Relaxed),
                ring_frames: port.rx.iter().chain(&port.tx).map(|queue| queue.held.get()).sum(),
                counts: PortReport::of(&port.name, port.driver, port.mode.clone(), &sample, extra),
            }
        });
        let workers = self.workers.iter().enumerate().map(|(number, (cpu, counters))| {
            let sample = WorkerSample::of(counters);
            WorkerStatus {
                number,
                cpu: *cpu,
                packets: sample.packets,
                tsc_per_packet: sample.tsc_per_packet(),
                busy_ns: tsc::to_ns(sample.busy_tsc),
                turns: sample.turns,
                sleeps: sample.sleeps,
                longest_gap_ns: tsc::to_ns(sample.longest_of_all_tsc),
                affinity_changes: said.affinity_changes.get(number).copied().unwrap_or_default(),
            }
        });
        Snapshot {
            ports: ports.collect(),
            workers: workers.collect(),
            pool: PoolStatus {
                frames: self.pool.frames(),
                free: self.pool.free(),
                frame_bytes: self.pool.frame_size(),
            },
            isolation: said.isolation,
            started: self.started,
        }
    }

    /// Takes a port out of use, or back; the workers see it at their next turn.
    pub(super) fn set_port(&self, setting: &PortSetting) -> Result<String, String> {
        let number = setting.number;
        let Some(port) = self.ports.get(number) else {
            return Err(format!(
                "there is no port {number}: {} ports are open, numbered from 0",
                self.ports.len()
            ));
        };
        port.down.store(!setting.up, Ordering::Relaxed);
        let (name, state) = (&port.name, if setting.up { "up" } else { "down" });
        let _ = self.changed.push(format!("port {number} ({name}) was set {state}"));
        Ok(format!("port {number} ({name}) is set {state}"))
    }

    /// Changes something of the application's.
    pub(super) fn set_application(&self, setting: &ApplicationSetting) -> Result<String, String> {
        let done = self.settings.change(setting)?;
        let _ = self.changed.push(format!("{} was set to {}", setting.name, setting.text));
        Ok(done)
    }

    pub(super) fn settings(&self) -> Vec<SettingStatus> {
        self.settings.status()
    }
}

impl Snapshot {
    /// What was lost, in the order of ports and reasons.
    pub(super) fn drops(&self) -> Vec<Drops> {
        let of_port = |port: &PortStatus| {
            let lost = |reason: &DropReason| {
                let packets = *port.counts.drops.get(reason.name())?;
                Some(Drops {
                    port: port.number,
                    name: port.counts.name.clone(),
                    reason: reason.name().to_owned(),
                    packets,
                    meaning: reason.meaning().trim().to_owned(),
                })
            };
            DropReason::ALL.iter().filter_map(lost).collect::<Vec<_>>()
        };
        self.ports.iter().flat_map(of_port).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::telemetry::settings::tests::settings;
    use nic::PoolConfig;
    use percpu::qsbr::Domain;

    /// A view of one port and one worker, with their counters.
    pub(in crate::telemetry) fn view() -> (Arc<View>, Arc<QueueCounters>) {
        let counters = Arc::<QueueCounters>::default();
        let port = PortView {
            name: "mem:\"test\"".into(),
            driver: "mem",
            mode: "test".into(),
            rx: vec![Arc::clone(&counters)],
            tx: Vec::new(),
            down: Arc::default(),
        };
        let view = View {
            ports: vec![port],
            workers: vec![(3, Arc::default())],
            pool: Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap(),
            started: SystemTime::now(),
            said: Mutex::default(),
            settings: settings(&Domain::new()).0,
            changed: ArrayQueue::new(CHANGES),
        };
        (Arc::new(view), counters)
    }

    #[test]
    fn a_snapshot_has_what_the_counters_have_now() {
        let (view, counters) = view();
        counters.packets.add(7);
        counters.drops(DropReason::RxNoFrame).add(2);
        counters.held.set(5);
        let snapshot = view.snapshot();
        let port = &snapshot.ports[0];
        assert_eq!((port.counts.rx_packets, port.ring_frames, port.enabled), (7, 5, true));
        let drops = snapshot.drops();
        assert_eq!(drops.len(), 1);
        assert_eq!((drops[0].reason.as_str(), drops[0].packets), ("rx_no_frame", 2));
        assert_eq!((snapshot.workers[0].cpu, snapshot.pool.frames), (3, 64));
    }

    #[test]
    fn a_port_is_switched_by_its_number() {
        let (view, _) = view();
        let set = |number, up| view.set_port(&PortSetting { number, up });
        assert!(set(1, false).unwrap_err().contains("there is no port 1: 1 ports"));
        set(0, false).unwrap();
        assert!(!view.snapshot().ports[0].enabled && view.ports[0].down.load(Ordering::Relaxed));
        set(0, true).unwrap();
        assert!(view.snapshot().ports[0].enabled);
    }

    #[test]
    fn the_control_core_does_not_wait_for_an_answer_that_is_being_made() {
        let (view, _) = view();
        let registry = Registry { ports: Vec::new(), workers: Vec::new(), view: None };
        let _answering = view.said();
        let (sender, receiver) = std::sync::mpsc::channel();
        let publishing = Arc::clone(&view);
        std::thread::spawn(move || {
            publishing.publish(&registry, None);
            let _ = sender.send(());
        });
        receiver.recv_timeout(std::time::Duration::from_secs(20)).expect("it waits");
    }
}
