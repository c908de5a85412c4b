//! The numbers in Prometheus' text format (version 0.0.4), by its conventions: seconds and bytes, `_total` for what only grows, a name's HELP and TYPE
//! before its samples.
#![forbid(unsafe_code)]

use super::protocol::{PortStatus, WorkerStatus};
use super::view::Snapshot;
use nic::DropReason;
use std::fmt::{Display, Write};
use std::time::UNIX_EPOCH;

/// Text that is being written.
struct Text(String);

impl Text {
    /// Begins a metric; its samples follow.
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // Into memory: it cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            self.0.push_str(if index == 0 { "{" } else { "," });
            let _ = write!(self.0, "{label}=\"");
            for letter in text.chars() {
                match letter {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    letter => self.0.push(letter),
                }
            }
            self.0.push('"');
        }
        self.0.push_str(if labels.is_empty() { " " } else { "} " });
        let _ = writeln!(self.0, "{value}");
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

type OfPort = fn(&PortStatus) -> u64;

const OF_PORTS: &[(&str, &str, &str, OfPort)] = &[
    ("isoplane_port_received_packets_total", "counter", "Packets that workers received.", |port| {
        port.counts.rx_packets
    }),
    (
        "isoplane_port_received_bytes_total",
        "counter",
        "Bytes of received packets, without the frame check sequence.",
        |port| port.counts.rx_bytes,
    ),
    ("isoplane_port_transmitted_packets_total", "counter", "Packets handed to the port.", |port| {
        port.counts.tx_packets
    }),
    ("isoplane_port_transmitted_bytes_total", "counter", "Bytes of packets handed to the port.", |port| {
        port.counts.tx_bytes
    }),
    ("isoplane_port_doorbells_total", "counter", "Times the kernel was woken for the port.", |port| {
        port.counts.doorbells
    }),
    (
        "isoplane_port_punted_packets_total",
        "counter",
        "Of the received packets, those that were handed to the kernel.",
        |port| port.counts.punted,
    ),
    ("isoplane_port_ring_frames", "gauge", "Frames on the port's rings.", |port| port.ring_frames),
    ("isoplane_port_link_up", "gauge", "Whether the link is up.", |port| u64::from(port.link == "up")),
    (
        "isoplane_port_enabled",
        "gauge",
        "Whether the port is in use; 0 where a client has set it down.",
        |port| u64::from(port.enabled),
    ),
];

type OfWorker = fn(&WorkerStatus) -> f64;

const OF_WORKERS: &[(&str, &str, &str, OfWorker)] = &[
    ("isoplane_worker_received_packets_total", "counter", "Packets that the worker received.", |worker| {
        worker.packets as f64
    }),
    (
        "isoplane_worker_busy_seconds_total",
        "counter",
        "Time of the loop turns in which packets moved.",
        |worker| seconds(worker.busy_ns),
    ),
    ("isoplane_worker_turns_total", "counter", "Turns of the worker's loop, idle ones too.", |worker| {
        worker.turns as f64
    }),
    ("isoplane_worker_sleeps_total", "counter", "Times the worker slept for want of packets.", |worker| {
        worker.sleeps as f64
    }),
    (
        "isoplane_worker_longest_loop_gap_seconds",
        "gauge",
        "The longest time from one turn of the loop to the next, since the run began.",
        |worker| seconds(worker.longest_gap_ns),
    ),
    (
        "isoplane_worker_affinity_changes_total",
        "counter",
        "Times that somebody else changed the worker's affinity mask.",
        |worker| worker.affinity_changes as f64,
    ),
];

