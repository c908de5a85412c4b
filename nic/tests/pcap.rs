//! `pcap:` ports: what comes out is what went in, the books balance, and what cannot be done is said in one line.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod captures;

use captures::*;
use nic::memory::BATCH_SIZE;
use nic::pcap::Capture;
use nic::{
    Batch, DropReason, LinkState, OpenContext, OpenPort, Packet, Pool, PoolConfig, PortId, PortSpec, RxQueue,
    TxQueue,
};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// A directory for captures.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a capture and returns its path.
    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), bytes).unwrap();
        self.text(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The packets of a capture that must be whole.
    fn packets(&self, name: &str) -> Vec<Vec<u8>> {
        let capture = Capture::parse(fs::read(self.path(name)).unwrap()).unwrap();
        assert!(capture.cut_off().is_none(), "{:?}", capture.cut_off());
        capture.packets().map(|packet| packet.data.to_vec()).collect()
    }
}

fn pool(frames: usize) -> Pool {
    Pool::new(&PoolConfig { frames, ..PoolConfig::default() }).unwrap()
}

fn open_with(spec: &str, pool: &Pool, tx_queues: usize) -> Result<OpenPort, String> {
    let plan = nic::drivers::check(&spec.parse::<PortSpec>().unwrap()).map_err(|error| error.to_string())?;
    assert_eq!(plan.rx_queues(), 1);
    let context = OpenContext { pool, id: PortId(3), tx_queues, promiscuous: false };
    plan.open(&context).map_err(|error| error.to_string())
}

fn open(spec: &str, pool: &Pool) -> OpenPort {
    open_with(spec, pool, 1).unwrap()
}

#[track_caller]
fn assert_no_frame_held(pool: &Pool) {
    let audit = pool.audit();
    assert_eq!((audit.held, audit.duplicated), (0, 0), "{audit:?}");
}

fn drops(queue: &dyn RxQueue) -> Vec<(DropReason, u64)> {
    queue.counters().all_drops().filter(|(_, count)| *count > 0).collect()
}

fn tx_drops(queue: &dyn TxQueue) -> Vec<(DropReason, u64)> {
    queue.counters().all_drops().filter(|(_, count)| *count > 0).collect()
}

/// Sends all packets of the batch, ringing the doorbell as a worker does.
fn send_all(tx: &mut dyn TxQueue, batch: &mut Batch) {
    for _ in 0..100 {
        tx.transmit(batch);
        if batch.is_empty() {
            return;
        }
        assert!(tx.needs_doorbell(), "packets are left, and no doorbell is wanted");
        tx.doorbell().unwrap().ring().unwrap();
    }
    panic!("{} packets are never taken", batch.len());
}

/// Receives until the end, at most `seconds`, and hands each batch on.
fn receive_all(rx: &mut dyn RxQueue, seconds: u64, mut take: impl FnMut(&mut Batch)) {
    let (mut batch, start) = (Batch::new(), Instant::now());
    while !rx.is_finished() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "not finished in time: {:?}", drops(rx));
        rx.receive(&mut batch);
        take(&mut batch);
        assert!(batch.is_empty());
    }
    rx.receive(&mut batch);
    assert!(batch.is_empty(), "packets after the end");
}

/// Everything from `spec`, as bytes.
fn receive_bytes(spec: &str, pool: &Pool) -> (Vec<Vec<u8>>, Vec<(DropReason, u64)>) {
    let mut port = open(spec, pool);
    let mut received = Vec::new();
    receive_all(&mut *port.rx[0], 20, |batch| {
        received.extend(batch.iter().map(Packet::to_vec));
        batch.clear();
    });
    let counters = port.rx[0].counters();
    assert_eq!(counters.packets.get(), received.len() as u64);
    assert_eq!(counters.bytes.get(), received.iter().map(Vec::len).sum::<usize>() as u64);
    (received, drops(&*port.rx[0]))
}

