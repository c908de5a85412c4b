//! A run that is asked and told things while it goes on: `isoplane ctl` and Prometheus say what the report says, to the packet.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/controlled.rs"]
mod controlled;

use common::{assert_books, error_lines, l2fwd, port_counts, run_within, wait_within};
use controlled::{ISOPLANE, LIMIT, Running, get, isoplane, refused};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use percpu::Topology;
use prometheus_parse::{Scrape, Value as Number};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A sample's value by its metric and labels.
#[track_caller]
fn number(scrape: &Scrape, metric: &str, labels: &[(&str, &str)]) -> u64 {
    let is_it = |sample: &&prometheus_parse::Sample| {
        sample.metric == metric && labels.iter().all(|(label, text)| sample.labels.get(label) == Some(*text))
    };
    let found: Vec<_> = scrape.samples.iter().filter(is_it).collect();
    assert_eq!(found.len(), 1, "{metric} {labels:?}: {found:?}");
    match found[0].value {
        Number::Counter(value) | Number::Gauge(value) => value as u64,
        ref other => panic!("{metric}: {other:?}"),
    }
}

const COUNTS: [u64; 2] = [300_000, 12_345];

#[test]
fn ctl_prometheus_and_the_report_agree_to_the_packet() {
    let gen_0 = format!("mem:gen?count={}&rate=200000", COUNTS[0]);
    let gen_1 = format!("mem:gen?count={}", COUNTS[1]);
    // The last two are a cable that nothing comes by, and that does not end: the run goes on when all packets are through.
    let ports = ["--port", &gen_0, "--port", &gen_1, "--port", "mem:cable", "--port", "mem:cable"];
    let running = Running::start(&ports);
    running.wait_for("the socket", || running.path("ctl").exists().then_some(()));
    // Some are lost, by name.
    running.set(&["port", "1", "down"]);
    let lost = |port: usize| {
        let drops = running.show("drops");
        drops
            .as_array()
            .unwrap()
            .iter()
            .find(|drop| drop["port"] == port)
            .map(|drop| (drop["reason"].clone(), drop["packets"].as_u64().unwrap()))
    };
    let (reason, _) =
        running.wait_for("drops of a port that is down", || lost(1).filter(|(_, packets)| *packets > 1000));
    assert_eq!(reason, "admin_down");
    assert_eq!(running.show("ports")[1]["enabled"], false);
    running.set(&["port", "1", "up"]);
    running.wait_for("the last packet", || {
        let ports = running.show("ports");
        ((0..2).all(|port| ports[port]["rx_packets"] == COUNTS[port])).then_some(())
    });
    // Those in the batch that was last received are on their way for a moment.
    let through = |ports: &Value| {
        (0..2)
            .map(|port| port_counts(&json!({ "ports": ports }), port))
            .fold(0, |sum, (_, sent, lost)| sum + sent + lost)
    };
    running.wait_for("all to be through", || {
        (through(&running.show("ports")) == COUNTS[0] + COUNTS[1]).then_some(())
    });
    // What the driver alone knows the control core says ten times a second.
    running.wait_for("the driver's word", || {
        let ports = running.show("ports");
        let said = |port: usize| ports[port]["extra"]["sink_packets"] == ports[port]["tx_packets"];
        (said(0) && said(1)).then_some(())
    });
    let (ports, workers, drops) = (running.show("ports"), running.show("workers"), running.show("drops"));
    let text = running.scrape();
    let table = String::from_utf8(running.ctl(&["show", "ports"]).stdout).unwrap();
    let report = running.end();
    assert_books(&report);
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
    for (index, port) in report["ports"].as_array().unwrap().iter().enumerate() {
        // Each key of the report is one of ctl's, and says the same.
        for (key, value) in port.as_object().unwrap() {
            assert_eq!(&ports[index][key], value, "{key} of port {index}");
        }
        let label = index.to_string();
        for (key, metric) in [
            ("rx_packets", "isoplane_port_received_packets_total"),
            ("rx_bytes", "isoplane_port_received_bytes_total"),
            ("tx_packets", "isoplane_port_transmitted_packets_total"),
            ("tx_bytes", "isoplane_port_transmitted_bytes_total"),
            ("doorbells", "isoplane_port_doorbells_total"),
            ("punted", "isoplane_port_punted_packets_total"),
        ] {
            assert_eq!(number(&scrape, metric, &[("port", &label)]), port[key], "{metric} of port {index}");
        }
        let reported = port["drops"].as_object().unwrap();
        let is_drop = |sample: &&prometheus_parse::Sample| {
            sample.metric == "isoplane_port_dropped_packets_total"
                && sample.labels.get("port") == Some(&label)
        };
        for sample in scrape.samples.iter().filter(is_drop) {
            let reason = sample.labels.get("reason").unwrap();
            let counted = number(&scrape, &sample.metric, &[("port", &label), ("reason", reason)]);
            assert_eq!(counted, reported.get(reason).map_or(0, |count| count.as_u64().unwrap()), "{reason}");
        }
        let of_ctl: Vec<_> = drops.as_array().unwrap().iter().filter(|drop| drop["port"] == index).collect();
        assert_eq!(of_ctl.len(), reported.len(), "{drops}");
        of_ctl
            .iter()
            .for_each(|drop| assert_eq!(drop["packets"], reported[drop["reason"].as_str().unwrap()]));
        let row: Vec<&str> = table.lines().nth(index + 1).unwrap().split_whitespace().collect();
        assert_eq!(
            (row[3], row[5]),
            (&*port["rx_packets"].to_string(), &*port["tx_packets"].to_string()),
            "{table}"
        );
    }
    for (index, worker) in report["workers"].as_array().unwrap().iter().enumerate() {
        for key in ["cpu", "packets", "tsc_per_packet", "affinity_changes"] {
            assert_eq!(workers[index][key], worker[key], "{key} of worker {index}");
        }
        let counted =
            number(&scrape, "isoplane_worker_received_packets_total", &[("worker", &index.to_string())]);
        assert_eq!(counted, worker["packets"]);
    }
}

