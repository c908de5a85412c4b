//! The AF_XDP driver on real veth pairs, each test in a network namespace of its own.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use nic::Batch;
use nic::counters::DropReason;
use nic::{LinkState, OpenPort, Pool};
use std::thread;
use std::time::{Duration, Instant};
use support::{
    forward, in_namespace, numbered, open, pool, ring_rx, ring_tx, run, rx_books, try_open, turn_until,
    tx_drops, verify, veth,
};

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

#[test]
fn namespace_forwards_with_generic_xdp() {
    in_namespace("namespace_forwards_with_generic_xdp", || {
        forwards_both_ways("mode=copy&bind=skb", "copy mode, generic (skb) XDP", 1514, 1500);
    });
}

#[test]
fn namespace_zero_copy_is_not_tried_where_the_driver_is_known_to_have_none() {
    in_namespace("namespace_zero_copy_is_not_tried_where_the_driver_is_known_to_have_none", || {
        // What is tried and refused is a unit test's, in open.rs.
        forwards_both_ways("mode=auto", "copy mode, native XDP, need_wakeup", 600, 1500);
        let error = try_open("afxdp:left0?mode=zerocopy", 0, &pool(8192), 1).err().unwrap();
        assert!(
            error.contains("no zero-copy with the driver veth") && error.contains("mode=auto"),
            "{error}"
        );
    });
}

#[test]
fn namespace_jumbo_frames_pass_in_several_buffers() {
    in_namespace("namespace_jumbo_frames_pass_in_several_buffers", || {
        forwards_both_ways("", "multi-buffer", 9014, 9000);
    });
}

#[test]
fn namespace_jumbo_frames_pass_with_generic_xdp() {
    in_namespace("namespace_jumbo_frames_pass_with_generic_xdp", || {
        forwards_both_ways("bind=skb", "generic (skb) XDP, need_wakeup", 5000, 9000);
    });
}

#[test]
fn namespace_ports_of_one_pool_share_a_umem_and_one_may_go() {
    in_namespace("namespace_ports_of_one_pool_share_a_umem_and_one_may_go", || {
        veth("a0", "a1", 1500, 1);
        veth("b0", "b1", 1500, 1);
        let (pool, other) = (pool(32768), pool(16384));
        let small = "rx_ring=256&tx_ring=256";
        let first = open(&format!("afxdp:a0?{small}"), 0, &pool, 1);
        assert!(!first.port.mode().contains("shared UMEM"), "{}", first.port.mode());
        let mut second = open(&format!("afxdp:a1?{small}"), 1, &pool, 1);
        assert!(second.port.mode().contains("shared UMEM"), "{}", second.port.mode());
        let stranger = open(&format!("afxdp:b0?{small}"), 2, &other, 1);
        assert!(!stranger.port.mode().contains("shared UMEM"), "{}", stranger.port.mode());
        drop(stranger);
        // The registration outlives the socket that made it.
        drop(first);
        let mut third = open(&format!("afxdp:b0?{small}"), 3, &pool, 1);
        let mut fourth = open(&format!("afxdp:b1?{small}"), 4, &pool, 1);
        assert!(third.port.mode().contains("shared UMEM"), "{}", third.port.mode());
        // From a1 nothing comes any more, but the pool's frames go through b0 and b1 without a copy: same frames, same bytes.
        exchange(&mut third, &mut fourth, &pool, 500, 800);
        // A port whose pool is another one gets a copy.
        exchange(&mut third, &mut fourth, &other, 500, 800);
        let invalid = second.tx[0].counters().all_drops().map(|(_, count)| count).sum::<u64>();
        assert_eq!(invalid, 0);
        second.port.refresh();
        drop((second, third, fourth));
        assert_eq!((pool.audit().held, other.audit().held), (0, 0));
    });
}

