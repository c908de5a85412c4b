//! The driver against a model of the 82574.
#![forbid(unsafe_code)]

mod hostile;
mod model;
mod offload;
mod recovery;

use self::model::Model;
use super::nic::E1000eNic;
use super::open::{Opened, open_typed};
use super::registers::*;
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{Batch, Pool, PoolConfig};
use crate::port::{LinkState, PortId, RxQueue, TxQueue};
use crate::vfio::dma::PoolMapping;
use crate::vfio::function::PciFunction;
use crate::vfio::nic::{Nic, NicConfig, NicError};
use std::sync::Arc;

/// What a test opens a port with.
#[derive(Clone, Copy)]
struct Options<'a> {
    queues: u16,
    ring: u16,
    mtu: usize,
    promiscuous: bool,
    checksum: bool,
    vlans: &'a [u16],
    frame_size: usize,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            queues: 1,
            ring: 64,
            mtu: 1500,
            promiscuous: false,
            checksum: false,
            vlans: &[],
            frame_size: 2048,
        }
    }
}

/// A device, and a port that is open on it.
struct Rig {
    model: Arc<Model>,
    pool: Pool,
    nic: E1000eNic,
    rx: Vec<Box<dyn RxQueue>>,
    tx: Vec<Box<dyn TxQueue>>,
    frames: Arc<PoolMapping>,
}

fn open_on(
    model: &Arc<Model>,
    function: &Arc<dyn PciFunction>,
    options: Options<'_>,
) -> Result<(Pool, Arc<PoolMapping>, Opened), NicError> {
    let config = PoolConfig { frames: 1024, frame_size: options.frame_size, ..PoolConfig::default() };
    let pool = Pool::new(&config).unwrap();
    let frames = model.space().map_pool(&pool).unwrap();
    let config = NicConfig {
        name: "vfio:test",
        rx_queues: options.queues,
        tx_queues: options.queues,
        rx_ring: options.ring,
        tx_ring: options.ring,
        mtu: options.mtu,
        promiscuous: options.promiscuous,
        checksum: options.checksum,
        vlans: options.vlans,
        frames: &frames,
        id: PortId(3),
        options: &[],
    };
    let opened = open_typed(function, &config)?;
    Ok((pool, frames, opened))
}

impl Rig {
    fn new(options: Options<'_>) -> Self {
        let (model, function) = Model::new();
        let (pool, frames, Opened { nic, rx, tx }) = open_on(&model, &function, options).unwrap();
        let rx = rx.into_iter().map(|queue| Box::new(queue) as Box<dyn RxQueue>).collect();
        let tx = tx.into_iter().map(|queue| Box::new(queue) as Box<dyn TxQueue>).collect();
        Self { model, pool, nic, rx, tx, frames }
    }

    /// All packets of a receive queue.
    fn drain(&mut self, queue: usize) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        loop {
            let mut batch = Batch::new();
            self.rx[queue].receive(&mut batch);
            if batch.is_empty() {
                return packets;
            }
            packets.extend(batch.iter().map(|packet| packet.to_vec()));
        }
    }

    /// A packet in as many segments as it needs, in frames of the pool.
    fn packet(&self, bytes: &[u8]) -> crate::memory::Packet {
        let mut parts = bytes.chunks(self.pool.data_room());
        let make = |part: &[u8]| {
            let mut packet = self.pool.allocate(part.len()).unwrap();
            packet.data_mut().copy_from_slice(part);
            packet
        };
        let mut packet = make(parts.next().unwrap());
        parts.for_each(|part| packet.chain(make(part)));
        packet
    }

    fn send(&mut self, queue: usize, bytes: &[u8]) {
        let mut batch = Batch::new();
        batch.push(self.packet(bytes)).unwrap();
        self.tx[queue].transmit(&mut batch);
    }

    fn dropped(&self, counters: &QueueCounters, reason: DropReason) -> u64 {
        counters.drops(reason).get()
    }

    /// Closes the port as its owner does, and holds it to its accounts.
    fn close(self) -> Vec<Arc<QueueCounters>> {
        let Self { model, pool, nic, rx, tx, frames } = self;
        let counters = rx.iter().map(|queue| queue.counters().clone());
        let counters = counters.chain(tx.iter().map(|queue| queue.counters().clone())).collect();
        drop((rx, tx));
        assert!(!model.state().bus_master, "frames are freed when the device is stopped");
        drop(nic);
        let audit = pool.audit();
        assert_eq!((audit.held, audit.duplicated), (0, 0));
        drop(frames);
        assert_eq!(model.iommu().mappings(), 0, "no mapping is left");
        assert!(model.state().hostile || model.iommu().faults() == 0, "the device reached what it was given");
        counters
    }
}

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// A packet of `length` bytes to `to`, no IP, whose content tells `number`.
fn plain(to: [u8; 6], length: usize, number: u32) -> Vec<u8> {
    let mut packet = [&to[..], &[2, 0, 0, 0, 0, 8, 0x88, 0xB5], &number.to_be_bytes()].concat();
    packet.extend((packet.len()..length).map(|at| (at as u32 ^ number) as u8));
    packet
}

