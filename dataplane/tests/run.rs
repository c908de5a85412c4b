//! A dataplane run from end to end, on in-memory ports.
#![allow(clippy::unwrap_used)]

use clap::Parser;
use dataplane::{Application, DataplaneArgs, Error, Outputs, Plan};
use nic::{Batch, PortId};
use percpu::Topology;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    dataplane: DataplaneArgs,
}

fn plan(args: &[&str]) -> Plan {
    let args = Args::parse_from([&["test", "--quiet"], args].concat());
    Plan::check(&args.dataplane).unwrap()
}

/// Sends to the other port of two.
struct Cross;

impl Application for Cross {
    fn process(&mut self, packets: &mut Batch, from: PortId, out: &mut Outputs) {
        out.send(PortId(from.0 ^ 1), packets);
    }
}

#[test]
fn every_packet_to_the_last_turn_is_in_the_report() {
    let before = Topology::read().unwrap().allowed;
    let plan = plan(&["--port", "mem:gen?count=100000", "--port", "mem:gen?count=12345"]);
    let outcome = plan.open().unwrap().run(|_| Cross).unwrap();
    let report = outcome.report;
    let received: Vec<u64> = report.ports.iter().map(|port| port.rx_packets).collect();
    let sent: Vec<u64> = report.ports.iter().map(|port| port.tx_packets).collect();
    assert_eq!((received, sent), (vec![100_000, 12_345], vec![12_345, 100_000]));
    assert_eq!(report.workers.iter().map(|worker| worker.packets).sum::<u64>(), 112_345);
    assert_eq!((report.pool.free, report.pool.leaked), (report.pool.frames, 0));
    assert_eq!(
        Topology::read().unwrap().allowed,
        before,
        "the caller is pinned no longer than the run lasts"
    );
}

/// Sends to nobody.
struct Keep;

impl Application for Keep {
    fn process(&mut self, _packets: &mut Batch, _from: PortId, _out: &mut Outputs) {}
}

#[test]
fn what_an_application_leaves_is_dropped_by_name() {
    let outcome = plan(&["--port", "mem:gen?count=1000"]).open().unwrap().run(|_| Keep).unwrap();
    assert_eq!(outcome.report.ports[0].drops["application"], 1000);
    assert_eq!(outcome.report.pool.leaked, 0);
}

/// Panics at its first packet, or goes on for ever.
struct Fragile(bool);

impl Application for Fragile {
    fn process(&mut self, packets: &mut Batch, _from: PortId, _out: &mut Outputs) {
        assert!(!self.0, "fragile");
        packets.clear();
    }
}

#[test]
fn a_worker_that_panics_ends_the_run_in_words() {
    let start = Instant::now();
    let dataplane = plan(&["--port", "mem:null", "--port", "mem:null"]).open().unwrap();
    let error = dataplane.run(|worker| Fragile(worker.worker == 0)).err().unwrap();
    assert!(matches!(&error, Error::Panic { worker: 0, message } if message == "fragile"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
}
