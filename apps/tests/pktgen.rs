//! pktgen as a user runs it: what it says of packets that arrive, and of packets that do not.
#![forbid(unsafe_code)]
// What helpers of a test cannot do ends the test.
#![allow(clippy::unwrap_used)]

mod common;

use common::network::{Wire, can_make_namespaces};
use common::read_report;
use nic::traffic::{Addresses, FrameBuilder};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use percpu::Topology;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How a run ended.
struct Run {
    status: i32,
    stdout: String,
    errors: Vec<String>,
    report: Value,
    took: Duration,
}

impl Run {
    fn traffic(&self, key: &str) -> u64 {
        self.report["traffic"][key].as_u64().unwrap_or_else(|| panic!("no {key} in {}", self.report))
    }

    /// The numbers of the traffic in a fixed order.
    #[track_caller]
    fn assert_traffic(&self, expected: &[(&str, u64)]) {
        let found: Vec<(&str, u64)> = expected.iter().map(|(key, _)| (*key, self.traffic(key))).collect();
        assert_eq!(found, expected, "{}", self.stdout);
    }

    /// Every packet and every frame is accounted for.
    #[track_caller]
    fn assert_books(&self) {
        assert_eq!(self.report["pool"]["leaked"], 0);
        assert_eq!(self.report["pool"]["free"], self.report["pool"]["frames"]);
        let ports = self.report["ports"].as_array().unwrap();
        let sum = |key: &str| ports.iter().map(|port| port[key].as_u64().unwrap()).sum::<u64>();
        let came: u64 = ["received", "duplicate", "late", "corrupt", "foreign", "untracked", "unexpected"]
            .iter()
            .map(|key| self.traffic(key))
            .sum();
        assert_eq!(sum("rx_packets"), came, "received by ports and seen by the books");
        if self.report["traffic"]["complete"] == true && self.traffic("sent") > 0 {
            assert_eq!(sum("tx_packets"), self.traffic("sent"), "sent by ports and by the books");
        }
    }
}

fn pktgen(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pktgen"));
    command.args(args).args(["--stats-period", "0", "--pages", "4K"]);
    command.env_remove("ISOPLANE_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for a child, which must end within 30 s.
#[track_caller]
fn end(mut child: Child, started: Instant, report: Option<&std::path::Path>) -> Run {
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read_out = thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let read_err = thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).map(|_| text)
    });
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > Duration::from_secs(30) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("not ended after 30 s: {}", read_err.join().unwrap().unwrap());
        }
        thread::sleep(Duration::from_millis(5));
    };
    let took = started.elapsed();
    let (stdout, stderr) = (read_out.join().unwrap().unwrap(), read_err.join().unwrap().unwrap());
    let is_log =
        |line: &&str| ["INFO", "WARN", "ERROR"].iter().any(|level| line.trim_start().starts_with(level));
    let errors = stderr.lines().filter(|line| !is_log(line) && !line.is_empty()).map(str::to_owned).collect();
    let report = report.and_then(|path| std::fs::read_to_string(path).ok());
    let report = report.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
    Run { status: status.code().unwrap_or(-1), stdout, errors, report, took }
}

#[track_caller]
fn run(args: &[&str]) -> Run {
    let folder = TempDir::new().unwrap();
    let report = folder.path().join("report.json");
    let started = Instant::now();
    let child = pktgen(args).arg("--report").arg(&report).spawn().unwrap();
    end(child, started, Some(&report))
}

const CABLE: [&str; 4] = ["--port", "mem:cable", "--port", "mem:cable"];

