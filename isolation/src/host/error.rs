//! What keeps a host from being checked, prepared or restored.
#![forbid(unsafe_code)]

use super::tree::Unread;
use percpu::CpuList;
use percpu::topology::Unusable;
use std::io;
use thiserror::Error;

/// Why nothing was done, or not all of it. One line, with the way out.
#[derive(Debug, Error)]
pub enum HostError {
    /// The list is empty.
    #[error("--cpus names no CPU: write a list such as 1-3,5")]
    NoCpu,
    /// A worker could not be there.
    #[error("--cpus: {0}")]
    Unusable(#[from] Unusable),
    /// The kernel needs a CPU for all else.
    #[error("--cpus {cpus} takes every CPU of this machine, and the kernel needs one: leave one out")]
    EveryCpu {
        /// The CPUs asked for.
        cpus: CpuList,
    },
    /// Not even what the machine must tell could be read.
    #[error(transparent)]
    Unread(#[from] Unread),
    /// The kernel's settings are root's.
    #[error("isoplane {command} changes settings of the kernel: run it as root{hint}")]
    NotRoot {
        /// The command.
        command: &'static str,
        /// What can be done without.
        hint: &'static str,
    },
    /// The old values of another time are not put back yet.
    #[error("{cpus} prepared already ({path}): run \"isoplane restore{option}\" first")]
    Prepared {
        /// `CPU 1 is`.
        cpus: String,
        /// The state file.
        path: String,
        /// How restore finds it.
        option: String,
    },
    /// Somebody else is at it.
    #[error(
        "another isoplane prepares or restores with the same state file ({path}): wait until it has ended"
    )]
    Busy {
        /// The state file.
        path: String,
    },
    /// The old values cannot be kept, or read.
    #[error("cannot {action} the state file {path}: {source}; choose another by --state")]
    State {
        /// What was attempted.
        action: &'static str,
        /// The state file.
        path: String,
        /// What the system answered.
        source: io::Error,
    },
    /// Not what prepare wrote.
    #[error("{path} is no state file of isoplane prepare: {why}; choose another by --state, or remove it")]
    NoState {
        /// The state file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

impl HostError {
    /// Whether the command line is to blame.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NoCpu | Self::Unusable(_) | Self::EveryCpu { .. })
    }
}