/// By the format's specification and the naming conventions (prometheus.io/docs/practices/naming).
#[test]
fn metrics_are_named_and_described_as_prometheus_has_it() {
    let running = Running::start(&["--port", "mem:gen", "--port", "mem:gen", "--duration", "30"]);
    let text = running.scrape();
    running.end();
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
    let lines = |begin: &str| -> Vec<(String, String)> {
        let rest = text.lines().filter_map(|line| line.strip_prefix(begin));
        rest.map(|line| line.split_once(' ').unwrap())
            .map(|(name, words)| (name.into(), words.into()))
            .collect()
    };
    let (help, types) = (lines("# HELP "), lines("# TYPE "));
    let names: Vec<&String> = help.iter().map(|(name, _)| name).collect();
    assert_eq!(names, types.iter().map(|(name, _)| name).collect::<Vec<_>>());
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a name is described twice");
    assert!(help.iter().all(|(_, words)| words.ends_with('.')));
    for (name, kind) in &types {
        assert!(name.starts_with("isoplane_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
    }
    // What the parser does not understand it leaves out: each line that is no comment is a sample of a type that was said.
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(scrape.samples.len(), samples);
    for sample in &scrape.samples {
        assert!(!matches!(sample.value, Number::Untyped(_)), "{sample:?}");
    }
    assert_eq!(number(&scrape, "isoplane_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1);
    assert_eq!(
        number(&scrape, "isoplane_port_info", &[("port", "1"), ("name", "mem:gen"), ("driver", "mem")]),
        1
    );
}

#[test]
fn a_port_that_is_down_takes_and_sends_nothing_until_it_is_up_again() {
    let running = Running::start(&["--port", "mem:gen", "--port", "mem:gen", "--duration", "60"]);
    running.wait_for("the socket", || running.path("ctl").exists().then_some(()));
    // What port 0 sends came in by port 1.
    let by = |port: usize| running.show("ports")[port]["tx_packets"].as_u64().unwrap();
    let sent = || by(0).min(by(1));
    running.wait_for("packets", || (sent() > 0).then_some(()));
    running.set(&["port", "1", "down"]);
    let dropped = || running.show("ports")[1]["drops"]["admin_down"].as_u64().unwrap_or(0);
    let before = running.wait_for("drops", || Some(dropped()).filter(|dropped| *dropped > 0));
    // It stands from the turn on in which the first was dropped.
    let stand = [by(0), by(1)];
    running.wait_for("more drops", || (dropped() > before + 1000).then_some(()));
    assert_eq!([by(0), by(1)], stand, "sent by a port that is down, or from there");
    // It goes on receiving: what it throws away is in the books.
    let received = || running.show("ports")[1]["rx_packets"].as_u64().unwrap();
    let so_far = received();
    running.wait_for("more packets that are received", || (received() > so_far).then_some(()));
    let row = |output: std::process::Output| {
        String::from_utf8(output.stdout).unwrap().lines().nth(2).unwrap().to_owned()
    };
    assert!(row(running.ctl(&["show", "ports"])).contains("set down"));
    let drawn = || fs::read_to_string(running.path("tables")).unwrap();
    running.wait_for("the table", || drawn().lines().any(|line| line.ends_with("  set down")).then_some(()));
    running.set(&["port", "1", "up"]);
    running.wait_for("packets again", || (by(0) > stand[0] && by(1) > stand[1]).then_some(()));
    assert!(!row(running.ctl(&["show", "ports"])).contains("set down"));
    running.wait_for("the log", || running.log().contains("was set up by a client").then_some(()));
    assert!(running.log().contains("port 1 (mem:gen) was set down by a client"), "{}", running.log());
    refused(&running.ctl(&["set", "port", "2", "down"]), &["no port 2", "2 ports are open"]);
    assert_books(&running.end());
}

#[test]
fn the_log_level_changes_under_way() {
    let running = Running::start(&["--port", "mem:null", "--port", "mem:null"]);
    running.wait_for("the socket", || running.path("ctl").exists().then_some(()));
    let told = || running.log().matches("by a client").count();
    running.set(&["log-level", "warn"]);
    running.set(&["port", "0", "down"]);
    // What is to be told is told before the next table but one is drawn.
    let tables = || fs::read_to_string(running.path("tables")).unwrap().matches("longest gap").count();
    let drawn = tables();
    running.wait_for("tables", || (tables() > drawn + 5).then_some(()));
    assert_eq!(told(), 0, "{}", running.log());
    running.set(&["log-level", "info"]);
    running.set(&["port", "0", "up"]);
    running.wait_for("a log line", || (told() == 1).then_some(()));
    running.end();
}

#[test]
fn a_socket_is_its_owners_a_second_run_is_refused_and_a_dead_ones_place_is_taken() {
    let mut first = Running::start(&["--port", "mem:null", "--port", "mem:null"]);
    let path = first.path("ctl");
    first.wait_for("the socket", || path.exists().then_some(()));
    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let second = |args: &[&str]| {
        let own = ["--port", "mem:null", "--port", "mem:null", "--duration", "0.1", "--quiet"];
        run_within(&mut l2fwd(&[&own, args].concat()), LIMIT)
    };
    let ctl = ["--ctl", path.to_str().unwrap()];
    refused(&second(&ctl), &["somebody listens there already", "choose another path"]);
    first.show("pool");
    let address = first.metrics_address();
    refused(&second(&["--metrics", &address]), &["--metrics", "in use", "choose another"]);
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert!(path.exists(), "a killed run cannot take its socket away");
    refused(&first.ctl(&["show", "ports"]), &["refused", "--ctl SOCKET"]);
    let output = second(&ctl);
    assert!(output.status.success() && !path.exists(), "{output:?}");
}

#[test]
fn whatever_listens_at_the_path_ctl_ends_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let ask = |path: &Path| isoplane(&["ctl", "show", "ports", "--socket", path.to_str().unwrap()]);
    refused(&ask(&path), &["No such file", "--ctl SOCKET"]);
    fs::write(&path, "a file").unwrap();
    refused(&ask(&path), &["refused"]);
    fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let answers: [&[u8]; 5] = [b"", b"{\"ports\":", b"hello\n", b"{\"error\":\"no\"}\n", b"\xff\xff\n"];
    let server = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 64];
            let count = stream.read(&mut request).unwrap();
            assert_eq!(&request[..count], b"{\"show\":\"ports\"}\n");
            stream.write_all(answer).unwrap();
        }
        // The last one hears nothing at all.
        listener.accept().unwrap()
    });
    for words in
        ["closed without an answer", "no whole answer", "no answer of isoplane's", ": no", "valid UTF-8"]
    {
        refused(&ask(&path), &[words]);
    }
    refused(&ask(&path), &["no answer within 5s"]);
    drop(server.join().unwrap());
}

