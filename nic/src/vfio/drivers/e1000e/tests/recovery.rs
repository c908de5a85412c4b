//! Hangs, resets, links that go, and devices that do.
#![forbid(unsafe_code)]

use super::model::Model;
use super::{OWN, Options, Rig, open_on, plain};
use crate::counters::DropReason;
use crate::memory::Batch;
use crate::port::LinkState;
use crate::vfio::nic::Nic;
use std::time::{Duration, Instant};

/// Refreshes and lets the workers have their turns until the device runs again.
fn recover(rig: &mut Rig, resets: u64) {
    let start = Instant::now();
    loop {
        rig.nic.refresh();
        let batches = [(); 2].map(|()| Batch::new());
        for (mut batch, queue) in batches.into_iter().zip(&mut rig.rx) {
            queue.receive(&mut batch);
        }
        for queue in &mut rig.tx {
            queue.transmit(&mut Batch::new());
        }
        if rig.nic.extra_counters().contains(&("hang_recoveries".into(), resets)) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "it does not recover");
    }
}

#[test]
fn a_device_that_hangs_is_reset_and_nothing_is_lost_in_silence() {
    for queues in [1, 2] {
        let mut rig = Rig::new(Options { queues, ..Options::default() });
        let queue = usize::from(queues) - 1;
        rig.nic.impatient();
        rig.model.state().hung = true;
        (0..5).for_each(|number| rig.send(queue, &plain(OWN, 60, number)));
        // Unread when the ring is rebuilt.
        assert!(rig.model.receive(&plain(OWN, 60, 5)));
        rig.nic.refresh();
        assert_eq!(rig.nic.link(), LinkState::Up { speed_mbps: Some(1000) }, "one look is no proof");
        rig.nic.refresh();
        assert_eq!(rig.nic.link(), LinkState::Down);
        assert!(!rig.model.state().bus_master, "the device is stopped before the rings are touched");
        // While it is reset nothing is sent, and it is said.
        rig.send(queue, &plain(OWN, 60, 6));
        recover(&mut rig, 1);
        assert_eq!(rig.model.resets(), (0, 2));
        rig.nic.refresh();
        assert_eq!(rig.nic.link(), LinkState::Up { speed_mbps: Some(1000) });
        for number in 10..200 {
            assert!(rig.model.receive(&plain(OWN, 60, number)), "{number}");
            assert_eq!(rig.drain(0), [plain(OWN, 60, number)]);
            rig.send(queue, &plain(OWN, 70, number));
            assert_eq!(rig.model.take_sent(), [plain(OWN, 70, number)]);
        }
        rig.nic.refresh();
        let counters = rig.close();
        let sender = &counters[usize::from(queues) + queue];
        assert_eq!(sender.packets.get(), 190);
        assert_eq!(sender.drops(DropReason::TxUnsent).get(), 5);
        assert_eq!(sender.drops(DropReason::TxPortDown).get(), 1);
        assert_eq!((counters[0].packets.get(), counters[0].drops(DropReason::RxUnread).get()), (190, 1));
    }
}

#[test]
fn a_recovery_waits_for_the_workers_and_not_the_workers_for_it() {
    let mut rig = Rig::new(Options { queues: 2, ..Options::default() });
    rig.nic.impatient();
    rig.model.state().hung = true;
    rig.send(0, &plain(OWN, 60, 0));
    (0..2).for_each(|_| rig.nic.refresh());
    // One queue's worker does not come round.
    (0..2).for_each(|queue| rig.rx[queue].receive(&mut Batch::new()));
    rig.tx[0].transmit(&mut Batch::new());
    (0..20).for_each(|_| rig.nic.refresh());
    assert_eq!(rig.model.resets().1, 1);
    rig.tx[1].transmit(&mut Batch::new());
    recover(&mut rig, 1);
    rig.close();
    // A port may be closed in the middle of it.
    let mut rig = Rig::new(Options::default());
    rig.nic.impatient();
    rig.model.state().hung = true;
    rig.send(0, &plain(OWN, 60, 0));
    (0..2).for_each(|_| rig.nic.refresh());
    let counters = rig.close();
    assert_eq!(counters[1].drops(DropReason::TxUnsent).get(), 1);
}

/// Interrupts since the last time.
fn interrupts(rig: &Rig) -> u64 {
    rig.nic.events().into_iter().map(crate::vfio::sys::take_events).sum()
}

