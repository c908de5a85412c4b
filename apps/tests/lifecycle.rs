//! Starting, stopping and dying: whatever ends l2fwd, nothing of it is left behind (root).
#![allow(clippy::unwrap_used)]

mod common;

use common::network::{Forwarder, Namespace, Wire, can_make_namespaces, run};
use common::{assert_books, read_report, rounds};
use std::fs;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One test at a time, and whether it can run: `Leftovers` counts what the whole machine has, so that `cargo test`, which runs
/// tests of a file side by side, must not have others of this file come and go meanwhile.
fn alone(test: &str) -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    can_make_namespaces(test).then_some(turn)
}

/// Hugepages in use, network namespaces that have a name, and the BPF links and programs of the whole machine.
#[derive(Debug, PartialEq, Eq)]
struct Leftovers {
    hugepages: i64,
    namespaces: usize,
    links: usize,
    programs: usize,
}

impl Leftovers {
    fn count() -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
        let pages = |key: &str| -> i64 {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim().parse().unwrap()
        };
        let bpf = |what: &str| {
            let text = run("bpftool", &["-j", what, "show"]);
            let list: serde_json::Value = serde_json::from_str(&text).unwrap();
            list.as_array().map_or(0, Vec::len)
        };
        Self {
            hugepages: pages("HugePages_Total:") - pages("HugePages_Free:"),
            namespaces: fs::read_dir("/run/netns").map_or(0, Iterator::count),
            links: bpf("link"),
            programs: bpf("prog"),
        }
    }

    /// Waits until all is as it was, for 10 s at most: the kernel frees programs and namespaces some time after their
    /// last user is gone.
    #[track_caller]
    fn assert_back(&self) {
        let start = Instant::now();
        loop {
            let now = Self::count();
            if now == *self {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "left behind: {now:?}, before: {self:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// True where `ip link` and `bpftool net` agree that an interface has no XDP program.
#[track_caller]
fn assert_no_program(namespace: &Namespace, interface: &str) {
    let start = Instant::now();
    while namespace.ip(&["link", "show", interface]).contains("xdp") {
        assert!(start.elapsed() < Duration::from_secs(10), "{interface} keeps its XDP program");
        std::thread::sleep(Duration::from_millis(5));
    }
    let net = namespace.run("bpftool", &["-j", "net", "show"]);
    assert!(!net.contains(&format!("\"{interface}\"")), "bpftool still sees a program: {net}");
}

#[test]
fn namespace_fifty_starts_and_stops_leave_nothing() {
    let Some(_turn) = alone("namespace_fifty_starts_and_stops_leave_nothing") else { return };
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let wire = Wire::new(1500);
    let before = Leftovers::count();
    for round in 0..rounds(50, 300) {
        let args = ["--port", "afxdp:p0", "--port", "afxdp:p1", "--report", report.to_str().unwrap()];
        let forwarder = Forwarder::start(&wire.middle, &args);
        forwarder.wait_until_open(2);
        assert!(forwarder.end(["INT", "TERM"][round % 2]).success(), "round {round}");
        assert_books(&read_report(&report));
    }
    assert_no_program(&wire.middle, "p0");
    assert_no_program(&wire.middle, "p1");
    before.assert_back();
}

#[test]
fn namespace_ten_kills_under_traffic_leave_nothing() {
    let Some(_turn) = alone("namespace_ten_kills_under_traffic_leave_nothing") else { return };
    let wire = Wire::new(1500);
    let before = Leftovers::count();
    let flood = ["-q", "-f", "-s", "600", "-w", "1200", "10.0.0.2"];
    let mut ping =
        wire.left.command("ping", &flood).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for _ in 0..rounds(10, 60) {
        let forwarder = wire.forward(&[]);
        assert!(!forwarder.end("KILL").success());
        assert_no_program(&wire.middle, "p0");
        assert_no_program(&wire.middle, "p1");
    }
    run("kill", &["-INT", &ping.id().to_string()]);
    ping.wait().unwrap();
    before.assert_back();
    // And the interfaces still work.
    assert!(wire.forward(&[]).end("INT").success());
}

#[test]
fn namespace_channels_are_changed_on_request_and_put_back() {
    let Some(_turn) = alone("namespace_channels_are_changed_on_request_and_put_back") else { return };
    let namespace = Namespace::new();
    let queues = ["numtxqueues", "4", "numrxqueues", "4"];
    let pair = [&["link", "add", "p0"], &queues[..], &["type", "veth", "peer", "name", "q0"], &queues[..]];
    namespace.ip(&pair.concat());
    for interface in ["p0", "q0"] {
        namespace.ip(&["link", "set", interface, "up"]);
    }
    namespace.run("ethtool", &["-L", "p0", "rx", "1", "tx", "1"]);
    let channels = || namespace.run("ethtool", &["-l", "p0"]);
    let before = channels();
    // Under traffic, which keeps the kernel busy with the sockets for a while after they are closed.
    let ports = ["--port", "afxdp:p0?channels=2&queues=2", "--port", "mem:null?queues=2", "--duration", "2"];
    let forwarder = Forwarder::start(&namespace, &ports);
    forwarder.wait_until_open(2);
    assert_ne!(channels(), before);
    let (status, log) = forwarder.wait_with_log(Duration::from_secs(20));
    assert!(status.success(), "{log}");
    assert_eq!(channels(), before, "{log}");
}

#[test]
fn namespace_a_second_forwarder_on_the_same_interface_is_refused_in_words() {
    let Some(_turn) = alone("namespace_a_second_forwarder_on_the_same_interface_is_refused_in_words") else {
        return;
    };
    let wire = Wire::new(1500);
    let first = wire.forward(&[]);
    let second = Forwarder::start(&wire.middle, &["--port", "afxdp:p0", "--port", "mem:null"]);
    let status = second.wait_with_log(Duration::from_secs(10));
    assert_eq!(status.0.code(), Some(1), "{}", status.1);
    assert!(status.1.contains("error: afxdp:p0:") && status.1.contains("bpftool"), "{}", status.1);
    wire.wait_for_link();
    assert!(first.end("INT").success());
}

#[test]
fn namespace_without_privilege_it_says_which_is_missing() {
    let Some(_turn) = alone("namespace_without_privilege_it_says_which_is_missing") else { return };
    let wire = Wire::new(1500);
    let program = common::l2fwd(&[]).get_program().to_str().unwrap().to_owned();
    let args = [
        "--bounding-set=-all",
        "--inh-caps=-all",
        &program,
        "--port",
        "afxdp:p0",
        "--port",
        "mem:null",
        "--duration",
        "1",
    ];
    let output = common::run_within(&mut wire.middle.command("setpriv", &args), Duration::from_secs(10));
    let lines = common::error_lines(&output);
    assert_eq!((output.status.code(), lines.len()), (Some(1), 1), "{lines:?}");
    assert!(lines[0].contains("cap_net_admin"), "{lines:?}");
}

#[test]
fn namespace_an_interface_that_vanishes_is_an_event() {
    let Some(_turn) = alone("namespace_an_interface_that_vanishes_is_an_event") else { return };
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let wire = Wire::new(1500);
    let forwarder = wire.forward(&["--report", report.to_str().unwrap()]);
    let flood = ["-q", "-f", "-w", "60", "10.0.0.2"];
    let mut ping =
        wire.left.command("ping", &flood).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wire.middle.ip(&["link", "del", "p1"]);
    forwarder.wait_for_log("afxdp:p1 has stopped");
    // One port is left: it goes on.
    wire.middle.ip(&["link", "del", "p0"]);
    let (status, log) = forwarder.wait_with_log(Duration::from_secs(10));
    run("kill", &["-INT", &ping.id().to_string()]);
    ping.wait().unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_books(&read_report(&report));
}

/// An interface in a namespace that has no name: its other end is with us, and goes when that namespace does, which nothing else shows.
struct Witness<'a> {
    here: &'a Namespace,
    name: String,
}

impl<'a> Witness<'a> {
    /// `way_in` is the command line that leads into the namespace, such as `nsenter --net=/proc/7/fd/9`.
    #[track_caller]
    fn place(here: &'a Namespace, name: &str, way_in: &str) -> Self {
        let script = format!("{way_in} ip link add witness type veth peer name {name} netns {}", here.name);
        run("sh", &["-c", &script]);
        assert!(here.ip(&["link", "show"]).contains(name), "it was made");
        Self { here, name: name.to_owned() }
    }

    /// Waits until the namespace has gone, for 10 s at most.
    #[track_caller]
    fn assert_gone(&self) {
        let start = Instant::now();
        while self.here.ip(&["link", "show"]).contains(&self.name) {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "the namespace of {} is still there",
                self.name
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The README's command with veth ports, its ping, and whatever ends it.
#[test]
fn namespace_veth_ports_go_with_their_namespaces() {
    let Some(_turn) = alone("namespace_veth_ports_go_with_their_namespaces") else { return };
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let here = Namespace::new();
    let before = Leftovers::count();
    for signal in ["INT", "TERM", "KILL", "KILL"] {
        let ports = ["--port", "veth:a?address=10.0.0.1/24", "--port", "veth:b?address=10.0.0.2/24"];
        let forwarder =
            Forwarder::start(&here, &[&ports[..], &["--report", report.to_str().unwrap()]].concat());
        forwarder.wait_until_open(2);
        let log = forwarder.log();
        let way_in = |end: &str| {
            let line =
                log.lines().find_map(|line| line.split_once(&format!("the other end is {end}; to use it: ")));
            line.unwrap().1.strip_suffix(" COMMAND").unwrap().to_owned()
        };
        let witnesses = ["a", "b"].map(|end| Witness::place(&here, &format!("witness-{end}"), &way_in(end)));
        // The first packet may come before the worker turns.
        run("sh", &["-c", &format!("{} ping -q -c 1 -w 10 10.0.0.2", way_in("a"))]);
        // So that it ends under traffic. In flood mode ping sends when an answer comes.
        let flood = format!("exec {} ping -q -f -w 20 10.0.0.2", way_in("a"));
        let mut flood = Command::new("sh")
            .args(["-c", &flood])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let ping = run("sh", &["-c", &format!("{} ping -q -c 200 -i 0.002 -W 2 10.0.0.2", way_in("a"))]);
        assert!(ping.contains("200 received, 0% packet loss"), "{ping}");
        let status = forwarder.end(signal);
        assert_eq!(status.success(), signal != "KILL");
        // It holds the namespace, as any process in it does.
        flood.kill().unwrap();
        flood.wait().unwrap();
        for witness in &witnesses {
            witness.assert_gone();
        }
        if signal != "KILL" {
            assert_books(&read_report(&report));
        }
    }
    before.assert_back();
}
