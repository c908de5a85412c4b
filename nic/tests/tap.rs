//! `tap:` ports: two of them on one bridge of the kernel, so that what goes out by one comes in by the other (root).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use nic::port::{LinkState, OpenPort};
use nic::{Batch, DropReason, Pool};
use std::time::{Duration, Instant};
use support::{
    in_namespace, numbered, open, pool, ring_rx, ring_tx, run, rx_books, try_open, turn_until, tx_drops,
    verify,
};

/// Two interfaces, `t0` and `t1`, on one bridge.
fn pair(pool: &Pool, mtu: usize) -> (OpenPort, OpenPort) {
    let a = open(&format!("tap:t0?mtu={mtu}"), 0, pool, 1);
    let b = open(&format!("tap:t1?mtu={mtu}&mac=02:00:00:00:00:0b"), 1, pool, 1);
    run("ip link add bridge type bridge mcast_snooping 0");
    run(&format!("ip link set bridge mtu {mtu} up"));
    for name in ["t0", "t1"] {
        run(&format!("ip link set {name} master bridge"));
    }
    // A first frame passes when the bridge's ports forward.
    let (mut a, mut b) = (a, b);
    turn_until("the bridge forwards", || {
        let mut batch = Batch::new();
        batch.push(numbered(pool, 0, 60).unwrap()).unwrap();
        a.tx[0].transmit(&mut batch);
        ring_tx(&mut *a.tx[0]);
        std::thread::sleep(Duration::from_millis(2));
        take(&mut b, &mut batch) > 0
    });
    turn_until("the bridge is empty", || {
        std::thread::sleep(Duration::from_millis(5));
        let mut batch = Batch::new();
        take(&mut b, &mut batch) + take(&mut a, &mut batch) == 0
    });
    (a, b)
}

/// Receives what is there; says how many.
fn take(port: &mut OpenPort, batch: &mut Batch) -> usize {
    batch.clear();
    ring_rx(&mut *port.rx[0]);
    port.rx[0].receive(batch);
    batch.len()
}

fn cross(lengths: &[usize], mtu: usize, count: u64) {
    let pool = pool(8192);
    let (mut a, mut b) = pair(&pool, mtu);
    let before = (a.tx[0].counters().packets.get(), b.rx[0].counters().packets.get());
    let (mut sent, mut received) = (0, 0);
    let mut batch = Batch::new();
    turn_until("all have come", || {
        // No more on their way than the interface holds.
        let mut out = Batch::new();
        while sent < count && sent < received + 200 && out.room() > 0 {
            let length = lengths[sent as usize % lengths.len()];
            out.push(numbered(&pool, sent, length).unwrap()).unwrap();
            sent += 1;
        }
        a.tx[0].transmit(&mut out);
        assert!(out.is_empty());
        ring_tx(&mut *a.tx[0]);
        take(&mut b, &mut batch);
        for packet in batch.iter() {
            assert_eq!(verify(packet), received);
            assert_eq!(packet.total_len(), lengths[received as usize % lengths.len()]);
            assert_eq!(packet.port().0, 1);
            received += 1;
        }
        received == count
    });
    ring_tx(&mut *a.tx[0]);
    assert_eq!(a.tx[0].counters().packets.get() - before.0, count);
    assert_eq!(b.rx[0].counters().packets.get() - before.1, count);
    assert_eq!(rx_books(&*b.rx[0]), b.rx[0].counters().packets.get());
    batch.clear();
    drop((a, b));
    assert_eq!(pool.audit().free, 8192);
    assert!(!run("ip link show").contains(" t0:"), "the interface stays");
}

#[test]
fn namespace_frames_cross_two_taps_whole_and_in_order() {
    in_namespace("namespace_frames_cross_two_taps_whole_and_in_order", || {
        cross(&[60, 61, 1513, 1514, 128, 1000], 1500, 2000);
    });
}

#[test]
fn namespace_long_frames_cross_two_taps_as_chains() {
    in_namespace("namespace_long_frames_cross_two_taps_as_chains", || {
        cross(&[60, 9014, 1523, 4000], 9000, 500)
    });
}

#[test]
fn namespace_what_a_tap_cannot_take_has_a_name() {
    in_namespace("namespace_what_a_tap_cannot_take_has_a_name", || {
        let pool = pool(8192);
        let (mut a, mut b) = pair(&pool, 1500);
        let send = |port: &mut OpenPort, length| {
            let mut batch = Batch::new();
            batch.push(numbered(&pool, 1, length).unwrap()).unwrap();
            let mut short = pool.allocate(13).unwrap();
            short.data_mut().fill(0xff);
            batch.push(short).unwrap();
            port.tx[0].transmit(&mut batch);
            assert!(batch.is_empty());
            ring_tx(&mut *port.tx[0]);
            let _ = port.tx[0].needs_doorbell();
        };
        send(&mut a, 1523);
        assert_eq!(tx_drops(&*a.tx[0], DropReason::TxOversize), 1);
        assert_eq!(tx_drops(&*a.tx[0], DropReason::TxUndersize), 1);
        // Somebody raises the MTU behind our back: longer frames come, and are no packets of ours.
        for name in ["t0", "t1", "bridge"] {
            run(&format!("ip link set {name} mtu 9000"));
        }
        let wide = try_open("tap:t2?mtu=9000", 2, &pool, 1).unwrap();
        let mut wide = wide;
        run("ip link set t2 master bridge");
        let oversize = |b: &OpenPort| b.rx[0].counters().drops(DropReason::RxOversize).get();
        let mut batch = Batch::new();
        turn_until("a frame that is too long is counted", || {
            send(&mut wide, 3000);
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(take(&mut b, &mut batch), 0);
            oversize(&b) > 0
        });
        // Down: by name, and it comes back.
        run("ip link set t0 down");
        assert_eq!(a.port.link(), LinkState::Down);
        let before = a.tx[0].counters().packets.get();
        send(&mut a, 60);
        assert_eq!(a.tx[0].counters().packets.get(), before);
        assert_eq!(tx_drops(&*a.tx[0], DropReason::TxPortDown), 1);
        run("ip link set t0 up");
        assert!(matches!(a.port.link(), LinkState::Up { .. }));
        // Removed: for good.
        run("ip link del t0");
        assert_eq!(a.port.link(), LinkState::Gone("its interface was removed".into()));
        send(&mut a, 60);
        assert_eq!(tx_drops(&*a.tx[0], DropReason::TxPortDown), 3);
        let gone = a.rx[0].doorbell().unwrap().ring().unwrap_err();
        assert_eq!(gone.port, "tap:t0");
        drop((a, b, wide));
        assert_eq!(pool.audit().free, 8192);
    });
}

