//! The control handle that all in-memory ports share.
#![forbid(unsafe_code)]

use crate::port::{LinkState, MacAddress, Port, PortId};

/// An in-memory port: always up.
pub(crate) struct MemPort {
    pub(crate) name: String,
    pub(crate) mode: String,
    pub(crate) id: PortId,
    pub(crate) max_packet_len: usize,
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

    /// Locally administered: 02:49:50 ("IP" for Isoplane), then the port's number.
    fn mac(&self) -> MacAddress {
        let [high, low] = self.id.0.to_be_bytes();
        MacAddress([0x02, 0x49, 0x50, 0x00, high, low])
    }

    fn max_packet_len(&self) -> usize {
        self.max_packet_len
    }

    fn link(&mut self) -> LinkState {
        LinkState::Up { speed_mbps: None }
    }
}
