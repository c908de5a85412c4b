//! Clients that mean harm: each is answered or closed in bounded time, and somebody who asks meanwhile is served.

use super::super::client::LONGEST_REQUEST;
use super::super::socket_file::SocketFile;
use super::super::view::tests::view;
use super::*;
use nic::QueueCounters;
use nix::time::{ClockId, clock_gettime};
use proptest::prelude::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

/// No test waits longer for anything: far more than the machine's slowest moment.
const LIMIT: Duration = Duration::from_secs(20);
const ASK: &[u8] = b"{\"show\": \"pool\"}\n";

/// A server on a thread of the test's, and its sockets.
struct Served {
    path: PathBuf,
    address: SocketAddr,
    counters: Arc<QueueCounters>,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<(Server, Duration)>>,
    _folder: tempfile::TempDir,
}

impl Served {
    fn new(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ctl");
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap();
        metrics.set_nonblocking(true).unwrap();
        let address = metrics.local_addr().unwrap();
        let endpoints = Endpoints {
            settings: Default::default(),
            ctl: Some(SocketFile::bind(&path).unwrap()),
            metrics: Some(metrics),
        };
        let (stopped, stop) = UnixStream::pair().unwrap();
        let (view, counters) = view();
        let mut server = Server::new(endpoints, view, stopped, limits);
        let thread = thread::spawn(move || {
            server.serve();
            let cpu = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
            (server, cpu.into())
        });
        Self { path, address, counters, stop: Some(stop), thread: Some(thread), _folder: folder }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    fn connect_http(&self) -> TcpStream {
        let stream = TcpStream::connect_timeout(&self.address, LIMIT).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Somebody with a right request has the right answer.
    #[track_caller]
    fn assert_serves(&self) {
        let answer = ask(&mut self.connect(), ASK);
        assert!(answer.starts_with("{\"pool\":{\"frames\":64,"), "{answer}");
        let mut stream = self.connect_http();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    }

    /// Ends it, and gives it back, with the time of the CPU that it took.
    fn end(mut self) -> (Server, Duration) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap()
    }
}

fn ask(stream: &mut UnixStream, line: &[u8]) -> String {
    stream.write_all(line).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer
}

/// What comes until the other side closes; that it does, in whichever way, is what matters.
fn rest_of(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => panic!("not closed within {LIMIT:?}"),
        _ => bytes,
    }
}

fn brief() -> Limits {
    Limits { clients: 4, patience: Duration::from_millis(300) }
}

#[test]
fn one_connection_has_many_requests_and_each_its_answer_in_order() {
    let served = Served::new(Limits::default());
    let mut stream = served.connect();
    // In one write, and the last line in two.
    stream.write_all(b"{\"show\": \"pool\"}\nnonsense\n{\"show\": \"drops\"}\n{\"show\": ").unwrap();
    served.counters.packets.add(7);
    stream.write_all(b"\"ports\"}\n").unwrap();
    let answers: Vec<String> = BufReader::new(&stream).lines().take(4).map(Result::unwrap).collect();
    for (answer, begins) in answers.iter().zip(["{\"pool\":", "{\"error\":", "{\"drops\":", "{\"ports\":"]) {
        assert!(answer.starts_with(begins), "{answers:?}");
    }
    assert!(answers[3].contains("\"rx_packets\":7,"), "{answers:?}");
}

#[test]
fn a_gibibyte_in_one_line_is_refused_in_words_and_takes_no_memory() {
    let served = Served::new(Limits { clients: 4, patience: Duration::from_secs(2) });
    let mut stream = served.connect();
    let mut writer = stream.try_clone().unwrap();
    let flood = thread::spawn(move || {
        let block = vec![b'x'; 1 << 20];
        (0..1024).take_while(|_| writer.write_all(&block).is_ok()).count()
    });
    let mut answer = String::new();
    BufReader::new(&mut stream).read_line(&mut answer).unwrap();
    assert!(answer.contains("at most 8192 bytes: this one is longer"), "{answer}");
    served.assert_serves();
    let _ = rest_of(&mut stream);
    // Before the end it is closed, or all of it was thrown away.
    let _ = flood.join().unwrap();
    let mut stream = served.connect_http();
    // It may be closed while this is written.
    let _ = stream
        .write_all(b"GET /metrics HTTP/1.1\r\nX: ")
        .and_then(|()| stream.write_all(&vec![b'x'; 1 << 20]));
    let text = rest_of(&mut stream);
    assert!(text.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&text));
    served.assert_serves();
    let (server, _) = served.end();
    assert_bounded(&server);
}

#[track_caller]
fn assert_bounded(server: &Server) {
    for client in &server.clients {
        assert!(client.room() <= LONGEST_REQUEST + (64 << 10), "{} bytes of buffers", client.room());
    }
}

#[test]
fn who_does_not_read_is_heard_no_further_while_others_ask() {
    let served = Served::new(Limits { clients: 4, patience: LIMIT });
    let mut stream = served.connect();
    stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    let request = b"{\"show\": \"ports\"}\n".repeat(100);
    assert!(
        (0..100_000).any(|_| stream.write_all(&request).is_err()),
        "the server has taken 180 MB of requests"
    );
    let mut other = served.connect();
    for _ in 0..500 {
        assert!(ask(&mut other, ASK).starts_with("{\"pool\":"));
    }
    let (server, _) = served.end();
    assert_eq!(server.clients.len(), 2);
    assert_bounded(&server);
}

