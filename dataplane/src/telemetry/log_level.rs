//! The log level, to be changed while the program runs. The program set its log up, so it says here how that is done.
#![forbid(unsafe_code)]

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Nothing
    Off,
    /// What ends something
    Error,
    /// And what costs something
    Warn,
    /// And what happens
    Info,
    /// And how
    Debug,
    /// Everything
    Trace,
}

impl LogLevel {
    /// Its name, as filters of logs know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

type Change = Box<dyn Fn(LogLevel) -> Result<(), String> + Send + Sync>;

static CHANGE: OnceLock<Change> = OnceLock::new();

/// From now on clients can change the log level, by this function; only the first one counts.
pub fn change_log_level_by(change: impl Fn(LogLevel) -> Result<(), String> + Send + Sync + 'static) {
    let _ = CHANGE.set(Box::new(change));
}

pub(super) fn change(level: LogLevel) -> Result<(), String> {
    match CHANGE.get() {
        Some(change) => change(level),
        None => Err("this program's log level cannot be changed while it runs".into()),
    }
}
