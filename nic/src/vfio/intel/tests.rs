//! The rings against a model of the device: honest, slow, full, hung, hostile.
#![forbid(unsafe_code)]

use super::format::{Advanced, Advanced82576, RxFormat, TxFormat};
use super::model::{ModelFunction, ModelRing, PlainRegisters, Sent};
use super::rx::{IntelRx, RxParts};
use super::tx::{Carrier, IntelTx, MAX_SEGMENTS, TxParts};
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{Batch, Checksum, Packet, Pool, PoolConfig};
use crate::port::{PortId, RxQueue, TxQueue};
use crate::vfio::dma::PoolMapping;
use crate::vfio::instructions;
use crate::vfio::model::ModelIommu;
use crate::vfio::nic::Halt;
use crate::vfio::registers::{RegisterSpace, TailRegister};
use proptest::prelude::*;
use std::sync::Arc;

const RDT: usize = 0;
const TDT: usize = 4;
const BUFFER: usize = 1024;
const MAX_PACKET: usize = 9022;

/// A device with one queue each way, and its driver's queues.
struct Rig {
    iommu: ModelIommu,
    pool: Pool,
    registers: Arc<PlainRegisters>,
    halt: Arc<Halt>,
    carrier: Arc<Carrier>,
    frames: Arc<PoolMapping>,
    rx_ring: ModelRing,
    tx_ring: ModelRing,
    context: Option<[u64; 2]>,
}

type Rx = IntelRx<Advanced82576>;
type Tx = IntelTx<Advanced>;

impl Rig {
    fn new(frames: usize, size: u16) -> (Self, Rx, Tx) {
        Self::with(frames, size, true)
    }

    fn with(frames: usize, size: u16, checksum: bool) -> (Self, Rx, Tx) {
        Self::sending(frames, size, checksum, MAX_PACKET - 8)
    }

    /// One that sends packets of up to `max_packet_len` bytes.
    fn sending(frames: usize, size: u16, checksum: bool, max_packet_len: usize) -> (Self, Rx, Tx) {
        Self::of_formats(frames, size, checksum, max_packet_len)
    }

    /// One of other descriptors.
    fn of_formats<R: RxFormat, T: TxFormat>(
        frames: usize,
        size: u16,
        checksum: bool,
        max_packet_len: usize,
    ) -> (Self, IntelRx<R>, IntelTx<T>) {
        let (iommu, dma) = ModelIommu::new();
        let pool = Pool::new(&PoolConfig { frames, ..PoolConfig::default() }).unwrap();
        let registers = PlainRegisters::new(64);
        let function = ModelFunction::new(0x10C9, registers.clone(), dma.clone());
        let halt = Halt::new(function, 2);
        let carrier = Arc::new(Carrier::default());
        carrier.set(true);
        let frames = dma.map_pool(&pool).unwrap();
        let rx = IntelRx::<R>::new(RxParts {
            size,
            buffer_bytes: BUFFER,
            max_packet_len: MAX_PACKET,
            checksum,
            frames: &frames,
            id: PortId(3),
            tail: TailRegister::new(registers.clone(), RDT),
            halt: &halt,
            gate: halt.gates[0].clone(),
        })
        .unwrap();
        let tx = IntelTx::<T>::new(TxParts {
            size,
            max_packet_len,
            checksum,
            frames: &frames,
            tail: TailRegister::new(registers.clone(), TDT),
            halt: &halt,
            gate: halt.gates[1].clone(),
            carrier: &carrier,
        })
        .unwrap();
        rx.start();
        let (rx_ring, tx_ring) = (ModelRing::new(rx.ring()), ModelRing::new(tx.ring()));
        (Self { iommu, pool, registers, halt, carrier, frames, rx_ring, tx_ring, context: None }, rx, tx)
    }

    fn receive(&mut self, bytes: &[u8], flags: u64) -> bool {
        let tail = self.registers.read32(RDT);
        self.rx_ring.receive(&self.iommu, tail, bytes, BUFFER, flags)
    }

