//! A transmit queue that stands still, and the way back.
#![forbid(unsafe_code)]

use super::super::model::Trouble;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Sends ten packets by a queue that hangs, and lets the control thread find out.
pub(super) fn hang(bed: &mut Bed, queue: usize) {
    bed.nic.refresh();
    bed.model.hang(queue);
    let packets: Vec<Vec<u8>> = (0..10).map(|number| frame(OTHER, 100, number)).collect();
    let mut batch = bed.batch(&packets);
    bed.tx[queue].transmit(&mut batch);
    assert!(batch.is_empty());
    for _ in 0..3 {
        bed.model.clock.advance(SECOND);
        bed.nic.refresh();
    }
    assert_eq!(bed.nic.link(), LinkState::Down, "it is being reset");
    assert!(!bed.model.reaches_memory(), "it may write into rings that are being rebuilt");
}

#[test]
fn a_hang_is_found_and_mended_on_every_chip() {
    for kind in Kind::ALL {
        let mut bed = Bed::new(kind, &Wish { rx: 2, tx: 2, ..Wish::default() });
        let queue = |number| match bed.model.wire(&flow(number, 0)) {
            Fate::Received(queue) => queue,
            fate => panic!("{fate:?}"),
        };
        let before: Vec<usize> = (0..20).map(queue).collect();
        assert_eq!(bed.receive(0).len() + bed.receive(1).len(), 20);
        // One packet is still unread when the device is reset.
        bed.model.wire(&flow(0, 1));
        hang(&mut bed, 1);
        // Meanwhile nothing is sent, and nothing waits.
        let mut batch = bed.batch(&[frame(OTHER, 100, 1)]);
        bed.tx[0].transmit(&mut batch);
        assert_eq!(bed.unsent(0, DropReason::TxPortDown), 1);
        for _ in 0..6 {
            bed.turn(SECOND);
        }
        assert_eq!((bed.extra("hang_recoveries"), bed.model.resets().0), (1, 2), "{kind:?}");
        (0..5).for_each(|_| drop(bed.nic.link()));
        assert!(matches!(bed.nic.link(), LinkState::Up { .. }), "{kind:?}");
        assert_eq!(bed.unsent(1, DropReason::TxUnsent), 10);
        assert_eq!(bed.dropped(0, DropReason::RxUnread) + bed.dropped(1, DropReason::RxUnread), 1);
        bed.model.cable(true, 3 << 28);
        let events = bed.nic.events().into_iter().map(crate::vfio::sys::take_events).sum::<u64>();
        assert!(events > 0, "{kind:?}: the link interrupts as before");
        // Both ways work again, with the same queue for the same flow.
        bed.turn(SECOND);
        for round in 0..3 {
            for (number, queue) in before.iter().enumerate() {
                assert_eq!(
                    bed.model.wire(&flow(number as u32, 2 + round)),
                    Fate::Received(*queue),
                    "{kind:?}"
                );
            }
            assert_eq!(bed.receive(0).len() + bed.receive(1).len(), 20);
        }
        bed.model.take_sent();
        for queue in 0..2 {
            let packets: Vec<Vec<u8>> = (0..60).map(|number| frame(OTHER, 100, number)).collect();
            let mut batch = bed.batch(&packets);
            bed.tx[queue].transmit(&mut batch);
            assert!(bed.model.take_sent().into_iter().map(|sent| sent.bytes).eq(packets));
        }
        bed.close();
    }
}

#[test]
fn queues_that_have_nothing_to_do_are_not_waited_for_without_end() {
    let mut bed = Bed::new(Kind::N82599, &Wish { tx: 4, ..Wish::default() });
    hang(&mut bed, 3);
    // Of queues 0 to 2 nothing is wanted but the question for a doorbell.
    (0..6).for_each(|_| bed.turn(SECOND));
    assert_eq!(bed.extra("hang_recoveries"), 1);
    bed.close();
}

#[test]
fn a_busy_or_an_idle_queue_does_not_hang() {
    let mut bed = Bed::new(Kind::N82599, &Wish::default());
    for number in 0..20 {
        let mut batch = bed.batch(&[frame(OTHER, 100, number)]);
        bed.tx[0].transmit(&mut batch);
        bed.turn(SECOND);
    }
    assert_eq!(bed.model.resets().0, 1);
    bed.close();
}

#[test]
fn a_link_that_is_down_is_no_hang() {
    let mut bed = Bed::new(Kind::X540, &Wish::default());
    bed.model.cable(false, 0);
    // The queue does not know yet.
    let mut batch = bed.batch(&[frame(OTHER, 100, 1)]);
    bed.tx[0].transmit(&mut batch);
    (0..10).for_each(|_| bed.turn(SECOND));
    assert_eq!(bed.model.resets().0, 1);
    bed.model.cable(true, 3 << 28);
    assert_eq!(bed.model.take_sent().len(), 1);
    bed.close();
}