/// Sends `count` packets of `pool` from one port to the other and checks each.
fn exchange(from: &mut OpenPort, to: &mut OpenPort, pool: &Pool, count: u64, length: usize) {
    let (mut sent, mut received) = (0, 0);
    let (mut batch, mut arrived) = (Batch::new(), Batch::new());
    turn_until("all packets have arrived", || {
        while sent < count && batch.room() > 0 && sent - received < 128 {
            let Some(packet) = numbered(pool, sent, length) else { break };
            batch.push(packet).unwrap();
            sent += 1;
        }
        from.tx[0].transmit(&mut batch);
        ring_tx(&mut *from.tx[0]);
        to.rx[0].receive(&mut arrived);
        for packet in &arrived {
            assert_eq!((verify(packet), packet.total_len()), (received, length));
            received += 1;
        }
        arrived.clear();
        received == count
    });
    turn_until("all frames are back", || {
        ring_tx(&mut *from.tx[0]);
        from.tx[0].counters().held.get() == 0
    });
}

#[test]
fn namespace_a_jumbo_port_and_a_plain_one_work_on_one_pool() {
    in_namespace("namespace_a_jumbo_port_and_a_plain_one_work_on_one_pool", || {
        veth("a0", "a1", 9000, 1);
        veth("b0", "b1", 1500, 1);
        let pool = pool(32768);
        let small = "rx_ring=256&tx_ring=256";
        let [mut a0, mut a1, mut b0, mut b1] =
            ["a0", "a1", "b0", "b1"].map(|name| open(&format!("afxdp:{name}?{small}"), 0, &pool, 1));
        assert!(a0.port.mode().contains("multi-buffer") && !b0.port.mode().contains("multi-buffer"));
        exchange(&mut a0, &mut a1, &pool, 300, 9000);
        exchange(&mut b0, &mut b1, &pool, 300, 1514);
        // What is too long for a port is dropped by name.
        let mut batch = Batch::new();
        batch.push(numbered(&pool, 1, 9000).unwrap()).unwrap();
        b0.tx[0].transmit(&mut batch);
        assert_eq!((batch.len(), tx_drops(&*b0.tx[0], DropReason::TxOversize)), (0, 1));
        drop((a0, a1, b0, b1));
        assert_eq!(pool.audit().held, 0);
    });
}

#[test]
fn namespace_overload_is_accounted_for_to_the_packet() {
    in_namespace("namespace_overload_is_accounted_for_to_the_packet", || {
        veth("a0", "a1", 1500, 1);
        let pool = pool(16384);
        let mut from = open("afxdp:a0?rx_ring=2048", 0, &pool, 1);
        let mut to = open("afxdp:a1?rx_ring=64", 1, &pool, 1);
        const COUNT: u64 = 20_000;
        let (mut offered, mut arrived) = (0, Batch::new());
        let mut batch = Batch::new();
        turn_until("all packets are sent", || {
            while offered < COUNT && batch.room() > 0 {
                let Some(packet) = numbered(&pool, offered, 60) else { break };
                batch.push(packet).unwrap();
                offered += 1;
            }
            from.tx[0].transmit(&mut batch);
            ring_tx(&mut *from.tx[0]);
            // Too seldom.
            if offered % 4096 == 0 {
                to.rx[0].receive(&mut arrived);
                arrived.clear();
            }
            offered == COUNT && batch.is_empty() && from.tx[0].counters().held.get() == 0
        });
        let sent = from.tx[0].counters().packets.get();
        assert_eq!(sent + tx_drops(&*from.tx[0], DropReason::TxDropped), COUNT);
        turn_until("every packet is accounted for", || {
            to.rx[0].receive(&mut arrived);
            arrived.clear();
            to.port.refresh();
            rx_books(&*to.rx[0]) >= sent
        });
        assert_eq!(rx_books(&*to.rx[0]), sent);
        let full = to.rx[0].counters().drops(DropReason::RxRingFull).get();
        assert!(full > COUNT / 2, "the ring was full {full} times only");
        let named: std::collections::HashMap<String, u64> = from
            .port
            .extra_counters()
            .into_iter()
            .chain({
                from.port.refresh();
                from.port.extra_counters()
            })
            .collect();
        assert!(named["link_tx_packets"] >= sent, "{named:?}");
        drop((from, to));
        assert_eq!(pool.audit().held, 0);
    });
}

