//! From whatever the device was to a port; and what its firmware, its link and its slot may do meanwhile.
#![forbid(unsafe_code)]

use super::super::model::Trouble;
use super::*;

#[test]
fn a_port_says_what_it_is() {
    let bed = Bed::new(Kind::N82599, &Wish { rx: 4, tx: 2, ..Wish::default() });
    assert_eq!(bed.nic.mode(), "82599ES, 4 receive queues, RSS, 2 transmit queues, never run on silicon");
    assert_eq!(bed.nic.mac().0, OURS);
    assert_eq!(bed.model.peek("CTRL_EXT", 0) >> 28 & 1, 1, "the firmware is told of a driver");
    let model = bed.model.clone();
    bed.close();
    assert_eq!((model.peek("CTRL_EXT", 0) >> 28 & 1, model.peek("RXCTRL", 0)), (0, 0));
}

#[test]
fn units_are_set_up_as_the_data_sheet_wants_it_without_dcb() {
    for (kind, rx_kib) in [(Kind::N82599, 512), (Kind::X540, 384), (Kind::X550, 384)] {
        let bed = Bed::new(kind, &Wish::default());
        let peek = |name, index| bed.model.peek(name, index);
        assert_eq!((peek("RXPBSIZE", 0) >> 10, peek("RXPBSIZE", 1)), (rx_kib, 0));
        assert_eq!((peek("TXPBSIZE", 0) >> 10, peek("TXPBSIZE", 1), peek("MTQC", 0)), (160, 0, 0));
        assert_eq!(peek("MAXFRS", 0) >> 16, 1526, "1500, a header, two tags, and the check sequence");
        assert_eq!((peek("MFLCN", 0) & 8, peek("FCCFG", 0)), (0, 0), "no flow control");
        assert_eq!((peek("EIMS", 0), peek("TDWBAL", 0)), (1 << 20, 0), "no queue interrupts");
        assert_eq!(peek("SRRCTL", 0), 1 << 28 | 1 << 25 | 2);
        bed.close();
    }
}

#[test]
fn an_sfp_cage_is_lit_and_run_at_10_gigabit() {
    let mut bed = Bed::new(Kind::N82599, &Wish::default());
    assert_eq!(bed.nic.link(), LinkState::Up { speed_mbps: Some(10_000) });
    assert_eq!((bed.model.peek("ESDP", 0) & 8, bed.model.peek("AUTOC", 0) >> 13 & 7), (0, 3));
    bed.close();
    // XAUI stays as the EEPROM has it.
    let bed = Bed::new(Kind::XAUI, &Wish::default());
    assert_eq!((bed.model.peek("ESDP", 0) & 8, bed.model.peek("AUTOC", 0) >> 13 & 7), (8, 1));
    bed.close();
}

#[test]
fn a_copper_phy_is_woken_and_nothing_else_of_it_changed() {
    for kind in [Kind::X540, Kind::X550] {
        let bed = Bed::new(kind, &Wish::default());
        assert_eq!(bed.model.phy(30, 0), 0x40);
        assert_eq!(bed.model.writes("ESDP"), 0);
        bed.close();
    }
}

#[test]
fn every_speed_has_its_number() {
    let up = |speed| LinkState::Up { speed_mbps: Some(speed) };
    let ten: [(u32, LinkState); 3] = [(3 << 28, up(10_000)), (2 << 28, up(1_000)), (1 << 28, up(100))];
    let more = [(3 << 28 | 1 << 27, up(2_500)), (1 << 28 | 1 << 27, up(5_000))];
    for (kind, speeds) in [(Kind::N82599, ten.to_vec()), (Kind::X550, [&ten[..], &more].concat())] {
        let mut bed = Bed::new(kind, &Wish::default());
        for (bits, state) in speeds {
            bed.model.cable(true, bits);
            assert_eq!(bed.nic.link(), state);
        }
        bed.model.cable(false, 0);
        assert_eq!(bed.nic.link(), LinkState::Down);
        bed.close();
    }
}

/// Interrupts since the last time.
fn interrupts(bed: &Bed) -> u64 {
    bed.nic.events().into_iter().map(crate::vfio::sys::take_events).sum()
}

#[test]
fn the_link_interrupts_and_nothing_else_does() {
    for kind in Kind::ALL {
        let mut bed = Bed::new(kind, &Wish { rx: 2, tx: 2, ..Wish::default() });
        interrupts(&bed);
        for (cable, state) in [(false, LinkState::Down), (true, LinkState::Up { speed_mbps: Some(10_000) })] {
            bed.model.cable(cable, 3 << 28);
            assert_eq!((interrupts(&bed), bed.nic.link(), interrupts(&bed)), (1, state, 0), "{kind:?}");
        }
        for number in 0..100 {
            let Fate::Received(queue) = bed.model.wire(&flow(number, 0)) else { panic!() };
            let mut batch = Batch::new();
            bed.rx[queue].receive(&mut batch);
            bed.tx[queue].transmit(&mut batch);
        }
        assert_eq!(interrupts(&bed), 0, "packets are looked for");
        assert_eq!(bed.model.peek("EIMS", 0), 1 << 20);
        if kind == Kind::X540 {
            bed.nic.silence();
            assert_eq!((bed.nic.events().len(), bed.model.peek("EIMS", 0)), (0, 0));
        }
        let model = bed.model.clone();
        bed.close();
        assert_eq!(model.peek("EIMS", 0), 0);
    }
    let mut bed = Bed::on(Model::new(Kind::N82599).without_msix(), &Wish::default());
    assert_eq!((bed.nic.events().len(), bed.model.peek("EIMS", 0)), (0, 0));
    bed.model.cable(false, 0);
    assert_eq!(bed.nic.link(), LinkState::Down, "it is looked at");
    bed.close();
}