#[test]
fn mixed_frames_come_out_identical_byte_by_byte() {
    let (files, frames) = (Files::new(), mixed_frames());
    assert!(frames.iter().any(|frame| frame.len() > 9000) && frames.iter().any(|frame| frame.len() == 60));
    let inputs = [
        ("little.pcap", pcap(Order { big: false }, false, &frames)),
        ("big.pcap", pcap(Order { big: true }, true, &frames)),
        ("little.pcapng", pcapng(Order { big: false }, &frames)),
        ("big.pcapng", pcapng(Order { big: true }, &frames)),
    ];
    for (name, bytes) in inputs {
        let (input, pool) = (files.put(name, bytes), pool(256));
        let start_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let spec = format!("pcap:{input}?out={}&speed=max&loop=20", files.text("out.pcapng"));
        let OpenPort { mut port, mut rx, mut tx } = open(&spec, &pool);
        receive_all(&mut *rx[0], 20, |batch| {
            assert!(batch.iter().all(|packet| packet.port() == PortId(3)));
            send_all(&mut *tx[0], batch);
        });
        let (received, sent) = (rx[0].counters().clone(), tx[0].counters().clone());
        assert_eq!((drops(&*rx[0]), tx_drops(&*tx[0])), (vec![], vec![]));
        port.refresh();
        assert_eq!(port.link(), LinkState::Up { speed_mbps: None });
        assert!(port.mode().contains(&format!("{} packets as fast as they go, 20 times", frames.len())));
        drop((rx, tx, port));
        let expected: Vec<Vec<u8>> = (0..20).flat_map(|_| frames.clone()).collect();
        let out = files.packets("out.pcapng");
        assert_eq!(out.len(), expected.len());
        for (index, (out, expected)) in out.iter().zip(&expected).enumerate() {
            assert_eq!(out, expected, "packet {index} of {name}");
        }
        assert_eq!(
            (received.packets.get(), sent.packets.get()),
            (expected.len() as u64, expected.len() as u64)
        );
        assert_eq!(received.bytes.get(), expected.iter().map(Vec::len).sum::<usize>() as u64);
        assert_eq!(sent.bytes.get(), received.bytes.get());
        assert_no_frame_held(&pool);
        // Stamped with the time of sending, in order.
        let end_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let capture = Capture::parse(fs::read(files.path("out.pcapng")).unwrap()).unwrap();
        let stamps: Vec<u64> = capture.packets().map(|packet| packet.time_ns).collect();
        assert!(stamps.is_sorted());
        let second = 1_000_000_000;
        assert!(stamps[0] + second > start_ns && *stamps.last().unwrap() < end_ns + second);
    }
}

#[test]
fn without_an_output_packets_are_counted_and_freed() {
    let (files, pool) = (Files::new(), pool(256));
    let input = files.put("in.pcap", pcap(Order { big: false }, false, &mixed_frames()));
    let mut port = open(&format!("pcap:{input}?speed=max"), &pool);
    let (rx, tx) = (&mut port.rx[0], &mut port.tx[0]);
    receive_all(&mut **rx, 20, |batch| tx.transmit(batch));
    assert!(tx.doorbell().is_none() && !tx.needs_doorbell());
    assert_eq!(tx.counters().packets.get(), mixed_frames().len() as u64);
    assert_eq!(tx.counters().bytes.get(), rx.counters().bytes.get());
    assert_no_frame_held(&pool);
}

/// A batch of full packets of this length, each with its number in it.
fn numbered(pool: &Pool, first: usize, count: usize, length: usize) -> Batch {
    let mut batch = Batch::new();
    assert_eq!(pool.allocate_batch(&mut batch, count, length, PortId(0)), count);
    for (index, packet) in batch.iter_mut().enumerate() {
        packet.data_mut().fill(0);
        packet.data_mut()[..8].copy_from_slice(&(first as u64 + index as u64).to_be_bytes());
    }
    batch
}