#[test]
fn a_device_that_does_not_come_back_is_gone_after_some_tries() {
    let mut bed = Bed::new(Kind::N82599, &Wish::default());
    bed.model.trouble(Trouble::Dead);
    hang(&mut bed, 0);
    for _ in 0..30 {
        let before = bed.model.clock.passed();
        bed.turn(SECOND);
        assert!(
            bed.model.clock.passed() - before < SECOND + Duration::from_millis(50),
            "the control thread was held up"
        );
    }
    let LinkState::Gone(why) = bed.nic.link() else { panic!() };
    assert!(why.contains("82599ES does not come out of a reset"), "{why}");
    assert_eq!((bed.extra("hang_recoveries"), bed.unsent(0, DropReason::TxUnsent)), (0, 10));
    // To a device that is still being reset, each further try is a breach; but there is nothing else to try.
    bed.model.take_violations();
    bed.close();
}

#[test]
fn a_device_that_vanishes_in_the_middle_is_gone() {
    for turns in 0..4 {
        let mut bed = Bed::new(Kind::X550, &Wish::default());
        hang(&mut bed, 0);
        (0..turns).for_each(|_| bed.turn(SECOND));
        bed.model.unplug();
        bed.turn(SECOND);
        assert!(matches!(bed.nic.link(), LinkState::Gone(_)), "after {turns}");
        bed.close();
    }
}

#[test]
fn a_port_can_be_closed_at_each_step() {
    for turns in 0..5 {
        let mut bed = Bed::new(Kind::N82599, &Wish { rx: 2, tx: 2, ..Wish::default() });
        bed.model.wire(&frame(OURS, 100, 1));
        hang(&mut bed, 0);
        (0..turns).for_each(|_| bed.turn(SECOND));
        let counters = bed.tx[0].counters().clone();
        bed.close();
        assert_eq!(counters.drops(DropReason::TxUnsent).get(), 10, "after {turns}");
    }
}

#[test]
fn firmware_that_is_busy_puts_a_recovery_off() {
    // The PHY is wanted for the reset, the MAC's registers for the link behind it: then it is reset once more.
    for (kind, resource, resets) in [(Kind::X540, 2, 2), (Kind::N82599, 8, 4)] {
        let mut bed = Bed::new(kind, &Wish::default());
        hang(&mut bed, 0);
        bed.model.trouble(Trouble::FirmwareHas(resource, 2));
        (0..12).for_each(|_| bed.turn(SECOND));
        assert_eq!((bed.extra("hang_recoveries"), bed.model.resets().0), (1, resets), "{kind:?}");
        assert_eq!(bed.model.wire(&frame(OURS, 60, 1)), Fate::Received(0));
        bed.close();
    }
}

#[test]
fn the_other_port_s_semaphore_is_broken_when_its_time_is_over_and_not_before() {
    for dies in [false, true] {
        let mut bed = Bed::new(Kind::X540, &Wish::default());
        hang(&mut bed, 0);
        // SMBI, by a driver that is at work.
        bed.model.poke("SWSM", 0, 1);
        let held = |bed: &Bed| (bed.extra("hang_recoveries"), bed.model.peek("SWSM", 0) & 1);
        for turn in 0..4 {
            bed.turn(SECOND);
            assert_eq!(held(&bed), (0, 1), "turn {turn}");
        }
        if !dies {
            bed.model.poke("SWSM", 0, 0);
        }
        (0..6).for_each(|_| bed.turn(SECOND));
        assert_eq!(held(&bed), (1, 0));
        bed.close();
    }
}

#[test]
fn what_is_dropped_until_the_reset_counts() {
    let mut bed = Bed::new(Kind::N82599, &Wish::default());
    hang(&mut bed, 0);
    bed.model.poke("QPRDC", 0, 7);
    bed.model.poke("MPC", 0, 2);
    while bed.model.resets().0 < 2 {
        assert_eq!(bed.dropped(0, DropReason::RxRingFull), 0);
        bed.turn(SECOND);
    }
    assert_eq!(bed.extra("hang_recoveries"), 0, "it is being reset");
    let dropped = [DropReason::RxRingFull, DropReason::RxMissed].map(|reason| bed.dropped(0, reason));
    assert_eq!(dropped, [7, 2]);
    (0..4).for_each(|_| bed.turn(SECOND));
    bed.close();
}