#[test]
fn namespace_an_empty_pool_loses_nothing_in_silence() {
    in_namespace("namespace_an_empty_pool_loses_nothing_in_silence", || {
        veth("a0", "a1", 1500, 1);
        let (pool, starved) = (pool(16384), pool(128));
        let mut from = open("afxdp:a0?rx_ring=64", 0, &pool, 1);
        let mut to = open("afxdp:a1?rx_ring=64&tx_ring=64", 1, &starved, 1);
        // Received and kept: nothing is left to receive into.
        let (mut batch, mut kept, mut arrived) = (Batch::new(), Vec::new(), Batch::new());
        for number in 0..1000 {
            batch.push(numbered(&pool, number, 60).unwrap()).unwrap();
            from.tx[0].transmit(&mut batch);
            ring_tx(&mut *from.tx[0]);
            to.rx[0].receive(&mut arrived);
            kept.push(std::mem::take(&mut arrived));
        }
        turn_until("every packet is accounted for", || {
            ring_tx(&mut *from.tx[0]);
            to.rx[0].receive(&mut arrived);
            kept.push(std::mem::take(&mut arrived));
            to.port.refresh();
            rx_books(&*to.rx[0]) >= 1000
        });
        let counters = to.rx[0].counters();
        assert_eq!((counters.packets.get(), counters.drops(DropReason::RxDropped).get()), (128, 872));
        // With frames to be had it goes on.
        kept.clear();
        to.rx[0].receive(&mut arrived);
        exchange(&mut from, &mut to, &pool, 50, 60);
        drop((from, to, kept, arrived));
        assert_eq!((pool.audit().held, starved.audit().held), (0, 0));
    });
}

#[test]
fn namespace_an_interface_that_is_removed_is_an_event() {
    in_namespace("namespace_an_interface_that_is_removed_is_an_event", || {
        veth("a0", "a1", 1500, 1);
        let pool = pool(16384);
        let mut port = open("afxdp:a0?rx_ring=256", 0, &pool, 1);
        assert!(matches!(port.port.link(), LinkState::Up { speed_mbps: Some(_) }));
        let mut batch = Batch::new();
        run("ip link del a0");
        batch.push(numbered(&pool, 1, 60).unwrap()).unwrap();
        port.tx[0].transmit(&mut batch);
        assert!(port.tx[0].needs_doorbell());
        let gone = port.tx[0].doorbell().unwrap().ring().unwrap_err();
        assert!(gone.to_string().contains("afxdp:a0 has stopped"), "{gone}");
        // No spinning: nobody asks for a doorbell any more, and what is to be sent is dropped by name.
        assert!(!port.tx[0].needs_doorbell() && !port.rx[0].needs_doorbell());
        batch.push(numbered(&pool, 2, 60).unwrap()).unwrap();
        port.tx[0].transmit(&mut batch);
        assert_eq!(tx_drops(&*port.tx[0], DropReason::TxPortDown), 1);
        assert!(matches!(port.port.link(), LinkState::Gone(_)));
        port.port.refresh();
        port.rx[0].receive(&mut batch);
        assert!(batch.is_empty());
        let counters = port.tx[0].counters().clone();
        drop(port);
        assert_eq!(counters.drops(DropReason::TxUnsent).get(), 1);
        assert_eq!(pool.audit().held, 0);
        // The pool goes on with other ports.
        veth("b0", "b1", 1500, 1);
        let [mut b0, mut b1] =
            ["b0", "b1"].map(|name| open(&format!("afxdp:{name}?rx_ring=256"), 0, &pool, 1));
        exchange(&mut b0, &mut b1, &pool, 100, 60);
    });
}