fn numbers(packets: &[Vec<u8>]) -> Vec<u64> {
    packets.iter().map(|packet| u64::from_be_bytes(*packet.first_chunk().unwrap())).collect()
}

#[test]
fn what_the_blocks_cannot_hold_stays_in_the_batch() {
    let (files, pool) = (Files::new(), pool(256));
    let mut port = open(&format!("pcap:none?out={}", files.text("out.pcapng")), &pool);
    let mut taken = 0;
    let mut left = loop {
        let mut batch = numbered(&pool, taken, BATCH_SIZE, 1500);
        port.tx[0].transmit(&mut batch);
        taken += BATCH_SIZE - batch.len();
        assert!(taken < 10_000, "2 MiB of blocks took {taken} packets of 1500 bytes");
        if !batch.is_empty() {
            break batch;
        }
    };
    assert!(port.tx[0].needs_doorbell());
    let before = left.len();
    port.tx[0].transmit(&mut left);
    assert_eq!(left.len(), before, "no room comes by itself");
    port.tx[0].doorbell().unwrap().ring().unwrap();
    port.tx[0].transmit(&mut left);
    assert!(left.is_empty());
    let total = taken + before;
    assert_eq!(port.tx[0].counters().packets.get(), total as u64);
    drop(port);
    assert_eq!(numbers(&files.packets("out.pcapng")), (0..total as u64).collect::<Vec<_>>());
    assert_no_frame_held(&pool);
}

#[test]
fn a_packet_that_has_waited_asks_for_the_doorbell() {
    let (files, pool) = (Files::new(), pool(64));
    let mut port = open(&format!("pcap:none?out={}", files.text("out.pcapng")), &pool);
    let tx = &mut port.tx[0];
    assert!(!tx.needs_doorbell());
    let start = Instant::now();
    tx.transmit(&mut numbered(&pool, 0, 1, 60));
    assert!(files.packets("out.pcapng").is_empty());
    while !tx.needs_doorbell() {
        assert!(start.elapsed() < Duration::from_secs(5), "the doorbell is never asked for");
    }
    assert!(start.elapsed() > Duration::from_millis(9), "{:?}", start.elapsed());
    tx.doorbell().unwrap().ring().unwrap();
    assert!(!tx.needs_doorbell());
    assert_eq!(files.packets("out.pcapng").len(), 1, "the file is whole while the port is open");
    drop(port);
    assert_eq!(files.packets("out.pcapng").len(), 1);
}

#[test]
fn another_thread_may_ring_while_packets_are_sent() {
    let (files, pool) = (Files::new(), pool(256));
    let mut port = open(&format!("pcap:none?out={}", files.text("out.pcapng")), &pool);
    let (doorbell, done) = (port.tx[0].doorbell().unwrap(), AtomicBool::new(false));
    let total = 20_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                doorbell.ring().unwrap();
                std::thread::yield_now();
            }
        });
        let start = Instant::now();
        let mut sent = 0;
        while sent < total && start.elapsed() < Duration::from_secs(60) {
            let mut batch = numbered(&pool, sent, 32, 1000);
            sent += batch.len();
            while !batch.is_empty() && start.elapsed() < Duration::from_secs(60) {
                port.tx[0].transmit(&mut batch);
                port.tx[0].needs_doorbell();
            }
        }
        done.store(true, Ordering::Release);
    });
    drop(port);
    assert_eq!(numbers(&files.packets("out.pcapng")), (0..total as u64).collect::<Vec<_>>());
    assert_no_frame_held(&pool);
}