#[test]
fn who_does_not_read_its_answers_holds_up_nobody_and_is_let_go() {
    let served = Served::new(brief());
    let mut stream = served.connect();
    stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    let start = Instant::now();
    // Until neither side's buffers have any room: the server reads no request whose answer it cannot send.
    let request = b"{\"show\": \"ports\"}\n".repeat(100);
    let blocked = (0..100_000).any(|_| stream.write_all(&request).is_err());
    assert!(blocked, "the server has taken 180 MB of requests");
    served.assert_serves();
    while stream.write(b"\n").is_ok() || !is_closed(&stream) {
        assert!(start.elapsed() < LIMIT, "a client that reads nothing is still there");
        served.assert_serves();
    }
}

/// The other side has closed: a write says so.
fn is_closed(stream: &UnixStream) -> bool {
    let mut stream = stream;
    stream.write(b"\n").is_err_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

#[test]
fn a_thousand_connections_that_say_nothing_keep_nobody_out() {
    let served = Served::new(Limits::default());
    let mut held = Vec::new();
    for count in 0..1000 {
        if count % 2 == 0 {
            held.push(Stream::Ctl(served.connect()));
        } else {
            held.push(Stream::Http(served.connect_http()));
        }
        if count % 100 == 99 {
            served.assert_serves();
        }
    }
    let (server, _) = served.end();
    let limit = Limits::default().clients;
    assert!(server.clients.len() <= limit, "{} connections", server.clients.len());
    assert_eq!(server.clients.len() + server.spare.len(), limit);
    drop(held);
}

#[test]
fn connections_that_come_and_go_without_end_keep_nobody_out() {
    let served = Served::new(Limits::default());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let floods: Vec<_> = (0..3)
        .map(|_| {
            let (path, stop) = (served.path.clone(), Arc::clone(&stop));
            thread::spawn(move || {
                let mut made = 0_u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    made += u64::from(UnixStream::connect(&path).is_ok());
                }
                made
            })
        })
        .collect();
    for _ in 0..5 {
        // Where 64 have come in the meantime it is let go, unasked: then it asks again, as anybody would.
        let start = Instant::now();
        while !asked_once(&served) {
            assert!(start.elapsed() < LIMIT, "kept out");
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let made: u64 = floods.into_iter().map(|flood| flood.join().unwrap()).sum();
    assert!(made > 100, "{made} connections are no flood");
}

fn asked_once(served: &Served) -> bool {
    let mut stream = served.connect();
    let mut answer = String::new();
    stream.write_all(ASK).and_then(|()| BufReader::new(stream).read_line(&mut answer)).is_ok()
        && answer.starts_with("{\"pool\":")
}

#[test]
fn half_open_ones_and_those_that_drip_are_closed_in_time() {
    let served = Served::new(brief());
    let mut silent = served.connect();
    let mut half = served.connect();
    half.write_all(b"{\"show\"").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest_of(&mut half), b"");
    // One that has ended its side is answered all the same.
    let mut last = served.connect();
    last.write_all(ASK).unwrap();
    last.shutdown(Shutdown::Write).unwrap();
    assert!(rest_of(&mut last).starts_with(b"{\"pool\":"));
    let mut dripping = served.connect_http();
    let start = Instant::now();
    while dripping.write(b"G").is_ok() {
        assert!(start.elapsed() < LIMIT, "a client that drips is still there");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(start.elapsed() >= brief().patience / 2 || !rest_of(&mut dripping).is_empty(), "closed at once");
    assert_eq!(rest_of(&mut silent), b"");
    served.assert_serves();
}

#[test]
fn whoever_asks_without_a_pause_gets_no_more_than_a_fifth_of_the_cpu() {
    let served = Served::new(Limits::default());
    let mut stream = served.connect();
    let start = Instant::now();
    let mut answers = 0;
    while start.elapsed() < Duration::from_millis(500) {
        assert!(ask(&mut stream, b"{\"show\": \"ports\"}\n").starts_with("{\"ports\":"));
        answers += 1;
    }
    assert!(answers > 10, "{answers} answers in half a second");
    let took = start.elapsed();
    let (_, cpu) = served.end();
    // What it takes to wait is not counted by the server, so it is a little more than a fifth. A thread that has to wait for its CPU has less.
    assert!(cpu < took * 2 / 5, "{cpu:?} of {took:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Garbage in any pieces, by either door, ends no service.
    #[test]
    fn property_garbage_ends_no_service(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..8),
    ) {
        let served = Served::new(brief());
        let (mut ctl, mut http) = (served.connect(), served.connect_http());
        for piece in &pieces {
            // It may be closed already.
            let _ = ctl.write_all(piece);
            let _ = http.write_all(piece);
        }
        served.assert_serves();
        prop_assert_eq!(served.end().0.limits.clients, 4);
    }
}