#[test]
fn namespace_a_link_that_goes_down_comes_back() {
    in_namespace("namespace_a_link_that_goes_down_comes_back", || {
        veth("a0", "a1", 1500, 1);
        let pool = pool(16384);
        let [mut from, mut to] =
            ["a0", "a1"].map(|name| open(&format!("afxdp:{name}?rx_ring=256&tx_ring=64"), 0, &pool, 1));
        exchange(&mut from, &mut to, &pool, 100, 60);
        run("ip link set a0 down");
        assert_eq!(from.port.link(), LinkState::Down);
        let mut batch = Batch::new();
        let (mut offered, mut doorbells) = (0, 0);
        for number in 0..5000 {
            batch.push(numbered(&pool, number, 60).unwrap()).unwrap();
            offered += 1;
            from.tx[0].transmit(&mut batch);
            if from.tx[0].needs_doorbell() {
                doorbells += 1;
                from.tx[0].doorbell().unwrap().ring().unwrap();
            }
        }
        assert!((2..20).contains(&doorbells), "{doorbells} doorbells for an interface that is down");
        let down = tx_drops(&*from.tx[0], DropReason::TxPortDown);
        assert_eq!(down + from.tx[0].counters().held.get() + batch.len() as u64, offered);
        run("ip link set a0 up");
        // The control core's look at the link is enough to go on: no doorbell has been rung since.
        turn_until("the link is up", || matches!(from.port.link(), LinkState::Up { .. }));
        batch.push(numbered(&pool, 5000, 60).unwrap()).unwrap();
        from.tx[0].transmit(&mut batch);
        assert_eq!(tx_drops(&*from.tx[0], DropReason::TxPortDown), down);
        // What was on the ring goes out first.
        let mut arrived = Batch::new();
        turn_until("the ring is empty", || {
            ring_tx(&mut *from.tx[0]);
            to.rx[0].receive(&mut arrived);
            arrived.clear();
            from.tx[0].counters().held.get() == 0
        });
        exchange(&mut from, &mut to, &pool, 100, 60);
        // Without a carrier the device takes packets and drops them: known by name, too.
        run("ip link set a1 down");
        let before = from.tx[0].counters().packets.get();
        for number in 0..100 {
            batch.push(numbered(&pool, number, 60).unwrap()).unwrap();
            from.tx[0].transmit(&mut batch);
            ring_tx(&mut *from.tx[0]);
        }
        turn_until("all is taken", || {
            from.tx[0].transmit(&mut batch);
            ring_tx(&mut *from.tx[0]);
            from.tx[0].counters().held.get() == 0
        });
        let refused = tx_drops(&*from.tx[0], DropReason::TxDropped);
        assert_eq!((from.tx[0].counters().packets.get() - before, refused), (0, 100));
        drop((from, to));
        assert_eq!(pool.audit().held, 0);
    });
}

#[test]
fn namespace_closing_under_traffic_gives_every_frame_back() {
    in_namespace("namespace_closing_under_traffic_gives_every_frame_back", || {
        veth("a0", "a1", 1500, 1);
        let pool = pool(16384);
        for order in 0..6 {
            let OpenPort { port: from_port, rx: from_rx, tx: mut from_tx } =
                open("afxdp:a0?rx_ring=512", 0, &pool, 1);
            let OpenPort { port, rx, tx } = open("afxdp:a1?rx_ring=512", 1, &pool, 1);
            let counters = from_tx[0].counters().clone();
            let sender = thread::spawn({
                let pool = pool.clone();
                move || {
                    let deadline = Instant::now() + Duration::from_millis(60);
                    let (mut offered, mut batch) = (0, Batch::new());
                    while Instant::now() < deadline {
                        while let Some(packet) =
                            (batch.room() > 0).then(|| numbered(&pool, offered, 60)).flatten()
                        {
                            batch.push(packet).unwrap();
                            offered += 1;
                        }
                        from_tx[0].transmit(&mut batch);
                        ring_tx(&mut *from_tx[0]);
                    }
                    offered -= batch.len() as u64;
                    drop(batch);
                    // With packets on the ring.
                    drop(from_tx);
                    offered
                }
            });
            thread::sleep(Duration::from_millis(20));
            let mut parts: [Option<Box<dyn std::any::Any>>; 3] =
                [Some(Box::new(port)), Some(Box::new(rx)), Some(Box::new(tx))];
            for part in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][order] {
                parts[part] = None;
            }
            let offered = sender.join().unwrap();
            drop((from_port, from_rx));
            let dropped: u64 = counters.all_drops().map(|(_, count)| count).sum();
            assert_eq!(
                counters.packets.get() + dropped,
                offered,
                "{:?}",
                counters.all_drops().collect::<Vec<_>>()
            );
            let audit = pool.audit();
            assert_eq!((audit.held, audit.duplicated), (0, 0));
        }
    });
}

