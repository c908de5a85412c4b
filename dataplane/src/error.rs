//! What can go wrong, and with which exit status the process should say so.
#![forbid(unsafe_code)]

use nic::memory::PoolError;
use nic::port::{PortError, PortGone};
use percpu::PinError;
use std::io;
use thiserror::Error;

/// Why the dataplane did not start, or did not end well. One line, with the way out.
#[derive(Debug, Error)]
pub enum Error {
    /// The options contradict each other or this machine.
    #[error("{0}")]
    Configuration(String),
    /// A port.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The packet pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A worker could not be put on its CPU.
    #[error("worker {worker}: {source}")]
    Pin {
        /// The worker's number.
        worker: usize,
        /// Why.
        source: PinError,
    },
    /// A worker cannot be isolated.
    #[error("worker {worker}: {source}")]
    Isolation {
        /// The worker's number.
        worker: usize,
        /// Why.
        source: isolation::Refusal,
    },
    /// The kernel came to a worker, and the user wanted the run to end then.
    #[error(
        "worker {worker}: its isolation was violated, and --on-violation exit ends the run: the log says by what"
    )]
    Interrupted {
        /// The worker's number.
        worker: usize,
    },
    /// The violations' file could not be written.
    #[error("cannot write the violations to {path}: {source}; choose a path you may write to")]
    ViolationLog {
        /// The path given.
        path: String,
        /// What the system answered.
        source: io::Error,
    },
    /// A socket for clients cannot be had.
    #[error("{0}")]
    Endpoint(String),
    /// The machine would not tell about its CPUs, or gave no thread, pipe or signal handler.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// The report could not be written.
    #[error("cannot write the report {path}: {source}; choose a path you may write to")]
    Report {
        /// The path given.
        path: String,
        /// What the system answered.
        source: io::Error,
    },
    /// A port stopped working while the dataplane ran, and with it all there was to do, or what it was to leave behind.
    #[error(transparent)]
    Gone(#[from] PortGone),
    /// A worker thread panicked: a bug in the application or in the framework.
    #[error("worker {worker} panicked: {message}")]
    Panic {
        /// The worker's number.
        worker: usize,
        /// The panic's words.
        message: String,
    },
}

impl Error {
    /// 2 where the command line is to blame, else 1.
    pub fn exit_status(&self) -> u8 {
        match self {
            Error::Configuration(_) | Error::Port(PortError::Specification { .. }) => 2,
            Error::Pool(PoolError::FrameSize(_) | PoolError::Frames(_) | PoolError::Headroom { .. }) => 2,
            _ => 1,
        }
    }

    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::System { what, source }
    }
}
