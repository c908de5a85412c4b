//! What comes in.
#![forbid(unsafe_code)]

use super::*;
use crate::memory::Checksum;
use std::collections::HashMap;

#[test]
fn every_chip_receives_in_order_and_counts() {
    for kind in Kind::ALL {
        let mut bed = Bed::new(kind, &Wish::default());
        let mut wanted = Vec::new();
        for number in 0..3000 {
            let length = 60 + number * 37 % 1455;
            let packet = match number % 5 {
                0 => frame(BROADCAST, length, number),
                1 => frame(MULTICAST, length, number),
                2 => tagged(OURS, &[(0x8100, 7)], length.max(64) + 4),
                3 => tagged(OURS, &[(0x88A8, 7), (0x8100, 8)], length.max(64) + 8),
                _ => frame(OURS, length, number),
            };
            assert_eq!(bed.model.wire(&packet), Fate::Received(0));
            wanted.push(packet);
            if number % 50 == 49 {
                let got = bed.receive(0);
                assert!(got == wanted, "packets before {number}");
                wanted.clear();
            }
        }
        bed.nic.refresh();
        let counters = bed.rx[0].counters().clone();
        assert_eq!(counters.packets.get(), 3000);
        assert_eq!((bed.extra("gprc"), bed.extra("rxdgpc"), bed.extra("qprc0")), (3000, 3000, 3000));
        assert_eq!((bed.extra("bprc"), bed.extra("mprc")), (600, 600));
        assert_eq!(counters.all_drops().map(|(_, count)| count).sum::<u64>(), 0);
        bed.close();
    }
}

#[test]
fn jumbo_frames_come_in_chains() {
    for (kind, frame_size, segments) in
        [(Kind::N82599, 2048, 9), (Kind::X550, 2048, 9), (Kind::X540, 4096, 3)]
    {
        let wish = Wish { mtu: 9000, frame_size, ..Wish::default() };
        let mut bed = Bed::new(kind, &wish);
        for (number, length) in (60..9014).step_by(211).chain([9014]).enumerate() {
            let packet = frame(OURS, length, number);
            assert_eq!(bed.model.wire(&packet), Fate::Received(0));
            let mut batch = Batch::new();
            bed.rx[0].receive(&mut batch);
            let got = batch.pop().unwrap();
            assert!(got.to_vec() == packet, "{length}");
            assert_eq!(got.port(), PortId(3));
            if length == 9014 {
                assert_eq!(got.segment_count(), segments);
            }
        }
        // Two tags on the longest, and one byte more than that.
        assert_eq!(bed.model.wire(&tagged(OURS, &[(0x88A8, 7), (0x8100, 8)], 9022)), Fate::Received(0));
        assert_eq!(bed.model.wire(&frame(OURS, 9023, 0)), Fate::Length);
        assert_eq!(bed.model.wire(&frame(OURS, 59, 0)), Fate::Length);
        bed.nic.refresh();
        assert_eq!((bed.extra("roc"), bed.extra("ruc")), (1, 1));
        assert_eq!(bed.dropped(0, DropReason::RxDropped), 1);
        assert_eq!(bed.receive(0).len(), 1);
        bed.close();
    }
}

#[test]
fn the_longest_packets_of_all_come_in() {
    let mtu = super::super::DRIVER.max_mtu;
    let mut bed = Bed::new(Kind::N82599, &Wish { mtu, ..Wish::default() });
    let packet = frame(OURS, mtu + 22, 5);
    assert_eq!(packet.len() + 4, 15_872);
    assert_eq!(bed.model.wire(&packet), Fate::Received(0));
    assert!(bed.receive(0) == [packet]);
    bed.close();
}

#[test]
fn rss_gives_each_queue_its_share_and_keeps_flows_in_order() {
    for kind in Kind::ALL {
        for queues in if kind == Kind::X550 { vec![2, 3, 16] } else { vec![16] } {
            let wish = Wish { rx: queues, frames: 4096, ..Wish::default() };
            let mut bed = Bed::new(kind, &wish);
            assert!(bed.nic.mode().contains("RSS"));
            let (mut place, mut next) = (HashMap::new(), HashMap::<u32, u32>::new());
            let mut shares = vec![0_u64; queues.into()];
            for round in 0..3 {
                for flow_number in 0..800 {
                    let Fate::Received(queue) = bed.model.wire(&flow(flow_number, round)) else { panic!() };
                    shares[queue] += 1;
                    if flow_number % 20 != 19 {
                        continue;
                    }
                    for queue in 0..usize::from(queues) {
                        for packet in bed.receive(queue) {
                            let (flow_number, number) = flow_of(&packet);
                            assert_eq!(
                                *place.entry(flow_number).or_insert(queue),
                                queue,
                                "a flow on two queues"
                            );
                            let expected = next.entry(flow_number).or_default();
                            assert_eq!(number, *expected, "flow {flow_number} out of order");
                            *expected += 1;
                        }
                    }
                }
            }
            assert_eq!(next.values().map(|count| u64::from(*count)).sum::<u64>(), 2400);
            let even = 2400 / u64::from(queues);
            assert!(shares.iter().all(|share| (even / 2..even * 2).contains(share)), "{kind:?}: {shares:?}");
            bed.nic.refresh();
            for (queue, share) in shares.iter().enumerate() {
                assert_eq!(
                    (bed.rx[queue].counters().packets.get(), bed.extra(&format!("qprc{queue}"))),
                    (*share, *share)
                );
            }
            bed.close();
        }
    }
}