#[test]
fn wrong_commands_are_refused_in_words() {
    for (args, word) in [
        (&["ctl"][..], "subcommand"),
        (&["ctl", "set"], "subcommand"),
        (&["ctl", "show"], "<SUBJECT> is missing"),
        (&["ctl", "show", "prots"], "did you mean ports"),
        (&["ctl", "set", "port", "x", "down"], "invalid digit"),
        (&["ctl", "set", "port", "0", "sideways"], "up, down"),
        (&["ctl", "set", "log-level", "loud"], "off, error, warn"),
        (&["ctl", "set", "portmap"], "<PAIRS> is missing"),
        (&["ctl", "set", "prtmap", "(0,1)"], "did you mean port or portmap"),
        (&["ctl", "set", "app", "portmap"], "<TEXT> is missing"),
        (&["ctl", "show", "ports", "--socket", ""], "--socket"),
    ] {
        let output = isoplane(args);
        let lines = error_lines(&output);
        assert_eq!((output.status.code(), lines.len()), (Some(2), 1), "{args:?}: {lines:?}");
        assert!(lines[0].starts_with("error: ") && lines[0].contains(word), "{args:?}: {lines:?}");
    }
}

#[test]
fn namespace_a_user_without_privilege_has_live_control_of_his_own_run() {
    const TEST: &str = "namespace_a_user_without_privilege_has_live_control_of_his_own_run";
    if !geteuid().is_root() {
        eprintln!("SKIPPED {TEST}: needs root to become another user");
        return;
    }
    // Copies, for users who cannot read where they were built.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::copy(l2fwd(&[]).get_program(), path("l2fwd")).unwrap();
    fs::copy(ISOPLANE, path("isoplane")).unwrap();
    let command = |program: &str, user: u32, args: &[&str]| {
        let mut command = Command::new(path(program));
        command.args(args).uid(user).gid(user).stdin(Stdio::null()).env_remove("ISOPLANE_LOG");
        command
    };
    let socket = path("ctl").to_str().unwrap().to_owned();
    let args = ["--port", "mem:null", "--port", "mem:null", "--duration", "60", "--quiet", "--ctl", &socket];
    let child = command("l2fwd", 65_534, &args).stderr(File::create(path("log")).unwrap()).spawn().unwrap();
    let mut running = Running { child, folder: tempfile::tempdir().unwrap() };
    let log = || fs::read_to_string(path("log")).unwrap();
    common::wait_for("the socket", LIMIT, log, || path("ctl").exists().then_some(()));
    let ask = |user: u32| {
        run_within(&mut command("isoplane", user, &["ctl", "--socket", &socket, "show", "pool"]), LIMIT)
    };
    let output = ask(65_534);
    assert!(output.status.success() && output.stdout.starts_with(b"frames"), "{output:?}");
    refused(&ask(65_533), &["Permission denied", "owner's"]);
    kill(Pid::from_raw(running.child.id().cast_signed()), Signal::SIGINT).unwrap();
    assert!(wait_within(&mut running.child, LIMIT).is_some_and(|status| status.success()), "{}", log());
    assert!(!path("ctl").exists());
}