#[test]
fn several_transmit_queues_write_one_whole_file() {
    let (files, pool) = (Files::new(), pool(512));
    let mut port = open_with(&format!("pcap:none?out={}", files.text("out.pcapng")), &pool, 3).unwrap();
    for round in 0..200 {
        for (queue, tx) in port.tx.iter_mut().enumerate() {
            send_all(&mut **tx, &mut numbered(&pool, (queue << 32) | (round * 10), 10, 900));
        }
    }
    drop(port);
    let numbers = numbers(&files.packets("out.pcapng"));
    for queue in 0..3 {
        let of_queue: Vec<u64> = numbers.iter().copied().filter(|number| number >> 32 == queue).collect();
        assert_eq!(of_queue, (0..2000).map(|number| (queue << 32) | number).collect::<Vec<_>>());
    }
    assert_no_frame_held(&pool);
}

#[test]
fn a_full_disk_is_refused_at_the_start() {
    let pool = pool(64);
    let error = open_with("pcap:none?out=/dev/full", &pool, 1).err().unwrap();
    assert!(
        error.contains("No space left on device") && error.contains("choose another out=FILE"),
        "{error}"
    );
}

/// Runs itself again under a limit on the size of files, which a process can have only as a whole.
#[test]
fn a_disk_that_gets_full_ends_the_port_in_words_and_every_packet_is_counted() {
    const LIMITED: &str = "ISOPLANE_TEST_FILE_SIZE_LIMITED";
    if std::env::var_os(LIMITED).is_none() {
        let name = "a_disk_that_gets_full_ends_the_port_in_words_and_every_packet_is_counted";
        let output = std::process::Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 5000; exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(LIMITED, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}{output:?}");
        return;
    }
    let (files, pool) = (Files::new(), pool(256));
    let mut port = open_with(&format!("pcap:none?out={}", files.text("out.pcapng")), &pool, 2).unwrap();
    let (mut taken, mut gone) = ([0, 0], None);
    for round in 0..100 {
        for (tx, taken) in port.tx.iter_mut().zip(&mut taken) {
            let mut batch = numbered(&pool, round * BATCH_SIZE, BATCH_SIZE, 1500);
            tx.transmit(&mut batch);
            *taken += (BATCH_SIZE - batch.len()) as u64;
            if tx.needs_doorbell() {
                gone = gone.or(tx.doorbell().unwrap().ring().err());
            }
        }
    }
    let gone = gone.expect("the limit was not met").to_string();
    assert!(
        gone.contains("pcap:none has stopped: cannot write to") && gone.contains("File too large"),
        "{gone}"
    );
    assert!(matches!(port.port.link(), LinkState::Gone(reason) if reason.contains("File too large")));
    let counters: Vec<_> = port.tx.iter().map(|tx| tx.counters().clone()).collect();
    drop(port);
    let mut written = 0;
    for (counters, taken) in counters.iter().zip(taken) {
        let (sent, lost) = (counters.packets.get(), counters.drops(DropReason::TxPortDown).get());
        assert!(lost > 0);
        assert_eq!((sent + lost, counters.bytes.get()), (taken, sent * 1500));
        written += sent;
    }
    assert!(written > 100);
    assert_eq!(files.packets("out.pcapng").len() as u64, written, "the file holds what was counted, whole");
    assert_no_frame_held(&pool);
}

#[test]
fn packets_captured_in_part_are_dropped_or_delivered_as_asked() {
    let (files, pool, order) = (Files::new(), pool(64), Order { big: false });
    let mut bytes = pcap_header(order, false, 1);
    for (captured, original) in [(60, 60), (96, 1500), (13, 13), (0, 0), (14, 14), (13, 60)] {
        bytes.extend(pcap_record(order, 1000, 0, &vec![captured as u8; captured], original));
    }
    let input = files.put("in.pcap", bytes);
    let lengths = |spec: String| {
        let (received, drops) = receive_bytes(&spec, &pool);
        (received.iter().map(Vec::len).collect::<Vec<_>>(), drops)
    };
    assert_eq!(lengths(format!("pcap:{input}")), (vec![60, 14], vec![(DropReason::RxTruncated, 4)]));
    let partial = lengths(format!("pcap:{input}?partial=deliver&loop=2"));
    assert_eq!(partial, (vec![60, 96, 14, 60, 96, 14], vec![(DropReason::RxTruncated, 6)]));
    assert_no_frame_held(&pool);
}