#[test]
fn namespace_a_removed_tap_is_noticed_by_its_doorbell() {
    in_namespace("namespace_a_removed_tap_is_noticed_by_its_doorbell", || {
        let pool = pool(4096);
        let mut a = open("tap:t0", 0, &pool, 1);
        run("ip link del t0");
        assert!(a.rx[0].doorbell().unwrap().ring().is_err());
        let mut batch = Batch::new();
        batch.push(numbered(&pool, 1, 60).unwrap()).unwrap();
        a.tx[0].transmit(&mut batch);
        assert_eq!(tx_drops(&*a.tx[0], DropReason::TxPortDown), 1);
        assert!(!a.rx[0].needs_doorbell());
        drop(a);
        assert_eq!(pool.audit().free, 4096);
    });
}

#[test]
fn namespace_a_taken_name_is_refused_with_the_way_out() {
    in_namespace("namespace_a_taken_name_is_refused_with_the_way_out", || {
        let pool = pool(4096);
        let first = open("tap:t0?mac=02:00:00:00:00:0a&mtu=1400&up=off", 0, &pool, 1);
        let said = run("ip link show t0");
        assert!(
            said.contains("02:00:00:00:00:0a") && said.contains("mtu 1400") && !said.contains("UP"),
            "{said}"
        );
        assert_eq!(
            (first.port.mac().to_string().as_str(), first.port.max_packet_len()),
            ("02:00:00:00:00:0a", 1414)
        );
        for name in ["t0", "lo"] {
            let error = try_open(&format!("tap:{name}"), 1, &pool, 1).err().unwrap();
            assert!(
                error.contains("choose another") && error.contains(&format!("ip link del {name}")),
                "{error}"
            );
        }
        drop(first);
        drop(open("tap:t0", 1, &pool, 1));
    });
}

#[test]
fn namespace_a_tap_is_asked_at_a_bounded_rate_and_what_was_not_read_is_counted() {
    in_namespace("namespace_a_tap_is_asked_at_a_bounded_rate_and_what_was_not_read_is_counted", || {
        let pool = pool(8192);
        let (mut a, mut b) = pair(&pool, 1500);
        // Long enough for it to be idle.
        std::thread::sleep(Duration::from_millis(15));
        let _ = b.rx[0].needs_doorbell();
        let (start, mut idle) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_millis(50) || idle == 0 {
            idle += u64::from(b.rx[0].needs_doorbell());
        }
        let most = start.elapsed().as_millis() as u64 + 1;
        assert!((1..=most).contains(&idle), "{idle} of at most {most}");
        let mut batch = Batch::new();
        (0..20).for_each(|number| batch.push(numbered(&pool, number, 60).unwrap()).unwrap());
        a.tx[0].transmit(&mut batch);
        ring_tx(&mut *a.tx[0]);
        turn_until("all are read", || {
            ring_rx(&mut *b.rx[0]);
            let _ = b.rx[0].needs_doorbell();
            b.rx[0].counters().held.get() == 20
        });
        // Busy, it is asked more often, and still by the clock.
        // Who is kept from its CPU asks less often: it has several attempts.
        let often = (0..40).any(|_| {
            let (start, mut busy) = (Instant::now(), 0);
            while start.elapsed() < Duration::from_millis(50) {
                busy += u64::from(b.rx[0].needs_doorbell());
            }
            let most = start.elapsed().as_micros() as u64 / 50 + 1;
            assert!(busy <= most, "{busy} of at most {most}");
            busy > 100
        });
        assert!(often);
        let counters = std::sync::Arc::clone(b.rx[0].counters());
        let late = b.rx[0].doorbell().unwrap();
        drop(b);
        // Who rings when the queue has gone finds nobody to read for.
        let mut batch = Batch::new();
        batch.push(numbered(&pool, 0, 60).unwrap()).unwrap();
        a.tx[0].transmit(&mut batch);
        ring_tx(&mut *a.tx[0]);
        std::thread::sleep(Duration::from_millis(5));
        late.ring().unwrap();
        drop(a);
        assert_eq!(counters.drops(DropReason::RxUnread).get(), 20);
        assert_eq!(pool.audit().free, 8192);
        drop(late);
    });
}