    fn send(&mut self, most: usize) -> Vec<Sent> {
        let tail = self.registers.read32(TDT);
        self.tx_ring.send(&self.iommu, tail, most, &mut self.context)
    }

    /// Everything has been given back.
    fn check_closed(self) {
        assert_eq!((self.pool.audit().held, self.pool.audit().duplicated), (0, 0));
        assert_eq!(self.iommu.faults(), 0);
        drop(self.frames);
        assert_eq!(self.iommu.mappings(), 0, "rings are unmapped");
    }
}

fn drops(counters: &QueueCounters) -> u64 {
    counters.all_drops().map(|(_, count)| count).sum()
}

fn content(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + seed * 13) as u8).collect()
}

fn packet(pool: &Pool, lengths: &[usize], seed: usize) -> Option<Packet> {
    let mut parts = lengths.iter().map(|length| pool.allocate(*length));
    let mut packet = parts.next()??;
    for part in parts {
        packet.chain(part?);
    }
    let bytes = content(packet.total_len(), seed);
    let mut rest = Some(packet);
    let mut at = 0;
    let mut whole: Option<Packet> = None;
    while let Some(mut segment) = rest {
        rest = segment.split_first();
        let length = segment.len();
        segment.data_mut().copy_from_slice(&bytes[at..at + length]);
        at += length;
        match &mut whole {
            Some(whole) => whole.chain(segment),
            None => whole = Some(segment),
        }
    }
    whole
}

#[test]
fn a_burst_costs_one_tail_write_and_one_report() {
    let (mut rig, rx, mut tx) = Rig::new(1024, 128);
    let mut batch = Batch::new();
    (0..20).for_each(|seed| batch.push(packet(&rig.pool, &[60], seed).unwrap()).unwrap());
    tx.transmit(&mut batch);
    assert_eq!((batch.len(), rig.registers.read32(TDT), tx.counters().held.get()), (0, 20, 20));
    assert_eq!(rig.send(19).len(), 19);
    tx.needs_doorbell();
    tx.needs_doorbell();
    assert_eq!(tx.counters().packets.get(), 0, "the report is the twentieth's");
    let last = rig.send(9);
    assert_eq!((last[0].bytes.clone(), last[0].payload_len), (content(60, 19), 60));
    tx.needs_doorbell();
    assert_eq!(
        (tx.counters().packets.get(), tx.counters().bytes.get(), tx.counters().held.get()),
        (20, 1200, 0)
    );
    drop((rx, tx));
    rig.check_closed();
}

#[test]
fn a_ring_takes_one_less_than_it_has_and_leaves_the_rest() {
    let (mut rig, rx, mut tx) = Rig::new(1024, 64);
    let mut batch = Batch::new();
    (0..64).for_each(|seed| batch.push(packet(&rig.pool, &[100], seed).unwrap()).unwrap());
    tx.transmit(&mut batch);
    assert_eq!(batch.len(), 1);
    // Reports come after 32 descriptors and at the end.
    assert_eq!(rig.send(32).len(), 32);
    tx.transmit(&mut batch);
    assert_eq!((batch.len(), tx.counters().packets.get()), (0, 32));
    assert_eq!(rig.send(99).len(), 32);
    drop((rx, tx));
    rig.check_closed();
}

#[test]
fn what_is_on_the_rings_at_the_end_is_counted_by_name() {
    let (mut rig, mut rx, mut tx) = Rig::new(1024, 64);
    let mut batch = Batch::new();
    (0..10).for_each(|seed| assert!(rig.receive(&content(60, seed), 0)));
    assert!(rig.receive(&content(3000, 5), 0));
    rx.receive(&mut batch);
    assert_eq!((batch.len(), batch.iter().last().map(Packet::total_len)), (11, Some(3000)));
    tx.transmit(&mut batch);
    rig.send(4);
    (0..3).for_each(|seed| assert!(rig.receive(&content(1500, seed), 0)));
    let counters = [rx.counters().clone(), tx.counters().clone()];
    drop((rx, tx));
    let unread = counters[0].drops(DropReason::RxUnread).get();
    let unsent = counters[1].drops(DropReason::TxUnsent).get();
    assert_eq!((unread, unsent, counters[0].held.get(), counters[1].held.get()), (3, 11, 0, 0));
    rig.check_closed();
}

