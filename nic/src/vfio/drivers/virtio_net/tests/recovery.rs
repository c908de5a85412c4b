//! A device that hangs, or does what it must not, is reset, and works again.

use super::super::abi::status;
use super::*;
use crate::port::LinkState;

/// A turn of the worker, and a second of the control thread.
fn turn(rig: &mut Rig) {
    for queue in 0..rig.nic().rx.len() {
        rig.receive(queue);
    }
    for queue in 0..rig.nic().tx.len() {
        rig.nic().tx[queue].needs_doorbell();
        rig.nic().tx[queue].needs_doorbell();
    }
    rig.nic().nic.refresh();
}

fn send(rig: &mut Rig, count: usize) {
    let mut batch = Batch::new();
    (0..count).for_each(|number| batch.push(rig.packet(&payload(number, 60), &[])).unwrap());
    rig.transmit(0, &mut batch);
    batch.clear();
}

/// It works, both ways.
#[track_caller]
fn check_works(rig: &mut Rig) {
    let before = rig.rx_counters(0).packets.get();
    assert!(rig.model.lock().deliver(0, &payload(1, 60)));
    assert_eq!(rig.receive(0).len(), 1);
    assert_eq!(rig.rx_counters(0).packets.get(), before + 1);
    send(rig, 2);
    assert_eq!(rig.model.lock().collect(0, 10).len(), 2);
    rig.nic().tx[0].needs_doorbell();
    rig.nic().tx[0].needs_doorbell();
    assert_eq!(rig.tx_counters(0).held.get(), 0);
    assert!(matches!(rig.nic().nic.link(), LinkState::Up { .. }));
}

/// From where the control side has seen it until it works again.
#[track_caller]
fn recover(rig: &mut Rig) {
    let resets = rig.model.lock().resets;
    rig.nic().nic.refresh();
    assert_eq!((rig.nic().nic.link(), rig.model.lock().resets), (LinkState::Down, resets + 1));
    assert!(!rig.model.lock().bus_master);
    // Not before both queues have seen it.
    rig.receive(0);
    rig.nic().nic.refresh();
    assert_eq!(rig.nic().nic.link(), LinkState::Down);
    // What is to be sent meanwhile is dropped.
    send(rig, 3);
    turn(rig);
    check_works(rig);
}

#[test]
fn a_device_that_needs_a_reset_gets_it() {
    for want in Want::all_rings() {
        for mtu in [1500, 9000] {
            let mut rig = Rig::new(Want { mtu, vlans: vec![9], promiscuous: false, ..want.clone() });
            let commands = rig.model.lock().commands.clone();
            check_works(&mut rig);
            rig.model.lock().commands.clear();
            rig.model.lock().status |= status::DEVICE_NEEDS_RESET;
            recover(&mut rig);
            assert_eq!(rig.model.lock().commands, commands, "it is told everything again");
            assert_eq!(drops(&rig.tx_counters(0), DropReason::TxPortDown), 3);
            assert!(rig.nic().nic.extra_counters().contains(&("device_resets".into(), 1)));
            rig.close();
        }
    }
}

#[test]
fn a_device_that_sends_nothing_is_reset() {
    for want in Want::all_rings() {
        let mut rig = Rig::new(want);
        send(&mut rig, 10);
        for _ in 0..4 {
            turn(&mut rig);
            assert!(matches!(rig.nic().nic.link(), LinkState::Up { .. }));
        }
        rig.nic().tx[0].needs_doorbell();
        recover(&mut rig);
        let tx = rig.tx_counters(0);
        assert_eq!((drops(&tx, DropReason::TxUnsent), tx.packets.get()), (10, 2));
        rig.close();
    }
}

/// Interrupts since the last time.
fn interrupts(rig: &mut Rig) -> u64 {
    rig.nic().nic.events().into_iter().map(crate::vfio::sys::take_events).sum()
}

#[test]
fn the_link_interrupts_and_queues_do_not() {
    let mut rig = Rig::new(Want::default());
    assert_eq!(rig.nic().nic.events().len(), 1);
    for up in [false, true] {
        rig.model.set_link(up);
        assert_eq!((interrupts(&mut rig), interrupts(&mut rig)), (1, 0));
        assert_eq!(matches!(rig.nic().nic.link(), LinkState::Up { .. }), up);
    }
    // A reset takes the vector away; it is given again.
    let resets = rig.model.lock().resets;
    rig.model.lock().status |= status::DEVICE_NEEDS_RESET;
    for _ in 0..4 {
        rig.nic().nic.refresh();
        rig.receive(0);
        rig.transmit(0, &mut Batch::new());
    }
    assert_eq!(rig.model.lock().resets, resets + 1);
    rig.model.set_link(false);
    assert_eq!((interrupts(&mut rig), rig.nic().nic.link()), (1, LinkState::Down));
    // The model would send to a vector that is there.
    rig.nic().nic.silence();
    assert!(rig.nic().nic.events().is_empty() && !rig.model.has_config_vector());
    rig.close();
    // A device that has no vector to give is looked at.
    let mut rig = Rig::closed(Want::default());
    rig.model.lock().refuses_vectors = true;
    rig.try_open().unwrap();
    rig.model.set_link(false);
    assert_eq!((interrupts(&mut rig), rig.nic().nic.link()), (0, LinkState::Down));
    rig.close();
}

