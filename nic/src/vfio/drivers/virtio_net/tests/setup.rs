//! What the device is told, and what is said of devices that will not do.

use super::super::abi::{common, ctrl, status};
use super::*;
use crate::port::{LinkState, MacAddress};

#[test]
fn queues_are_spread_by_rss_with_our_key_and_table() {
    for want in Want::all_rings() {
        let mut rig = Rig::new(Want { pairs: 4, rx_queues: 3, tx_queues: 2, ..want });
        let model = rig.model.clone();
        let command = model.lock().commands[0].clone();
        assert_eq!(command[..2], ctrl::MQ_RSS_CONFIG);
        let data = &command[2..];
        assert_eq!(data[..8], [0x1B, 0, 0, 0, 127, 0, 0, 0]);
        assert!((0..128).all(|entry| data[8 + 2 * entry] as usize == entry % 3));
        assert_eq!(data[264..267], [3, 0, 40]);
        assert_eq!((&data[267..270], data.len()), (&[0x6D, 0x5A, 0x6D][..], 307));
        // Three receive and two transmit queues, one that makes them three pairs, and the control queue; none has a vector.
        let enabled = enabled(&model);
        assert_eq!(enabled, [0, 1, 2, 3, 4, 5, 8]);
        assert!(enabled.iter().all(|queue| model.lock().enabled(*queue).unwrap().1 == common::NO_VECTOR));
        for queue in 0..3 {
            assert!(model.lock().deliver(queue, &payload(queue, 60)));
            assert_eq!(rig.receive(queue).len(), 1);
        }
        let mut batch = Batch::new();
        batch.push(rig.packet(&payload(0, 60), &[])).unwrap();
        rig.transmit(1, &mut batch);
        assert_eq!(model.lock().collect(1, 1).len(), 1);
        rig.close();
    }
}

#[test]
fn without_rss_the_device_chooses_among_as_many_queues() {
    let offered = ALL & !feature::RSS;
    let mut rig = Rig::new(Want { offered, pairs: 4, rx_queues: 4, tx_queues: 2, ..Want::default() });
    assert_eq!(rig.model.lock().commands[0], [4, 0, 4, 0]);
    assert_eq!(enabled(&rig.model), (0..9).collect::<Vec<_>>(), "as many pairs as it was told of");
    rig.close();
    let error = Rig::refused(Want { offered, pairs: 4, tx_queues: 2, ..Want::default() });
    assert!(error.contains("choose queues=2"), "{error}");
}

/// The queues that the device has.
fn enabled(model: &Model) -> Vec<usize> {
    (0..9).filter(|queue| model.lock().enabled(*queue).is_some()).collect()
}

#[test]
fn a_device_has_whole_pairs_of_queues_after_a_reset_too() {
    for want in Want::all_rings() {
        let mut rig = Rig::new(Want { pairs: 4, rx_queues: 1, tx_queues: 3, ..want });
        let (model, pairs) = (rig.model.clone(), [0, 1, 2, 3, 4, 5, 8]);
        assert_eq!(enabled(&model), pairs);
        // With RSS, none is for the receive queues that nobody reads.
        assert!((0..128).all(|entry| model.lock().commands[0][10 + 2 * entry] == 0));
        model.lock().status |= status::DEVICE_NEEDS_RESET;
        rig.nic().nic.refresh();
        assert!(enabled(&model).is_empty());
        for _ in 0..2 {
            rig.receive(0);
            (0..3).for_each(|queue| rig.transmit(queue, &mut Batch::new()));
            rig.nic().nic.refresh();
        }
        assert_eq!(
            (enabled(&model), rig.nic().nic.link()),
            (pairs.to_vec(), LinkState::Up { speed_mbps: Some(10_000) })
        );
        rig.close();
    }
}

#[test]
fn filters_are_set() {
    let vlans = vec![5, 300];
    let mut rig = Rig::new(Want { promiscuous: false, vlans, ..Want::default() });
    let commands = rig.model.lock().commands.clone();
    let wanted: [&[u8]; 5] =
        [&[0, 0, 0], &[0, 1, 1], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[2, 0, 5, 0], &[2, 0, 44, 1]];
    assert_eq!(commands, wanted);
    rig.close();
    let mut rig = Rig::new(Want::default());
    assert_eq!(rig.model.lock().commands[0], [0, 0, 1]);
    // A device that was told of no VLAN would drop all tagged packets.
    assert_eq!(rig.model.lock().driver & feature::CTRL_VLAN, 0);
    rig.close();
}

#[test]
fn a_device_without_an_address_gets_one() {
    let mut rig = Rig::new(Want { offered: ALL & !feature::MAC, ..Want::default() });
    let mac = rig.nic().nic.mac();
    assert_eq!(mac.0[0] & 3, 2);
    let commands = rig.model.lock().commands.clone();
    assert!(commands.iter().any(|command| command[..2] == ctrl::MAC_ADDR_SET && command[2..] == mac.0));
    rig.close();
}

