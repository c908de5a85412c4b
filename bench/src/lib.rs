//! What benchmarks and tests need beside the ports: costs in ticks of the time stamp counter, a load that is made and counted by the
//! kernel's XDP and not by the code under test, and a virtual machine for what must not be done to the real one.

mod ticks;
pub mod vm;
pub mod xdp;

pub use ticks::{Ticks, criterion, per_item};