#[test]
fn a_cable_loses_nothing() {
    for traffic in [
        &["--count", "50k"][..],
        &["--count", "20k", "--size", "imix", "--flows", "100"],
        &["--count", "3k", "--size", "60-9018", "--flows", "7", "--udp-checksum"],
        &["--count", "10k", "--rate", "100k"],
    ] {
        let run = run(&[&CABLE, traffic, &["--expect-no-loss"]].concat());
        assert_eq!((run.status, run.errors.len()), (0, 0), "{traffic:?}: {:?}", run.errors);
        let each = nic::spec::parse_number(traffic[1]).unwrap();
        run.assert_traffic(&[
            ("sent", 2 * each),
            ("received", 2 * each),
            ("lost", 0),
            ("duplicate", 0),
            ("reordered", 0),
            ("late", 0),
            ("corrupt", 0),
            ("in_flight", 0),
        ]);
        run.assert_books();
        assert!(run.stdout.contains(&format!("port 1 to port 0: sent {each}, received {each}, lost 0")));
    }
}

#[test]
fn a_duration_ends_the_sending_and_the_rate_is_kept() {
    let run = run(&[&CABLE[..], &["--rate", "20k", "--duration", "0.5", "--expect-no-loss"]].concat());
    assert_eq!(run.status, 0, "{:?}", run.errors);
    // Never more than is due; less only by what a stall at the very end holds back.
    let sent = run.traffic("sent");
    assert!((12_000..=20_000).contains(&sent), "{sent} packets of 20000");
    run.assert_traffic(&[("received", sent), ("lost", 0)]);
    run.assert_books();
}

#[test]
fn what_vanishes_is_lost_and_the_wait_for_it_is_bounded() {
    let sinks = ["--port", "mem:sink", "--port", "mem:sink", "--count", "1000"];
    let run_strict = run(&[&sinks[..], &["--expect-no-loss"]].concat());
    assert_eq!((run_strict.status, run_strict.errors.len()), (1, 1), "{:?}", run_strict.errors);
    assert!(run_strict.errors[0].contains("2000 packets were lost"), "{:?}", run_strict.errors);
    assert!(run_strict.took >= Duration::from_millis(200) && run_strict.took < Duration::from_secs(10));
    run_strict.assert_traffic(&[("sent", 2000), ("received", 0), ("lost", 2000), ("in_flight", 0)]);
    run_strict.assert_books();
    // The ports' own checks know all of them.
    assert_eq!(run_strict.report["ports"][0]["extra"]["sink_received"], 1000);
    let run_plain = run(&sinks);
    assert_eq!((run_plain.status, run_plain.traffic("lost")), (0, 2000));
    let run_blind = run(&[&sinks[..], &["--transmit-only"]].concat());
    run_blind.assert_traffic(&[("sent", 2000), ("lost", 0)]);
}

#[test]
fn packets_of_another_sender_are_not_ours() {
    let run = run(&["--port", "mem:gen?count=300", "--port", "mem:gen?count=200", "--count", "100"]);
    assert_eq!(run.status, 0, "{:?}", run.errors);
    run.assert_traffic(&[("sent", 200), ("received", 0), ("lost", 200), ("unexpected", 500)]);
    run.assert_books();
}

/// A capture file of these frames, a microsecond apart.
fn write_pcap(path: &std::path::Path, frames: &[Vec<u8>]) {
    let mut file = std::fs::File::create(path).unwrap();
    let mut words = |words: &[u32]| {
        words.iter().for_each(|word| file.write_all(&word.to_le_bytes()).unwrap());
        file.try_clone().unwrap()
    };
    words(&[0xA1B2_C3D4, 4 << 16 | 2, 0, 0, 65535, 1]);
    for (stamp, frame) in frames.iter().enumerate() {
        let length = frame.len() as u32;
        words(&[0, stamp as u32, length, length]).write_all(frame).unwrap();
    }
}