#[test]
fn what_is_not_ip_goes_to_the_first_queue() {
    let mut bed = Bed::new(Kind::X550, &Wish { rx: 4, ..Wish::default() });
    assert_eq!(bed.model.wire(&frame(OURS, 80, 1)), Fate::Received(0));
    assert_eq!(bed.receive(0).len(), 1);
    bed.close();
}

#[test]
fn a_full_ring_drops_by_name_and_goes_on() {
    let mut bed = Bed::new(Kind::N82599, &Wish { rx: 2, ..Wish::default() });
    let fates: Vec<Fate> = (0..200).map(|number| bed.model.wire(&frame(OURS, 100, number))).collect();
    let received = fates.iter().filter(|fate| **fate == Fate::Received(0)).count();
    assert_eq!((received, fates[199]), (63, Fate::NoDescriptor(0)));
    let got = bed.receive(0);
    assert!(got.len() == 63 && got[62] == frame(OURS, 100, 62));
    bed.nic.refresh();
    // Nothing of it is counted twice.
    bed.nic.refresh();
    assert_eq!(bed.dropped(0, DropReason::RxRingFull), 137);
    assert_eq!(bed.dropped(1, DropReason::RxRingFull), 0);
    assert_eq!(bed.model.wire(&frame(OURS, 100, 7)), Fate::Received(0));
    assert_eq!(bed.receive(0).len(), 1);
    bed.model.poke("MPC", 0, 5);
    bed.model.poke("QPRDC", 1, 3);
    bed.nic.refresh();
    assert_eq!((bed.dropped(0, DropReason::RxMissed), bed.dropped(1, DropReason::RxRingFull)), (5, 3));
    bed.close();
}

#[test]
fn a_dry_pool_is_a_ring_without_descriptors() {
    let mut bed = Bed::new(Kind::X540, &Wish { frames: 80, ..Wish::default() });
    let mut kept: Vec<Packet> = Vec::new();
    let mut got = 0;
    for number in 0..200 {
        bed.model.wire(&frame(OURS, 100, number));
        let mut batch = Batch::new();
        bed.rx[0].receive(&mut batch);
        got += batch.len();
        kept.extend(std::iter::from_fn(|| batch.pop()));
    }
    assert!((64..=80).contains(&got), "{got}");
    bed.nic.refresh();
    assert_eq!(bed.dropped(0, DropReason::RxRingFull), 200 - got as u64);
    kept.clear();
    // With frames again it goes on.
    bed.rx[0].receive(&mut Batch::new());
    assert_eq!(bed.model.wire(&frame(OURS, 100, 0)), Fate::Received(0));
    assert_eq!(bed.receive(0).len(), 1);
    bed.close();
}

#[test]
fn filters_let_through_what_is_ours() {
    let bed = Bed::new(Kind::N82599, &Wish::default());
    let fates = |bed: &Bed| [OURS, OTHER, BROADCAST, MULTICAST].map(|to| bed.model.wire(&frame(to, 60, 1)));
    let (in_, out) = (Fate::Received(0), Fate::Filtered);
    assert_eq!(fates(&bed), [in_, out, in_, in_]);
    assert_eq!(bed.model.wire(&tagged(OURS, &[(0x8100, 5)], 64)), in_);
    bed.close();
    let bed = Bed::new(Kind::X550, &Wish { promiscuous: true, ..Wish::default() });
    assert_eq!(fates(&bed), [in_; 4]);
    bed.close();
    let bed = Bed::new(Kind::X540, &Wish { vlans: vec![0, 5, 4094], ..Wish::default() });
    let vlans = [0, 5, 6, 37, 4094].map(|vlan| bed.model.wire(&tagged(OURS, &[(0x8100, vlan)], 64)));
    assert_eq!(vlans, [in_, in_, out, out, in_]);
    assert_eq!(fates(&bed), [in_, out, in_, in_]);
    bed.close();
}

#[test]
fn what_nobody_reads_is_counted_at_the_end() {
    let bed = Bed::new(Kind::N82599, &Wish::default());
    (0..5).for_each(|number| _ = bed.model.wire(&frame(OURS, 100, number)));
    let counters = bed.rx[0].counters().clone();
    bed.close();
    assert_eq!(counters.drops(DropReason::RxUnread).get(), 5);
}

#[test]
fn checksums_are_told_where_they_were_asked_for() {
    for (asked, wanted) in [
        (false, [Checksum::Unknown; 4]),
        (true, [Checksum::Good, Checksum::Bad, Checksum::Bad, Checksum::Unknown]),
    ] {
        let mut bed = Bed::new(Kind::N82599, &Wish { checksum: asked, ..Wish::default() });
        let good = flow(1, 1);
        let with = |at: usize| {
            let mut packet = good.clone();
            packet[at] ^= 1;
            packet
        };
        // TTL: IPv4's; payload: TCP's.
        for packet in [good.clone(), with(22), with(55), frame(OURS, 60, 1)] {
            assert_eq!(bed.model.wire(&packet), Fate::Received(0));
        }
        let mut batch = Batch::new();
        bed.rx[0].receive(&mut batch);
        let told: Vec<Checksum> = batch.iter().map(Packet::checksum).collect();
        assert_eq!(told, wanted);
        drop(batch);
        bed.close();
    }
}
