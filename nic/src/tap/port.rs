//! The control handle: the interface's link, and what the kernel counts for it.
#![forbid(unsafe_code)]

use super::Tap;
use crate::afxdp::Interface;
use crate::counters::{DropReason, QueueCounters};
use crate::port::{LinkState, MacAddress, Port};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// An open port.
pub(super) struct TapPort {
    pub(super) tap: Arc<Tap>,
    pub(super) interface: Interface,
    pub(super) mac: MacAddress,
    pub(super) max_packet_len: usize,
    pub(super) rx: Arc<QueueCounters>,
    pub(super) counters: Vec<(String, u64)>,
}

impl Port for TapPort {
    fn name(&self) -> &str {
        &self.tap.port
    }

    fn driver(&self) -> &'static str {
        "tap"
    }

    fn mode(&self) -> String {
        "an interface of the kernel".to_owned()
    }

    fn mac(&self) -> MacAddress {
        self.mac
    }

    fn max_packet_len(&self) -> usize {
        self.max_packet_len
    }

    fn link(&mut self) -> LinkState {
        let link = self.interface.link();
        if matches!(link, LinkState::Gone(_)) {
            self.tap.gone.store(true, Ordering::Relaxed);
        }
        link
    }

    fn refresh(&mut self) {
        let counters = self.interface.counters();
        if self.tap.is_gone() || counters.is_empty() {
            // What it counted is not forgotten.
            return;
        }
        // It began with the port, and so did its counters.
        if let Some((_, dropped)) = counters.iter().find(|(name, _)| name == "link_tx_dropped") {
            self.rx.drops(DropReason::RxDropped).set(*dropped);
        }
        self.counters = counters;
    }

    fn extra_counters(&self) -> Vec<(String, u64)> {
        self.counters.clone()
    }
}
