//! What an interruption costs: l2fwd on AF_XDP, under a load that is counted to the packet, while a task under SCHED_FIFO takes the worker's
//! CPU. Each packet that is missing is in the violation log, under the name of that task; and what an overload costs is no violation's.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/hog.rs"]
mod hog;

use bench::xdp::{Generator, Sent, Sink};
use common::network::{Forwarder, Wire, can_make_namespaces};
use common::{assert_books, port_counts, read_report};
use hog::{Bursts, Hog};
use nic::MacAddress;
use percpu::Topology;
use serde_json::Value;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// 20 ms of it are four times what the receive ring holds.
const RATE_PPS: u32 = 200_000;
const RING: u64 = 1024;
/// How long that lasts.
const RING_NS: u64 = RING * 1_000_000_000 / RATE_PPS as u64;
const PORTS: [&str; 4] = ["--port", "afxdp:p0?rx_ring=1024", "--port", "afxdp:p1?rx_ring=1024"];
const BURSTS: u32 = 10;
const BURST: Duration = Duration::from_millis(20);
/// A busy machine has other tasks that take the worker's CPU. They are named too, but then nothing is said about the hog.
const ATTEMPTS: usize = 5;

/// What a run leaves.
struct Run {
    sent: Vec<Sent>,
    received: u64,
    report: Value,
    violations: Vec<Value>,
}

/// The CPU of the worker, and the one for everything else.
fn cpus() -> Option<(usize, usize)> {
    let allowed = Topology::read().unwrap().allowed;
    (allowed.len() > 1).then(|| (allowed.iter().last().unwrap(), allowed.iter().next().unwrap()))
}

/// The test before all others of the machine, behind the forwarder: the generator is one of its threads. Until it is dropped it is the only one of these
/// tests, too, which would take each other's CPUs.
struct Turn {
    _one: MutexGuard<'static, ()>,
}

impl Turn {
    const SESSION: &str = "/proc/self/autogroup";

    fn take() -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        if Path::new(Self::SESSION).exists() && std::fs::write(Self::SESSION, "-10").is_err() {
            // A process that was never in a session but the machine's first has no weight that could be set.
            nix::unistd::setsid().unwrap();
            std::fs::write(Self::SESSION, "-10").unwrap();
        }
        Self { _one: one }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The kernel takes few changes a second; the session ends with the tests.
        let _ = std::fs::write(Self::SESSION, "0");
    }
}

fn skip(test: &str) -> bool {
    if !can_make_namespaces(test) {
        return true;
    }
    if cpus().is_none() {
        eprintln!("SKIPPED {test}: needs a second CPU");
    }
    cpus().is_none()
}

/// Sends from the left through l2fwd to the right, by a thread on the other CPU than the worker's.
struct Scene {
    wire: Wire,
    folder: tempfile::TempDir,
    forwarder: Forwarder,
    sink: Sink,
    before: u64,
    elsewhere: usize,
    worker: usize,
}

impl Scene {
    #[track_caller]
    fn new(signals: &[&str]) -> Self {
        let (worker, elsewhere) = cpus().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (report, violations) = (path("report.json"), path("violations.jsonl"));
        let (worker_text, elsewhere_text) = (worker.to_string(), elsewhere.to_string());
        let wire = Wire::new(1500);
        // The worker rings its doorbells itself: the generator has the other CPU.
        let options = [
            &["--workers", &worker_text, "--control", &elsewhere_text][..],
            &["--kick", "worker", "--isolation", "soft"],
        ]
        .concat();
        let files = ["--report", &report, "--violations", &violations];
        let forwarder = wire.forward_first(&[&PORTS[..], &options[..], &files, signals].concat());
        // From here on every packet is the generator's.
        wire.silence();
        let sink = wire.right.spawn(|| Sink::attach("eth0").unwrap()).join().unwrap();
        let before = sink.received().unwrap().packets;
        Self { wire, folder, forwarder, sink, before, elsewhere, worker }
    }

    /// Sends on a thread of its own.
    fn send(&self, rate_pps: Option<u32>, duration: Duration) -> std::thread::JoinHandle<Sent> {
        let cpu = self.elsewhere;
        self.wire.left.spawn(move || {
            let _pinned = percpu::pin_on_cpu(cpu).unwrap();
            let generator = Generator::new("eth0", 64, MacAddress([2, 0, 0, 0, 0, 9])).unwrap();
            match rate_pps {
                Some(rate) => generator.paced(rate, duration).unwrap(),
                None => generator.flood(duration).unwrap(),
            }
        })
    }

    fn arrived(&self) -> u64 {
        self.sink.received().unwrap().packets - self.before
    }

    /// Waits until nothing arrives any more.
    fn settle(&self) {
        self.sink.settle(Duration::from_millis(300), Duration::from_secs(5)).unwrap();
    }