#[test]
fn without_frames_the_device_gets_no_more_places_than_there_are_frames() {
    let (mut rig, mut rx, tx) = Rig::new(64, 64);
    assert_eq!(rig.registers.read32(RDT), 63);
    let mut kept = Vec::new();
    let mut received = 0;
    while rig.receive(&content(60, received), 0) {
        received += 1;
        let mut batch = Batch::new();
        rx.receive(&mut batch);
        kept.push(batch);
    }
    // 63 on the ring, and the pool's last one when there were places for it.
    assert_eq!((received, rx.counters().packets.get(), rx.counters().held.get()), (64, 64, 0));
    let mut batch = Batch::new();
    rx.receive(&mut batch);
    assert!(batch.is_empty(), "a place that says done and has no frame is nothing");
    kept.clear();
    rx.receive(&mut batch);
    assert_eq!(rig.rx_ring.given(rig.registers.read32(RDT)), 63);
    assert!(rig.receive(&content(60, 0), 0));
    rx.receive(&mut batch);
    assert_eq!(batch.len(), 1);
    drop((batch, rx, tx));
    rig.check_closed();
}

#[test]
fn damaged_empty_long_and_endless_packets_are_dropped_by_name() {
    let (mut rig, mut rx, tx) = Rig::new(1024, 64);
    let put = |rig: &mut Rig, words: &[u64]| {
        for word in words {
            rig.rx_ring.write(&rig.iommu, rig.rx_ring.head, [0, *word]);
            rig.rx_ring.head = (rig.rx_ring.head + 1) % rig.rx_ring.size;
        }
    };
    let (done, end, damaged) = (1, 2, 1 << 31);
    let length = |bytes: u64| bytes << 32;
    put(&mut rig, &[done | end | damaged | length(60), done | end, done | end | length(1025)]);
    // A chain that is damaged, one with a segment too long, one that never ends; each is one packet.
    put(&mut rig, &[done | length(1024), done | end | damaged | length(5)]);
    put(&mut rig, &[done | length(1024), done | length(5000), done | length(9), done | end | length(7)]);
    put(&mut rig, &[done | length(1024); 30]);
    put(&mut rig, &[done | end | length(1024), done | end | length(64)]);
    let mut batch = Batch::new();
    rx.receive(&mut batch);
    assert_eq!(batch.iter().map(Packet::len).collect::<Vec<_>>(), [64]);
    let count = |reason| rx.counters().drops(reason).get();
    assert_eq!((count(DropReason::RxDamaged), count(DropReason::RxInvalidDescriptor)), (2, 3));
    assert_eq!((count(DropReason::RxOversize), drops(rx.counters())), (1, 6));
    drop((batch, rx, tx));
    rig.check_closed();
}

#[test]
fn the_device_says_what_it_thinks_of_checksums() {
    let (mut rig, mut rx, tx) = Rig::new(1024, 64);
    let (l4, ip, l4_wrong, ip_wrong) = (1 << 5, 1 << 6, 1 << 29, 1 << 30);
    for flags in [0, l4 | ip, l4, ip, l4 | ip | l4_wrong, ip | ip_wrong, ip_wrong | l4_wrong] {
        assert!(rig.receive(&content(60, 0), flags));
    }
    assert!(rig.receive(&content(2000, 0), l4 | ip));
    let mut batch = Batch::new();
    rx.receive(&mut batch);
    use Checksum::{Bad, Good, Unknown};
    let wanted = [Unknown, Good, Good, Unknown, Bad, Bad, Unknown, Good];
    assert_eq!(batch.iter().map(Packet::checksum).collect::<Vec<_>>(), wanted);
    drop((batch, rx, tx));
    rig.check_closed();
}

