//! Test traffic: the packets that `mem:gen` and pktgen send, and the books that tell what became of them.
//!
//! Loss can only be shown by packets that carry a number, and damage only by content that can be foretold. So every test packet is
//! an ordinary UDP datagram (a NIC spreads its flows, a router forwards it, a capture tool shows it) whose payload says which packet
//! of which flow it is, followed by bytes that follow from that alone:
//!
//! ```text
//! offset  0   Ethernet   destination, source, 0x0800
//!        14   IPv4       no options, 198.18.0.0/15 (RFC 2544: for benchmarks), the source's last 16 bits name the sender
//!        34   UDP        source port 1024 + flow, destination port 9 (discard, RFC 863), checksum 0 or right
//!        42   magic      u16, 0x49F0        all numbers big endian
//!        44   flow       u16
//!        46   sequence   u64, from 0, for each flow
//!        54   fill       to the frame's end, see `content`
//! ```
//!
//! A [`FrameBuilder`] writes one packet, a [`Generator`] a paced stream of them; a [`Tracker`] receives them and counts.
#![forbid(unsafe_code)]

mod builder;
mod content;
mod generator;
mod pacer;
mod sizes;
mod tracker;
mod window;

pub use builder::{Addresses, FrameBuilder};
pub use content::{Damage, TestPacket, flow_of, read};
pub use generator::{Generator, TrafficConfig};
pub use pacer::Pacer;
pub use sizes::{MAX_SIZE, MIN_SIZE, Sizes};
pub use tracker::{FlowReport, SharedTotals, Start, Totals, Tracker};
pub use window::WINDOW;

/// Flows of one sender at most.
pub const MAX_FLOWS: u16 = 60_000;

/// The UDP source port of flow 0; flow `n` has the `n`th behind it.
pub const FIRST_SOURCE_PORT: u16 = 1024;
/// The UDP destination port: discard (RFC 863), so that a host that gets such a packet means no harm by it.
pub const DESTINATION_PORT: u16 = 9;
/// What the UDP payload starts with.
pub const MAGIC: u16 = 0x49F0;

const IPV4_AT: usize = 14;
const UDP_AT: usize = 34;
const MAGIC_AT: usize = 42;
const FLOW_AT: usize = 44;
const SEQUENCE_AT: usize = 46;
const FILL_AT: usize = 54;
