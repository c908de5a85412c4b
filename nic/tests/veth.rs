//! `veth:` ports, used by the kernel's own network stack at their far ends.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use nic::{Batch, LinkState, OpenPort, Pool};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use support::{forward, in_namespace, open, pool, run};

/// The command that a port's mode names, up to the namespace: `nsenter --net=...`.
fn way_in(port: &OpenPort) -> String {
    let mode = port.port.mode();
    mode[mode.find("nsenter").unwrap()..].to_owned()
}

/// Runs `inside` in the namespace of a port's far end, in a thread of its own.
fn beyond<T: Send + 'static>(
    port: &OpenPort,
    inside: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let path = way_in(port).split_once("--net=").unwrap().1.to_owned();
    thread::spawn(move || {
        setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        inside()
    })
}

/// Two ports with a forwarder between them, running while `test` does; afterwards the books must come out and no frame be out.
fn with_forwarder(options: &str, test: impl FnOnce(&OpenPort, &OpenPort)) {
    let pool: Pool = pool(32768);
    let small = "rx_ring=1024&tx_ring=1024";
    let a = open(&format!("veth:a?address=10.0.0.1/24,fd00::1/64&{small}&{options}"), 0, &pool, 1);
    let b = open(&format!("veth:b?address=10.0.0.2/24,fd00::2/64&{small}&{options}"), 1, &pool, 1);
    let OpenPort { port: a_port, rx: mut a_rx, tx: mut a_tx } = a;
    let OpenPort { port: b_port, rx: mut b_rx, tx: mut b_tx } = b;
    let counters = [a_rx[0].counters().clone(), b_rx[0].counters().clone()];
    let sent = [b_tx[0].counters().clone(), a_tx[0].counters().clone()];
    let stop = Arc::new(AtomicBool::new(false));
    let forwarder = thread::spawn({
        let stop = stop.clone();
        move || {
            let (mut there, mut back) = (Batch::new(), Batch::new());
            while !stop.load(Ordering::Relaxed) {
                let moved = forward(&mut *a_rx[0], &mut *b_tx[0], &mut there)
                    + forward(&mut *b_rx[0], &mut *a_tx[0], &mut back);
                if moved == 0 {
                    thread::yield_now();
                }
            }
            (there.len() + back.len()) as u64
        }
    });
    let mut a = OpenPort { port: a_port, rx: Vec::new(), tx: Vec::new() };
    let mut b = OpenPort { port: b_port, rx: Vec::new(), tx: Vec::new() };
    test(&a, &b);
    stop.store(true, Ordering::Relaxed);
    let left = forwarder.join().unwrap();
    a.port.refresh();
    b.port.refresh();
    let received: u64 = counters.iter().map(|counters| counters.packets.get()).sum();
    let transmitted: u64 = sent.iter().map(|counters| counters.packets.get()).sum();
    let dropped: u64 = sent.iter().flat_map(|counters| counters.all_drops()).map(|(_, count)| count).sum();
    assert_eq!(received, transmitted + dropped + left);
    drop((a, b));
    assert_eq!(pool.audit().held, 0);
}

#[test]
fn namespace_ping_through_two_veth_ports_loses_nothing() {
    in_namespace("namespace_ping_through_two_veth_ports_loses_nothing", || {
        with_forwarder("", |a, b| {
            assert_eq!((a.port.name(), a.port.driver()), ("veth:a", "veth"));
            for (port, address) in [(a, "10.0.0.2"), (b, "10.0.0.1"), (a, "fd00::2")] {
                let answer = run(&format!("{} ping -q -c 300 -i 0.002 -W 2 {address}", way_in(port)));
                assert!(answer.contains("300 received"), "{answer}");
            }
        });
    });
}

#[test]
fn namespace_jumbo_pings_pass_unfragmented() {
    in_namespace("namespace_jumbo_pings_pass_unfragmented", || {
        with_forwarder("mtu=9000", |a, _| {
            assert!(a.port.mode().contains("multi-buffer"), "{}", a.port.mode());
            let ping = format!("{} ping -q -c 100 -i 0.002 -W 2 -M do -s 8972 10.0.0.2", way_in(a));
            let answer = run(&ping);
            assert!(answer.contains("100 received"), "{answer}");
        });
    });
}

/// 24 MiB each way over one connection, byte by byte what was sent.
fn tcp(options: &str) {
    const BLOCK: usize = 64 << 10;
    const BLOCKS: usize = 384;
    fn block(number: usize) -> Vec<u8> {
        (0..BLOCK).map(|place| (place * 7 + number * 13 + (place >> 9)) as u8).collect()
    }
    fn send(stream: &mut TcpStream) {
        for number in 0..BLOCKS {
            stream.write_all(&block(number)).unwrap();
        }
    }
    fn receive(stream: &mut TcpStream) {
        let mut bytes = vec![0; BLOCK];
        for number in 0..BLOCKS {
            stream.read_exact(&mut bytes).unwrap();
            assert!(bytes == block(number), "block {number} arrived changed");
        }
    }
    fn limit(stream: &TcpStream) {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    with_forwarder(options, |a, b| {
        let (listening, listens) = std::sync::mpsc::channel();
        let server = beyond(b, move || {
            let listener = TcpListener::bind("10.0.0.2:7000").unwrap();
            listening.send(()).unwrap();
            let mut stream = listener.accept().unwrap().0;
            limit(&stream);
            receive(&mut stream);
            send(&mut stream);
        });
        listens.recv_timeout(Duration::from_secs(5)).unwrap();
        let client = beyond(a, || {
            let address = "10.0.0.2:7000".parse().unwrap();
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
            limit(&stream);
            send(&mut stream);
            receive(&mut stream);
        });
        client.join().unwrap();
        server.join().unwrap();
    });
}

#[test]
fn namespace_tcp_arrives_bit_by_bit() {
    in_namespace("namespace_tcp_arrives_bit_by_bit", || tcp(""));
}

#[test]
fn namespace_tcp_in_jumbo_frames_arrives_bit_by_bit() {
    in_namespace("namespace_tcp_in_jumbo_frames_arrives_bit_by_bit", || tcp("mtu=9000"));
}

#[test]
fn namespace_a_veth_port_leaves_the_caller_where_it_was_and_nothing_behind() {
    in_namespace("namespace_a_veth_port_leaves_the_caller_where_it_was_and_nothing_behind", || {
        let here = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let held = || {
            let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            links
                .filter_map(|entry| std::fs::read_link(entry.path()).ok())
                .filter(|link| link.to_string_lossy().starts_with("net:"))
                .count()
        };
        let (before, held_before) = (here(), held());
        let pool = pool(8192);
        let port = open("veth:a?rx_ring=64&tx_ring=64&queues=2", 0, &pool, 3);
        assert_eq!((port.rx.len(), port.tx.len()), (2, 3));
        assert_eq!((here(), held()), (before, held_before + 1));
        assert!(!run("ip link").contains("dp-a"));
        let inside = run(&format!("{} ip link", way_in(&port)));
        assert!(inside.contains("a@dp-a") && inside.contains("dp-a@a"), "{inside}");
        let offloads = run(&format!("{} ethtool -k a", way_in(&port)));
        assert!(offloads.contains("tx-checksumming: off"), "{offloads}");
        drop(port);
        // Packets can pass from the first moment.
        for _ in 0..5 {
            let mut port = open("veth:a?rx_ring=64&tx_ring=64", 0, &pool, 1);
            assert!(matches!(port.port.link(), LinkState::Up { .. }), "{:?}", port.port.link());
        }
        assert_eq!((held(), pool.audit().held), (held_before, 0));
    });
}
