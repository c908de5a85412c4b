//! A thousand slow-path jobs that block beside AF_XDP traffic (root): each is answered, and no packet is lost for them.
#![allow(clippy::unwrap_used)]

mod common;

use bench::xdp::{Generator, Sink};
use clap::Parser;
use common::network::{Namespace, Wire, can_make_namespaces};
use common::wait_for;
use dataplane::slow_path::{Class, Outcome, SlowPathConfig, Submitter, blocking};
use dataplane::{Application, DataplaneArgs, Outputs, Plan, Report};
use nic::{Batch, MacAddress, PortId};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

const TEST: &str = "namespace_forwarding_loses_nothing_beside_a_thousand_jobs_that_block";
const JOBS: u64 = 1000;
const RATE_PPS: u32 = 50_000;
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    dataplane: DataplaneArgs,
}

/// What the test and the application tell each other.
#[derive(Default)]
struct Talk {
    begin: AtomicBool,
    answered: AtomicU64,
    end: AtomicBool,
}

struct Asking {
    submitter: Submitter,
    submitted: u64,
    talk: Arc<Talk>,
}

impl Application for Asking {
    fn process(&mut self, packets: &mut Batch, from: PortId, out: &mut Outputs) {
        out.send(PortId(from.0 ^ 1), packets);
    }

    fn poll(&mut self, _out: &mut Outputs) {
        let sleep = || thread::sleep(Duration::from_millis(5));
        // Every other one says beforehand that it blocks.
        let wraps = self.submitted.is_multiple_of(2);
        let job = move || {
            if wraps {
                blocking(sleep)
            } else {
                sleep()
            }
            [0; 4]
        };
        let asks = self.talk.begin.load(Ordering::Relaxed) && self.submitted < JOBS;
        if asks && self.submitter.submit(Class(0), job).is_ok() {
            self.submitted += 1;
        }
        while let Some(reply) = self.submitter.poll() {
            assert!(matches!(reply.outcome, Outcome::Done(_)), "{reply:?}");
            self.talk.answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_finished(&self) -> bool {
        self.talk.end.load(Ordering::Relaxed)
    }
}

/// Forwards until it is told to end, in this process.
fn forward(middle: &Namespace, talk: &Arc<Talk>) -> thread::JoinHandle<Report> {
    let (opened, is_open) = mpsc::channel();
    let talk = Arc::clone(talk);
    let run = middle.spawn(move || {
        // What 160 ms bring fits the ring: whoever has the worker's CPU for a while costs nothing.
        let ports = ["--port", "afxdp:p0?rx_ring=8192", "--port", "afxdp:p1"];
        let mut args = Args::parse_from([&["test", "--quiet", "--kick", "worker"], &ports[..]].concat());
        args.dataplane.promiscuous = true;
        let mut dataplane = Plan::check(&args.dataplane).unwrap().open().unwrap();
        let config = SlowPathConfig { slots: 2, capacity: 1024, ..SlowPathConfig::default() };
        dataplane.start_slow_path(config).unwrap();
        opened.send(()).unwrap();
        let asking = |slow_path: &dataplane::slow_path::SlowPath| Asking {
            submitter: slow_path.submitter().unwrap(),
            submitted: 0,
            talk: Arc::clone(&talk),
        };
        dataplane.run(|worker| asking(worker.slow_path.as_ref().unwrap())).unwrap().report
    });
    is_open.recv_timeout(LIMIT).unwrap();
    run
}

fn send(left: &Namespace, rate_pps: u32, duration: Duration) -> u64 {
    let generator = move || {
        let generator = Generator::new("eth0", 64, MacAddress([2, 0, 0, 0, 0, 9])).unwrap();
        generator.paced(rate_pps, duration).unwrap()
    };
    let sent = left.spawn(generator).join().unwrap();
    sent.packets - sent.refused
}

#[test]
fn namespace_forwarding_loses_nothing_beside_a_thousand_jobs_that_block() {
    if !can_make_namespaces(TEST) {
        return;
    }
    let (wire, talk) = (Wire::new(1500), Arc::new(Talk::default()));
    let run = forward(&wire.middle, &talk);
    wire.silence();
    let sink = wire.right.spawn(|| Sink::attach("eth0").unwrap()).join().unwrap();
    wait_for("the first packet", LIMIT, String::new, || {
        send(&wire.left, 1000, Duration::from_millis(20));
        (sink.received().unwrap().packets > 0).then_some(())
    });
    let settle = || sink.settle(Duration::from_millis(300), Duration::from_secs(5)).unwrap().packets;
    let before = settle();
    talk.begin.store(true, Ordering::Relaxed);
    let sent = send(&wire.left, RATE_PPS, Duration::from_secs(1));
    let answered = || talk.answered.load(Ordering::Relaxed);
    wait_for("the answers", LIMIT, || answered().to_string(), || (answered() == JOBS).then_some(()));
    let received = settle() - before;
    talk.end.store(true, Ordering::Relaxed);
    let report = run.join().unwrap();
    assert_eq!(received, sent, "{:?}", report.ports);
    let slow_path = report.slow_path.unwrap();
    assert_eq!(slow_path.classes[0].done, JOBS, "{slow_path:?}");
    assert_eq!(report.pool.leaked, 0);
}
