//! Which CPU am I on, which may I use, and how do I stay there.
//!
//! The lowest layer of Isoplane: it knows CPUs, the time stamp counter and BPF programs, and nothing of packets.

pub mod bpf;
pub mod cpu_list;
pub mod pin;
mod sys;
pub mod topology;
pub mod tsc;
pub mod veto;

pub use cpu_list::CpuList;
pub use pin::{PinError, Pinned, pin_on_cpu};
pub use topology::Topology;