#[test]
fn neither_a_link_that_is_down_nor_a_worker_that_does_not_look_is_a_hang() {
    let mut rig = Rig::new(Want::default());
    send(&mut rig, 10);
    rig.model.lock().config[6] = 0;
    (0..20).for_each(|_| turn(&mut rig));
    rig.model.lock().config[6] = 1;
    (0..20).for_each(|_| rig.nic().nic.refresh());
    assert!(matches!(rig.nic().nic.link(), LinkState::Up { .. }));
    assert_eq!(rig.model.lock().collect(0, 100).len(), 10);
    check_works(&mut rig);
    rig.close();
}

#[test]
fn what_cannot_be_stops_the_queue_and_resets_the_device() {
    type Wrong = fn(&Model);
    let wrong: [(Wrong, bool); 5] = [
        (|model| model.lock().push_raw(0, 5000, 72, 1, 1), true),
        // Outstanding, and too long, or too short.
        (|model| model.lock().push_raw(0, 0, 5000, 1, 1), true),
        (|model| model.lock().push_raw(0, 0, 11, 1, 1), true),
        (|model| model.lock().push_raw(1, 3, 0, 1, 1), false),
        // Used twice.
        (
            |model| {
                let chain = model.lock().pop(0).unwrap();
                model.lock().push(0, &chain, 72);
                model.lock().push(0, &chain, 72);
            },
            true,
        ),
    ];
    for want in Want::all_rings() {
        for (wrong, on_receive) in wrong {
            let mut rig = Rig::new(want.clone());
            check_works(&mut rig);
            wrong(&rig.model);
            for _ in 0..3 {
                rig.receive(0);
                send(&mut rig, 1);
            }
            let invalid = drops(&rig.rx_counters(0), DropReason::RxInvalidDescriptor);
            assert_eq!(invalid, u64::from(on_receive));
            let down = drops(&rig.tx_counters(0), DropReason::TxPortDown);
            assert!(on_receive || down > 0);
            let resets = rig.model.lock().resets;
            (0..3).for_each(|_| turn(&mut rig));
            assert_eq!(rig.model.lock().resets, resets + 1);
            check_works(&mut rig);
            rig.close();
        }
    }
}

#[test]
fn a_used_index_past_all_that_was_given_is_not_followed() {
    let mut rig = Rig::new(Want::default().split());
    let device = rig.model.lock().addresses(0)[2];
    rig.model.iommu.write(device + 2, &9999_u16.to_le_bytes());
    assert!(rig.receive(0).is_empty());
    assert_eq!(drops(&rig.rx_counters(0), DropReason::RxInvalidDescriptor), 1);
    (0..3).for_each(|_| turn(&mut rig));
    check_works(&mut rig);
    rig.close();
}

#[test]
fn a_device_that_fails_again_and_again_is_given_up() {
    let mut rig = Rig::new(Want::default());
    for _ in 0..5 {
        rig.model.lock().push_raw(0, 5000, 72, 1, 1);
        (0..4).for_each(|_| turn(&mut rig));
        check_works(&mut rig);
    }
    rig.model.lock().push_raw(0, 5000, 72, 1, 1);
    (0..4).for_each(|_| turn(&mut rig));
    let LinkState::Gone(reason) = rig.nic().nic.link() else { panic!("not given up") };
    assert!(reason.contains("again and again"), "{reason}");
    send(&mut rig, 3);
    assert!(drops(&rig.tx_counters(0), DropReason::TxPortDown) >= 3);
    rig.close();
}

#[test]
fn resets_that_do_not_end_are_not_waited_for_without_end() {
    // The device, the worker, the control queue.
    for case in 0..3 {
        let mut rig = Rig::new(Want::default());
        rig.model.lock().status |= status::DEVICE_NEEDS_RESET;
        match case {
            0 => rig.model.lock().hangs = true,
            2 => rig.model.lock().answer = None,
            _ => {}
        }
        for _ in 0..40 {
            if case == 1 { rig.nic().nic.refresh() } else { turn(&mut rig) }
        }
        let LinkState::Gone(reason) = rig.nic().nic.link() else { panic!("not given up: {case}") };
        let words = ["has not ended a reset", "has not come round", "does not answer"][case];
        assert!(reason.contains(words), "{reason}");
        rig.close();
    }
}

#[test]
fn a_packet_without_an_end_is_dropped_with_the_reset() {
    let mut rig = Rig::new(Want { mtu: 9000, ..Want::default() });
    let mut model = rig.model.lock();
    let chain = model.pop(0).unwrap();
    // Of three buffers, the first.
    let length = chain.segments[0].1;
    let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0];
    rig.model.iommu.write(chain.segments[0].0, &header);
    model.push(0, &chain, length);
    model.status |= status::DEVICE_NEEDS_RESET;
    drop(model);
    assert!(rig.receive(0).is_empty());
    recover(&mut rig);
    assert_eq!(drops(&rig.rx_counters(0), DropReason::RxTruncated), 1);
    rig.close();
}
