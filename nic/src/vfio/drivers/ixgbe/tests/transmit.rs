//! What goes out.
#![forbid(unsafe_code)]

use super::*;
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

#[test]
fn every_chip_sends_in_order_and_counts() {
    for kind in Kind::ALL {
        let mut bed = Bed::new(kind, &Wish { tx: 3, ..Wish::default() });
        let mut wanted: Vec<Vec<Vec<u8>>> = vec![Vec::new(); 3];
        for number in 0..3000 {
            let length = 60 + number * 37 % 1455;
            let packet = if number % 3 == 1 {
                tagged(OTHER, &[(0x8100, 7)], length + 4)
            } else {
                frame(OTHER, length, number)
            };
            let queue = number * 5 % 3;
            let mut batch = bed.batch(std::slice::from_ref(&packet));
            bed.tx[queue].transmit(&mut batch);
            assert!(batch.is_empty());
            wanted[queue].push(packet);
        }
        let mut sent = vec![Vec::new(); 3];
        bed.model.take_sent().into_iter().for_each(|packet| sent[packet.queue].push(packet.bytes));
        assert!(sent == wanted);
        bed.turn(Duration::from_secs(1));
        bed.turn(Duration::from_secs(1));
        assert_eq!(bed.extra("gptc"), 3000);
        for (queue, wanted) in wanted.iter().enumerate() {
            let counters = bed.tx[queue].counters();
            let bytes: usize = wanted.iter().map(Vec::len).sum();
            assert_eq!((counters.packets.get(), counters.bytes.get()), (wanted.len() as u64, bytes as u64));
            assert_eq!(counters.held.get(), 0);
        }
        bed.close();
    }
}

#[test]
fn chains_short_packets_and_long_ones() {
    let wish = Wish { mtu: 9000, ..Wish::default() };
    let mut bed = Bed::new(Kind::N82599, &wish);
    for (number, length) in (14..9014).step_by(97).chain([9014]).enumerate() {
        let packet = frame(OTHER, length, number);
        let mut batch = bed.batch(std::slice::from_ref(&packet));
        bed.tx[0].transmit(&mut batch);
        assert!(batch.is_empty());
        let mut padded = packet;
        padded.resize(length.max(60), 0);
        assert!(bed.model.take_sent().iter().map(|sent| &sent.bytes).eq([&padded]), "{length}");
    }
    let mut batch = bed.batch(&[
        frame(OTHER, 13, 0),
        frame(OTHER, 9015, 0),
        tagged(OTHER, &[(0x88A8, 7), (0x8100, 8)], 9022),
    ]);
    bed.tx[0].transmit(&mut batch);
    let reasons = [DropReason::TxUndersize, DropReason::TxOversize].map(|reason| bed.unsent(0, reason));
    assert_eq!((reasons, bed.model.take_sent().len()), ([1, 1], 1));
    bed.close();
}

#[test]
fn a_full_ring_leaves_the_rest_with_its_owner() {
    let mut bed = Bed::new(Kind::X540, &Wish::default());
    bed.model.hang(0);
    let packets: Vec<Vec<u8>> = (0..64).map(|number| frame(OTHER, 100, number)).collect();
    let mut batch = bed.batch(&packets);
    bed.tx[0].transmit(&mut batch);
    assert_eq!((batch.len(), bed.tx[0].counters().held.get()), (1, 63));
    bed.model.resume(0);
    bed.tx[0].transmit(&mut batch);
    assert!(batch.is_empty());
    let sent: Vec<Vec<u8>> = bed.model.take_sent().into_iter().map(|sent| sent.bytes).collect();
    assert!(sent == packets);
    bed.close();
}

#[test]
fn packets_of_another_pool_go_out_as_copies() {
    let mut bed = Bed::new(Kind::N82599, &Wish::default());
    let other = pool(&Wish::default());
    let packet = frame(OTHER, 700, 3);
    let mut batch = Batch::new();
    batch.push(chain(&other, &packet).unwrap()).unwrap();
    bed.tx[0].transmit(&mut batch);
    assert!(bed.model.take_sent().iter().map(|sent| &sent.bytes).eq([&packet]));
    assert_eq!(other.audit().held, 0);
    bed.close();
}

#[test]
fn without_a_link_packets_are_dropped_by_name() {
    let mut bed = Bed::new(Kind::X550, &Wish::default());
    bed.model.cable(false, 0);
    assert_eq!(bed.nic.link(), LinkState::Down);
    let mut batch = bed.batch(&[frame(OTHER, 100, 1)]);
    bed.tx[0].transmit(&mut batch);
    assert_eq!(bed.unsent(0, DropReason::TxPortDown), 1);
    assert_eq!(bed.model.wire(&frame(OURS, 100, 1)), Fate::Nobody);
    bed.close();
}

#[test]
fn checksums_are_filled_in_where_a_packet_wants_it() {
    let mut bed = Bed::new(Kind::N82599, &Wish { checksum: true, ..Wish::default() });
    let ethernet = || PacketBuilder::ethernet2(OURS, OTHER);
    let mut wanted: Vec<Vec<u8>> = Vec::new();
    let mut add = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        write(&mut bytes);
        wanted.push(bytes);
    };
    let payload = [7; 91];
    add(&|bytes| {
        ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9).tcp(1, 2, 3, 4).write(bytes, &payload).unwrap()
    });
    add(&|bytes| ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9).udp(1, 2).write(bytes, &payload).unwrap());
    add(&|bytes| ethernet().ipv6([1; 16], [2; 16], 9).tcp(1, 2, 3, 4).write(bytes, &payload).unwrap());
    add(&|bytes| ethernet().ipv6([1; 16], [2; 16], 9).udp(1, 2).write(bytes, &payload).unwrap());
    let vlan = || ethernet().single_vlan(7.try_into().unwrap());
    add(&|bytes| vlan().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9).udp(1, 2).write(bytes, &[1]).unwrap());
    for packet in &wanted {
        let sliced = SlicedPacket::from_ethernet(packet).unwrap();
        let l4 = match sliced.transport.unwrap() {
            TransportSlice::Tcp(tcp) => tcp.slice().as_ptr() as usize + 16,
            TransportSlice::Udp(udp) => udp.slice().as_ptr() as usize + 6,
            _ => unreachable!(),
        } - packet.as_ptr() as usize;
        let mut without = packet.clone();
        without[l4..l4 + 2].fill(0xAA);
        let ip = if packet[12] == 0x81 { 18 } else { 14 };
        if without[ip] >> 4 == 4 {
            without[ip + 10..ip + 12].fill(0x55);
        }
        let mut batch = bed.batch(&[without.clone(), without.clone()]);
        // The second one goes out as it is.
        batch.as_mut_slice()[0].fill_checksum(true);
        bed.tx[0].transmit(&mut batch);
        let sent = bed.model.take_sent();
        let pad = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes.resize(bytes.len().max(60), 0);
            bytes
        };
        assert!(sent[0].bytes == pad(packet), "{packet:x?}\n{:x?}", sent[0].bytes);
        assert!(sent[1].bytes == pad(&without));
    }
    bed.close();
}