#[test]
fn namespace_frames_stay_with_the_kernel_until_the_last_handle_is_gone() {
    in_namespace("namespace_frames_stay_with_the_kernel_until_the_last_handle_is_gone", || {
        veth("a0", "a1", 1500, 1);
        let pool = pool(8192);
        let OpenPort { port, rx, mut tx } = open("afxdp:a0?rx_ring=64&tx_ring=64", 0, &pool, 1);
        // A fill ring has twice the receive ring's entries.
        assert_eq!((pool.audit().held, rx[0].counters().held.get()), (128, 128));
        drop(rx);
        assert_eq!(pool.audit().held, 128);
        let mut batch = Batch::new();
        run("ip link set a0 down");
        batch.push(numbered(&pool, 1, 60).unwrap()).unwrap();
        tx[0].transmit(&mut batch);
        let counters = tx[0].counters().clone();
        let doorbell = tx[0].doorbell();
        drop(tx);
        assert_eq!((pool.audit().held, counters.drops(DropReason::TxUnsent).get()), (129, 1));
        drop(port);
        assert_eq!(pool.audit().held, 129);
        drop(doorbell);
        assert_eq!(pool.audit().held, 0);
    });
}

#[test]
fn namespace_twenty_opens_and_closes_leave_no_program() {
    in_namespace("namespace_twenty_opens_and_closes_leave_no_program", || {
        veth("a0", "a1", 1500, 1);
        let pool = pool(8192);
        let shows = || run("ip -details link show dev a0").contains("xdp");
        for _ in 0..20 {
            let port = open("afxdp:a0?rx_ring=64&tx_ring=64", 0, &pool, 1);
            assert!(shows());
            drop(port);
            assert!(!shows());
            assert_eq!(pool.audit().held, 0);
        }
    });
}

#[test]
fn namespace_several_queues_and_a_queue_for_sending_only() {
    in_namespace("namespace_several_queues_and_a_queue_for_sending_only", || {
        veth("a0", "a1", 1500, 3);
        let pool = pool(32768);
        let small = "rx_ring=128&tx_ring=128";
        let mut from = open(&format!("afxdp:a0?queues=1&{small}"), 0, &pool, 3);
        let mut to = open(&format!("afxdp:a1?queues=3&{small}"), 1, &pool, 0);
        assert_eq!((from.rx.len(), from.tx.len(), to.rx.len(), to.tx.len()), (1, 3, 3, 0));
        assert!(to.port.mode().contains("3 queues"));
        let mut batch = Batch::new();
        for queue in 0..3 {
            for number in 0..40 {
                batch.push(numbered(&pool, number, 100).unwrap()).unwrap();
            }
            from.tx[queue].transmit(&mut batch);
            ring_tx(&mut *from.tx[queue]);
        }
        // A veth's transmit queue is its peer's receive queue.
        let mut arrived = Batch::new();
        turn_until("40 packets on each queue", || {
            to.rx.iter_mut().for_each(|queue| queue.receive(&mut arrived));
            arrived.clear();
            to.rx.iter().all(|queue| queue.counters().packets.get() == 40)
        });
        drop((from, to));
        assert_eq!(pool.audit().held, 0);
    });
}

