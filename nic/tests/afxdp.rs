//! The AF_XDP driver on real veth pairs, each test in a network namespace of its own.
#![forbid(unsafe_code)]

mod support;

use nic::Batch;
use nic::counters::DropReason;
use support::{content, forward, in_namespace, numbered, open, pool, ring_tx, turn_until, verify, veth};

/// left0 = left1 <forwarder> right0 = right1, with a port at each outer end to send and to check.
fn forwards_both_ways(options: &str, mode: &str, length: usize, mtu: usize) {
    veth("left0", "left1", mtu, 1);
    veth("right0", "right1", mtu, 1);
    let pool = pool(65536);
    let ports = ["left0", "left1", "right0", "right1"]
        .map(|name| open(&format!("afxdp:{name}?rx_ring=512&tx_ring=512&{options}"), 7, &pool, 1));
    for port in &ports {
        assert!(port.port.mode().contains(mode), "{}", port.port.mode());
    }
    let [mut left, mut inner_left, mut inner_right, mut right] = ports;
    const COUNT: u64 = 3000;
    for back in [false, true] {
        let (source, first, second, sink) = if back {
            (&mut right, &mut inner_right, &mut inner_left, &mut left)
        } else {
            (&mut left, &mut inner_left, &mut inner_right, &mut right)
        };
        let (mut sent, mut forwarded, mut received) = (0, 0, 0);
        let mut batch = Batch::new();
        let mut transit = Batch::new();
        let mut arrived = Batch::new();
        turn_until("all packets have crossed", || {
            // No more under way than the rings hold: nothing may get lost.
            while sent < COUNT && batch.room() > 0 && sent - received < 256 {
                let Some(packet) = numbered(&pool, sent, length) else { break };
                batch.push(packet).unwrap();
                sent += 1;
            }
            source.tx[0].transmit(&mut batch);
            ring_tx(&mut *source.tx[0]);
            forwarded += forward(&mut *first.rx[0], &mut *second.tx[0], &mut transit);
            sink.rx[0].receive(&mut arrived);
            for packet in &arrived {
                assert_eq!(verify(packet), received);
                assert_eq!((packet.total_len(), packet.port().0), (length, 7));
                received += 1;
            }
            arrived.clear();
            received == COUNT
        });
        assert_eq!(forwarded as u64, COUNT);
        // The kernel gives the last frames back when it likes.
        turn_until("all frames are back", || {
            ring_tx(&mut *second.tx[0]);
            ring_tx(&mut *source.tx[0]);
            second.tx[0].counters().held.get() == 0 && source.tx[0].counters().held.get() == 0
        });
        for counters in
            [source.tx[0].counters(), first.rx[0].counters(), second.tx[0].counters(), sink.rx[0].counters()]
        {
            assert_eq!((counters.packets.get(), counters.bytes.get()), (COUNT, COUNT * length as u64));
            assert_eq!(counters.all_drops().map(|(_, count)| count).sum::<u64>(), 0);
        }
    }
    for mut port in [left, inner_left, inner_right, right] {
        port.port.refresh();
        let rx = port.rx[0].counters();
        assert_eq!(rx.drops(DropReason::RxDropped).get() + rx.drops(DropReason::RxRingFull).get(), 0);
    }
    assert_eq!(pool.audit().held, 0);
}

#[test]
fn namespace_forwards_in_copy_mode_with_native_xdp() {
    in_namespace("namespace_forwards_in_copy_mode_with_native_xdp", || {
        forwards_both_ways("mode=copy&bind=drv", "copy mode, native XDP", 64, 1500);
    });
}
