//! What benchmarks, and tests under load, need beside the ports: costs in ticks of the time stamp counter, and a load that is
//! made and counted by the kernel's XDP and not by the code under test.

mod ticks;
pub mod vm;
pub mod xdp;

pub use ticks::{Ticks, criterion, per_item};
