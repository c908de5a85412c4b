//! What tests on real interfaces share: a private network namespace, veth pairs in it, and packets that say who they are.
#![forbid(unsafe_code)]
#![allow(dead_code, clippy::unwrap_used)]

use nic::counters::DropReason;
use nic::{Batch, OpenContext, OpenPort, Packet, Pool, PoolConfig, PortId, PortSpec, RxQueue, TxQueue};
use nix::sched::{CloneFlags, unshare};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// One test at a time: they all want the CPU, and pools are few.
static RUNNING: Mutex<()> = Mutex::new(());

/// Runs `test` in a thread with a network namespace of its own, which goes with it; says SKIPPED where that cannot be.
pub(crate) fn in_namespace(name: &str, test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED {name}: needs root");
        return;
    }
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let run = thread::Builder::new().name(name.to_owned()).spawn({
        let name = name.to_owned();
        move || {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                eprintln!("SKIPPED {name}: no network namespace of its own ({error})");
                return;
            }
            // Nobody but the test is to send on its interfaces.
            let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            test();
        }
    });
    run.unwrap().join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Runs a command in the namespace of the calling thread; its words in the panic where it fails.
#[track_caller]
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command}: {text}");
    text
}

/// Makes the veth pair `a` and `b`, both up.
pub(crate) fn veth(a: &str, b: &str, mtu: usize, queues: usize) {
    let more = format!("numrxqueues {queues} numtxqueues {queues}");
    run(&format!("ip link add {a} mtu {mtu} {more} type veth peer name {b} mtu {mtu} {more}"));
    run(&format!("ip link set {a} up"));
    run(&format!("ip link set {b} up"));
}

/// A pool of `frames` frames of 2 KiB.
pub(crate) fn pool(frames: usize) -> Pool {
    Pool::new(&PoolConfig { frames, ..PoolConfig::default() }).unwrap()
}

/// Opens a port.
#[track_caller]
pub(crate) fn open(spec: &str, id: u16, pool: &Pool, tx_queues: usize) -> OpenPort {
    try_open(spec, id, pool, tx_queues).unwrap_or_else(|error| panic!("{error}"))
}

/// Opens a port, or says why not.
pub(crate) fn try_open(spec: &str, id: u16, pool: &Pool, tx_queues: usize) -> Result<OpenPort, String> {
    let spec: PortSpec = spec.parse().map_err(|error| format!("{error}"))?;
    let plan = nic::drivers::check(&spec).map_err(|error| error.to_string())?;
    let context = OpenContext { pool, id: PortId(id), tx_queues, promiscuous: false };
    plan.open(&context).map_err(|error| error.to_string())
}

/// A packet of `length` bytes, as a chain where it does not fit a frame, that carries `number` and a pattern made of it.
pub(crate) fn numbered(pool: &Pool, number: u64, length: usize) -> Option<Packet> {
    let bytes = content(number, length);
    let mut parts = bytes.chunks(pool.data_room()).map(|part| {
        let mut segment = pool.allocate(part.len())?;
        segment.data_mut().copy_from_slice(part);
        Some(segment)
    });
    let mut packet = parts.next()??;
    for part in parts {
        packet.chain(part?);
    }
    Some(packet)
}

/// The bytes of packet `number`: to everybody, from nobody, of a type for experiments.
pub(crate) fn content(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 0x88, 0xb5].to_vec();
    bytes.extend(number.to_be_bytes());
    while bytes.len() < length {
        let place = bytes.len() as u64;
        bytes.push((number.wrapping_mul(31).wrapping_add(place * 7) >> 3) as u8);
    }
    bytes
}

/// The number of a packet; panics where the content is not what belongs to the number.
#[track_caller]
pub(crate) fn verify(packet: &Packet) -> u64 {
    let bytes = packet.to_vec();
    let number = u64::from_be_bytes(bytes[14..22].try_into().unwrap());
    assert_eq!(bytes, content(number, bytes.len()), "packet {number} was changed");
    number
}

/// Rings what needs to be rung.
pub(crate) fn ring_tx(queue: &mut dyn TxQueue) {
    if queue.needs_doorbell() {
        queue.doorbell().unwrap().ring().unwrap();
        // The next turn looks what became of it.
        queue.needs_doorbell();
    }
}

/// The same for receiving.
pub(crate) fn ring_rx(queue: &mut dyn RxQueue) {
    if queue.needs_doorbell() {
        queue.doorbell().unwrap().ring().unwrap();
    }
}

/// Turns until `done` says so; panics after five seconds.
#[track_caller]
pub(crate) fn turn_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < deadline, "still not after 5 s: {what}");
        thread::yield_now();
    }
}

/// Moves what has come in on one port to another; returns how many.
pub(crate) fn forward(rx: &mut dyn RxQueue, tx: &mut dyn TxQueue, batch: &mut Batch) -> usize {
    ring_rx(rx);
    rx.receive(batch);
    let count = batch.len();
    tx.transmit(batch);
    ring_tx(tx);
    count - batch.len()
}

/// All packets that a receive queue's counters account for.
pub(crate) fn rx_books(queue: &dyn RxQueue) -> u64 {
    let counters = queue.counters();
    counters.packets.get() + counters.all_drops().map(|(_, count)| count).sum::<u64>()
}

/// A drop counter of a transmit queue.
pub(crate) fn tx_drops(queue: &dyn TxQueue, reason: DropReason) -> u64 {
    queue.counters().drops(reason).get()
}