#[test]
fn the_link_interrupts_and_an_overflow_does_not_again_and_again() {
    let mut rig = Rig::new(Options::default());
    rig.nic.link();
    assert_eq!((rig.nic.events().len(), interrupts(&rig)), (1, 0));
    for (cable, state) in [(false, LinkState::Down), (true, LinkState::Up { speed_mbps: Some(1000) })] {
        rig.model.plug(cable);
        assert_eq!(interrupts(&rig), 1);
        assert_eq!((rig.nic.link(), interrupts(&rig)), (state, 0));
    }
    // RXO: it comes by the same vector, though it is masked. From then on the interrupt is off.
    const RXO: u32 = 1 << 6;
    rig.model.cause(RXO);
    assert_eq!(interrupts(&rig), 1);
    (0..5).for_each(|_| {
        rig.nic.link();
        rig.model.cause(RXO);
    });
    assert_eq!(interrupts(&rig), 0);
    rig.model.plug(false);
    assert_eq!((rig.nic.link(), interrupts(&rig)), (LinkState::Down, 0), "it is looked at all the same");
    // For a second at most.
    rig.nic.refresh();
    rig.model.plug(true);
    assert_eq!((interrupts(&rig), rig.nic.link()), (1, LinkState::Up { speed_mbps: Some(1000) }));
    // Behind a reset, too.
    rig.nic.impatient();
    rig.model.state().hung = true;
    rig.send(0, &plain(OWN, 60, 0));
    (0..2).for_each(|_| rig.nic.refresh());
    recover(&mut rig, 1);
    rig.nic.link();
    interrupts(&rig);
    rig.model.plug(false);
    assert_eq!((interrupts(&rig), rig.nic.link()), (1, LinkState::Down));
    rig.nic.silence();
    rig.nic.refresh();
    assert_eq!((rig.nic.events().len(), rig.model.peek(super::super::registers::IMS)), (0, 0));
    let model = rig.model.clone();
    rig.close();
    assert_eq!(model.peek(super::super::registers::IMS), 0);
}

#[test]
fn without_a_link_nothing_hangs() {
    let mut rig = Rig::new(Options::default());
    rig.nic.impatient();
    assert_eq!(rig.nic.link(), LinkState::Up { speed_mbps: Some(1000) });
    rig.model.state().cable = false;
    // Before anybody has looked at the link.
    rig.send(0, &plain(OWN, 60, 0));
    (0..5).for_each(|_| rig.nic.refresh());
    assert_eq!(rig.nic.link(), LinkState::Down);
    rig.send(0, &plain(OWN, 60, 1));
    assert_eq!(rig.tx[0].counters().drops(DropReason::TxPortDown).get(), 1);
    assert_eq!(rig.model.resets().1, 1);
    rig.model.state().cable = true;
    assert_eq!(rig.nic.link(), LinkState::Up { speed_mbps: Some(1000) });
    rig.nic.refresh();
    rig.send(0, &plain(OWN, 60, 2));
    assert_eq!(rig.model.take_sent(), [plain(OWN, 60, 0), plain(OWN, 60, 2)]);
    rig.close();
}

#[test]
fn an_unplugged_device_is_gone_for_good() {
    let mut rig = Rig::new(Options::default());
    assert!(rig.model.receive(&plain(OWN, 60, 0)));
    rig.nic.refresh();
    rig.model.state().gone = true;
    rig.nic.refresh();
    assert!(matches!(rig.nic.link(), LinkState::Gone(why) if why.contains("unplugged")));
    // Numbers of a device that is not there are none.
    assert!(rig.nic.extra_counters().contains(&("gprc".into(), 1)));
    rig.send(0, &plain(OWN, 60, 1));
    assert_eq!(rig.drain(0).len(), 1, "what had come is read");
    let counters = rig.close();
    assert_eq!(counters[1].drops(DropReason::TxPortDown).get(), 1);
    assert_eq!(counters[0].drops(DropReason::RxMissed).get(), 0);
    // The look at the link sees it as well.
    let mut rig = Rig::new(Options::default());
    rig.model.state().gone = true;
    assert!(matches!(rig.nic.link(), LinkState::Gone(_)));
    rig.close();
}

#[test]
fn a_device_that_stays_in_its_reset_is_given_up() {
    let mut rig = Rig::new(Options::default());
    rig.nic.impatient();
    rig.model.state().hung = true;
    rig.send(0, &plain(OWN, 60, 0));
    (0..2).for_each(|_| rig.nic.refresh());
    rig.model.state().stuck_in_reset = true;
    rig.rx[0].receive(&mut Batch::new());
    rig.tx[0].transmit(&mut Batch::new());
    rig.nic.refresh();
    rig.nic.expire();
    rig.nic.refresh();
    assert!(matches!(rig.nic.link(), LinkState::Gone(why) if why.contains("reset")));
    rig.close();
}

#[test]
fn what_is_in_the_way_of_a_link_is_put_right() {
    // A PHY that the driver before has switched off.
    let (model, function) = Model::new();
    model.poke_phy(0, 1 << 12 | 1 << 11);
    let (_pool, _frames, opened) = open_on(&model, &function, Options::default()).unwrap();
    assert_eq!(model.negotiations(), 1);
    assert_eq!(rig_link(opened), LinkState::Up { speed_mbps: Some(1000) });
    // One that has a link is left alone.
    let (model, function) = Model::new();
    let (_pool, _frames, opened) = open_on(&model, &function, Options::default()).unwrap();
    assert_eq!((model.negotiations(), rig_link(opened)), (0, LinkState::Up { speed_mbps: Some(1000) }));
    // No cable: negotiation is begun, and the port opens.
    let (model, function) = Model::new();
    model.state().cable = false;
    let (_pool, _frames, opened) = open_on(&model, &function, Options::default()).unwrap();
    assert_eq!((model.negotiations(), rig_link(opened)), (1, LinkState::Down));
    // Requests that never end: the reset is tried all the same, after a wait that ends.
    let (model, function) = Model::new();
    model.state().busy_master = true;
    let (_pool, _frames, opened) = open_on(&model, &function, Options::default()).unwrap();
    assert_eq!(rig_link(opened), LinkState::Up { speed_mbps: Some(1000) });
}

fn rig_link(opened: super::Opened) -> LinkState {
    let mut nic = opened.nic;
    nic.link()
}