#[test]
fn a_packet_longer_than_the_pool_is_oversize() {
    let (files, pool) = (Files::new(), pool(64));
    let room = pool.data_room() * 64;
    let frames = [vec![1; 60], vec![2; room], vec![3; room + 1], vec![4; 60]];
    let input = files.put("in.pcapng", pcapng(Order { big: false }, &frames));
    let spec = format!("pcap:{input}?speed=max");
    let plan = nic::drivers::check(&spec.parse().unwrap()).unwrap();
    assert!(plan.frames(1) > 64, "the plan asks for a pool that holds the longest packet");
    drop(plan);
    let mut port = open(&spec, &pool);
    let mut lengths = Vec::new();
    let mut batch = Batch::new();
    while !port.rx[0].is_finished() {
        // One at a time: the long one takes every frame there is.
        port.rx[0].receive(&mut batch);
        lengths.extend(batch.iter().map(Packet::total_len));
        batch.clear();
    }
    assert_eq!(lengths, [60, room, 60]);
    assert_eq!(drops(&*port.rx[0]), [(DropReason::RxOversize, 1)]);
    assert_no_frame_held(&pool);
}

#[test]
fn an_empty_pool_makes_the_capture_wait_but_not_for_ever() {
    let (files, pool) = (Files::new(), pool(64));
    let frames: Vec<Vec<u8>> = (0..300_u16).map(|number| number.to_be_bytes().repeat(500)).collect();
    let input = files.put("in.pcapng", pcapng(Order { big: false }, &frames));
    let mut port = open(&format!("pcap:{input}?speed=max"), &pool);
    let rx = &mut port.rx[0];
    let mut received = Vec::new();
    let mut held = Batch::new();
    rx.receive(&mut held);
    assert_eq!(held.len(), 64);
    let mut batch = Batch::new();
    rx.receive(&mut batch);
    assert!(batch.is_empty() && drops(&**rx).is_empty(), "an empty pool costs no packet at first");
    received.extend(held.iter().map(Packet::to_vec));
    held.clear();
    rx.receive(&mut held);
    assert_eq!(held.len(), 64);
    received.extend(held.iter().map(Packet::to_vec));
    assert_eq!(received, frames[..128]);
    let start = Instant::now();
    receive_all(&mut **rx, 20, |batch| assert!(batch.is_empty()));
    assert!(start.elapsed() > Duration::from_millis(90), "{:?}", start.elapsed());
    assert_eq!(drops(&**rx), [(DropReason::RxNoFrame, 300 - 128)]);
    assert_eq!(rx.counters().packets.get(), 128);
    drop((held, batch));
    assert_no_frame_held(&pool);
}

#[test]
fn the_pace_of_the_capture_is_kept() {
    let (files, pool, order) = (Files::new(), pool(64), Order { big: false });
    let mut bytes = pcap_header(order, true, 1);
    // The third is stamped before the second: due at once when its turn comes.
    let stamps_ms = [1000, 1040, 1020, 1080];
    for stamp_ms in stamps_ms {
        bytes.extend(pcap_record(order, 1, stamp_ms * 1_000_000, &[7; 60], 60));
    }
    let input = files.put("in.pcap", bytes);
    let mut port = open(&format!("pcap:{input}?loop=2"), &pool);
    assert!(port.port.mode().contains("4 packets over 0.080 s, 2 times"), "{}", port.port.mode());
    let (start, mut seen_ms) = (Instant::now(), Vec::new());
    receive_all(&mut *port.rx[0], 20, |batch| {
        seen_ms.extend((0..batch.len()).map(|_| start.elapsed().as_millis() as u64));
        batch.clear();
    });
    // A pass is followed by the next after the mean distance, 26 ms. Late is the machine's business, early is not.
    for (seen, due) in seen_ms.iter().zip([0, 40, 40, 80, 106, 146, 146, 186]) {
        assert!(*seen + 2 >= due && *seen < due + 2000, "{seen_ms:?}");
    }
    assert_eq!(seen_ms.len(), 8);
}

