//! Packets, both ways.

use super::*;
use crate::memory::Checksum;

/// Everything the device gets comes out, and everything that is sent arrives, round the rings several times.
fn pass(want: Want, packets: usize, length: impl Fn(usize) -> usize) {
    let mut rig = Rig::new(want);
    let (rx, tx) = (rig.rx_counters(0), rig.tx_counters(0));
    let (mut delivered, mut arrived, mut bytes) = (0, 0, 0);
    let (mut turn, mut batch) = (0, Batch::new());
    while arrived < packets {
        turn += 1;
        let burst = turn % 70;
        for _ in 0..burst {
            if delivered == packets || !rig.model.lock().deliver(0, &payload(delivered, length(delivered))) {
                break;
            }
            delivered += 1;
        }
        if batch.is_empty() {
            batch = rig.receive(0);
            assert!(batch.iter().all(|packet| packet.port() == PortId(7)));
        }
        rig.transmit(0, &mut batch);
        for (header, packet) in rig.model.lock().collect(0, turn % 100) {
            assert!(packet == payload(arrived, length(arrived)), "packet {arrived}");
            assert_eq!(header[..10], [0; 10]);
            bytes += packet.len() as u64;
            arrived += 1;
        }
        assert!(turn < packets + 1000, "it stands still at {arrived} of {delivered}");
    }
    rig.transmit(0, &mut Batch::new());
    assert_eq!((rx.packets.get(), rx.bytes.get()), (packets as u64, bytes));
    assert_eq!((tx.packets.get(), tx.bytes.get(), tx.held.get()), (packets as u64, bytes, 0));
    assert!(rx.all_drops().chain(tx.all_drops()).all(|(_, count)| count == 0));
    rig.close();
}

#[test]
fn packets_pass_by_both_rings_in_one_buffer() {
    for want in Want::all_rings() {
        pass(Want { ring: 64, ..want }, 2000, |number| 14 + number * 37 % 1501);
    }
}

#[test]
fn jumbo_packets_pass_by_both_rings_in_several_buffers() {
    for want in Want::all_rings() {
        pass(Want { mtu: 9000, ..want.clone() }, 600, |number| 14 + number * 1237 % 9001);
        let large = Want { mtu: 9000, frame_size: 4096, frames: 1024, ..want };
        pass(large, 300, |number| 14 + number * 1237 % 9001);
    }
}

#[test]
fn the_index_of_a_split_ring_goes_round() {
    pass(Want { ring: 256, ..Want::default() }.split(), 70_000, |_| 20);
}

#[test]
fn jumbo_packets_of_one_buffer_need_no_merging() {
    // Frames of 4 KiB hold them.
    let want = Want { mtu: 3800, frame_size: 4096, frames: 1024, ..Want::default() };
    pass(Want { offered: ALL & !feature::MRG_RXBUF, ..want }, 300, |number| 14 + number * 1237 % 3801);
}

#[test]
fn headers_share_a_line_with_their_packets() {
    let mut rig = Rig::new(Want::default());
    (0..20).for_each(|number| assert!(rig.model.lock().deliver(0, &payload(number, 60))));
    let batch = rig.receive(0);
    let mut lines: Vec<usize> = batch.iter().map(Packet::offset).collect();
    // Before each, 12 bytes of the same line; and at least what an application may count on.
    assert!(lines.iter().all(|offset| offset % 64 == 16 && *offset >= rig.pool.headroom()));
    lines.sort_unstable();
    lines.dedup();
    assert!(lines.len() > 4, "they share few sets of the cache: {lines:?}");
    drop(batch);
    rig.close();
}

#[test]
fn a_full_ring_leaves_packets_with_the_caller() {
    for want in Want::all_rings() {
        let mut rig = Rig::new(Want { ring: 64, ..want });
        let mut batch = Batch::new();
        (0..64).for_each(|number| batch.push(rig.packet(&payload(number, 60), &[])).unwrap());
        rig.transmit(0, &mut batch);
        assert_eq!((batch.len(), rig.tx_counters(0).held.get()), (1, 63));
        rig.transmit(0, &mut batch);
        assert_eq!(batch.len(), 1);
        assert_eq!(rig.model.lock().collect(0, 10).len(), 10);
        rig.transmit(0, &mut batch);
        assert_eq!((batch.len(), rig.tx_counters(0).packets.get()), (0, 10));
        rig.close();
    }
}

