//! Devices of any kind: whatever they say, nothing panics, nothing outside is touched, and every frame is accounted for. `./test.sh --long` runs these
//! campaigns for long: they are the driver's fuzz target.

use super::super::model::Chain;
use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// An honest packet, of so many bytes.
    Deliver(usize),
    /// Any entry in the used ring of receive or transmit queue 0.
    Used {
        queue: usize,
        id: u32,
        written: u32,
        descriptors: u32,
        entries: u16,
    },
    /// An honest use of what is available, with any length.
    Use {
        queue: usize,
        written: u32,
        header: [u8; 12],
    },
    /// Any bytes in one of the three areas of a queue.
    Write {
        queue: usize,
        area: usize,
        offset: u64,
        word: u32,
    },
    Collect(usize),
    Receive,
    /// Packets of so many segments of so many bytes.
    Send {
        packets: usize,
        segments: usize,
        length: usize,
    },
    Idle,
    Refresh,
    /// A bit of the device's status, of a byte of its configuration.
    Status(u8),
    Config(usize, u8),
    Answer(Option<u8>),
    /// From now on registers read as what they are, combined with this.
    Registers(Option<(u32, u32)>),
    Gone(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let queue = 0_usize..2;
    let id = prop_oneof![0_u32..64, any::<u32>()];
    let length = prop_oneof![0_u32..2048, any::<u32>(), Just(12), Just(11)];
    let header = any::<u64>().prop_map(|bits| {
        let [flags, a, b, c, d, buffers, few, more] = bits.to_le_bytes();
        // Mostly few buffers.
        let buffers = if few > 50 { buffers & 3 } else { buffers };
        [flags, 0, 0, 0, 0, 0, a, b, c, d, buffers, u8::from(more > 250)]
    });
    prop_oneof![
        6 => (1_usize..3000).prop_map(Step::Deliver),
        2 => (queue.clone(), id, length.clone(), 0_u32..5, 0_u16..4)
            .prop_map(|(queue, id, written, descriptors, entries)| Step::Used { queue, id, written, descriptors, entries }),
        4 => (queue.clone(), length, header).prop_map(|(queue, written, header)| Step::Use { queue, written, header }),
        2 => (queue, 0_usize..3, 0_u64..1024, any::<u32>())
            .prop_map(|(queue, area, offset, word)| Step::Write { queue, area, offset: offset * 4, word }),
        3 => (0_usize..64).prop_map(Step::Collect),
        6 => Just(Step::Receive),
        4 => (1_usize..64, 1_usize..5, 1_usize..1500)
            .prop_map(|(packets, segments, length)| Step::Send { packets, segments, length }),
        2 => Just(Step::Idle),
        4 => Just(Step::Refresh),
        1 => any::<u8>().prop_map(Step::Status),
        1 => (0_usize..24, any::<u8>()).prop_map(|(at, value)| Step::Config(at, value)),
        1 => proptest::option::of(0_u8..2).prop_map(Step::Answer),
        1 => proptest::option::weighted(0.5, any::<(u32, u32)>()).prop_map(Step::Registers),
        1 => proptest::bool::weighted(0.2).prop_map(Step::Gone),
    ]
}

fn honest() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (14_usize..3000).prop_map(Step::Deliver),
        3 => (0_usize..64).prop_map(Step::Collect),
        4 => Just(Step::Receive),
        3 => (1_usize..64, 1_usize..5, 14_usize..1500)
            .prop_map(|(packets, segments, length)| Step::Send { packets, segments, length }),
        1 => Just(Step::Idle),
        1 => Just(Step::Refresh),
    ]
}

/// Packets that were taken from us.
#[derive(Default)]
struct Sent(u64);

fn run(rig: &mut Rig, step: Step, sent: &mut Sent) {
    let model = rig.model.clone();
    let mut device = model.lock();
    match step {
        Step::Deliver(length) => drop(device.deliver(0, &payload(length, length))),
        Step::Used { queue, id, written, descriptors, entries } => {
            device.push_raw(queue, id, written, descriptors, entries);
        }
        Step::Use { queue, written, header } => {
            if let Some(chain) = device.pop(queue) {
                if queue == 0 && chain.segments[0].1 > 12 {
                    model.iommu.write(chain.segments[0].0, &header);
                }
                device.push(queue, &chain, written);
            }
        }
        Step::Write { queue, area, offset, word } => {
            // The descriptors of split rings are read by the device alone: what it finds there, the model would follow.
            let address = device.addresses(queue)[area];
            let is_ours = area == 2 || device.driver & feature::RING_PACKED != 0 && area == 0;
            if address != 0 && device.bus_master && is_ours && (area == 0 || offset < 1024) {
                let room = if area == 0 { 64 * 16 } else { 4096 };
                if offset < room {
                    model.iommu.write(address + offset, &word.to_le_bytes());
                }
            }
        }
        Step::Collect(count) => drop(device.collect(0, count)),
        Step::Status(bits) => device.status ^= bits,
        Step::Config(at, value) => device.config[at] = value,
        Step::Answer(answer) => device.answer = answer,
        Step::Registers(distortion) => {
            device.distort = distortion.map(|(and, xor)| {
                Box::new(move |_: usize, value: u32| value & and ^ xor)
                    as Box<dyn FnMut(usize, u32) -> u32 + Send>
            });
        }
        Step::Gone(gone) => device.gone = gone,
        Step::Receive => {
            drop(device);
            for packet in &mut rig.receive(0) {
                // Debug builds of the pool catch a frame that is handed out or freed twice.
                packet.data_mut().fill(1);
            }
        }
        Step::Send { packets, segments, length } => {
            drop(device);
            let mut batch = Batch::new();
            for number in 0..packets {
                let cuts: Vec<usize> = (1..segments).map(|part| part * length / segments).collect();
                if rig.pool.free() > 8 {
                    batch.push(rig.packet(&payload(number, length), &cuts)).unwrap();
                }
            }
            let offered = batch.len();
            rig.transmit(0, &mut batch);
            sent.0 += (offered - batch.len()) as u64;
        }
        Step::Idle => {
            drop(device);
            rig.nic().tx[0].needs_doorbell();
        }
        Step::Refresh => {
            drop(device);
            rig.nic().nic.refresh();
            rig.nic().nic.link();
        }
    }
}