#[test]
fn what_another_driver_left_running_is_stopped_first() {
    for kind in [Kind::N82599, Kind::X540] {
        let model = Model::new(kind);
        // Its semaphore, too: that driver was killed.
        model.left_running();
        let mut bed = Bed::on(model, &Wish::default());
        assert_eq!(bed.model.resets().0, 1);
        assert_eq!(bed.model.wire(&frame(OURS, 60, 1)), Fate::Received(0));
        assert_eq!(bed.receive(0).len(), 1);
        bed.close();
    }
}

#[test]
fn requests_that_do_not_end_are_flushed_between_two_resets() {
    let model = Model::new(Kind::N82599);
    model.trouble(Trouble::MasterStuck);
    let bed = Bed::on(model, &Wish::default());
    assert_eq!(bed.model.resets(), (2, 1));
    bed.close();
}

#[test]
fn firmware_that_is_busy_is_waited_for() {
    for (kind, resources) in [(Kind::N82599, 8), (Kind::X540, 2), (Kind::X550, 2)] {
        let model = Model::new(kind);
        model.trouble(Trouble::FirmwareHas(resources, 30));
        model.trouble(Trouble::FirmwareGuards(10));
        Bed::on(model, &Wish::default()).close();
    }
}

#[test]
fn firmware_that_has_died_loses_what_it_had() {
    for (kind, resources) in [(Kind::N82599, 8), (Kind::X540, 2)] {
        let model = Model::new(kind);
        model.trouble(Trouble::FirmwareHas(resources, u32::MAX));
        let bed = Bed::on(model.clone(), &Wish::default());
        let waited = model.clock.passed();
        assert!(waited > Duration::from_secs(1) && waited < Duration::from_secs(5), "{waited:?}");
        // To the model this is against the rules; the data sheet allows it after a second.
        assert_eq!(model.take_violations(), ["a resource was taken that the firmware has"]);
        model.trouble(Trouble::FirmwareHas(0, 0));
        bed.close();
    }
}

#[test]
fn devices_that_do_not_come_up_are_refused_in_words() {
    for (trouble, words) in [
        (Trouble::Dead, "does not come out of a reset"),
        (Trouble::NoAddress, "has no Ethernet address"),
        (Trouble::FirmwareGuards(u32::MAX), "firmware keeps it"),
    ] {
        let model = Model::new(Kind::N82599);
        model.trouble(trouble);
        let error = refused(&model, &Wish::default());
        assert!(error.contains(words) && error.contains("82599ES"), "{error}");
        assert!(model.clock.passed() < Duration::from_secs(10));
    }
    let model = Model::new(Kind::X540);
    model.unplug();
    let error = refused(&model, &Wish::default());
    assert!(error.contains("answers no more"), "{error}");
}

#[test]
fn what_cannot_be_is_refused_before_the_device_is_touched() {
    let model = Model::new(Kind::N82599);
    let refuse = |wish| {
        let error = refused(&model, &wish);
        assert_eq!(model.resets().0, 0);
        error
    };
    let error = refuse(Wish { rings: (96, 64), ..Wish::default() });
    assert_eq!(error, "rx_ring=96 is not a power of two: choose 64 or 128");
    let error = refuse(Wish { vlans: vec![4095], ..Wish::default() });
    assert!(error.contains("VLAN 4095"), "{error}");
}

#[test]
fn an_unplugged_device_is_gone_and_its_port_closes() {
    for kind in Kind::ALL {
        let mut bed = Bed::new(kind, &Wish { rx: 2, tx: 2, ..Wish::default() });
        bed.model.wire(&frame(OURS, 100, 1));
        bed.nic.refresh();
        bed.model.hang(0);
        let mut batch = bed.batch(&[frame(OTHER, 100, 1)]);
        bed.tx[0].transmit(&mut batch);
        bed.model.unplug();
        bed.nic.refresh();
        // No counter takes all ones for packets.
        let counted: u64 = bed.nic.extra_counters().iter().map(|(_, value)| value).sum();
        assert!(counted < 10, "{:?}", bed.nic.extra_counters());
        assert!(matches!(bed.nic.link(), LinkState::Gone(_)));
        let mut batch = bed.batch(&[frame(OTHER, 100, 2)]);
        bed.tx[0].transmit(&mut batch);
        assert_eq!(bed.unsent(0, DropReason::TxPortDown), 1);
        assert_eq!(bed.receive(0).len(), 1, "what had come before");
        let counters = bed.tx[0].counters().clone();
        bed.close();
        assert_eq!(counters.drops(DropReason::TxUnsent).get(), 1);
    }
}

#[test]
fn it_opens_and_closes_again_and_again_under_traffic() {
    let model = Model::new(Kind::N82599);
    for round in 0..20 {
        let mut bed = Bed::on(model.clone(), &Wish { rx: 2, tx: 2, ..Wish::default() });
        for number in 0..100 {
            let Fate::Received(queue) = model.wire(&flow(number, round)) else { panic!() };
            let mut batch = Batch::new();
            bed.rx[queue].receive(&mut batch);
            bed.tx[queue].transmit(&mut batch);
        }
        assert_eq!(model.take_sent().len(), 100);
        (0..10).for_each(|number| _ = model.wire(&flow(number, round)));
        bed.close();
    }
}
