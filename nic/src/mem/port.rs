//! The control handle that all in-memory ports share.
#![forbid(unsafe_code)]

use crate::port::{LinkState, MacAddress, Port, PortId};
use crate::traffic::{SharedTotals, Totals};
use std::sync::Arc;

/// The address of an in-memory port: locally administered, 02:49:50 ("IP" for Isoplane), then the port's number.
pub(crate) fn mac_of(id: PortId) -> MacAddress {
    let [high, low] = id.0.to_be_bytes();
    MacAddress([0x02, 0x49, 0x50, 0x00, high, low])
}

/// An in-memory port: always up.
pub(crate) struct MemPort {
    pub(crate) name: String,
    pub(crate) mode: String,
    pub(crate) id: PortId,
    pub(crate) max_packet_len: usize,
    /// What its transmit queues found out, each for itself; empty where they do not check.
    pub(crate) sinks: Vec<Arc<SharedTotals>>,
}

impl Port for MemPort {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "mem"
    }

    fn mode(&self) -> String {
        self.mode.clone()
    }

    fn mac(&self) -> MacAddress {
        mac_of(self.id)
    }

    fn max_packet_len(&self) -> usize {
        self.max_packet_len
    }

    fn link(&mut self) -> LinkState {
        LinkState::Up { speed_mbps: None }
    }

    fn extra_counters(&self) -> Vec<(String, u64)> {
        if self.sinks.is_empty() {
            return Vec::new();
        }
        let mut sum = Totals::default();
        self.sinks.iter().for_each(|totals| sum.add(&totals.get()));
        sum.named().map(|(name, value)| (format!("sink_{name}"), value)).collect()
    }
}