#[test]
fn a_port_that_is_opened_receives_sends_and_leaves_nothing() {
    let mut rig = Rig::new(Options::default());
    assert_eq!(rig.nic.mac().0, OWN);
    assert_eq!(rig.nic.mode(), "82574L, 1 queue, never run on silicon");
    assert_eq!(rig.nic.link(), LinkState::Up { speed_mbps: Some(1000) });
    assert_eq!(rig.model.resets(), (0, 1));
    let (mut received, mut sent) = (Vec::new(), Vec::new());
    for number in 0..2000 {
        let packet = plain(OWN, 60 + (number as usize * 37) % 1455, number);
        assert!(rig.model.receive(&packet), "{number}");
        sent.push(packet);
        if number % 23 == 0 {
            let mut batch = Batch::new();
            rig.rx[0].receive(&mut batch);
            assert!(batch.iter().all(|packet| packet.port() == PortId(3)));
            rig.tx[0].transmit(&mut batch);
            assert!(batch.is_empty());
            received.extend(rig.model.take_sent());
        }
    }
    rig.model.receive(&plain(OWN, 60, 9999));
    rig.nic.refresh();
    let differs = received.iter().zip(&sent).position(|(got, wanted)| got != wanted);
    assert_eq!(differs, None);
    assert!(received.len() > 1900);
    let extra: std::collections::HashMap<_, _> = rig.nic.extra_counters().into_iter().collect();
    // Stale numbers of before the reset are none.
    assert_eq!(
        (extra["gprc"], extra["gptc"], extra["mpc"], extra["hang_recoveries"]),
        (2001, received.len() as u64, 0, 0)
    );
    let unread = 2001 - received.len() as u64;
    let model = rig.model.clone();
    let counters = rig.close();
    assert_eq!(counters[0].packets.get() + unread, 2001);
    assert_eq!(counters[0].drops(DropReason::RxUnread).get(), unread);
    assert_eq!((counters[1].packets.get(), counters[1].held.get()), (received.len() as u64, 0));
    assert_eq!(model.peek(RCTL) & rctl::EN, 0);
    assert_eq!(model.peek(CTRL_EXT) & ctrl_ext::DRV_LOAD, 0);
}

#[test]
fn long_packets_are_chains_in_both_directions() {
    for (frame_size, segments) in [(2048, 9), (4096, 3)] {
        let mut rig = Rig::new(Options { mtu: 9000, frame_size, ring: 128, ..Options::default() });
        let lengths = [60, 1023, 1024, 1025, 2048, 3072, 3073, 9013, 9014, 9018];
        for (number, length) in lengths.into_iter().enumerate() {
            let mut packet = plain(OWN, length, number as u32);
            if length > 9014 {
                // One tag more is no part of the MTU.
                packet[12..14].copy_from_slice(&[0x81, 0]);
            }
            assert!(rig.model.receive(&packet), "{length}");
            let mut batch = Batch::new();
            rig.rx[0].receive(&mut batch);
            assert_eq!(batch.as_slice()[0].to_vec(), packet, "{length}");
            if length == 9014 {
                assert_eq!(batch.as_slice()[0].segment_count(), segments);
            }
            rig.tx[0].transmit(&mut batch);
            assert_eq!(rig.model.take_sent(), [packet], "{length}");
        }
        let mut long = plain(OWN, 9015, 0);
        rig.send(0, &long);
        long.truncate(9014);
        rig.send(0, &long);
        assert_eq!(rig.model.take_sent().len(), 1);
        let counters = rig.close();
        assert_eq!(counters[1].drops(DropReason::TxOversize).get(), 1);
    }
}

#[test]
fn what_is_too_long_for_the_frames_is_discarded_by_the_device_and_counted() {
    let mut rig = Rig::new(Options::default());
    assert_eq!(rig.model.peek(RCTL) & (rctl::LPE | 3 << rctl::BSIZE_SHIFT | 15 << rctl::FLXBUF_SHIFT), 0);
    assert!(rig.model.receive(&plain(OWN, 1518, 1)));
    assert!(!rig.model.receive(&plain(OWN, 1519, 2)));
    rig.nic.refresh();
    assert_eq!(rig.drain(0).len(), 1);
    let counters = rig.rx[0].counters().clone();
    assert_eq!(rig.dropped(&counters, DropReason::RxDropped), 1);
    rig.close();
}