#[test]
fn short_long_and_foreign_packets() {
    let (mut rig, rx, mut tx) = Rig::new(1024, 128);
    let other = Pool::new(&PoolConfig { frames: 64, frame_size: 4096, ..PoolConfig::default() }).unwrap();
    let mut batch = Batch::new();
    for lengths in [&[13][..], &[14], &[7, 7, 0], &[1500; 6], &[1500; 7], &[100; 18], &[60]] {
        batch.push(packet(&rig.pool, lengths, lengths.len()).unwrap()).unwrap();
    }
    batch.push(packet(&other, &[3500], 9).unwrap()).unwrap();
    let mut mixed = packet(&rig.pool, &[100], 0).unwrap();
    mixed.chain(packet(&other, &[100], 0).unwrap());
    batch.push(mixed).unwrap();
    tx.transmit(&mut batch);
    assert!(batch.is_empty());
    let sent = rig.send(99);
    let shapes: Vec<_> = sent.iter().map(|sent| (sent.bytes.len(), sent.segments)).collect();
    assert_eq!(shapes, [(17, 1), (17, 3), (9000, 6), (60, 1), (3500, 3), (200, 2)]);
    assert!(sent[0].bytes[14..] == [0; 3] && sent[1].bytes[14..] == [0; 3], "padded with zeros");
    assert_eq!((sent[4].bytes.clone(), sent[2].payload_len), (content(3500, 9), 9000));
    let count = |reason| tx.counters().drops(reason).get();
    assert_eq!((count(DropReason::TxUndersize), count(DropReason::TxOversize)), (1, 2));
    assert_eq!(other.audit().held, 0, "what was copied is free");
    (0..2).for_each(|_| assert!(!tx.needs_doorbell()));
    // Without a frame to copy it to.
    let all: Vec<_> = std::iter::from_fn(|| rig.pool.allocate(60)).collect();
    batch.push(packet(&other, &[60], 0).unwrap()).unwrap();
    tx.transmit(&mut batch);
    assert_eq!(tx.counters().drops(DropReason::TxForeignPool).get(), 1);
    assert_eq!(
        (tx.counters().packets.get(), tx.counters().bytes.get()),
        (6, 14 * 2 + 9000 + 60 + 3500 + 200)
    );
    drop((all, rx, tx));
    rig.check_closed();
}

#[test]
fn one_odd_packet_is_seen_wherever_in_a_burst_it_is() {
    let (mut rig, rx, mut tx) = Rig::sending(1024, 128, false, 1000);
    let other = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
    let mut batch = Batch::new();
    let reasons = [DropReason::TxUndersize, DropReason::TxOversize];
    let (mut refused, mut copied) = ([0; 2], 0);
    for place in 0..9 {
        for odd in [13, 1001, 33_000, 40, 60] {
            for index in 0..9 {
                let made = match odd {
                    _ if index != place => packet(&rig.pool, &[60], index),
                    33_000 => packet(&rig.pool, &[1500; 22], 0),
                    40 => packet(&other, &[odd], index),
                    _ => packet(&rig.pool, &[odd], index),
                };
                batch.push(made.unwrap()).unwrap();
            }
            tx.transmit(&mut batch);
            let sent = rig.send(99);
            refused[0] += u64::from(odd == 13);
            refused[1] += u64::from(odd > 1000);
            copied += usize::from(odd == 40);
            assert_eq!(sent.len(), 8 + usize::from(odd == 40 || odd == 60));
            assert!(sent.iter().all(|sent| [40, 60].contains(&sent.bytes.len())));
            assert_eq!(sent.iter().filter(|sent| sent.bytes.len() == 40).count(), usize::from(odd == 40));
            assert_eq!(reasons.map(|reason| tx.counters().drops(reason).get()), refused);
        }
    }
    assert_eq!((copied, other.audit().held), (9, 0));
    drop((rx, tx));
    rig.check_closed();
}

