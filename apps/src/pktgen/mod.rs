//! pktgen's parts: what is asked for, the worker's application, and what came of it.
#![forbid(unsafe_code)]

mod results;
mod worker;

pub use results::{Results, Stream};
pub use worker::{Pktgen, Senders};

use nic::traffic::Sizes;
use std::time::Duration;

/// The traffic that was asked for.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Frame sizes.
    pub sizes: Sizes,
    /// Flows of each port.
    pub flows: u16,
    /// Packets a second of each port; 0 is as fast as the port takes them.
    pub rate_pps: u64,
    /// Packets of each port; `None` is without end.
    pub count: Option<u64>,
    /// How long to send.
    pub duration: Option<Duration>,
    /// Whether to fill in the UDP checksum.
    pub udp_checksum: bool,
    /// Whether to send at all.
    pub send: bool,
    /// Whether flows count from the first packet seen, and not from 0.
    pub join: bool,
    /// Tells the packets of this run from those of others.
    pub run: u8,
}

impl Traffic {
    /// What packets sent by a port say of their sender.
    pub fn sender(&self, port: nic::PortId) -> u16 {
        u16::from(self.run) << 8 | port.0 & 0xFF
    }
}
