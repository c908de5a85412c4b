//! A packet generator and a packet counter in the kernel, for both ends of a veth pair.
//!
//! A program in user space makes about 1 Mpps on a veth, and competes for the CPU with what it is to load. XDP "live frames"
//! (`BPF_PROG_TEST_RUN` with `BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18) make 4 to 7 Mpps from one core, and a program
//! at the traffic-control hook counts and drops as many. Both are a handful of BPF instructions, assembled here.

mod abi;
mod generator;
mod interface;
mod program;
mod sink;
mod sys;

pub use generator::{Generator, MAX_SIZE_BYTES, MIN_SIZE_BYTES, Sent};
pub use interface::{InterfaceCounters, XdpError};
pub use sink::{Received, Sink};
