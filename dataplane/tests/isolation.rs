//! Isolated workers from end to end, on in-memory ports: what an application does to its own isolation is counted to the call, and the
//! packets go on.
#![allow(unsafe_code, clippy::unwrap_used)]

use clap::Parser;
use dataplane::{Application, DataplaneArgs, Outcome, Outputs, Plan};
use isolation::Turn;
use nic::{Batch, PortId};
use percpu::tsc;
use serde_json::Value;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    dataplane: DataplaneArgs,
}

/// Runs an application on one worker, and reads its violations' file.
#[track_caller]
fn run<A: Application + 'static>(args: &[&str], application: A) -> (Outcome<A>, Vec<Value>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("violations.jsonl");
    let fixed = ["test", "--quiet", "--isolation", "soft", "--violations", path.to_str().unwrap()];
    let args = Args::parse_from([&fixed[..], args].concat());
    let mut application = Some(application);
    let dataplane = Plan::check(&args.dataplane).unwrap().open().unwrap();
    let outcome = dataplane.run(|_| application.take().expect("one worker")).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    (outcome, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Two generators that check what they get, one worker.
const PORTS: [&str; 4] = ["--port", "mem:gen", "--port", "mem:gen"];

/// Asserts that whatever went in came out, whole and in order, and that no frame is missing.
#[track_caller]
fn assert_forwarded<A>(outcome: &Outcome<A>) {
    let report = &outcome.report;
    for (port, partner) in
        [(0, 1), (1, 0)].map(|(port, partner)| (&report.ports[port], &report.ports[partner]))
    {
        assert!(port.rx_packets > 10_000, "{port:?}");
        assert_eq!(port.rx_packets, partner.tx_packets);
        assert_eq!(partner.tx_packets, partner.extra["sink_received"]);
        assert!(port.drops.is_empty(), "{port:?}");
        let wrong = ["lost", "corrupt", "duplicate", "reordered", "late", "foreign", "untracked"];
        for name in wrong {
            assert_eq!(port.extra[&format!("sink_{name}")], 0, "{name}: {port:?}");
        }
    }
    assert_eq!((report.pool.free, report.pool.leaked), (report.pool.frames, 0));
}

/// Makes so many system calls a second, and sends to the other port of two.
struct Caller {
    /// What they answer.
    pid: i64,
    interval: u64,
    next: u64,
    calls: u64,
    /// Turns after which it was told.
    told: u64,
}

impl Application for Caller {
    fn poll(&mut self, _out: &mut Outputs) {
        let now = tsc::now();
        if self.next == 0 {
            self.next = now;
        }
        // What a worker that was away has missed is made up for, but not all in one turn.
        for _ in 0..64 {
            if now.wrapping_sub(self.next) as i64 <= 0 {
                break;
            }
            self.next = self.next.wrapping_add(self.interval);
            // SAFETY: takes nothing and changes nothing.
            let pid = unsafe { libc::syscall(libc::SYS_getpid) };
            assert_eq!(pid, self.pid);
            self.calls += 1;
        }
    }

    fn process(&mut self, packets: &mut Batch, from: PortId, out: &mut Outputs) {
        out.send(PortId(from.0 ^ 1), packets);
    }

    fn on_violation(&mut self, turn: Turn) {
        assert_eq!(turn, Turn::Disturbed);
        self.told += 1;
    }
}

#[test]
fn a_storm_of_system_calls_is_counted_to_the_call() {
    const SECONDS: u64 = 5;
    const CALLS_PER_SECOND: u64 = 10_000;
    let start = Instant::now();
    let interval = tsc::frequency_hz() / CALLS_PER_SECOND;
    let storm = Caller { pid: std::process::id().into(), interval, next: 0, calls: 0, told: 0 };
    let args = ["--signal", "syscalls", "--duration", &SECONDS.to_string()];
    let (outcome, violations) = run(&[&PORTS[..], &args].concat(), storm);
    assert!(start.elapsed() < Duration::from_secs(SECONDS + 10), "{:?}", start.elapsed());
    let (report, storm) = (&outcome.report, &outcome.applications[0]);
    let calls = storm.calls;
    // A machine that gives the worker half of a CPU at least.
    assert!(calls >= SECONDS * CALLS_PER_SECOND / 2, "{calls}");
    assert_eq!(report.isolation.signals["syscall"], calls, "{:?}", report.isolation);
    let recorded: u64 = report.violations.values().sum();
    assert_eq!(recorded + report.isolation.not_recorded, calls, "{:?}", report.violations);
    // The application's own, and no other.
    assert_eq!(report.violations.keys().collect::<Vec<_>>(), ["syscall:getpid"]);
    assert_eq!(violations.len() as u64, recorded);
    assert!(recorded > 0 && storm.told > 0);
    println!("{calls} calls: {recorded} logged one by one, {} counted", report.isolation.not_recorded);
    assert_forwarded(&outcome);
}

/// Touches pages that it has mapped a moment before, one a turn.
struct Toucher {
    left: u64,
    map: u64,
    touched: Vec<String>,
}

const PAGE: u64 = 4096;
/// What is touched of each page.
const WITHIN: u64 = 0x128;

impl Application for Toucher {
    fn poll(&mut self, _out: &mut Outputs) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        if self.map == 0 {
            let bytes = ((self.left + 1) * PAGE) as usize;
            let (access, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: a new map, which nobody else knows.
            let map = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
            assert_ne!(map, libc::MAP_FAILED);
            // One page a fault, whatever the machine makes of large maps.
            // SAFETY: changes no content.
            unsafe { libc::madvise(map, bytes, libc::MADV_NOHUGEPAGE) };
            self.map = map as u64;
        }
        let at = self.map + self.left * PAGE + WITHIN;
        // SAFETY: within the map, from the last page to the first.
        unsafe { (at as *mut u64).write_volatile(1) };
        self.touched.push(format!("{at:#x}"));
    }

    fn process(&mut self, packets: &mut Batch, from: PortId, out: &mut Outputs) {
        out.send(PortId(from.0 ^ 1), packets);
    }
}

#[test]
fn each_page_fault_is_in_the_log_with_its_address() {
    let toucher = || Toucher { left: 100, map: 0, touched: Vec::with_capacity(100) };
    for (signals, calls) in [("exceptions", false), ("syscalls,exceptions", true)] {
        let args = ["--signal", signals, "--duration", "0.5"];
        let (outcome, violations) = run(&[&PORTS[..], &args].concat(), toucher());
        let touched = &outcome.applications[0].touched;
        let faults = violations.iter().filter(|one| one["cause"] == "exception:page_fault");
        let addresses = faults.map(|one| one["address"].as_str().unwrap());
        // The kernel may have moved other pages of this process.
        let ours: Vec<&str> =
            addresses.filter(|address| touched.iter().any(|ours| ours == address)).collect();
        assert_eq!(&ours, touched, "{signals}: {violations:#?}");
        let report = &outcome.report;
        let causes: Vec<&String> = report.violations.keys().collect();
        let expected: &[&str] = if calls {
            &["exception:page_fault", "syscall:madvise", "syscall:mmap"]
        } else {
            &["exception:page_fault"]
        };
        assert_eq!(causes, expected, "{signals}");
        let stack = violations[0]["user_stack"].as_array().unwrap();
        assert!(
            stack.iter().any(|frame| frame.as_str().unwrap().contains("Toucher")),
            "where it was: {stack:#?}"
        );
        assert_forwarded(&outcome);
    }
}