    #[track_caller]
    fn end(self, sent: Vec<Sent>) -> Run {
        self.settle();
        let received = self.arrived();
        assert!(self.forwarder.end("INT").success());
        let report = read_report(&self.folder.path().join("report.json"));
        assert_books(&report);
        let text = std::fs::read_to_string(self.folder.path().join("violations.jsonl")).unwrap();
        let violations = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        Run { sent, received, report, violations }
    }
}

/// Packets that a violation cost.
fn dropped(violation: &Value) -> u64 {
    violation["dropped"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}

impl Run {
    fn isolation(&self, key: &str) -> u64 {
        self.report["isolation"][key].as_u64().unwrap()
    }

    fn by_violations(&self) -> u64 {
        self.violations.iter().map(dropped).sum()
    }

    /// What holds of every run, however busy the machine is: what was sent and did not arrive is in the violation log, or in the count of what is no
    /// violation's, to the packet. Gives how many that are.
    #[track_caller]
    fn assert_balance(&self) -> u64 {
        let sent: u64 = self.sent.iter().map(|sent| sent.packets - sent.refused).sum();
        let lost = sent - self.received;
        let named = port_counts(&self.report, 0).2 + port_counts(&self.report, 1).2;
        assert_eq!(lost, named, "sent {sent}, received {}: {:#}", self.received, self.report);
        assert_eq!(self.by_violations(), self.isolation("dropped"), "{:#}", self.report);
        assert_eq!(
            self.by_violations() + self.isolation("dropped_without_violation"),
            lost,
            "{:#}",
            self.report
        );
        let counted: u64 = self.report["violations"]
            .as_object()
            .unwrap()
            .values()
            .map(|count| count.as_u64().unwrap())
            .sum();
        assert_eq!(self.violations.len() as u64, counted, "every violation is one line");
        lost
    }

    /// For how long other tasks had the worker's CPU.
    fn taken_by_others(&self) -> Duration {
        let tasks = self.violations.iter().filter(|one| one["cause"].as_str().unwrap().starts_with("task:"));
        Duration::from_nanos(tasks.filter_map(|task| task["duration_ns"].as_u64()).sum())
    }

    fn summary(&self) -> String {
        let dropping: Vec<String> = self
            .violations
            .iter()
            .filter(|violation| dropped(violation) > 0)
            .map(|violation| {
                format!(
                    "{} ({}) {} us: {}",
                    violation["cause"],
                    violation["detail"],
                    violation["duration_ns"].as_u64().unwrap_or(0) / 1000,
                    violation["dropped"]
                )
            })
            .collect();
        format!(
            "sent {:?}, received {}, drops {} and {}, isolation {}, violations {}:\n{}",
            self.sent,
            self.received,
            self.report["ports"][0]["drops"],
            self.report["ports"][1]["drops"],
            self.report["isolation"],
            self.report["violations"],
            dropping.iter().take(20).cloned().collect::<Vec<_>>().join("\n")
        )
    }
}

/// One run with a hog; `None` where the kernel refuses it.
fn hogged(signals: &[&str]) -> Option<(Run, i32)> {
    let scene = Scene::new(signals);
    let pause = Duration::from_millis(150);
    let generator = scene.send(Some(RATE_PPS), (BURST + pause) * (BURSTS + 3));
    let start = Instant::now();
    while scene.arrived() < 1000 {
        assert!(start.elapsed() < Duration::from_secs(10), "nothing arrives: {}", scene.forwarder.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    let hog = Hog::start(Bursts { cpu: scene.worker, count: BURSTS, length: BURST, pause });
    let pid = hog.pid();
    let allowed = hog.wait();
    assert!(!generator.is_finished(), "the hog was there longer than the load");
    let sent = generator.join().unwrap();
    let run = scene.end(vec![sent]);
    run.assert_balance();
    allowed.then_some((run, pid))
}

/// Why a run says nothing about the hog; `Err` where there is no excuse.
fn judge(run: &Run, pid: i32) -> Result<Option<String>, String> {
    let is_hogs = |violation: &&Value| {
        let mut details = violation["detail"].as_str().unwrap().split(", ");
        violation["cause"] == "task:hog" && details.any(|part| part == format!("pid {pid}"))
    };
    let dropping: Vec<&Value> = run.violations.iter().filter(|violation| dropped(violation) > 0).collect();
    let (hogs, others): (Vec<&Value>, Vec<&Value>) = dropping.into_iter().partition(is_hogs);
    // Another task, or a lock of the kernel's, is an excuse where it took long enough for many packets to come: a tick never does.
    let long = |violation: &&Value| {
        let duration_ns = violation["duration_ns"].as_u64().unwrap_or(0);
        let cause = violation["cause"].as_str().unwrap();
        (cause.starts_with("task:") || cause == "blocked") && duration_ns > 1_000_000
    };
    let unexplained =
        run.isolation("unexplained_longest_ns") > RING_NS / 2 || run.isolation("trace_lost") > 0;
    // Where the generator did not get its CPU in time, neither did the control core, which has the same and looks at the counters.
    let stalled = run.sent.iter().any(|sent| sent.stalls > 0);
    let lost_alone = run.isolation("dropped_without_violation");
    let hogs_loss: u64 = hogs.iter().copied().map(dropped).sum();
    let expected = u64::from(BURSTS) * (u64::from(RATE_PPS) * BURST.as_millis() as u64 / 1000 - RING);
    // What the hypervisor took is nobody's: where the trace is whole, whoever is named was there for long enough.
    let trace_lost = run.isolation("trace_lost") > 0;
    if let Some(other) = others.iter().find(|other| !long(other)).filter(|_| !trace_lost) {
        return Err(format!("dropped by what was too short for it: {other}"));
    }
    if lost_alone > 0 && !unexplained && !stalled {
        return Err(format!("{lost_alone} dropped without a violation"));
    }
    if !others.is_empty() || lost_alone > 0 {
        return Ok(Some(format!("{} other losses, {lost_alone} packets lost by nobody known", others.len())));
    }
    // It was there for a moment more, to begin and to end.
    let long_enough = |burst: &&Value| burst["duration_ns"].as_u64() >= Some(BURST.as_nanos() as u64);
    let bursts = run.violations.iter().filter(is_hogs).filter(long_enough).count();
    if bursts != BURSTS as usize {
        return Err(format!("{bursts} violations of {BURSTS} bursts of {BURST:?}"));
    }
    // Fewer came.
    if hogs_loss == 0 && stalled {
        return Ok(Some("the generator got so little of its CPU that no ring was full".to_owned()));
    }
    let too_few = hogs_loss < expected / 2 || hogs.len() < bursts;
    if hogs_loss > expected * 2 || too_few && !stalled {
        return Err(format!(
            "{} bursts cost {hogs_loss} packets: {expected} were to be expected",
            hogs.len()
        ));
    }
    Ok(None)
}

#[track_caller]
fn hog_case(test: &str, signals: &[&str], check: impl Fn(&Run)) {
    let _turn = Turn::take();
    for attempt in 1..=ATTEMPTS {
        let Some((run, pid)) = hogged(signals) else {
            eprintln!("SKIPPED {test}: needs real-time priority");
            return;
        };
        check(&run);
        match judge(&run, pid) {
            Ok(None) => return eprintln!("{}", run.summary()),
            Ok(Some(excuse)) => eprintln!("attempt {attempt}: {excuse}"),
            Err(why) => panic!("{why}: {}", run.summary()),
        }
    }
    panic!("this machine takes the worker's CPU away for too long: nothing could be shown");
}

#[test]
fn namespace_what_a_hog_costs_is_in_the_log_under_its_name() {
    const TEST: &str = "namespace_what_a_hog_costs_is_in_the_log_under_its_name";
    if !skip(TEST) {
        hog_case(TEST, &["--signal", "interrupts"], |_| ());
    }
}

#[test]
fn namespace_doorbells_are_no_violations() {
    const TEST: &str = "namespace_doorbells_are_no_violations";
    if skip(TEST) {
        return;
    }
    hog_case(TEST, &["--signal", "syscalls,exceptions,interrupts"], |run| {
        assert!(run.report["ports"][1]["doorbells"].as_u64().unwrap() > 1000, "{:#}", run.report);
        let causes = run.report["violations"].as_object().unwrap().keys();
        let calls: Vec<&String> = causes.filter(|cause| cause.starts_with("syscall:")).collect();
        assert!(calls.is_empty(), "{}", run.summary());
    });
}

/// Bursts of more than a worker can do, with nothing between them.
fn overloaded() -> Run {
    let scene = Scene::new(&["--signal", "interrupts"]);
    let mut sent = Vec::new();
    for _ in 0..5 {
        sent.push(scene.send(None, Duration::from_millis(200)).join().unwrap());
        scene.settle();
    }
    scene.end(sent)
}

#[test]
fn namespace_what_an_overload_costs_is_no_violations() {
    if skip("namespace_what_an_overload_costs_is_no_violations") {
        return;
    }
    let _turn = Turn::take();
    for attempt in 1..=ATTEMPTS {
        let run = overloaded();
        let lost = run.assert_balance();
        assert!(lost > 0, "{} was no overload", run.summary());
        let taken = run.taken_by_others();
        if run.by_violations() == 0 {
            assert_eq!(run.isolation("dropped_without_violation"), lost);
            return eprintln!("{}", run.summary());
        }
        assert!(taken > Duration::from_millis(5), "nobody was there to blame: {}", run.summary());
        eprintln!("attempt {attempt}: other tasks had the worker's CPU for {taken:?}");
    }
    panic!("this machine takes the worker's CPU away for too long: nothing could be shown");
}