#[test]
fn absurd_stamps_and_empty_captures_do_no_harm() {
    let (files, pool, order) = (Files::new(), pool(64), Order { big: false });
    for passes in [0, 1] {
        let input = files.put("empty.pcap", pcap(order, false, &[]));
        assert_eq!(receive_bytes(&format!("pcap:{input}?loop={passes}"), &pool), (vec![], vec![]));
    }
    let mut batch = Batch::new();
    let far_ns = (57..64).map(|power| 1 << power).chain([u64::MAX]);
    for far_ns in far_ns {
        let mut bytes = [section(order), interface(order, 1, 0, &[(9, vec![9])])].concat();
        for time_ns in [0, far_ns] {
            bytes.extend(enhanced_packet(order, 0, time_ns, &[7; 60], 60));
        }
        let mut port = open(&format!("pcap:{}", files.put("far.pcapng", bytes)), &pool);
        for _ in 0..2 {
            port.rx[0].receive(&mut batch);
            assert_eq!(batch.len(), 1, "the second is due in years");
        }
        assert!(!port.rx[0].is_finished());
        batch.clear();
    }
    let input = files.text("far.pcapng");
    let mut port = open(&format!("pcap:{input}?speed=max&loop=0"), &pool);
    for _ in 0..100 {
        batch.clear();
        port.rx[0].receive(&mut batch);
        assert_eq!(batch.len(), BATCH_SIZE, "for ever");
    }
}

#[test]
fn a_cut_off_capture_is_used_only_on_request() {
    let (files, pool) = (Files::new(), pool(64));
    let frames = [vec![1; 60], vec![2; 60]];
    let mut bytes = pcap(Order { big: false }, false, &frames);
    bytes.truncate(bytes.len() - 1);
    let input = files.put("in.pcap", bytes);
    let error = open_with(&format!("pcap:{input}"), &pool, 1).err().unwrap();
    let words =
        ["packet 2 at byte 100 needs 76 bytes, 75 are left", "truncated=accept to use the 1 whole packets"];
    assert!(words.iter().all(|words| error.contains(words)) && !error.contains('\n'), "{error}");
    let (received, drops) = receive_bytes(&format!("pcap:{input}?truncated=accept"), &pool);
    assert_eq!((received, drops), (frames[..1].to_vec(), vec![]));
}