#[test]
fn it_says_what_it_is() {
    let mut rig = Rig::new(Want { pairs: 2, rx_queues: 2, mtu: 9000, ..Want::default() });
    let nic = &mut rig.nic().nic;
    assert_eq!(
        nic.mode(),
        "virtio-net, packed rings, 2 queues, RSS, mergeable buffers, never run on silicon"
    );
    assert_eq!(nic.mac(), MacAddress([0x52, 0x54, 0, 1, 2, 3]));
    assert_eq!(nic.link(), LinkState::Up { speed_mbps: Some(10_000) });
    rig.model.lock().config[12..16].fill(0xFF);
    assert_eq!(rig.nic().nic.link(), LinkState::Up { speed_mbps: None });
    rig.model.lock().config[6] = 0;
    assert_eq!(rig.nic().nic.link(), LinkState::Down);
    rig.model.lock().restless = true;
    assert_eq!(
        rig.nic().nic.link(),
        LinkState::Down,
        "a configuration that never stands still is not believed"
    );
    rig.model.lock().gone = true;
    assert!(matches!(rig.nic().nic.link(), LinkState::Gone(_)));
    rig.nic().nic.refresh();
    rig.model.lock().gone = false;
    rig.close();
}

#[test]
fn rings_are_of_the_layout_and_size_that_is_asked_for() {
    let ring = |value: &str| vec![("ring".to_owned(), value.to_owned())];
    let mut rig = Rig::new(Want { options: ring("split"), ..Want::default() });
    assert!(rig.nic().nic.mode().contains("split rings"));
    rig.close();
    let mut rig = Rig::new(Want { options: ring("packed"), ..Want::default() });
    assert!(rig.nic().nic.mode().contains("packed rings"));
    rig.close();
    let error = Rig::refused(Want { options: ring("packed"), ..Want::default().split() });
    assert!(error.contains("split rings only"), "{error}");
    let error = Rig::refused(Want { options: ring("round"), ..Want::default() });
    assert!(error.contains("auto, split or packed"), "{error}");
    let error = Rig::refused(Want { ring: 96, ..Want::default() });
    assert!(error.contains("rx_ring=96") && error.contains("128"), "{error}");
    // The device has fewer than are asked for.
    let mut rig = Rig::closed(Want { ring: 1024, ..Want::default() });
    rig.model = Model::new(ALL, 1, 256);
    rig.frames = rig.model.function().dma().map_pool(&rig.pool).unwrap();
    rig.try_open().unwrap();
    assert_eq!(rig.model.lock().enabled(0).unwrap().0, 256);
    rig.close();
}

#[test]
fn devices_that_will_not_do_are_refused_in_words() {
    let without = |missing: u64| Want { offered: ALL & !missing, ..Want::default() };
    for (want, words) in [
        (without(feature::VERSION_1), "disable-legacy=on"),
        (without(feature::ACCESS_PLATFORM), "iommu_platform=on"),
        (Want { checksum: true, ..without(feature::GUEST_CSUM) }, "checksum=on"),
        (Want { mtu: 9000, ..without(feature::MRG_RXBUF) }, "choose an mtu up to 1882"),
        (Want { mtu: 9001, ..Want::default() }, "carries 9000"),
        (Want { vlans: vec![1], ..without(feature::CTRL_VLAN) }, "filters no VLANs"),
        (Want { vlans: vec![1], ..Want::default() }, "leave out vlans, or --promiscuous"),
        (Want { pairs: 2, rx_queues: 2, ..without(feature::MQ | feature::RSS) }, "mq=on"),
        (Want { pairs: 2, rx_queues: 3, ..Want::default() }, "the device has 2"),
    ] {
        let error = Rig::refused(want);
        assert!(error.contains(words), "{error}");
    }
}

/// Opens a device that was changed.
#[track_caller]
fn refused_after(change: impl FnOnce(&Model)) -> String {
    let mut rig = Rig::closed(Want::default());
    change(&rig.model);
    let error = rig.try_open().unwrap_err().to_string();
    rig.model.lock().gone = false;
    rig.model.lock().bus_master = false;
    rig.check_closed();
    error
}

#[test]
fn broken_devices_are_refused_in_words() {
    for (change, words) in [
        (
            Box::new(|model: &Model| model.lock().pci[6] = 0) as Box<dyn FnOnce(&Model)>,
            "legacy interface only",
        ),
        // The list goes round: it ends all the same.
        (Box::new(|model| model.lock().pci[0x51] = 0x50), "notifications"),
        (Box::new(|model| model.lock().pci[0x5C..0x60].fill(0xFF)), "the common configuration"),
        (Box::new(|model| model.lock().pci[0x54] = 9), "the common configuration"),
        (Box::new(|model| model.lock().pci[0xA8..0xAC].fill(0xFF)), "notification register"),
        (Box::new(|model| model.lock().hangs = true), "has not ended a reset"),
        (Box::new(|model| model.lock().gone = true), "legacy interface only"),
        (Box::new(|model| model.lock().config[0] = 1), "that of a group"),
        (Box::new(|model| model.lock().restless = true), "changes all the time"),
        (Box::new(|model| model.lock().answer = Some(1)), "refuses a command"),
        (Box::new(|model| model.lock().answer = None), "does not answer"),
    ] {
        let error = refused_after(|model| {
            if words == "has not ended a reset" {
                model.lock().status = status::DRIVER_OK;
            }
            change(model);
        });
        assert!(error.contains(words), "{error} has not {words}");
    }
}
