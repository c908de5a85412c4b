//! A device that writes back whatever it likes, and whose registers say whatever they like.
#![forbid(unsafe_code)]

use super::{OWN, Options, Rig, plain};
use crate::memory::Batch;
use crate::vfio::drivers::e1000e::registers::*;
use crate::vfio::intel::mdic::MDIC;
use crate::vfio::nic::Nic;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    WriteBack { receive: bool, queue: usize, index: usize, words: [u64; 2] },
    Lie { register: usize, value: u32 },
    Truth,
    Receive { length: usize },
    Poll { queue: usize },
    Send { queue: usize, length: usize, checksum: bool },
    Refresh,
    Hang(bool),
    Cable(bool),
}

fn words() -> impl Strategy<Value = [u64; 2]> {
    // Mostly done, often the packet's end, of any length.
    let status = prop_oneof![any::<u32>(), (0_u32..4), Just(3_u32)];
    let second = (status, any::<u32>()).prop_map(|(status, rest)| u64::from(status) | u64::from(rest) << 32);
    (any::<u64>(), prop_oneof![second, any::<u64>()]).prop_map(Into::into)
}

fn step() -> impl Strategy<Value = Step> {
    let registers = vec![
        CTRL,
        STATUS,
        EECD,
        CTRL_EXT,
        MDIC,
        EXTCNF_CTRL,
        GCR,
        ICR,
        RCTL,
        RAL0,
        RAH0,
        TCTL,
        0x4010,
        0x4074,
        0x408C,
        0x4094,
        tdh(0),
        tdt(0),
        tdh(1),
        tdt(1),
        rdh(0),
        rdt(1),
        tarc(0),
    ];
    let value = prop_oneof![any::<u32>(), Just(u32::MAX), Just(0), 0_u32..128];
    let queue = 0_usize..2;
    prop_oneof![
        8 => (any::<bool>(), queue.clone(), 0_usize..64, words())
            .prop_map(|(receive, queue, index, words)| Step::WriteBack { receive, queue, index, words }),
        2 => (prop::sample::select(registers), value).prop_map(|(register, value)| Step::Lie { register, value }),
        1 => Just(Step::Truth),
        4 => (60_usize..4000).prop_map(|length| Step::Receive { length }),
        6 => queue.clone().prop_map(|queue| Step::Poll { queue }),
        4 => (queue, 1_usize..3000, any::<bool>())
            .prop_map(|(queue, length, checksum)| Step::Send { queue, length, checksum }),
        2 => Just(Step::Refresh),
        1 => any::<bool>().prop_map(Step::Hang),
        1 => any::<bool>().prop_map(Step::Cable),
    ]
}

fn run(rig: &mut Rig, step: Step, kept: &mut Vec<Batch>) {
    match step {
        Step::WriteBack { receive, queue, index, words } => {
            rig.model.write_back(receive, queue, index, words)
        }
        Step::Lie { register, value } => drop(rig.model.state().lies.insert(register, value)),
        Step::Truth => rig.model.state().lies.clear(),
        Step::Receive { length } => drop(rig.model.receive(&plain(OWN, length, 0))),
        Step::Poll { queue } => {
            let mut batch = Batch::new();
            rig.rx[queue].receive(&mut batch);
            for packet in &mut batch {
                // Debug builds of the pool catch a frame that is handed out or freed twice.
                packet.data_mut().fill(1);
            }
            kept.push(batch);
            let surplus = kept.len().saturating_sub(3);
            kept.drain(..surplus);
        }
        Step::Send { queue, length, checksum } => {
            let mut packet = rig.packet(&super::offload::ipv4(17, &vec![0; length]));
            packet.fill_checksum(checksum);
            let mut batch = Batch::new();
            drop(batch.push(packet));
            rig.tx[queue].transmit(&mut batch);
        }
        Step::Refresh => {
            rig.nic.refresh();
            rig.nic.link();
            rig.nic.extra_counters();
        }
        Step::Hang(hangs) => rig.model.state().hung = hangs,
        Step::Cable(cable) => rig.model.state().cable = cable,
    }
}

proptest! {
    #[test]
    fn property_whatever_the_device_writes_no_frame_is_used_twice_or_lost(
        steps in proptest::collection::vec(step(), 1..120),
        jumbo: bool,
    ) {
        let mtu = if jumbo { 9000 } else { 1500 };
        let mut rig = Rig::new(Options { queues: 2, mtu, checksum: true, ..Options::default() });
        rig.model.state().hostile = true;
        rig.nic.impatient();
        let mut kept = Vec::new();
        for step in steps {
            run(&mut rig, step, &mut kept);
        }
        rig.model.state().lies.clear();
        kept.clear();
        // The audit is its end.
        rig.close();
    }
}