/// Closes it, and accounts for everything.
fn settle(mut rig: Rig, sent: &Sent) -> Result<(), TestCaseError> {
    let (rx, tx) = (rig.rx_counters(0), rig.tx_counters(0));
    if let Some(OpenNic { nic, rx, tx }) = rig.open.take() {
        drop(rx);
        drop(tx);
        drop(nic);
    }
    let lost: u64 = tx.all_drops().map(|(_, count)| count).sum();
    prop_assert_eq!(sent.0, tx.packets.get() + lost);
    prop_assert_eq!((rx.held.get(), tx.held.get()), (0, 0));
    let audit = rig.pool.audit();
    prop_assert_eq!((audit.held, audit.duplicated), (0, 0));
    prop_assert_eq!(rig.model.iommu.mappings(), 1);
    Ok(())
}

fn want(packed: bool, events: bool, mtu: usize, checksum: bool) -> Want {
    let mut offered = ALL & !(feature::RING_PACKED | feature::EVENT_IDX);
    offered |= if packed { feature::RING_PACKED } else { 0 } | if events { feature::EVENT_IDX } else { 0 };
    Want { offered, mtu, checksum, ring: 64, frames: 512, ..Want::default() }
}

proptest! {
    #[test]
    fn property_whatever_the_device_does_every_frame_is_accounted_for(
        packed: bool, events: bool, jumbo: bool, checksum: bool, steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut rig = Rig::new(want(packed, events, if jumbo { 9000 } else { 1500 }, checksum));
        rig.model.lock().strict = false;
        let mut sent = Sent::default();
        for step in steps {
            // A silent control queue is waited for, for 100 ms: once is enough.
            run(&mut rig, step, &mut sent);
        }
        settle(rig, &sent)?;
    }

    #[test]
    fn property_an_honest_device_loses_nothing(
        packed: bool, events: bool, jumbo: bool, steps in proptest::collection::vec(honest(), 1..80),
    ) {
        let mut rig = Rig::new(want(packed, events, if jumbo { 9000 } else { 1500 }, false));
        let mut sent = Sent::default();
        let mut delivered = 0;
        let (rx, tx) = (rig.rx_counters(0), rig.tx_counters(0));
        let most = if jumbo { 3000 } else { 1500 };
        for step in steps {
            match step {
                Step::Deliver(length) => {
                    delivered += u64::from(rig.model.lock().deliver(0, &payload(length, length.min(most))));
                }
                // It would be reset where it sends nothing for long.
                Step::Refresh => drop(rig.nic().nic.link()),
                step => run(&mut rig, step, &mut sent),
            }
        }
        settle(rig, &sent)?;
        prop_assert_eq!(delivered, rx.packets.get() + drops(&rx, DropReason::RxUnread));
        prop_assert_eq!(sent.0, tx.packets.get() + drops(&tx, DropReason::TxUnsent));
    }

    /// Any configuration space, any registers, any configuration: it opens, or says why not, within the time that it gives a device.
    #[test]
    fn property_any_device_is_opened_or_refused(
        bytes in proptest::collection::vec((0_usize..256, any::<u8>()), 0..8),
        config in proptest::collection::vec((0_usize..24, any::<u8>()), 0..4),
        offered: u64, and: u32, xor: u32, distorted in proptest::bool::weighted(0.3), checksum: bool, queues in 1_u16..4,
    ) {
        let mut rig = Rig::closed(Want {
            offered: offered | feature::VERSION_1 | feature::ACCESS_PLATFORM,
            pairs: 3,
            rx_queues: queues,
            checksum,
            ring: 64,
            frames: 512,
            ..Want::default()
        });
        {
            let mut model = rig.model.lock();
            model.strict = false;
            bytes.iter().for_each(|(at, value)| model.pci[*at] = *value);
            config.iter().for_each(|(at, value)| model.config[*at] = *value);
            if distorted {
                let mut calls = 0_u32;
                model.distort = Some(Box::new(move |offset, value| {
                    calls += 1;
                    // The status as it is, mostly, or every reset would be waited for.
                    if offset == 20 || calls.is_multiple_of(3) { value } else { value & and ^ xor }
                }));
            }
        }
        if rig.try_open().is_ok() {
            rig.receive(0);
            rig.nic().nic.refresh();
            settle(rig, &Sent::default())?;
        } else {
            prop_assert_eq!(rig.pool.audit().held, 0);
        }
    }
}