#[test]
fn namespace_what_cannot_be_opened_is_explained() {
    in_namespace("namespace_what_cannot_be_opened_is_explained", || {
        veth("a0", "a1", 1500, 1);
        veth("jumbo0", "jumbo1", 9000, 1);
        let pool = pool(8192);
        let error =
            |spec: &str| try_open(spec, 0, &pool, 1).err().unwrap_or_else(|| format!("{spec} was opened"));
        for (spec, words) in [
            ("afxdp:nosuch0", "choose from lo, "),
            ("afxdp:averyverylongname0", "no interface"),
            ("afxdp:a0?queues=4", "pass queues=1"),
            ("afxdp:a0?queues=0", "from 1 to 1024"),
            ("afxdp:a0?mode=fast", "choose auto, zerocopy, copy"),
            ("afxdp:a0?bind=hw", "choose auto, drv, skb"),
            ("afxdp:a0?bind=skb&mode=zerocopy", "mode=copy"),
            ("afxdp:a0?frame=3000", "choose 2048, 4096"),
            ("afxdp:a0?rx_ring=1000", "choose 512 or 1024"),
            ("afxdp:a0?tx_budget=16", "from 32 to 2048"),
            ("afxdp:a0?channels=9", "can have 1 channels"),
            ("afxdp:a0?colour=red", "unknown option \"colour\""),
            ("afxdp:a0?rx_ring=8192", "a smaller rx_ring"),
            ("afxdp:jumbo0?multibuffer=off", "multibuffer=auto"),
        ] {
            let error = error(spec);
            assert!(error.contains(words) && error.lines().count() == 1, "{spec}: {error}");
        }
        let _holder = open("afxdp:a0?rx_ring=64&tx_ring=64", 0, &pool, 1);
        let error = error("afxdp:a0?rx_ring=64&tx_ring=64");
        assert!(error.contains("ip link set dev a0 xdp off"), "{error}");
        drop(_holder);
        assert_eq!(pool.audit().held, 0);
    });
}

#[test]
fn namespace_promiscuous_mode_goes_with_the_port() {
    in_namespace("namespace_promiscuous_mode_goes_with_the_port", || {
        veth("a0", "a1", 1500, 1);
        let pool = pool(8192);
        let spec: nic::PortSpec = "afxdp:a0?rx_ring=64&tx_ring=64&busy_poll=20".parse().unwrap();
        let plan = nic::drivers::check(&spec).unwrap();
        let context = nic::OpenContext { pool: &pool, id: nic::PortId(0), tx_queues: 1, promiscuous: true };
        let mut port = plan.open(&context).unwrap();
        let promiscuity = || run("ip -details link show dev a0").contains("promiscuity 1");
        assert!(promiscuity());
        // Busy polling is a doorbell that is always to be rung.
        assert!(port.port.mode().contains("busy polling 20 us") && port.rx[0].needs_doorbell());
        port.rx[0].doorbell().unwrap().ring().unwrap();
        drop(port);
        assert!(!promiscuity());
    });
}

/// Puts `count` packets on the transmit ring and rings once; gives how many have been sent when no more are.
fn sent_by_one_doorbell(options: &str, count: u64, expected: u64) -> (u64, String) {
    let pool = pool(8192);
    let mut from = open(&format!("afxdp:a0?rx_ring=256&tx_ring=256&{options}"), 0, &pool, 1);
    let mut to = open("afxdp:a1?rx_ring=256&tx_ring=256", 1, &pool, 1);
    let mut batch = Batch::new();
    for number in 0..count {
        batch.push(numbered(&pool, number, 60).unwrap()).unwrap();
        from.tx[0].transmit(&mut batch);
    }
    assert!(batch.is_empty() && from.tx[0].needs_doorbell());
    from.tx[0].doorbell().unwrap().ring().unwrap();
    // Where something was left on the ring, and only there.
    assert_eq!(from.tx[0].needs_doorbell(), expected < count);
    let mut arrived = Batch::new();
    turn_until("the first doorbell's packets have arrived", || {
        to.rx[0].receive(&mut arrived);
        arrived.clear();
        to.rx[0].counters().packets.get() >= expected
    });
    // Each that has arrived is completed; one more would be on its way without being on the ring.
    turn_until("they are completed", || {
        from.tx[0].transmit(&mut batch);
        from.tx[0].counters().packets.get() >= expected
    });
    let sent = count - from.tx[0].counters().held.get();
    let mode = from.port.mode();
    turn_until("the rest has gone", || {
        ring_tx(&mut *from.tx[0]);
        from.tx[0].counters().held.get() == 0
    });
    drop((from, to, arrived));
    assert_eq!(pool.audit().held, 0);
    (sent, mode)
}

