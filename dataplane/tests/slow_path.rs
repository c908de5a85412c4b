//! Workers that hand jobs to the slow path while they forward: no packet and no job is lost.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use clap::Parser;
use dataplane::slow_path::{Class, ClassConfig, Outcome, SlowPathConfig, Submitter, blocking};
use dataplane::{Application, DataplaneArgs, Outputs, Plan, WorkerContext};
use nic::{Batch, PortId};
use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    dataplane: DataplaneArgs,
}

const JOBS: u64 = 400;

/// Sends to the other port of two, and has something looked up now and then, which blocks or panics.
struct Asking {
    submitter: Submitter,
    submitted: u64,
    refused: u64,
    done: BTreeSet<u64>,
    panicked: u64,
    started: Instant,
}

impl Asking {
    fn new(worker: &WorkerContext) -> Self {
        let submitter = worker.slow_path.as_ref().unwrap().submitter().unwrap();
        let (submitted, refused, panicked) = (0, 0, 0);
        Self { submitter, submitted, refused, done: BTreeSet::new(), panicked, started: Instant::now() }
    }

    fn submit(&mut self) {
        let number = self.submitted;
        let class = Class((number % 2) as usize);
        let job = move || {
            match number % 8 {
                0..4 => blocking(|| thread::sleep(Duration::from_millis(1))),
                4..7 => thread::sleep(Duration::from_millis(1)),
                _ => std::panic::resume_unwind(Box::new("deliberate")),
            }
            [number, 0, 0, 0]
        };
        self.submitted += 1;
        self.refused += u64::from(self.submitter.submit(class, job).is_err());
    }
}

impl Application for Asking {
    fn process(&mut self, packets: &mut Batch, from: PortId, out: &mut Outputs) {
        out.send(PortId(from.0 ^ 1), packets);
    }

    fn poll(&mut self, _out: &mut Outputs) {
        if self.submitted < JOBS {
            self.submit();
        }
        while let Some(reply) = self.submitter.poll() {
            match reply.outcome {
                Outcome::Done([number, ..]) => assert!(self.done.insert(number), "{number} twice"),
                Outcome::Panicked => self.panicked += 1,
                Outcome::Abandoned => panic!("{reply:?}"),
            }
        }
    }

    fn is_finished(&self) -> bool {
        let over = self.submitted == JOBS && self.submitter.outstanding() == 0;
        over || self.started.elapsed() > Duration::from_secs(30)
    }
}

#[test]
fn jobs_of_workers_are_answered_while_packets_go_on() {
    let args = Args::parse_from(["test", "--quiet", "--port", "mem:gen", "--port", "mem:gen"]);
    let mut dataplane = Plan::check(&args.dataplane).unwrap().open().unwrap();
    let classes = vec![ClassConfig::new("even"), ClassConfig::new("odd")];
    // Room for fewer than come: some are refused.
    let config = SlowPathConfig { classes, capacity: 64, threads: 16, ..SlowPathConfig::default() };
    dataplane.start_slow_path(config).unwrap();
    let outcome = dataplane.run(Asking::new).unwrap();
    let report = &outcome.report;
    assert_eq!((report.pool.free, report.pool.leaked), (report.pool.frames, 0));
    let sent: u64 = report.ports.iter().map(|port| port.tx_packets).sum();
    let dropped: u64 = report.ports.iter().flat_map(|port| port.drops.values()).sum();
    let received: u64 = report.ports.iter().map(|port| port.rx_packets).sum();
    assert_eq!(received, sent + dropped);
    assert!(received > 0);

    let slow = report.slow_path.as_ref().unwrap();
    let sum = |of: fn(&dataplane::slow_path::SlowPathClassReport) -> u64| -> u64 {
        slow.classes.iter().map(of).sum()
    };
    let workers = &outcome.applications;
    let of_workers = |of: fn(&Asking) -> u64| -> u64 { workers.iter().map(of).sum() };
    assert_eq!(sum(|class| class.submitted), of_workers(|worker| worker.submitted));
    assert_eq!(of_workers(|worker| worker.submitted), JOBS * workers.len() as u64);
    assert_eq!(sum(|class| class.refused), of_workers(|worker| worker.refused));
    assert!(sum(|class| class.refused) > 0, "room for 64: {slow:?}");
    assert_eq!(sum(|class| class.done), of_workers(|worker| worker.done.len() as u64));
    assert_eq!(sum(|class| class.panicked), of_workers(|worker| worker.panicked));
    for class in &slow.classes {
        assert_eq!(class.submitted, class.done + class.refused + class.panicked, "{class:?}");
    }
}

struct Idle;

impl Application for Idle {
    fn process(&mut self, _packets: &mut Batch, _from: PortId, _out: &mut Outputs) {}
}

/// The report's keys, which users' scripts go by; docs/slow-path.md has a word on each.
#[test]
fn the_keys_of_the_report_are_documented() {
    let args = Args::parse_from([
        "test",
        "--quiet",
        "--duration",
        "0.1",
        "--port",
        "mem:null",
        "--port",
        "mem:null",
    ]);
    let mut dataplane = Plan::check(&args.dataplane).unwrap().open().unwrap();
    dataplane.start_slow_path(SlowPathConfig::default()).unwrap();
    let outcome = dataplane.run(|_| Idle).unwrap();
    let report = serde_json::to_value(&outcome.report).unwrap();
    let document = include_str!("../../docs/slow-path.md");
    let mut known = 0;
    for object in [&report["slow_path"], &report["slow_path"]["classes"][0]] {
        for key in object.as_object().unwrap().keys() {
            assert!(document.contains(&format!("`{key}`")), "docs/slow-path.md: not a word on {key}");
            known += 1;
        }
    }
    assert!(known > 20, "{report:#}");
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let args = Args::parse_from(["test", "--quiet", "--port", "mem:null", "--port", "mem:null"]);
    let mut dataplane = Plan::check(&args.dataplane).unwrap().open().unwrap();
    let class = ClassConfig::new("x");
    for config in [
        SlowPathConfig { threads: 0, ..SlowPathConfig::default() },
        SlowPathConfig { threads: 2, slots: 3, ..SlowPathConfig::default() },
        SlowPathConfig { capacity: 0, ..SlowPathConfig::default() },
        SlowPathConfig { fibers: 1_000_000, ..SlowPathConfig::default() },
        SlowPathConfig { fiber_stack_bytes: 4096, ..SlowPathConfig::default() },
        SlowPathConfig { classes: Vec::new(), ..SlowPathConfig::default() },
        SlowPathConfig {
            classes: vec![ClassConfig { weight: 0, ..class.clone() }],
            ..SlowPathConfig::default()
        },
        SlowPathConfig {
            classes: vec![ClassConfig { cap: Some(f64::NAN), ..class.clone() }],
            ..SlowPathConfig::default()
        },
    ] {
        let error = dataplane.start_slow_path(config).err().unwrap();
        assert!(error.to_string().starts_with("slow path: ") && error.exit_status() == 2, "{error}");
    }
}
