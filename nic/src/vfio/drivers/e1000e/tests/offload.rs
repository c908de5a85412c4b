//! Checksums: what the device says of received ones, and what it fills in.
#![forbid(unsafe_code)]

use super::model::ones_sum;
use super::{OWN, Options, Rig};
use crate::memory::{Batch, Checksum};

/// An IPv4 packet to us without any checksum; `payload` starts with the ports.
pub(super) fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = [&OWN[..], &[2, 0, 0, 0, 0, 8, 8, 0]].concat();
    let [high, low] = (20 + payload.len() as u16).to_be_bytes();
    packet.extend([0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend(payload);
    packet
}

/// Where the checksum of a packet of [`ipv4`] is.
fn field(packet: &[u8]) -> usize {
    34 + if packet[23] == 6 { 16 } else { 6 }
}

/// Puts the right checksums in.
fn finish(mut packet: Vec<u8>) -> Vec<u8> {
    let at = field(&packet);
    packet[24..26].fill(0);
    packet[at..at + 2].fill(0);
    let ip = !ones_sum(&packet[14..34], 0);
    packet[24..26].copy_from_slice(&ip.to_be_bytes());
    let pseudo = u32::from(packet[23]) + (packet.len() - 34) as u32 + u32::from(ones_sum(&packet[26..34], 0));
    let l4 = !ones_sum(&packet[34..], pseudo);
    packet[at..at + 2].copy_from_slice(&l4.to_be_bytes());
    packet
}

#[test]
fn received_checksums_are_told_of_where_that_was_asked_for() {
    for asked in [false, true] {
        let mut rig = Rig::new(Options { checksum: asked, ..Options::default() });
        let good = finish(ipv4(6, &[7; 60]));
        let mut bad_ip = good.clone();
        bad_ip[24] ^= 1;
        let mut bad_tcp = good.clone();
        bad_tcp[60] ^= 1;
        let arp = super::plain(OWN, 60, 0);
        let udp = finish(ipv4(17, &[9; 26]));
        let cases = [
            (good, Checksum::Good),
            (bad_ip, Checksum::Bad),
            (bad_tcp, Checksum::Bad),
            (arp, Checksum::Unknown),
            (udp, Checksum::Good),
        ];
        for (packet, wanted) in cases {
            assert!(rig.model.receive(&packet));
            let mut batch = Batch::new();
            rig.rx[0].receive(&mut batch);
            let told = batch.as_slice()[0].checksum();
            assert_eq!(told, if asked { wanted } else { Checksum::Unknown });
        }
        rig.close();
    }
}

#[test]
fn checksums_are_filled_in_by_both_queues_in_turn() {
    let mut rig = Rig::new(Options { checksum: true, queues: 2, ..Options::default() });
    // The device has one context for both queues: each packet must bring its own.
    for (number, (queue, protocol)) in
        [(0, 6), (1, 17), (0, 6), (0, 6), (1, 17), (1, 6)].into_iter().enumerate()
    {
        let blank = ipv4(protocol, &[number as u8; 80]);
        let mut packet = rig.packet(&blank);
        packet.fill_checksum(true);
        let mut batch = Batch::new();
        batch.push(packet).unwrap();
        rig.tx[queue].transmit(&mut batch);
        assert_eq!(rig.model.take_sent(), [finish(blank.clone())], "{number}");
        // Who does not ask gets none.
        rig.send(queue, &blank);
        assert_eq!(rig.model.take_sent(), [blank]);
    }
    rig.close();
}