#[test]
fn buffers_that_come_back_in_another_order_are_taken() {
    for want in Want::all_rings() {
        let mut rig = Rig::new(Want { ring: 64, ..want });
        for round in 0..40 {
            let mut batch = Batch::new();
            (0..9).for_each(|number| batch.push(rig.packet(&payload(number, 60), &[20])).unwrap());
            (0..5).for_each(|number| batch.push(rig.packet(&payload(number, 60), &[])).unwrap());
            rig.transmit(0, &mut batch);
            assert!(batch.is_empty(), "round {round}");
            let mut model = rig.model.lock();
            let mut chains: Vec<_> = std::iter::from_fn(|| model.pop(1)).collect();
            assert_eq!(chains.len(), 14);
            chains.reverse();
            chains.swap(1, 7);
            chains.iter().for_each(|chain| model.push(1, chain, 0));
            // The same on receive.
            let mut buffers: Vec<_> = (0..10).map(|_| model.pop(0).unwrap()).collect();
            buffers.swap(0, 9);
            buffers.iter().for_each(|chain| model.push(0, chain, 12 + 60));
            drop(model);
            assert_eq!(rig.receive(0).len(), 10, "round {round}");
        }
        rig.transmit(0, &mut Batch::new());
        assert_eq!((rig.tx_counters(0).packets.get(), rig.tx_counters(0).held.get()), (560, 0));
        rig.close();
    }
}

#[test]
fn whatever_a_packet_looks_like_it_is_sent_whole_or_dropped_by_name() {
    for want in Want::all_rings() {
        let mut rig = Rig::new(want);
        let other = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
        let mut wanted = Vec::new();
        let mut batch = Batch::new();
        let mut push = |packet: Packet, arrives: bool| {
            if arrives {
                wanted.push(packet.to_vec());
            }
            batch.push(packet).unwrap();
        };
        push(rig.packet(&payload(0, 1400), &[1, 1, 20, 700]), true);
        push(packet_of(&other, &payload(1, 100), &[]), true);
        push(packet_of(&other, &payload(2, 100), &[50]), true);
        // No headroom left, alone and chained.
        for cuts in [&[][..], &[30]] {
            let mut packet = rig.packet(&payload(3, 100), cuts);
            let room = packet.headroom();
            packet.prepend(room - 3).unwrap().fill(9);
            push(packet, true);
        }
        push(rig.packet(&payload(4, 13), &[]), false);
        push(rig.packet(&payload(4, 14), &[]), true);
        push(rig.packet(&payload(5, 1515), &[]), false);
        push(rig.packet(&payload(5, 1514), &[]), true);
        push(rig.packet(&payload(6, 100), &(1..60).collect::<Vec<_>>()), false);
        let tagged = [&[2; 12][..], &[0x81, 0, 0, 5, 8, 0], &payload(7, 1500)].concat();
        push(rig.packet(&tagged, &[]), true);
        let double = [&[2; 12][..], &[0x88, 0xA8, 0, 5, 0x81, 0, 0, 6, 8, 0], &payload(7, 1500)].concat();
        push(rig.packet(&double, &[]), true);
        rig.transmit(0, &mut batch);
        assert!(batch.is_empty());
        let sent: Vec<Vec<u8>> =
            rig.model.lock().collect(0, 100).into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(sent, wanted);
        let counters = rig.tx_counters(0);
        assert_eq!(
            (drops(&counters, DropReason::TxUndersize), drops(&counters, DropReason::TxOversize)),
            (1, 2)
        );
        rig.transmit(0, &mut Batch::new());
        assert_eq!(counters.packets.get(), wanted.len() as u64);
        rig.close();
        assert_eq!(other.audit().held, 0);
    }
}