/// Each of these would be the next in order, if it were not for what is wrong: the right ones before it are taken, and nothing more.
#[test]
fn the_quick_way_ends_before_what_cannot_be() {
    for want in Want::all_rings() {
        let size = u32::from(want.ring);
        for wrong in 0..7 {
            let mut rig = Rig::new(want.clone());
            let mut model = rig.model.lock();
            let chains: Vec<Chain> = (0..5).map(|_| model.pop(0).unwrap()).collect();
            for (number, chain) in chains.iter().enumerate() {
                let (address, room, _) = chain.segments[0];
                rig.model.iommu.write(address + 12, &payload(number, 60));
                let id = u32::from(chain.id);
                let (id, written) = match (number, wrong) {
                    // The place is right, once the number is cut to it.
                    (2, 0) => (id + size, 72),
                    // The one that stays free; one from before, and one that comes later.
                    (2, 1) => (size - 1, 72),
                    (2, 2) => (chains[1].id.into(), 72),
                    (2, 3) => (id, room + 1),
                    (2, 4) => (id, 12),
                    (2, 5) => (id, 11),
                    (2, 6) => (id, u32::MAX),
                    _ => (id, 72),
                };
                model.push_raw(0, id, written, 1, 1);
            }
            drop(model);
            let batch = rig.receive(0);
            assert_eq!(batch.len(), 2, "{wrong}");
            assert!(batch.iter().enumerate().all(|(number, packet)| packet.data() == payload(number, 60)));
            assert!(rig.receive(0).is_empty());
            let counters = rig.rx_counters(0);
            assert_eq!((counters.packets.get(), drops(&counters, DropReason::RxInvalidDescriptor)), (2, 1));
            drop(batch);
            rig.close();
        }
    }
}

#[test]
fn the_quick_way_takes_the_longest_packet() {
    for want in Want::all_rings() {
        let mut rig = Rig::new(want);
        let mut model = rig.model.lock();
        let chain = model.pop(0).unwrap();
        let room = chain.segments[0].1;
        model.push(0, &chain, room);
        drop(model);
        let batch = rig.receive(0);
        assert_eq!((batch.len(), batch.total_bytes()), (1, u64::from(room) - 12));
        assert_eq!(rig.rx_counters(0).bytes.get(), u64::from(room) - 12);
        drop(batch);
        rig.close();
    }
}

#[test]
fn what_was_not_sent_does_not_come_back() {
    for want in Want::all_rings() {
        let size = u32::from(want.ring);
        for wrong in 0..5 {
            let mut rig = Rig::new(want.clone());
            let mut batch = Batch::new();
            // Once round the books, so that what is not outstanding looks as if it were.
            for _ in 0..size / 32 {
                (0..32).for_each(|number| batch.push(rig.packet(&payload(number, 60), &[])).unwrap());
                rig.transmit(0, &mut batch);
                assert_eq!(rig.model.lock().collect(0, 99).len(), 32);
            }
            (0..5).for_each(|number| batch.push(rig.packet(&payload(number, 60), &[])).unwrap());
            rig.transmit(0, &mut batch);
            assert!(batch.is_empty());
            let before = rig.tx_counters(0).packets.get();
            let mut model = rig.model.lock();
            let mut ids: Vec<u32> = (0..5).map(|_| model.pop(1).unwrap().id.into()).collect();
            let good = if wrong == 4 { 5 } else { 2 };
            match wrong {
                0 => ids[2] += size,
                1 => ids[2] = ids[4] + 1,
                2 => ids[2] = ids[1],
                3 => ids[2] = u32::from(u16::MAX),
                // All of them, and one more in order.
                _ => ids.push(ids[4] + 1),
            }
            ids.iter().for_each(|id| model.push_raw(1, *id, 0, 1, 1));
            drop(model);
            rig.transmit(0, &mut batch);
            let counters = rig.tx_counters(0);
            // A split ring's index is past all that was sent then.
            let past = wrong == 4 && want.offered & feature::RING_PACKED == 0;
            assert_eq!(counters.packets.get() - before, if past { 0 } else { good }, "{wrong}");
            batch.push(rig.packet(&payload(0, 60), &[])).unwrap();
            rig.transmit(0, &mut batch);
            assert_eq!(drops(&counters, DropReason::TxPortDown), 1);
            rig.close();
            assert_eq!(drops(&counters, DropReason::TxUnsent), if past { 5 } else { 5 - good });
        }
    }
}
