//! The whole driver against the [model](super::model): open, traffic, close.
#![forbid(unsafe_code)]

mod cost;
mod hostile;
mod recovery;
mod setup;
mod traffic;

use super::abi::feature;
use super::model::{ALL, Model};
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{Batch, Packet, Pool, PoolConfig};
use crate::port::PortId;
use crate::vfio::dma::PoolMapping;
use crate::vfio::nic::{NicConfig, NicError, OpenNic};
use std::sync::Arc;

/// What a test opens.
#[derive(Clone)]
struct Want {
    offered: u64,
    pairs: u16,
    rx_queues: u16,
    tx_queues: u16,
    /// Of the device, and what is asked for.
    ring: u16,
    mtu: usize,
    checksum: bool,
    promiscuous: bool,
    vlans: Vec<u16>,
    options: Vec<(String, String)>,
    frame_size: usize,
    frames: usize,
}

impl Default for Want {
    fn default() -> Self {
        Self {
            offered: ALL,
            pairs: 1,
            rx_queues: 1,
            tx_queues: 1,
            ring: 128,
            mtu: 1500,
            checksum: false,
            promiscuous: true,
            vlans: Vec::new(),
            options: Vec::new(),
            frame_size: 2048,
            frames: 2048,
        }
    }
}

impl Want {
    fn split(self) -> Self {
        let offered = self.offered & !feature::RING_PACKED;
        Self { offered, ..self }
    }

    /// Both layouts, with and without events.
    fn all_rings() -> impl Iterator<Item = Want> {
        [0, feature::RING_PACKED].into_iter().flat_map(|packed| {
            [0, feature::EVENT_IDX].map(|events| Want {
                offered: ALL & !(feature::RING_PACKED | feature::EVENT_IDX) | packed | events,
                ..Want::default()
            })
        })
    }
}

/// A device, packet memory, and the driver between them.
struct Rig {
    open: Option<OpenNic>,
    model: Model,
    pool: Pool,
    frames: Arc<PoolMapping>,
    want: Want,
}

impl Rig {
    fn closed(want: Want) -> Self {
        let model = Model::new(want.offered, want.pairs, want.ring);
        let config = PoolConfig { frames: want.frames, frame_size: want.frame_size, ..PoolConfig::default() };
        let pool = Pool::new(&config).unwrap();
        let frames = model.function().dma().map_pool(&pool).unwrap();
        Self { open: None, model, pool, frames, want }
    }

    fn try_open(&mut self) -> Result<(), NicError> {
        let want = &self.want;
        let config = NicConfig {
            name: "vfio:model",
            rx_queues: want.rx_queues,
            tx_queues: want.tx_queues,
            rx_ring: want.ring,
            tx_ring: want.ring,
            mtu: want.mtu,
            promiscuous: want.promiscuous,
            checksum: want.checksum,
            vlans: &want.vlans,
            frames: &self.frames,
            id: PortId(7),
            options: &want.options,
        };
        self.open = Some((super::DRIVER.open)(&self.model.function(), &config)?);
        Ok(())
    }

    fn new(want: Want) -> Self {
        let mut rig = Self::closed(want);
        rig.try_open().unwrap();
        rig
    }

    /// Why it cannot be opened; and nothing is left.
    #[track_caller]
    fn refused(want: Want) -> String {
        let mut rig = Self::closed(want);
        let error = rig.try_open().unwrap_err().to_string();
        rig.check_closed();
        error
    }

    fn nic(&mut self) -> &mut OpenNic {
        self.open.as_mut().unwrap()
    }

    fn receive(&mut self, queue: usize) -> Batch {
        let mut batch = Batch::new();
        self.nic().rx[queue].receive(&mut batch);
        batch
    }

    fn transmit(&mut self, queue: usize, batch: &mut Batch) {
        self.nic().tx[queue].transmit(batch);
    }

    fn rx_counters(&mut self, queue: usize) -> Arc<QueueCounters> {
        Arc::clone(self.nic().rx[queue].counters())
    }

    fn tx_counters(&mut self, queue: usize) -> Arc<QueueCounters> {
        Arc::clone(self.nic().tx[queue].counters())
    }

    /// A packet of these segments.
    fn packet(&self, bytes: &[u8], cuts: &[usize]) -> Packet {
        packet_of(&self.pool, bytes, cuts)
    }

    /// Closes it in the order that a port is closed in.
    fn close(&mut self) {
        if let Some(OpenNic { nic, rx, tx }) = self.open.take() {
            drop(tx);
            drop(rx);
            drop(nic);
        }
        self.check_closed();
    }

    /// Nothing is left, and nothing was touched that must not be.
    #[track_caller]
    fn check_closed(&mut self) {
        assert!(!self.model.lock().bus_master, "halted");
        let audit = self.pool.audit();
        assert_eq!((audit.held, audit.duplicated), (0, 0));
        // That of the pool, which the rig has.
        assert_eq!((self.model.iommu.faults(), self.model.iommu.mappings()), (0, 1));
    }
}

fn packet_of(pool: &Pool, bytes: &[u8], cuts: &[usize]) -> Packet {
    let mut at = 0;
    let mut parts = cuts.iter().copied().chain([bytes.len()]).map(|cut| {
        let part = &bytes[at..cut.clamp(at, bytes.len())];
        at += part.len();
        let mut packet = pool.allocate(part.len()).unwrap();
        packet.data_mut().copy_from_slice(part);
        packet
    });
    let mut packet = parts.next().unwrap();
    parts.for_each(|part| packet.chain(part));
    packet
}

/// Bytes that differ from packet to packet.
fn payload(number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|index| (number * 31 + index * 7) as u8).collect()
}

fn drops(counters: &QueueCounters, reason: DropReason) -> u64 {
    counters.drops(reason).get()
}