#[test]
fn a_packet_that_has_just_room_is_sent_and_one_that_has_none_waits() {
    let (mut rig, rx, mut tx) = Rig::new(1024, 64);
    let mut batch = Batch::new();
    (0..61).for_each(|seed| batch.push(packet(&rig.pool, &[60], seed).unwrap()).unwrap());
    tx.transmit(&mut batch);
    // Two places are left, and one more would be a context's, of a packet that asks for a checksum.
    batch.push(packet(&rig.pool, &[60, 60], 61).unwrap()).unwrap();
    batch.push(packet(&rig.pool, &[60], 62).unwrap()).unwrap();
    tx.transmit(&mut batch);
    assert_eq!((batch.len(), drops(tx.counters())), (1, 0));
    assert_eq!(rig.send(99).len(), 62);
    tx.transmit(&mut batch);
    assert_eq!((batch.len(), rig.send(99).len()), (0, 1));
    drop((rx, tx));
    rig.check_closed();
}

#[test]
fn a_hung_ring_is_rebuilt_at_its_gate() {
    let (mut rig, mut rx, mut tx) = Rig::new(1024, 64);
    let mut batch = Batch::new();
    (0..40).for_each(|seed| assert!(rig.receive(&content(60, seed), 0)));
    rx.receive(&mut batch);
    tx.transmit(&mut batch);
    assert!(rig.receive(&content(60, 0), 0));
    rig.halt.function().set_bus_master(false);
    rig.halt.gates.iter().for_each(|gate| gate.ask());
    for _ in 0..2 {
        batch.push(packet(&rig.pool, &[60], 0).unwrap()).unwrap();
        tx.transmit(&mut batch);
        rx.receive(&mut batch);
        assert!(batch.is_empty(), "while it is closed nothing passes");
    }
    assert!(rig.halt.gates.iter().all(|gate| gate.is_ready()));
    // The device is reset.
    (rig.rx_ring.head, rig.tx_ring.head) = (0, 0);
    rig.registers.write32(RDT, 0);
    rig.registers.write32(TDT, 0);
    rig.halt.function().set_bus_master(true);
    rig.halt.gates.iter().for_each(|gate| gate.open());
    rx.receive(&mut batch);
    assert!(rig.rx_ring.given(rig.registers.read32(RDT)) >= 48, "most buffers are given again");
    assert!(rig.receive(&content(80, 8), 0));
    rx.receive(&mut batch);
    tx.transmit(&mut batch);
    let sent = rig.send(9);
    assert_eq!((sent.len(), sent[0].bytes.clone()), (1, content(80, 8)));
    let counters = [rx.counters().clone(), tx.counters().clone()];
    drop((rx, tx));
    assert_eq!((counters[0].packets.get(), counters[0].drops(DropReason::RxUnread).get()), (41, 1));
    let of = |reason| counters[1].drops(reason).get();
    assert_eq!((counters[1].packets.get(), of(DropReason::TxUnsent), of(DropReason::TxPortDown)), (1, 40, 2));
    rig.check_closed();
}

#[test]
fn without_a_link_packets_are_dropped_and_not_kept() {
    let (rig, rx, mut tx) = Rig::new(1024, 64);
    rig.carrier.set(false);
    let mut batch = Batch::new();
    batch.push(packet(&rig.pool, &[60], 0).unwrap()).unwrap();
    tx.transmit(&mut batch);
    assert_eq!((batch.len(), tx.counters().drops(DropReason::TxPortDown).get()), (0, 1));
    drop((rx, tx));
    rig.check_closed();
}

#[test]
#[ignore = "bench/vfio/instructions.sh runs it, in the release build"]
fn instructions_igb() {
    count_instructions::<Advanced82576, Advanced>("vfio::intel::tests::instructions_igb", "igb");
}

/// What a packet takes with these descriptors, and registers that are plain memory. `test` is the full name of the test that asks.
pub(crate) fn count_instructions<R: RxFormat, T: TxFormat>(test: &str, driver: &str) {
    instructions::count(test, driver, |marks| {
        let (mut rig, rx, tx) = Rig::of_formats::<R, T>(2048, 512, false, MAX_PACKET - 8);
        // As the workers have them.
        let mut queues: (Box<dyn RxQueue>, Box<dyn TxQueue>) = (Box::new(rx), Box::new(tx));
        let mut batch = Batch::new();
        for turn in 0..96 {
            (0..instructions::BURST).for_each(|seed| assert!(rig.receive(&content(60, seed), 0)));
            let mut work = || {
                queues.0.receive(&mut batch);
                queues.1.transmit(&mut batch);
            };
            // More than once around the ring before.
            if turn < 64 {
                work()
            } else {
                marks.counted(work)
            }
            assert!(batch.is_empty());
            assert_eq!(rig.send(99).len(), instructions::BURST);
        }
        drop(queues);
        rig.check_closed();
    });
}