#[test]
fn both_queues_get_their_flows_and_no_flow_gets_both() {
    let mut rig = Rig::new(Options { queues: 2, ring: 256, ..Options::default() });
    assert_eq!(rig.nic.mode(), "82574L, 2 queues, RSS, never run on silicon");
    // What the specification update wants of two queues.
    for queue in 0..2 {
        assert_eq!(rig.model.peek(tarc(queue)), 3 | 1 << 7 | 1 << 10 | 7 << 23 | 1 << 26);
    }
    for number in 0..200_u16 {
        for flow in 0..2_u8 {
            let mut packet = offload::ipv4(6, &[flow; 40]);
            packet[26..30].copy_from_slice(&[10, 0, (number >> 8) as u8, number as u8]);
            assert!(rig.model.receive(&packet));
        }
        if number % 50 == 49 {
            let [first, second] = [0, 1].map(|queue| rig.drain(queue));
            let flows = |packets: &[Vec<u8>]| {
                packets.iter().map(|packet| packet[26..38].to_vec()).collect::<Vec<_>>()
            };
            assert!(first.len() > 10 && second.len() > 10, "{} {}", first.len(), second.len());
            assert!(flows(&first).iter().all(|flow| !flows(&second).contains(flow)));
        }
    }
    // What is not IP has no hash, and goes to the first queue.
    assert!(rig.model.receive(&plain(OWN, 60, 0)));
    assert_eq!(rig.drain(0).len(), 1);
    for number in 0..20 {
        rig.send(number as usize % 2, &plain(OWN, 60, number));
    }
    let sent = rig.model.take_sent();
    assert_eq!(sent, (0..20).map(|number| plain(OWN, 60, number)).collect::<Vec<_>>());
    rig.close();
}

#[test]
fn the_model_hashes_as_the_specification_of_rss_has_it() {
    // The key and a flow of Microsoft's "Verifying the RSS hash calculation".
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];
    let flow = [66, 9, 149, 187, 161, 142, 100, 80, 0x0A, 0xEA, 0x06, 0xE6];
    assert_eq!(model::toeplitz(&KEY, &flow), 0x51CC_C178);
    assert_eq!(model::toeplitz(&KEY, &flow[..8]), 0x323E_8FC2);
}

#[test]
fn full_rings_are_named() {
    let mut rig = Rig::new(Options { ring: 64, ..Options::default() });
    let taken = (0..100).filter(|number| rig.model.receive(&plain(OWN, 60, *number))).count();
    assert_eq!(taken, 63);
    rig.nic.refresh();
    let counters = rig.rx[0].counters().clone();
    assert_eq!(rig.dropped(&counters, DropReason::RxMissed), 37);
    assert_eq!(rig.drain(0).len(), 63);
    // A device that sends nothing: 63 are taken, the others stay with the caller.
    rig.model.state().hung = true;
    let mut left = 0;
    for round in 0..2 {
        let mut batch = Batch::new();
        (0..40).for_each(|number| batch.push(rig.packet(&plain(OWN, 60, round * 40 + number))).unwrap());
        rig.tx[0].transmit(&mut batch);
        left += batch.len();
    }
    assert_eq!((left, rig.tx[0].counters().held.get()), (17, 63));
    let counters = rig.close();
    assert_eq!(counters[1].drops(DropReason::TxUnsent).get(), 63);
}

#[test]
fn filters_are_what_was_asked_for() {
    let other = [2, 0, 0, 0, 0, 9];
    let vlan = |id: u16| {
        let mut packet = plain(OWN, 64, 0);
        packet[12..16].copy_from_slice(&[0x81, 0, (id >> 8) as u8, id as u8]);
        packet
    };
    let rig = Rig::new(Options { vlans: &[5, 4095], ..Options::default() });
    let receives = |rig: &Rig, to| rig.model.receive(&plain(to, 60, 0));
    assert!(receives(&rig, OWN) && receives(&rig, [0xFF; 6]) && receives(&rig, [1, 0, 0x5E, 0, 0, 1]));
    assert!(!receives(&rig, other));
    let passed = [0, 4, 5, 6, 37, 4094, 4095].map(|id| rig.model.receive(&vlan(id)));
    assert_eq!(passed, [false, false, true, false, false, false, true]);
    rig.close();
    let mut rig = Rig::new(Options { promiscuous: true, ..Options::default() });
    assert!(receives(&rig, other) && rig.model.receive(&vlan(4)));
    // Tags are not taken off.
    assert_eq!(rig.drain(0)[1], vlan(4));
    rig.close();
}

#[test]
fn what_the_device_cannot_do_is_refused_in_words() {
    let (model, function) = Model::new();
    let refused = |options| open_on(&model, &function, options).err().unwrap().to_string();
    assert_eq!(
        refused(Options { ring: 96, ..Options::default() }),
        "rx_ring=96: e1000e has rings of a power of two descriptors, such as 512 or 1024"
    );
    assert_eq!(
        refused(Options { queues: 3, ..Options::default() }),
        "an 82574 has 2 receive queues, not 3: pass queues=2"
    );
    assert_eq!(model.resets().1, 0, "nothing was touched");
    model.state().mac = [0; 6];
    assert!(refused(Options::default()).starts_with("it has no Ethernet address"));
    model.state().stuck_in_reset = true;
    assert!(refused(Options::default()).starts_with("the 82574 does not come out of its reset"));
    model.state().gone = true;
    assert!(refused(Options::default()).contains("the device is gone"));
    assert_eq!(model.iommu().mappings(), 0);
}

#[test]
#[ignore = "bench/vfio/instructions.sh runs it, in the release build"]
fn instructions_e1000e() {
    use super::descriptor::{ExtendedRx, ExtendedTx};
    let test = "vfio::drivers::e1000e::tests::instructions_e1000e";
    crate::vfio::intel::tests::count_instructions::<ExtendedRx, ExtendedTx>(test, "e1000e");
}