#[test]
fn one_odd_packet_in_a_burst_does_not_pass_for_a_plain_one() {
    for want in Want::all_rings() {
        for odd in 0..6 {
            let mut rig = Rig::new(want.clone());
            let other = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
            let (packet, dropped) = match odd {
                0 => (packet_of(&other, &payload(1, 100), &[]), None),
                1 => (rig.packet(&payload(1, 13), &[]), Some(DropReason::TxUndersize)),
                2 => (rig.packet(&payload(1, 1515), &[]), Some(DropReason::TxOversize)),
                3 => (rig.packet(&payload(1, 100), &[40]), None),
                _ => {
                    let mut packet = rig.packet(&payload(1, 100), &[]);
                    let bytes = packet.headroom() - if odd == 4 { 11 } else { 13 };
                    packet.prepend(bytes).unwrap().fill(1);
                    (packet, None)
                }
            };
            let mut wanted = vec![payload(0, 60), packet.to_vec(), payload(2, 60)];
            let mut batch = Batch::new();
            batch.push(rig.packet(&wanted[0], &[])).unwrap();
            batch.push(packet).unwrap();
            batch.push(rig.packet(&wanted[2], &[])).unwrap();
            rig.transmit(0, &mut batch);
            assert!(batch.is_empty());
            if dropped.is_some() {
                wanted.remove(1);
            }
            let mut model = rig.model.lock();
            for wanted in &wanted {
                let chain = model.pop(1).unwrap();
                let (header, packet) = model.gather(&chain);
                assert_eq!((header, &packet), ([0; 12], wanted), "{odd}");
                // A header does not go where a chain's segments have theirs.
                let [(address, ..)] = chain.segments[..] else { continue };
                assert!(address.wrapping_sub(rig.frames.origin()) % 2048 >= 64, "{odd}");
            }
            assert!(model.pop(1).is_none());
            drop(model);
            let lost = rig.tx_counters(0).all_drops().filter(|(_, count)| *count > 0).collect::<Vec<_>>();
            assert_eq!(lost, dropped.map(|reason| (reason, 1)).into_iter().collect::<Vec<_>>());
            rig.close();
            assert_eq!(other.audit().held, 0);
        }
    }
}

