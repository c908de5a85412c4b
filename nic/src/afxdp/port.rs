//! The control handle: how the port runs, the state of its link, and the counters that the kernel keeps.
#![forbid(unsafe_code)]

use super::device::Device;
use super::socket::Socket;
use super::stall::Stalls;
use crate::counters::{DropReason, QueueCounters};
use crate::port::{LinkState, MacAddress, Port};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A queue's socket and the counters of its two sides.
pub(super) struct Queue {
    pub(super) socket: Arc<Socket>,
    pub(super) rx: Option<Arc<QueueCounters>>,
    pub(super) tx: Option<Arc<QueueCounters>>,
    /// Completions that could not be used.
    pub(super) invalid: Option<Arc<AtomicU64>>,
}

impl Queue {
    /// Brings up to date what the kernel counts for this queue, and gives all of it; `None` where it does not answer.
    fn refresh_drops(&self) -> Option<libc::xdp_statistics> {
        let statistics = self.socket.statistics().ok()?;
        if let Some(rx) = &self.rx {
            rx.drops(DropReason::RxRingFull).set(statistics.rx_ring_full);
            // rx_fill_ring_empty_descs counts some of these once more: it is not to be added.
            rx.drops(DropReason::RxDropped).set(statistics.rx_dropped);
        }
        if let Some(tx) = &self.tx {
            tx.drops(DropReason::TxInvalidDescriptor).set(statistics.tx_invalid_descs);
        }
        Some(statistics)
    }
}

/// An open port.
pub(super) struct AfxdpPort {
    pub(super) name: String,
    pub(super) mode: String,
    pub(super) mac: MacAddress,
    pub(super) queues: Vec<Queue>,
    pub(super) stalls: Stalls,
    /// What the interface and its driver count, since it was opened.
    pub(super) counters: Vec<(String, u64)>,
    /// The same at the opening.
    pub(super) counters_before: HashMap<String, u64>,
    pub(super) device: Arc<Device>,
}

impl Port for AfxdpPort {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "afxdp"
    }

    fn mode(&self) -> String {
        self.mode.clone()
    }

    fn mac(&self) -> MacAddress {
        self.mac
    }

    fn max_packet_len(&self) -> usize {
        self.device.max_packet_len.load(Ordering::Relaxed)
    }

    fn link(&mut self) -> LinkState {
        let link = self.device.interface.link();
        if matches!(link, LinkState::Gone(_)) {
            self.queues.iter().for_each(|queue| queue.socket.gone.store(true, Ordering::Relaxed));
        }
        let down = link == LinkState::Down;
        self.queues.iter().for_each(|queue| queue.socket.link_down.store(down, Ordering::Relaxed));
        if matches!(link, LinkState::Up { .. }) {
            // A doorbell would find out as well, but with nothing on the ring none is rung.
            self.queues.iter().for_each(|queue| queue.socket.down.store(false, Ordering::Relaxed));
        }
        link
    }

    fn refresh(&mut self) {
        for news in self.stalls.news() {
            tracing::error!("{}: {news}", self.name);
        }
        if let Ok(mtu) = self.device.interface.mtu() {
            self.device.max_packet_len.store(mtu + super::ETHERNET_HEADER, Ordering::Relaxed);
        }
        self.counters = self.device.interface.counters();
        for (name, value) in &mut self.counters {
            // A counter that went back was reset by its driver: it says what happened since.
            let before = self.counters_before.get(name).copied().unwrap_or(0);
            *value = value.checked_sub(before).unwrap_or(*value);
        }
        self.counters.retain(|(_, value)| *value > 0);
        let missed = self.counters.iter().find(|(name, _)| name == "link_rx_missed_errors");
        if let (Some((_, missed)), Some(rx)) =
            (missed, self.queues.iter().find_map(|queue| queue.rx.as_ref()))
        {
            // The device does not say for which queue.
            rx.drops(DropReason::RxMissed).set(*missed);
        }
        for queue in &self.queues {
            let Some(statistics) = queue.refresh_drops() else {
                continue;
            };
            let mut extra = |name: &str, value: u64| {
                if value > 0 {
                    self.counters.push((format!("queue{}_{name}", queue.socket.queue), value));
                }
            };
            extra("fill_ring_empty", statistics.rx_fill_ring_empty_descs);
            extra("fill_ring_invalid", statistics.rx_invalid_descs);
            let invalid = queue.invalid.as_ref().map_or(0, |invalid| invalid.load(Ordering::Relaxed));
            extra("completion_invalid", invalid);
            extra("tx_ring_empty", statistics.tx_ring_empty_descs);
        }
    }

    fn refresh_drops(&mut self) {
        self.queues.iter().for_each(|queue| {
            queue.refresh_drops();
        });
    }

    fn extra_counters(&self) -> Vec<(String, u64)> {
        self.counters.clone()
    }
}
