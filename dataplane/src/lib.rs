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
mod isolation_args;
mod loop_gap;
mod outputs;
mod placement;
mod plan;
mod portmap;
mod registry;
mod report;
mod signals;
pub mod slow_path;
mod table;
mod violations;
mod worker;

pub use application::{Application, PortInfo, WorkerContext};
pub use arguments::{DataplaneArgs, Kick};
pub use dataplane::{Dataplane, Outcome};
pub use error::Error;
pub use isolation_args::{IsolationArgs, IsolationMode, OnOff, OnViolation};
pub use outputs::Outputs;
pub use plan::Plan;
pub use portmap::PortMap;
pub use report::{IsolationReport, Report};