#[test]
fn loss_duplicates_reordering_and_damage_are_told_apart() {
    let mut builder = FrameBuilder::new(&Addresses { sender: 0x0901, ..Addresses::default() }, true);
    let mut frame = |flow: u16, sequence: u64| {
        let mut frame = vec![0; 100];
        builder.write(&mut frame, flow, sequence);
        frame
    };
    // Flow 0: 0..500 without 100..110, 200 twice, 300 and 301 exchanged, 400 damaged. Flow 1: from 50 on.
    let mut frames: Vec<Vec<u8>> =
        (0..500).filter(|n| !(100..110).contains(n)).map(|n| frame(0, n)).collect();
    frames[390][70] ^= 0x10;
    frames.swap(290, 291);
    frames.insert(191, frame(0, 200));
    frames.extend((50..60).map(|n| frame(1, n)));
    frames.push(vec![0xFF; 60]);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("in.pcap");
    write_pcap(&path, &frames);
    let port = format!("pcap:{}?speed=max", path.display());
    let from_zero = run(&["--port", &port, "--receive-only", "--flows", "2", "--expect-no-loss"]);
    assert_eq!((from_zero.status, from_zero.errors.len()), (1, 1), "{:?}", from_zero.errors);
    from_zero.assert_traffic(&[
        ("received", 499),
        ("lost", 61),
        ("duplicate", 1),
        ("reordered", 1),
        ("corrupt", 1),
        ("foreign", 1),
        ("sent", 0),
    ]);
    from_zero.assert_books();
    let joined = run(&["--port", &port, "--receive-only", "--join", "--flows", "2"]);
    assert_eq!((joined.status, joined.traffic("lost")), (0, 11));
}

#[test]
fn ctrl_c_ends_a_run_with_its_books_in_order() {
    let folder = TempDir::new().unwrap();
    let report = folder.path().join("report.json");
    let started = Instant::now();
    let mut child = pktgen(&CABLE).args(["--rate", "50k", "--report"]).arg(&report).spawn().unwrap();
    // Signals are caught before a worker starts.
    let is_worker =
        |task: PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("worker-"));
    let tasks =
        || fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().map(|task| task.unwrap().path());
    while !tasks().any(is_worker) {
        assert!(started.elapsed() < Duration::from_secs(10), "no worker starts");
        thread::sleep(Duration::from_millis(5));
    }
    // So long it runs, with traffic.
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "runs until it is told to stop");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let run = end(child, started, Some(&report));
    assert_eq!(run.status, 0, "{:?}", run.errors);
    assert_eq!(run.report["traffic"]["complete"], false);
    assert_eq!(run.traffic("lost"), 0);
    assert_eq!(run.traffic("sent"), run.traffic("received") + run.traffic("in_flight"));
    run.assert_books();
}

