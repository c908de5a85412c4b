//! A device that answers and writes what it likes: nothing is lost, used twice or waited for without an end.
//!
//! This is the fuzz target of the driver: `./test.sh --long` runs it for longer.
#![forbid(unsafe_code)]

use super::super::model::hostile::Liar;
use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// A packet comes in.
    Wire {
        length: usize,
        number: u32,
    },
    /// Bytes over a descriptor of a ring.
    Descriptor {
        transmit: bool,
        queue: usize,
        index: u64,
        words: [u64; 2],
    },
    /// What a descriptor says when it is done, with this length and these bits.
    Done {
        queue: usize,
        index: u64,
        length: u16,
        bits: u32,
    },
    Receive(usize),
    Transmit {
        queue: usize,
        lengths: Vec<usize>,
    },
    Control {
        milliseconds: u64,
    },
    /// So many of 256 reads are lies.
    Lie(u8),
    Hang(usize),
    Unplug,
}

fn step() -> impl Strategy<Value = Step> {
    let queue = || 0_usize..2;
    let words = prop_oneof![any::<[u64; 2]>(), any::<u64>().prop_map(|word| [0, word | 3])];
    prop_oneof![
        8 => (60_usize..4000, any::<u32>()).prop_map(|(length, number)| Step::Wire { length, number }),
        4 => (any::<bool>(), queue(), 0_u64..64, words)
            .prop_map(|(transmit, queue, index, words)| Step::Descriptor { transmit, queue, index, words }),
        4 => (queue(), 0_u64..64, any::<u16>(), any::<u32>())
            .prop_map(|(queue, index, length, bits)| Step::Done { queue, index, length, bits }),
        8 => queue().prop_map(Step::Receive),
        8 => (queue(), proptest::collection::vec(0_usize..4000, 1..20))
            .prop_map(|(queue, lengths)| Step::Transmit { queue, lengths }),
        4 => (0_u64..3000).prop_map(|milliseconds| Step::Control { milliseconds }),
        2 => any::<u8>().prop_map(Step::Lie),
        1 => queue().prop_map(Step::Hang),
        1 => Just(Step::Unplug),
    ]
}

fn ring(model: &Model, transmit: bool, queue: usize) -> u64 {
    let [low, high] = if transmit { ["TDBAL", "TDBAH"] } else { ["RDBAL", "RDBAH"] };
    u64::from(model.peek(low, queue)) | u64::from(model.peek(high, queue)) << 32
}

proptest! {
    #[test]
    fn property_no_frame_is_lost_or_used_twice_whatever_the_device_does(
        seed in any::<u64>(),
        kind in 0_usize..4,
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let wish = Wish { rx: 2, tx: 2, mtu: 3000, checksum: true, frames: 512, ..Wish::default() };
        let model = Model::new(Kind::ALL[kind]);
        let liar = Liar::new(&model, seed, 0);
        let function: Arc<dyn PciFunction> = Arc::new(liar.clone());
        let pool = pool(&wish);
        let OpenNic { mut nic, mut rx, mut tx } = open(&function, &model, &wish, &pool).unwrap();
        (0..5).for_each(|_| drop(nic.link()));
        let mut kept = Vec::new();
        for step in steps {
            let (reads, time) = (liar.reads(), model.clock.passed());
            match step {
                Step::Wire { length, number } => _ = model.wire(&frame(OURS, length, number as usize)),
                Step::Descriptor { transmit, queue, index, words } => {
                    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                    model.iommu().write(ring(&model, transmit, queue) + index * 16, &bytes);
                }
                Step::Done { queue, index, length, bits } => {
                    let word = u64::from(bits) | 1 | u64::from(length) << 32;
                    model.iommu().write(ring(&model, false, queue) + index * 16 + 8, &word.to_le_bytes());
                }
                Step::Receive(queue) => {
                    let mut batch = Batch::new();
                    rx[queue].receive(&mut batch);
                    for packet in &mut batch {
                        // Debug builds of the pool catch a frame that is handed out or freed twice.
                        packet.data_mut().fill(1);
                    }
                    kept.push(batch);
                    kept.truncate(3);
                }
                Step::Transmit { queue, lengths } => {
                    let mut batch = Batch::new();
                    for (number, length) in lengths.into_iter().enumerate() {
                        if let Some(mut packet) = chain(&pool, &frame(OTHER, length, number)) {
                            packet.fill_checksum(number % 3 == 0);
                            drop(batch.push(packet));
                        }
                    }
                    tx[queue].transmit(&mut batch);
                    tx[queue].needs_doorbell();
                }
                Step::Control { milliseconds } => {
                    model.clock.advance(Duration::from_millis(milliseconds));
                    nic.refresh();
                    nic.link();
                    let _ = nic.extra_counters();
                    prop_assert!(model.clock.passed() - time < Duration::from_millis(milliseconds + 100));
                }
                Step::Lie(lies) => liar.lie(lies),
                Step::Hang(queue) => model.hang(queue),
                Step::Unplug => model.unplug(),
            }
            prop_assert!(liar.reads() - reads < 20_000, "it reads without an end");
        }
        drop(kept);
        // The port's counters never count more than there was.
        prop_assert!(rx.iter().all(|queue| queue.counters().held.get() < 64));
        drop((rx, tx, nic, function, liar));
        let audit = pool.audit();
        prop_assert_eq!((audit.held, audit.duplicated, model.iommu().mappings()), (0, 0, 0));
    }

    #[test]
    fn property_an_opening_ends_whatever_the_registers_say(
        seed in any::<u64>(),
        kind in 0_usize..4,
        lies in any::<u8>(),
    ) {
        let wish = Wish { rx: 4, tx: 4, ..Wish::default() };
        let model = Model::new(Kind::ALL[kind]);
        let liar = Liar::new(&model, seed, lies);
        let function: Arc<dyn PciFunction> = Arc::new(liar.clone());
        let pool = pool(&wish);
        let opened = open(&function, &model, &wish, &pool);
        // A second for each resource that somebody keeps, and there are three of them.
        prop_assert!(model.clock.passed() < Duration::from_secs(30), "{:?}", model.clock.passed());
        if let Ok(OpenNic { nic, rx, tx }) = opened {
            drop((rx, tx, nic));
        }
        drop((function, liar));
        let audit = pool.audit();
        prop_assert_eq!((audit.held, audit.duplicated, model.iommu().mappings()), (0, 0, 0));
    }
}