/// Clients by both doors, without a pause, from the control core's CPU: nothing that the telemetry thread does with memory, descriptors or threads
/// interrupts the worker.
#[test]
fn namespace_clients_do_not_reach_an_isolated_worker() {
    const TEST: &str = "namespace_clients_do_not_reach_an_isolated_worker";
    if !geteuid().is_root() {
        eprintln!("SKIPPED {TEST}: needs root to see the kernel's trace");
        return;
    }
    let mut cpus = Topology::read().unwrap().allowed.iter().collect::<Vec<_>>().into_iter();
    let (Some(control), Some(worker)) = (cpus.next(), cpus.next()) else {
        eprintln!("SKIPPED {TEST}: needs a second CPU");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let violations = folder.path().join("violations.jsonl");
    let (control_text, worker_text) = (control.to_string(), worker.to_string());
    let running = Running::start(&[
        "--port",
        "mem:gen?rate=100000",
        "--port",
        "mem:gen?rate=100000",
        "--isolation",
        "soft",
        "--control",
        &control_text,
        "--workers",
        &worker_text,
        "--violations",
        violations.to_str().unwrap(),
    ]);
    let address = running.metrics_address();
    // Whom the telemetry thread wakes on the worker's CPU is an interrupt there: neither this thread nor its children are.
    let _pinned = percpu::pin_on_cpu(control).unwrap();
    running.wait_for("packets", || {
        running.show("workers")[0]["packets"].as_u64().filter(|packets| *packets > 0)
    });
    let thread = running.telemetry_thread();
    let (stop, path) = (AtomicBool::new(false), running.path("ctl"));
    let answers: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|number| {
                let (stop, path, address) = (&stop, &path, &address);
                scope.spawn(move || {
                    let mut answers = 0;
                    while !stop.load(Ordering::Relaxed) {
                        answers += u64::from(match number {
                            0 => get(address).is_ok_and(|text| text.contains("isoplane_build_info")),
                            _ => ask_once(path).is_ok_and(|answer| answer.starts_with("{\"ports\":")),
                        });
                    }
                    answers
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(common::rounds(2, 20) as u64));
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    let counted = running.show("violations");
    let report = running.end();
    assert_books(&report);
    assert!(answers > 50, "only {answers} answers");
    let text = fs::read_to_string(&violations).unwrap();
    let by = format!("by telemetry (pid {thread})");
    // A softirq or an interrupt does others' work in whosever time it comes, and the scheduler balances loads in the time of whoever sleeps.
    let is_its_own = |line: &&str| {
        let others = ["handle_softirqs", "sysvec", "resched_curr", "sched_balance"];
        line.contains(&by) && !others.iter().any(|other| line.contains(other))
    };
    let sent: Vec<&str> = text.lines().filter(is_its_own).collect();
    assert!(sent.is_empty(), "{} of {} violations: {}", sent.len(), text.lines().count(), sent[0]);
    // What ctl said of them last, the report has, and what came since.
    assert_eq!(counted["mode"], "soft");
    for (cause, violations) in counted["causes"].as_object().unwrap() {
        let last = report["violations"][cause].as_u64().unwrap_or_default();
        assert!(
            violations["count"].as_u64().unwrap() <= last,
            "{cause}: {violations}, and {last} in the report"
        );
    }
    eprintln!("{answers} answers, {} violations by others", text.lines().count());
}

fn ask_once(path: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"{\"show\": \"ports\"}\n")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map(|_| text)
}