#[test]
fn checksums_go_both_ways() {
    for want in Want::all_rings() {
        let mut rig = Rig::new(Want { checksum: true, ..want });
        let mut bytes = Vec::new();
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2).write(&mut bytes, &[5; 33]).unwrap();
        let mut open = bytes.clone();
        open[40..42].fill(0);
        let mut packet = rig.packet(&open, &[]);
        packet.fill_checksum(true);
        let mut batch = Batch::new();
        batch.push(packet).unwrap();
        batch.push(rig.packet(&open, &[])).unwrap();
        rig.transmit(0, &mut batch);
        let sent = rig.model.lock().collect(0, 2);
        let (header, packet) = &sent[0];
        assert_eq!((header[0], &header[6..10]), (1, &[34, 0, 6, 0][..]));
        // The packet that did not ask for it goes as it is.
        assert_eq!((sent[1].0, &sent[1].1), ([0; 12], &open));
        // A neighbour sends it to us unfinished: we finish it. One that the device has checked, one that it has not.
        let mut model = rig.model.lock();
        assert!(model.deliver_with(0, packet, header));
        assert!(model.deliver_with(0, &bytes, &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        assert!(model.deliver(0, &bytes));
        // Places outside the packet.
        assert!(model.deliver_with(0, packet, &[1, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]));
        drop(model);
        let batch = rig.receive(0);
        let checked: Vec<Checksum> = batch.iter().map(Packet::checksum).collect();
        assert_eq!(checked, [Checksum::Good, Checksum::Good, Checksum::Unknown, Checksum::Unknown]);
        assert!(batch.iter().take(3).all(|packet| packet.data() == bytes));
        drop(batch);
        rig.close();
    }
}

#[test]
fn a_checksum_that_nobody_can_fill_in_is_not_left_open_in_silence() {
    let ipv4 = |protocol: u8, fragment: u8, total: u8| {
        [
            &[2; 12][..],
            &[8, 0, 0x45, 0, 0, total, 0, 0, fragment, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2],
            &[7; 40],
        ]
        .concat()
    };
    let ipv6 = |next: u8| [&[2; 12][..], &[0x86, 0xDD, 0x60, 0, 0, 0, 0, 40, next, 64], &[1; 72]].concat();
    let arp = [&[2; 12][..], &[8, 6], &[1; 46]].concat();
    // Each with where it is cut, and whether it goes; all ask.
    let packets = [
        (ipv4(17, 0x20, 60), None, true),
        (ipv4(6, 0, 60), Some(40), false),
        (ipv4(6, 0, 200), None, false),
        (ipv4(6, 0, 10), None, false),
        (ipv4(1, 0, 60), None, true),
        (ipv4(1, 0, 61), None, false),
        (ipv4(1, 0, 60), Some(33), false),
        (ipv4(17, 0, 60), None, true),
        (arp, None, true),
        (ipv6(0), None, false),
        (ipv6(44), None, true),
        (ipv6(58), None, true),
        (ipv6(58), Some(20), false),
        (ipv6(17), None, true),
        (vec![2; 14], None, true),
        (vec![2; 14], Some(5), false),
    ];
    for want in Want::all_rings() {
        let mut rig = Rig::new(Want { checksum: true, ..want });
        let mut batch = Batch::new();
        for (bytes, cut, _) in &packets {
            let mut packet = rig.packet(bytes, cut.as_slice());
            packet.fill_checksum(true);
            batch.push(packet).unwrap();
        }
        rig.transmit(0, &mut batch);
        let sent = rig.model.lock().collect(0, 99);
        let asked: Vec<usize> =
            sent.iter().map(|(header, packet)| packet.len() * usize::from(header[0])).collect();
        // Of those that went, TCP's and UDP's ask the device.
        assert_eq!(asked, [0, 0, 74, 0, 0, 0, 94, 0], "{sent:?}");
        let stopped = packets.iter().filter(|(.., goes)| !goes).count();
        assert_eq!(drops(&rig.tx_counters(0), DropReason::TxChecksum), stopped as u64);
        assert_eq!(sent.len(), packets.len() - stopped);
        rig.close();
    }
}

#[test]
fn what_is_on_its_way_at_the_end_is_counted() {
    for want in Want::all_rings() {
        for mtu in [1500, 9000] {
            let mut rig = Rig::new(Want { mtu, ..want.clone() });
            let (rx, tx) = (rig.rx_counters(0), rig.tx_counters(0));
            for number in 0..5 {
                assert!(rig.model.lock().deliver(0, &payload(number, mtu)));
            }
            let mut batch = Batch::new();
            (0..6).for_each(|number| batch.push(rig.packet(&payload(number, 60), &[20])).unwrap());
            rig.transmit(0, &mut batch);
            rig.model.lock().collect(0, 2);
            rig.close();
            assert_eq!((rx.packets.get(), drops(&rx, DropReason::RxUnread), rx.held.get()), (0, 5, 0));
            assert_eq!((tx.packets.get(), drops(&tx, DropReason::TxUnsent), tx.held.get()), (2, 4, 0));
        }
    }
}

#[test]
fn what_comes_back_while_nothing_is_sent_is_free_again() {
    let mut rig = Rig::new(Want::default());
    let mut batch = Batch::new();
    (0..6).for_each(|number| batch.push(rig.packet(&payload(number, 60), &[])).unwrap());
    rig.transmit(0, &mut batch);
    rig.model.lock().collect(0, 6);
    // The first is that of the turn in which it sent.
    assert!(!rig.nic().tx[0].needs_doorbell() && !rig.nic().tx[0].needs_doorbell());
    assert_eq!((rig.tx_counters(0).packets.get(), rig.tx_counters(0).held.get()), (6, 0));
    rig.close();
}

#[test]
fn an_empty_pool_loses_no_buffer() {
    let mut rig = Rig::new(Want { frames: 128, ..Want::default() });
    let held: Vec<Packet> = std::iter::from_fn(|| rig.pool.allocate(60)).collect();
    for round in 0..20 {
        for number in 0..10 {
            rig.model.lock().deliver(0, &payload(number, 60));
        }
        // What is freed at once fills the ring again.
        let got = rig.receive(0).len();
        assert!(got > 0 || round > 0);
    }
    drop(held);
    assert!(rig.receive(0).is_empty());
    // A few are waited for.
    assert!(rig.rx_counters(0).held.get() > 127 - 32);
    rig.close();
}

#[test]
fn a_device_is_notified_only_where_it_wants_to_be() {
    for want in Want::all_rings() {
        let mut rig = Rig::new(want);
        for wants in [false, true] {
            rig.model.lock().wants_notifications = wants;
            // It finds nothing, and says what it wants.
            rig.model.lock().collect(0, 1);
            let before = rig.model.lock().notifications;
            let mut batch = Batch::new();
            (0..32).for_each(|number| batch.push(rig.packet(&payload(number, 60), &[])).unwrap());
            rig.transmit(0, &mut batch);
            assert_eq!(
                rig.model.lock().notifications - before,
                u64::from(wants),
                "a burst, one notification"
            );
            rig.model.lock().collect(0, 100);
        }
        rig.close();
    }
}
