//! The framework: joins ports and CPUs into a running packet application.
//!
//! An application implements [`Application`]: batches in, batches out. [`DataplaneArgs`] are its command-line options,
//! [`Plan`] checks them whole before anything is opened, [`Dataplane`] runs the workers and the control core, and [`Outcome`] has what they
//! counted.

mod application;
mod arguments;
mod assignment;
mod bell;
mod control;
mod crew;
mod dataplane;
mod error;
pub mod ethernet;
mod idle;
mod isolation_args;
mod link_pace;
mod loop_gap;
mod outputs;
mod placement;
mod plan;
mod portmap;
pub mod punt;
mod reach;
mod registry;
mod report;
mod retired_tables;
mod signals;
pub mod slow_path;
mod table;
pub mod telemetry;
mod violations;
mod watchdog;
mod worker;

pub use application::{Application, PortInfo, WorkerContext};
pub use arguments::{DataplaneArgs, Kick};
pub use dataplane::{Dataplane, Outcome};
pub use error::Error;
pub use idle::Idle;
pub use isolation_args::{IsolationArgs, IsolationMode, OnOff, OnViolation};
pub use outputs::Outputs;
pub use percpu::qsbr::{Published, Refused, Shared};
pub use plan::Plan;
pub use portmap::PortMap;
pub use reach::Reach;
pub use report::{IsolationReport, Report};

/// The guide's program, so that it runs.
#[cfg(doctest)]
#[doc = include_str!("../../docs/tables.md")]
struct Guide;