/// Through l2fwd as its user sees it: interfaces on both sides, and no packet lost on the way out, through or back.
#[test]
fn namespace_pktgen_on_both_ends_of_a_wire_loses_nothing() {
    if !can_make_namespaces("namespace_pktgen_on_both_ends_of_a_wire_loses_nothing") {
        return;
    }
    // Rings that hold 400 ms of this traffic: one CPU may have both workers, and others besides.
    const PORTS: [&str; 2] = ["afxdp:eth0?rx_ring=8192", "afxdp:eth1?rx_ring=8192"];
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let wire = Wire::new(1500);
    // Both ends in one namespace, so that one pktgen has both, and knows what it sent.
    let ports = ["--port", "afxdp:p0?rx_ring=8192", "--port", "afxdp:p1?rx_ring=8192"];
    let middle = wire.forward(&[&ports[..], &["--report", path("middle.json").to_str().unwrap()]].concat());
    wire.silence();
    wire.right.ip(&["link", "set", "eth0", "down"]);
    wire.right.ip(&["link", "set", "eth0", "name", "eth1", "netns", &wire.left.name]);
    wire.left.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv6/conf/eth1/disable_ipv6"]);
    wire.left.ip(&["link", "set", "eth1", "up"]);

    // Where there are CPUs enough, not the one that l2fwd has its worker on.
    let allowed = Topology::read().unwrap().allowed;
    let (first, second) = (allowed.iter().next().unwrap(), allowed.iter().nth(1));
    let cpus = [first, second.unwrap_or(first)].map(|cpu| cpu.to_string());
    let report = path("ends.json");
    let program = env!("CARGO_BIN_EXE_pktgen");
    #[rustfmt::skip]
    let mut args = vec![
        "--port", PORTS[0], "--port", PORTS[1], "--rate", "20k", "--duration", "3", "--flows", "4", "--size", "60-1514",
        "--udp-checksum", "--expect-no-loss", "--stats-period", "0", "--report", report.to_str().unwrap(),
    ];
    if second.is_some() {
        args.extend(["--workers", &cpus[0], "--control", &cpus[1]]);
    }
    let mut command = wire.left.command(program, &args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let run = end(child, Instant::now(), Some(&report));
    assert_eq!((run.status, run.errors.len()), (0, 0), "{:?} {:#}", run.errors, run.report);
    let sent = run.traffic("sent");
    // Both ports' rate; less is what a stall at the very end holds back.
    assert!((80_000..=120_000).contains(&sent), "{sent} packets of 120000");
    for key in ["lost", "duplicate", "reordered", "late", "corrupt", "unexpected", "in_flight"] {
        assert_eq!(run.traffic(key), 0, "{key}: {:#}", run.report);
    }
    assert_eq!(run.traffic("received"), sent);
    for stream in run.report["traffic"]["streams"].as_array().unwrap() {
        assert!(stream["received"].as_u64().unwrap() >= 40_000, "both ways: {:#}", run.report);
    }
    run.assert_books();

    assert!(middle.end("INT").success());
    let report = read_report(&path("middle.json"));
    common::assert_books(&report);
    let forwarded: u64 =
        report["ports"].as_array().unwrap().iter().map(|port| port["tx_packets"].as_u64().unwrap()).sum();
    assert!(forwarded >= sent, "by l2fwd, and by no other way: {report:#}");
}

#[test]
fn bad_input_is_explained() {
    for (args, words) in [
        (&["--size", "59"][..], "60 to 9018"),
        (&["--size", "big"], "imix"),
        (&["--rate=-1"], "--rate"),
        (&["--rate", "2G"], "1000000000"),
        (&["--count", "0"], "from 1"),
        (&["--flows", "0"], "1..=60000"),
        (&["--flows", "60001"], "1..=60000"),
        (&["--portmap", "(0,5)"], "no port 5"),
        (&["--receive-only", "--transmit-only"], "cannot be used with"),
        (&["--join"], "--receive-only"),
        (&["--transmit-only", "--expect-no-loss"], "cannot be used with"),
        (&["--port", "mem:cable"], "both ends"),
        (&["--report", "/no/such/folder/report.json"], "/no/such/folder"),
    ] {
        let started = Instant::now();
        let run = end(pktgen(&[&CABLE, args].concat()).spawn().unwrap(), started, None);
        let text = run.errors.join("\n");
        assert!(text.contains(words) && run.errors.len() == 1, "{args:?}: {text}");
        // The command line is to blame for all but what the system or another port refuses.
        let blame = if args.contains(&"--report") || args.contains(&"--port") { 1 } else { 2 };
        assert_eq!(run.status, blame, "{args:?}: {text}");
    }
    let run = end(pktgen(&[]).spawn().unwrap(), Instant::now(), None);
    assert_eq!((run.status, run.errors.len()), (2, 1));
    assert!(run.errors[0].contains("--port"), "{:?}", run.errors);
}

#[test]
fn packets_that_no_port_can_send_are_refused_before_any_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("out.pcapng");
    let pcap = format!("pcap:none?out={}", file.display());
    let args = ["--port", &pcap, "--port", "veth:x?mtu=1500", "--size", "60-1515", "--count", "1"];
    let run = end(pktgen(&args).spawn().unwrap(), Instant::now(), None);
    let text = run.errors.join("\n");
    assert!(text.contains("1515 bytes do not fit veth:x: choose at most 1514"), "{text}");
    assert_eq!((run.status, run.errors.len(), file.exists()), (2, 1, false), "{text}");
}