#[test]
fn namespace_one_doorbell_sends_as_many_as_the_budget_says() {
    const TEST: &str = "namespace_one_doorbell_sends_as_many_as_the_budget_says";
    in_namespace(TEST, || {
        veth("a0", "a1", 1500, 1);
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap(), numbers.next().unwrap());
        if version < (6, 17) {
            let (sent, mode) = sent_by_one_doorbell("", 100, 32);
            assert!(sent == 32 && !mode.contains("tx budget"), "{sent}, {mode}");
            return eprintln!("SKIPPED {TEST}: no XDP_MAX_TX_SKB_BUDGET before Linux 6.17");
        }
        for (options, expected) in [("", 100), ("tx_budget=50", 50), ("tx_budget=32", 32)] {
            let (sent, mode) = sent_by_one_doorbell(options, 100, expected);
            assert_eq!(sent, expected, "{options}");
            let budget = options.strip_prefix("tx_budget=").unwrap_or("128");
            assert!(mode.contains(&format!(", tx budget {budget}, ")), "{mode}");
        }
        // What is only received on has none.
        let pool = pool(8192);
        let port = open("afxdp:a0?rx_ring=64", 0, &pool, 0);
        assert!(!port.port.mode().contains("tx budget"), "{}", port.port.mode());
    });
}

#[test]
fn namespace_packets_arrive_where_the_doorbell_polls() {
    in_namespace("namespace_packets_arrive_where_the_doorbell_polls", || {
        veth("a0", "a1", 1500, 1);
        let pool = pool(16384);
        let [mut from, mut to] = ["a0", "a1"]
            .map(|name| open(&format!("afxdp:{name}?rx_ring=256&tx_ring=256&busy_poll=20"), 0, &pool, 1));
        for port in [&from, &to] {
            assert!(port.port.mode().contains("busy polling 20 us"), "{}", port.port.mode());
        }
        const COUNT: u64 = 5000;
        let (mut sent, mut received) = (0, 0);
        let (mut batch, mut arrived) = (Batch::new(), Batch::new());
        turn_until("all packets have arrived", || {
            while sent < COUNT && batch.room() > 0 && sent - received < 128 {
                let Some(packet) = numbered(&pool, sent, 60) else { break };
                batch.push(packet).unwrap();
                sent += 1;
            }
            from.tx[0].transmit(&mut batch);
            ring_tx(&mut *from.tx[0]);
            assert!(to.rx[0].needs_doorbell(), "it is to be rung at every turn");
            ring_rx(&mut *to.rx[0]);
            to.rx[0].receive(&mut arrived);
            for packet in &arrived {
                assert_eq!(verify(packet), received);
                received += 1;
            }
            arrived.clear();
            received == COUNT
        });
        to.port.refresh();
        assert_eq!(rx_books(&*to.rx[0]), COUNT);
        turn_until("all frames are back", || {
            ring_tx(&mut *from.tx[0]);
            from.tx[0].counters().held.get() == 0
        });
        assert_eq!(from.tx[0].counters().packets.get(), COUNT);
        drop((from, to));
        assert_eq!(pool.audit().held, 0);
    });
}