/// Everything.
pub(super) fn text(snapshot: &Snapshot) -> String {
    let mut text = Text(String::with_capacity(16 << 10));
    let name = "isoplane_build_info";
    text.metric(name, "gauge", "1; the version is in the label.");
    text.sample(name, &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let name = "isoplane_start_time_seconds";
    text.metric(name, "gauge", "When the run began, in seconds since 1970.");
    let started = snapshot.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    text.sample(name, &[], started.as_secs_f64());
    ports(&mut text, &snapshot.ports);
    workers(&mut text, &snapshot.workers);
    let pool = &snapshot.pool;
    for (name, help, value) in [
        ("isoplane_pool_frames", "Frames of packet memory.", pool.frames),
        ("isoplane_pool_free_frames", "Free frames; while packets move, about so many.", pool.free),
        ("isoplane_pool_frame_bytes", "Bytes of one frame.", pool.frame_bytes),
    ] {
        text.metric(name, "gauge", help);
        text.sample(name, &[], value);
    }
    let name = "isoplane_isolation_violations_total";
    text.metric(name, "counter", "Violations of the workers' isolation.");
    for (cause, violations) in &snapshot.isolation.causes {
        text.sample(name, &[("cause", cause)], violations.count);
    }
    let name = "isoplane_isolation_violation_seconds_total";
    text.metric(name, "counter", "How long violations took, as far as that is known.");
    for (cause, violations) in &snapshot.isolation.causes {
        text.sample(name, &[("cause", cause)], seconds(violations.total_ns));
    }
    text.0
}

fn ports(text: &mut Text, ports: &[PortStatus]) {
    let numbered: Vec<(String, &PortStatus)> =
        ports.iter().map(|port| (port.number.to_string(), port)).collect();
    let name = "isoplane_port_info";
    text.metric(name, "gauge", "1; what the port is called is in the labels.");
    for (number, port) in &numbered {
        let counts = &port.counts;
        let labels = [
            ("port", number.as_str()),
            ("name", &counts.name),
            ("driver", &counts.driver),
            ("mode", &counts.mode),
        ];
        text.sample(name, &labels, 1);
    }
    for (name, kind, help, value) in OF_PORTS {
        text.metric(name, kind, help);
        for (number, port) in &numbered {
            text.sample(name, &[("port", number)], value(port));
        }
    }
    let name = "isoplane_port_dropped_packets_total";
    text.metric(name, "counter", "Lost packets, by reason.");
    for (number, port) in &numbered {
        // Those that never happened too, or the first one would be no increase.
        for reason in DropReason::ALL {
            let count = port.counts.drops.get(reason.name()).copied().unwrap_or_default();
            text.sample(name, &[("port", number), ("reason", reason.name())], count);
        }
    }
    let name = "isoplane_port_driver_value";
    text.metric(name, "gauge", "Numbers of the port's driver, by their names in the report.");
    for (number, port) in &numbered {
        for (key, value) in &port.counts.extra {
            text.sample(name, &[("port", number), ("key", key)], value);
        }
    }
}

fn workers(text: &mut Text, workers: &[WorkerStatus]) {
    let numbered: Vec<(String, &WorkerStatus)> =
        workers.iter().map(|worker| (worker.number.to_string(), worker)).collect();
    let name = "isoplane_worker_info";
    text.metric(name, "gauge", "1; the worker's CPU is in the label.");
    for (number, worker) in &numbered {
        text.sample(name, &[("worker", number), ("cpu", &worker.cpu.to_string())], 1);
    }
    for (name, kind, help, value) in OF_WORKERS {
        text.metric(name, kind, help);
        for (number, worker) in &numbered {
            text.sample(name, &[("worker", number)], value(worker));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::telemetry::view::tests::view;

    #[test]
    fn labels_are_escaped_and_every_reason_is_there() {
        let (view, counters) = view();
        counters.drops(DropReason::RxNoFrame).add(2);
        let text = text(&view.snapshot());
        assert!(text.contains("isoplane_port_info{port=\"0\",name=\"mem:\\\"test\\\"\","), "{text}");
        assert!(text.contains("isoplane_port_dropped_packets_total{port=\"0\",reason=\"rx_no_frame\"} 2\n"));
        let dropped = text.lines().filter(|line| line.starts_with("isoplane_port_dropped_packets_total{"));
        assert_eq!(dropped.count(), DropReason::ALL.len());
    }
}
