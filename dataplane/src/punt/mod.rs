//! The exception path: packets that are the kernel's business, on a port that bypasses the kernel.
//!
//! A port may have an *exception port*, a TAP interface that carries the port's own Ethernet address (`--exception 0=tap0`). An
//! application *punts* what the kernel is to have ([`Outputs::punt`](crate::Outputs::punt)), and what the kernel sends by the
//! TAP goes out by the port. [`Local`] is the usual choice of what to punt.
//!
//! The kernel handles a packet in microseconds, and whoever rings the TAP's doorbell pays for it. So what is punted is limited for
//! each class of packets: a flood of one of them takes neither the control core's CPU nor the room of the others.
#![forbid(unsafe_code)]

mod addresses;
mod class;
mod exception;
mod limits;
mod local;
mod punting;

pub use limits::PuntLimits;
pub use local::Local;

pub(crate) use addresses::{Addresses, refresh};
pub(crate) use exception::{Exception, check, deal};
pub(crate) use punting::Punting;