#[derive(Clone, Debug)]
enum Step {
    Arrive { length: usize, damaged: bool },
    Receive,
    Offer { lengths: Vec<usize>, foreign: bool, checksum: bool },
    Transmit,
    Send(usize),
    Recover,
    // What no honest device does.
    RxWord(u64),
    RxWordAt(u32, u64),
    TxWordAt(u32, u64),
    HeadsOff(u32),
}

fn honest() -> impl Strategy<Value = Step> {
    let lengths = prop_oneof![
        4 => (0_usize..1600).prop_map(|length| vec![length.min(1536)]),
        1 => proptest::collection::vec(0_usize..1400, 1..20),
    ];
    prop_oneof![
        6 => (1_usize..1500, proptest::bool::weighted(0.1)).prop_map(|(length, damaged)| Step::Arrive { length, damaged }),
        2 => (1_usize..12000).prop_map(|length| Step::Arrive { length, damaged: false }),
        3 => Just(Step::Receive),
        5 => (lengths, proptest::bool::weighted(0.1), proptest::bool::weighted(0.1))
            .prop_map(|(lengths, foreign, checksum)| Step::Offer { lengths, foreign, checksum }),
        2 => Just(Step::Transmit),
        3 => (0_usize..40).prop_map(Step::Send),
        1 => Just(Step::Recover),
    ]
}

fn hostile() -> impl Strategy<Value = Step> {
    let word = || {
        prop_oneof![
            any::<u64>(),
            (any::<u16>(), 0_u64..4).prop_map(|(length, flags)| u64::from(length) << 32 | flags)
        ]
    };
    prop_oneof![
        8 => honest(),
        3 => word().prop_map(Step::RxWord),
        1 => (0_u32..64, word()).prop_map(|(at, word)| Step::RxWordAt(at, word)),
        1 => (0_u32..64, word()).prop_map(|(at, word)| Step::TxWordAt(at, word)),
        1 => (0_u32..64).prop_map(Step::HeadsOff),
    ]
}

/// What came of a run of steps.
#[derive(Default)]
struct Outcome {
    arrived: Vec<(usize, usize)>,
    received: Vec<Vec<u8>>,
    damaged: u64,
    too_long: u64,
    offered: u64,
    left: u64,
    sent: usize,
    sent_bytes: Vec<u64>,
}