#[test]
fn mistakes_are_explained_in_one_line() {
    let (files, pool, order) = (Files::new(), pool(64), Order { big: false });
    let good = pcap(order, false, &[vec![1; 60], vec![2; 60]]);
    let input = files.put("in.pcap", &good);
    let mut corrupt = good.clone();
    corrupt[108..112].fill(0xFF);
    let (corrupt, empty, text) =
        (files.put("corrupt", corrupt), files.put("empty", ""), files.put("text", "hello"));
    let gzip = files.put("in.pcap.gz", [0x1F, 0x8B, 8, 0]);
    let raw_ip = files.put("raw", pcap_header(order, false, 101));
    fs::hard_link(files.path("in.pcap"), files.path("hard")).unwrap();
    std::os::unix::fs::symlink(files.path("in.pcap"), files.path("soft")).unwrap();
    let fifo = files.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (fifo, here) = (fifo.display(), files.0.path().display());
    let out = files.text("out.pcapng");
    let cases = [
        (format!("pcap:{here}/no.pcap"), "No such file or directory"),
        (format!("pcap:{here}/no.pcap"), "pcap:none?out=FILE to write only"),
        (format!("pcap:{here}"), "not a regular file"),
        (format!("pcap:{fifo}"), "not a regular file"),
        ("pcap:/dev/zero".into(), "not a regular file"),
        (format!("pcap:{input}/x"), "Not a directory"),
        (format!("pcap:{empty}"), "an empty file: capture again"),
        (format!("pcap:{text}"), "neither pcap nor pcapng: it begins with the bytes 68 65 6c 6c"),
        (format!("pcap:{gzip}"), "compressed (gzip): unpack it first: \"gzip -dc "),
        (format!("pcap:{raw_ip}"), "link type 101 at byte 20, and only Ethernet (1) is read"),
        (format!("pcap:{corrupt}"), "corrupt at byte 100, behind 1 whole packets"),
        (format!("pcap:{corrupt}"), "whole.pcapng 1-1\""),
        (format!("pcap:{corrupt}?truncated=accept"), "corrupt at byte 100"),
        (format!("pcap:{input}?speed=fast"), "choose wire, max"),
        (format!("pcap:{input}?loop=-1"), "choose a whole number"),
        (format!("pcap:{input}?partial=yes"), "choose drop, deliver"),
        (format!("pcap:{input}?truncated=yes"), "choose refuse, accept"),
        (format!("pcap:{input}?queues=2"), "unknown option \"queues\": it takes out, speed, loop"),
        ("pcap:none".into(), "write pcap:none?out=FILE or pcap:FILE"),
        (format!("pcap:none?speed=max&out={out}"), "unknown option \"speed\""),
        ("pcap:none?out=".into(), "names no file"),
        ("pcap:none?out=/".into(), "out=/ names no file"),
        (format!("pcap:none?out={here}"), "is a directory"),
        (format!("pcap:none?out={here}/no/out.pcapng"), "No such file or directory"),
        ("pcap:none?out=/proc/out.pcapng".into(), "choose another out=FILE"),
        (format!("pcap:none?out={fifo}"), "choose another out=FILE"),
        (format!("pcap:{input}?out={input}"), "is the input itself: choose another file"),
        (format!("pcap:{input}?out={here}/hard"), "is the input itself"),
        (format!("pcap:{input}?out={here}/soft"), "is the input itself"),
    ];
    for (spec, words) in &cases {
        let error = open_with(spec, &pool, 1).err().unwrap_or_else(|| panic!("{spec} was opened"));
        assert!(error.contains(words) && !error.contains('\n'), "{spec}: {error}");
    }
    assert_eq!(fs::read(files.path("in.pcap")).unwrap(), good, "the input is untouched");
}

#[test]
fn a_file_has_one_writer_and_a_replayed_one_none() {
    let (files, pool) = (Files::new(), pool(64));
    let bytes = pcap(Order { big: false }, false, &[vec![1; 60]]);
    let (input, out) = (files.put("in.pcap", &bytes), files.text("out.pcapng"));
    let error = |spec: &str| open_with(spec, &pool, 1).err().unwrap();
    let mut writer = open(&format!("pcap:none?out={out}"), &pool);
    writer.tx[0].transmit(&mut numbered(&pool, 0, 1, 60));
    assert!(error(&format!("pcap:none?out={out}")).contains("in use by another port"));
    assert!(error(&format!("pcap:{out}")).contains("another port is writing to the capture"));
    let reader = open(&format!("pcap:{input}"), &pool);
    assert!(error(&format!("pcap:none?out={input}")).contains("in use by another port"));
    assert_eq!(fs::read(files.path("in.pcap")).unwrap(), bytes);
    drop((reader, writer));
    assert_eq!(files.packets("out.pcapng").len(), 1);
    // Replayed together, and written over when nobody uses it.
    let both = [open(&format!("pcap:{input}"), &pool), open(&format!("pcap:{input}"), &pool)];
    drop(both);
    drop(open(&format!("pcap:none?out={input}"), &pool));
    assert!(files.packets("in.pcap").is_empty(), "a port that sent nothing leaves an empty capture");
}
