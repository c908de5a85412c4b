//! What clients and a run say to each other: one object of JSON a line, an answer for each request. The keys are stable; more may come.
#![forbid(unsafe_code)]

use super::LogLevel;
use crate::report::PortReport;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A request: `{"show": "ports"}`, `{"set": {"port": {"number": 0, "up": false}}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// For numbers.
    Show(Subject),
    /// For a change.
    Set(Setting),
}

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// Packets and bytes, links
    Ports,
    /// Packets, cost, gaps
    Workers,
    /// Lost packets by port and reason
    Drops,
    /// What took isolated workers' CPUs, by cause
    Violations,
    /// Packet memory
    Pool,
    /// What the application lets clients change
    Settings,
}

/// What can be changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Setting {
    /// Takes a port out of use, or back: one that is set down takes and sends nothing, and what comes is dropped as `admin_down`.
    Port(PortSetting),
    /// How much is logged.
    LogLevel(LogLevel),
    /// One of the application's own.
    Application(ApplicationSetting),
}

/// See [`Setting::Port`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSetting {
    /// The port's number.
    pub number: usize,
    /// Whether it is to be in use.
    pub up: bool,
}

/// See [`Setting::Application`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationSetting {
    /// Its name, as the answer to `show settings` has it.
    pub name: String,
    /// What it is to be.
    pub text: String,
}

/// An answer: its only key says what it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `show ports`: by number.
    Ports(Vec<PortStatus>),
    /// To `show workers`: by number.
    Workers(Vec<WorkerStatus>),
    /// To `show drops`: those that there were.
    Drops(Vec<Drops>),
    /// To `show violations`.
    Violations(IsolationStatus),
    /// To `show pool`.
    Pool(PoolStatus),
    /// To `show settings`: those of the application.
    Settings(Vec<SettingStatus>),
    /// To a change: it is done.
    Done(String),
    /// The request was wrong, or could not be fulfilled: why, in words.
    Error(String),
}

/// One port: what the report will say of it, and its state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortStatus {
    /// Its number.
    pub number: usize,
    /// `up`, `down`, or `gone`.
    pub link: String,
    /// False where a client has set it down.
    pub enabled: bool,
    /// Frames on its rings.
    pub ring_frames: u64,
    /// The numbers that the report has at the end.
    #[serde(flatten)]
    pub counts: PortReport,
}

/// One worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number.
    pub number: usize,
    /// The CPU it was put on.
    pub cpu: usize,
    /// Packets it received.
    pub packets: u64,
    /// TSC ticks a packet, over the loop turns in which packets moved; `null` where none did.
    pub tsc_per_packet: Option<f64>,
    /// Time of the loop turns in which packets moved.
    pub busy_ns: u64,
    /// Loop turns.
    pub turns: u64,
    /// Times it slept for want of packets.
    pub sleeps: u64,
    /// The longest time from one turn to the next, since the run began.
    pub longest_gap_ns: u64,
    /// How often somebody else changed its affinity mask.
    pub affinity_changes: u64,
}

/// Packets lost at one port for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// The port's number.
    pub port: usize,
    /// The port's name.
    pub name: String,
    /// The reason's name.
    pub reason: String,
    /// How many.
    pub packets: u64,
    /// What the reason means.
    pub meaning: String,
}

/// How the workers' isolation goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolationStatus {
    /// `off`, `soft` or `strict`.
    pub mode: String,
    /// By cause.
    pub causes: BTreeMap<String, Violations>,
}

/// Violations of one cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violations {
    /// How many.
    pub count: u64,
    /// How long they took altogether, as far as that is known.
    pub total_ns: u64,
    /// The longest.
    pub longest_ns: u64,
}

/// Packet memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Frames it has.
    pub frames: usize,
    /// Free ones; while packets move, about so many.
    pub free: usize,
    /// Bytes of one.
    pub frame_bytes: usize,
}

/// Something that the application lets clients change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingStatus {
    /// Its name.
    pub name: String,
    /// What it is now.
    pub text: String,
    /// What it takes, in words.
    pub takes: String,
}