fn run(steps: Vec<Step>, rig: &mut Rig, rx: &mut Rx, tx: &mut Tx, honest: bool) -> Outcome {
    let other = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
    let mut outcome = Outcome::default();
    let (mut incoming, mut outgoing) = (Batch::new(), Batch::new());
    for (seed, step) in steps.into_iter().enumerate() {
        match step {
            // In a ring that a hostile device wrote into, the model's own checks would fail.
            Step::Arrive { length, damaged } if honest => {
                if rig.receive(&content(length, seed), if damaged { 1 << 31 } else { 0 }) {
                    match (damaged, length.div_ceil(BUFFER) > MAX_PACKET.div_ceil(BUFFER) + 1) {
                        (_, true) => outcome.too_long += 1,
                        (true, _) => outcome.damaged += 1,
                        _ => outcome.arrived.push((length, seed)),
                    }
                }
            }
            Step::Offer { lengths, foreign, checksum } if outgoing.room() > 0 => {
                if let Some(mut packet) = packet(if foreign { &other } else { &rig.pool }, &lengths, seed) {
                    packet.fill_checksum(checksum);
                    outgoing.push(packet).unwrap();
                    outcome.offered += 1;
                }
            }
            Step::Transmit => tx.transmit(&mut outgoing),
            Step::Send(most) if honest => {
                for sent in rig.send(most) {
                    assert_eq!(sent.bytes.len() as u64, sent.payload_len);
                    assert!(sent.segments <= MAX_SEGMENTS && sent.bytes.len() <= MAX_PACKET);
                    outcome.sent += 1;
                    outcome.sent_bytes.push(sent.payload_len);
                }
            }
            Step::Recover if !honest => {
                rig.halt.gates.iter().for_each(|gate| gate.ask());
                rx.receive(&mut incoming);
                tx.transmit(&mut outgoing);
                assert!(rig.halt.gates.iter().all(|gate| gate.is_ready()));
                (rig.rx_ring.head, rig.tx_ring.head) = (0, 0);
                rig.halt.gates.iter().for_each(|gate| gate.open());
            }
            Step::RxWord(word) => {
                rig.rx_ring.write(&rig.iommu, rig.rx_ring.head, [word, word]);
                rig.rx_ring.head = (rig.rx_ring.head + 1) % rig.rx_ring.size;
            }
            Step::RxWordAt(at, word) => drop(rig.rx_ring.write(&rig.iommu, at, [word, word])),
            Step::TxWordAt(at, word) => drop(rig.tx_ring.write(&rig.iommu, at, [word, word])),
            Step::HeadsOff(head) => rig.rx_ring.head = head,
            _ => {
                rx.receive(&mut incoming);
                for packet in &mut incoming {
                    // Debug builds of the pool catch a frame that is handed out or freed twice.
                    packet.data_mut().iter_mut().for_each(|byte| *byte ^= 0);
                }
                outcome.received.extend(incoming.iter().map(Packet::to_vec));
                incoming.clear();
            }
        }
    }
    outcome.left = outgoing.len() as u64;
    outcome
}

proptest! {
    #[test]
    fn property_intel_rings_lose_nothing_and_keep_the_order(steps in proptest::collection::vec(honest(), 1..200)) {
        let (mut rig, mut rx, mut tx) = Rig::new(512, 64);
        let steps = steps.into_iter().chain([Step::Receive, Step::Receive, Step::Transmit]).collect();
        let outcome = run(steps, &mut rig, &mut rx, &mut tx, true);
        let wanted: Vec<_> = outcome.arrived.iter().map(|(length, seed)| content(*length, *seed)).collect();
        let counters = [rx.counters().clone(), tx.counters().clone()];
        drop((rx, tx));
        prop_assert_eq!(outcome.received.len(), wanted.len());
        prop_assert!(outcome.received == wanted, "the same bytes");
        prop_assert_eq!(counters[0].packets.get(), wanted.len() as u64);
        prop_assert_eq!(counters[0].bytes.get(), wanted.iter().map(Vec::len).sum::<usize>() as u64);
        prop_assert_eq!(counters[0].drops(DropReason::RxDamaged).get(), outcome.damaged);
        prop_assert_eq!(counters[0].drops(DropReason::RxOversize).get(), outcome.too_long);
        prop_assert_eq!(drops(&counters[0]), outcome.damaged + outcome.too_long);
        let sent = counters[1].packets.get();
        prop_assert_eq!(outcome.offered, sent + drops(&counters[1]) + outcome.left);
        // What was sent behind the last report is not known to be.
        prop_assert!(sent <= outcome.sent as u64 && outcome.sent as u64 - sent < 64);
        rig.check_closed();
    }

    #[test]
    fn property_intel_rings_use_no_frame_twice_whatever_the_device_writes(
        steps in proptest::collection::vec(hostile(), 1..200),
    ) {
        let (mut rig, mut rx, mut tx) = Rig::new(256, 64);
        let outcome = run(steps, &mut rig, &mut rx, &mut tx, false);
        let counters = [rx.counters().clone(), tx.counters().clone()];
        drop((rx, tx));
        prop_assert_eq!(counters[0].packets.get() as usize, outcome.received.len());
        prop_assert_eq!(outcome.offered, counters[1].packets.get() + drops(&counters[1]) + outcome.left);
        rig.check_closed();
    }
}
