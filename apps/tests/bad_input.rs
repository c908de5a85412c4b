//! What a user can get wrong: one line with the way out each, exit status 2 or 1, no panic, nothing left behind.

#![allow(clippy::unwrap_used)]

mod common;

use common::{error_lines, l2fwd, run_within};
use percpu::Topology;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// What was promised: that many different ones.
const LEAST: usize = 50;

/// A wrong command line, and what is said of it.
struct Case {
    args: Vec<String>,
    status: i32,
    words: Vec<String>,
}

impl Case {
    fn new(args: &[&str], status: i32, words: &[&str]) -> Self {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self { args: owned(args), status, words: owned(words) }
    }

    /// A wrong specification, beside a right one.
    fn port(spec: &str, status: i32, words: &[&str]) -> Self {
        Self::new(&["--port", spec, "--port", "mem:null", "--duration", "1"], status, words)
    }

    /// Wrong options of a run on ports that are right.
    fn options(args: &[&str], status: i32, words: &[&str]) -> Self {
        Self::new(&[&PORTS, args].concat(), status, words)
    }

    /// What l2fwd does that it should not: one error line must hold all of the words, and not only in what it repeats of the arguments.
    fn complaint(&self) -> Option<String> {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let output = run_within(&mut l2fwd(&args), Duration::from_secs(10));
        let lines = error_lines(&output);
        let complain = |what: String| Some(format!("{args:?}: {what}: {lines:?}"));
        if output.status.code() != Some(self.status) {
            return complain(format!("{}, and not {}", output.status, self.status));
        }
        let [line] = &lines[..] else { return complain(format!("{} lines", lines.len())) };
        if !line.starts_with("error: ") {
            return complain("no error line".to_owned());
        }
        // The specification is repeated in front; the words must be in what is said of it.
        let spec = args.iter().find(|arg| arg.contains(':')).copied().unwrap_or_default();
        let said = line.replacen(spec, "", 1);
        let missing = self.words.iter().find(|word| !said.contains(*word));
        missing.and_then(|word| complain(format!("\"{word}\" is missing")))
    }
}

/// Right ports.
const PORTS: [&str; 6] = ["--port", "mem:null", "--port", "mem:null", "--duration", "1"];

#[track_caller]
fn refuse(args: &[&str], status: i32, words: &[&str]) {
    assert_eq!(Case::new(args, status, words).complaint(), None);
}

fn specifications() -> Vec<Case> {
    let port = |spec: &str, words: &[&str]| Case::port(spec, 2, words);
    vec![
        port("eth0", &["no driver", "afxdp:eth0"]),
        port("", &["no driver"]),
        port("afxdp:", &["nothing behind"]),
        port("dpdk:eth0", &["unknown driver \"dpdk\"", "mem"]),
        port("mem:nul", &["unknown in-memory port", "mem:null"]),
        port("mem:null?size", &["no value"]),
        port("mem:null?size=13", &["size=13", "from 14"]),
        port("mem:null?size=100000", &["size=100000", "to 1526"]),
        port("mem:null?size=large", &["size=large: choose", "from 14 to 1526"]),
        port("mem:null?size=-64", &["size=-64: choose", "from 14 to 1526"]),
        port("mem:null?sise=64", &["unknown option \"sise\"", "size"]),
        port("mem:null?size=64&size=64", &["twice"]),
        port("mem:null?queues=0", &["queues=0", "from 1"]),
        port("mem:gen?rate=fast", &["rate=fast: choose", "to 1000000000"]),
        port("mem:gen?check=perhaps", &["check=perhaps", "on, off"]),
    ]
}

fn captures(folder: &Path) -> Vec<Case> {
    let path = |name: &str| folder.join(name).display().to_string();
    std::fs::write(path("text"), "this is no capture, only a line of text").unwrap();
    std::fs::write(path("empty"), "").unwrap();
    let port =
        |target: String, status: i32, words: &[&str]| Case::port(&format!("pcap:{target}"), status, words);
    vec![
        port(path("missing"), 1, &["No such file"]),
        port(path("."), 1, &["not a regular file"]),
        port(path("text"), 1, &["neither pcap nor pcapng"]),
        port(path("empty"), 1, &["empty"]),
        port(path("text?speed=slow"), 2, &["speed=slow", "wire"]),
        port(path("text?loop=often"), 2, &["loop=often: choose a whole number"]),
    ]
}

fn interfaces() -> Vec<Case> {
    vec![
        Case::port("afxdp:nosuch0", 2, &["no interface \"nosuch0\"", "choose from"]),
        Case::port("afxdp:an-interface-name-that-is-too-long", 2, &["no interface"]),
        Case::port("afxdp:lo?queues=99", 2, &["lo has 1 queue", "pass queues=1"]),
        Case::port("afxdp:lo?mode=fast", 2, &["mode=fast", "zerocopy"]),
        Case::port("afxdp:lo?bind=somehow", 2, &["bind=somehow", "skb"]),
        Case::port("afxdp:lo?busy_poll=-1", 2, &["busy_poll=-1: choose", "0 to 100000"]),
        Case::port("afxdp:lo?colour=red", 2, &["unknown option \"colour\"", "it takes queues, mode"]),
        Case::port("veth:a/b", 2, &["is no name for an interface", "letters and digits"]),
        Case::port("veth:x?mtu=9", 2, &["68 to 9000"]),
        Case::port("afxdp:lo?frame=1000", 2, &["choose 2048, 4096"]),
        Case::port("afxdp:lo?rx_ring=100", 2, &["64 or 128"]),
        Case::port("veth:x?address=here", 2, &["such as 10.0.0.1/24"]),
    ]
}

/// What needs no device: those that are there differ from machine to machine.
fn pci_devices() -> Vec<Case> {
    let port = |spec: &str, words: &[&str]| Case::port(spec, 2, words);
    vec![
        port("vfio:eth0", &["\"eth0\" is no PCI address", "such as 0000:03:00.0", "isoplane nics"]),
        port("vfio:0000:03:00", &["no .FUNCTION at its end"]),
        port("vfio:0000:03:00.8", &["its function \"8\"", "from 0 to 7"]),
        port("vfio:0000:03:20.0", &["its device \"20\"", "from 0 to 1f"]),
        port("vfio:0000:103:00.0", &["its bus \"103\""]),
        port("vfio:03.0", &["DOMAIN:BUS:DEVICE.FUNCTION"]),
        // Domains end earlier.
        port("vfio:fffffffe:00:00.0", &["no PCI device at fffffffe:00:00.0", "Ethernet device"]),
        port("vfio:fffffffe:00:00.0?queues=2", &["no PCI device at fffffffe:00:00.0"]),
        port("vfio:0000:03:00.0?queues", &["no value"]),
        port("vfio:0000:03:00.0?queues=1&queues=2", &["twice"]),
    ]
}

fn exceptions() -> Vec<Case> {
    let exception = |args: &[&str], words: &[&str]| Case::options(args, 2, words);
    vec![
        Case::port("tap:an-interface-of-16", 2, &["is no name for an interface", "up to 15"]),
        Case::port("tap:x?mac=2", 2, &["no Ethernet address", "six pairs"]),
        Case::port("tap:x?mac=ff:ff:ff:ff:ff:ff", 2, &["no address of a station", "02:00:00:00:00:01"]),
        Case::port("tap:x?mtu=64k", 2, &["from 68 to 9000"]),
        Case::port("tap:x?persist=on", 2, &["unknown option \"persist\"", "mac, mtu, up"]),
        Case::port("afxdp:lo?pass=ssh", 2, &["\"ssh\": choose arp", "tcp:PORT"]),
        Case::port("veth:x?pass=tcp:0", 2, &["\"tcp:0\": choose arp", "udp:PORT"]),
        exception(&["--exception", "tap0"], &["PORT=NAME", "0=tap0"]),
        exception(&["--exception", "9=tap0"], &["no port 9", "choose from 0 to 1"]),
        exception(&["--exception", "0=tap0", "--exception", "0=tap1"], &["has one already"]),
        exception(&["--exception", "0=tap0", "--exception", "1=tap0"], &["choose another name"]),
        exception(&["--exception", "0=a/b"], &["is no name for an interface"]),
        exception(&["--punt-limit", "udp=5"], &["CLASS=PACKETS_A_SECOND", "arp, icmp, tcp, other"]),
        exception(&["--punt-limit", "tcp=fast"], &["CLASS=PACKETS_A_SECOND"]),
    ]
}

fn cpus() -> Vec<Case> {
    let topology = Topology::read().unwrap();
    let beyond = (topology.possible.iter().last().unwrap() + 1).to_string();
    let first = topology.allowed.iter().next().unwrap().to_string();
    let all = topology.allowed.to_string();
    let cpu = |args: &[&str], words: &[&str]| Case::options(args, 2, words);
    let mut cases = vec![
        cpu(&["--workers", &beyond], &["does not exist"]),
        cpu(&["--control", &beyond], &["does not exist"]),
        cpu(&["--workers", &format!("{first},{first}")], &["twice"]),
        cpu(&["--workers", "3-1"], &["backwards"]),
        cpu(&["--workers", "one"], &["0,2-5"]),
        cpu(&["--queues-per-worker", "0"], &["at least one queue"]),
    ];
    if topology.allowed.len() > 1 {
        cases.extend([
            cpu(&["--workers", &first, "--control", &first], &["control core and to a worker"]),
            cpu(&["--workers", &all], &["leave one out"]),
            cpu(&["--workers", &first, "--queues-per-worker", "1"], &["--queues-per-worker"]),
            Case::new(&["--port", "mem:null", "--workers", "", "--duration", "1"], 2, &["names no CPU"]),
        ]);
    } else {
        eprintln!("SKIPPED cpus (part): needs two CPUs");
    }
    cases
}

fn port_maps() -> Vec<Case> {
    let map = |text: &str, words: &[&str]| Case::options(&["--portmap", text], 2, words);
    vec![
        map("0,1", &["(0,1)(2,3)"]),
        map("(0,7)", &["no port 7"]),
        map("(0,1)(1,1)", &["two pairs"]),
        map("(0,0)", &["no partner"]),
        map("(a,b)", &["port numbers"]),
    ]
}

fn memory() -> Vec<Case> {
    let known = std::path::Path::new("/sys/kernel/mm/hugepages/hugepages-1048576kB").exists();
    let giant = if known { "hugepages-1048576kB" } else { "cannot get" };
    let mut cases = vec![
        Case::options(&["--frames", "10"], 2, &["--frames 10", "at least"]),
        Case::options(&["--frames", "99999999999"], 2, &["not possible"]),
        Case::options(&["--frames", "100000000"], 1, &["fewer frames"]),
        Case::options(&["--frames", "many"], 2, &["--frames"]),
        Case::options(&["--frame-size", "3000"], 2, &["2048 or 4096"]),
        Case::options(&["--pages", "3M"], 2, &["4K, 2M or 1G"]),
        // More 1 GiB pages than any test machine keeps free.
        Case::options(&["--pages", "1G", "--frames", "100000000"], 1, &[giant, "--pages 4K"]),
    ];
    // More pages than are free.
    let folder = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    if let Ok(text) = std::fs::read_to_string(format!("{folder}/free_hugepages")) {
        let free: u64 = text.trim().parse().unwrap();
        let frames = ((2 * free + 4) * 1024).to_string();
        let words = ["free hugepages of 2M", "/nr_hugepages", "--pages 4K"];
        cases.push(Case::options(&["--pages", "2M", "--frames", &frames], 1, &words));
    }
    cases
}

fn isolation() -> Vec<Case> {
    let isolated = |args: &[&str], status: i32, words: &[&str]| {
        Case::options(&[&["--isolation", "soft"], args].concat(), status, words)
    };
    let off = |args: &[&str], option: &str| Case::options(args, 2, &[option, "add --isolation soft"]);
    let mut cases = vec![
        Case::options(&["--isolation", "bogus"], 2, &["--isolation", "off, soft, strict"]),
        Case::options(&["--isolation", "sotf"], 2, &["did you mean soft"]),
        Case::options(&["--isolation"], 2, &["--isolation"]),
        isolated(&["--signal", "nonsense"], 2, &["syscalls,exceptions,interrupts"]),
        isolated(&["--signal", ""], 2, &["syscalls,exceptions,interrupts"]),
        isolated(&["--allow", "interrupts"], 2, &["leave interrupts out of --signal"]),
        isolated(&["--allow", "everything"], 2, &["syscalls,exceptions,interrupts"]),
        isolated(&["--on-violation", "rearm"], 2, &["add --one-shot"]),
        isolated(&["--on-violation", "panic"], 2, &["log, rearm, exit, abort"]),
        isolated(&["--quiesce", "perhaps"], 2, &["on, off"]),
        isolated(&["--idle", "adaptive"], 2, &["--idle", "leave one of them out"]),
        isolated(&["--kick", "nobody"], 2, &["control, worker"]),
        Case::options(&["--idle", "never"], 2, &["poll, adaptive, interrupt"]),
        isolated(&["--violations", "/no/such/folder/log.jsonl"], 1, &["/no/such/folder", "choose a path"]),
        isolated(&["--violations", "/proc"], 1, &["/proc", "choose a path"]),
        off(&["--signal", "syscalls"], "--signal"),
        off(&["--allow", "syscalls"], "--allow"),
        off(&["--one-shot"], "--one-shot"),
        off(&["--on-violation", "exit"], "--on-violation"),
        off(&["--quiesce", "on"], "--quiesce"),
        off(&["--violations", "log.jsonl"], "--violations"),
        off(&["--isolation", "off", "--one-shot"], "--one-shot"),
    ];
    // A machine that can do it is not refused.
    let tickless = std::fs::read_to_string("/sys/devices/system/cpu/nohz_full").unwrap_or_default();
    if tickless.contains(|letter: char| letter.is_ascii_digit()) {
        eprintln!("SKIPPED isolation (part): CPU {} is tickless", tickless.trim());
    } else if Topology::read().unwrap().allowed.len() > 1 {
        // The machine is to blame and not the command line: status 1.
        cases.push(Case::options(&["--isolation", "strict"], 1, &["nohz_full=", "--isolation soft"]));
    } else {
        cases.push(Case::options(&["--isolation", "strict"], 2, &["the only CPU", "--isolation soft"]));
    }
    cases
}

fn live_control(folder: &Path) -> Vec<Case> {
    let file = folder.join("file").display().to_string();
    std::fs::write(&file, "a file").unwrap();
    let metrics =
        |address: &str, status: i32, words: &[&str]| Case::options(&["--metrics", address], status, words);
    let ctl = |path: &str, status: i32, words: &[&str]| Case::options(&["--ctl", path], status, words);
    vec![
        metrics("9100", 2, &["is no address and port", "127.0.0.1:9100"]),
        metrics("localhost", 2, &["is no address and port"]),
        metrics("127.0.0.1:99999", 2, &["is no address and port"]),
        metrics("::1:9100", 2, &["[::1]:9100"]),
        // Kept for documentation: no machine has it.
        metrics("192.0.2.1:9100", 1, &["Cannot assign", "choose another"]),
        ctl("", 2, &["--ctl"]),
        ctl(&"l".repeat(200), 2, &["1 to 99 bytes, not 200"]),
        ctl("/no/such/folder/ctl", 1, &["No such file", "choose another path"]),
        ctl("/proc", 1, &["it is no socket", "choose another path"]),
        ctl(&file, 1, &["it is no socket", "choose another path"]),
    ]
}

fn the_run() -> Vec<Case> {
    // Without a duration: a second one would be an error of its own.
    let run =
        |args: &[&str], status: i32, words: &[&str]| Case::new(&[&PORTS[..4], args].concat(), status, words);
    vec![
        run(&["--duration", "-1"], 2, &["--duration"]),
        run(&["--duration", "soon"], 2, &["number of seconds"]),
        run(&["--stats-period", "1e30"], 2, &["31536000"]),
        run(&["--report", "/no/such/folder/report.json"], 1, &["/no/such/folder", "choose a path"]),
        run(&["--report", "/proc"], 1, &["/proc", "choose a path"]),
        run(&["--reprot", "x"], 2, &["--report"]),
        run(&["eth0"], 2, &["eth0"]),
        run(&["--no-such-option"], 2, &["--no-such-option"]),
    ]
}

#[test]
fn bad_input_is_refused_in_one_line_each() {
    let folder = tempfile::tempdir().unwrap();
    let groups = [
        specifications(),
        captures(folder.path()),
        interfaces(),
        pci_devices(),
        exceptions(),
        cpus(),
        port_maps(),
        memory(),
        isolation(),
        live_control(folder.path()),
        the_run(),
    ];
    let cases: Vec<Case> = groups.into_iter().flatten().collect();
    let distinct = cases.iter().map(|case| &case.args).collect::<BTreeSet<_>>().len();
    let complaints: Vec<String> = cases.iter().filter_map(Case::complaint).collect();
    assert!(complaints.is_empty(), "{} of {distinct}:\n{}", complaints.len(), complaints.join("\n"));
    assert!(distinct >= LEAST, "only {distinct} different cases");
    println!("{distinct} kinds of bad input, each refused in one line");
}

#[test]
fn a_refused_run_leaves_no_report_behind() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    refuse(&["--port", "mem:null?size=1", "--report", report.to_str().unwrap()], 2, &["size=1"]);
    refuse(&["--port", "mem:null", "--frames", "1", "--report", report.to_str().unwrap()], 2, &["--frames"]);
    assert!(!report.exists());
}

#[test]
fn namespace_a_report_on_a_read_only_file_system_is_refused_before_the_run() {
    const TEST: &str = "namespace_a_report_on_a_read_only_file_system_is_refused_before_the_run";
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED {TEST}: needs root to mount");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let program = l2fwd(&[]).get_program().to_str().unwrap().to_owned();
    // Mounted in a namespace that ends with the command.
    let script = "mount -t tmpfs -o ro none \"$1\" && exec \"$2\" --duration 1 --report \"$1/report.json\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", folder, &program]);
    let output = run_within(&mut command, Duration::from_secs(10));
    let lines = error_lines(&output);
    assert_eq!((output.status.code(), lines.len()), (Some(1), 1), "{lines:?}");
    for word in ["Read-only file system", "choose a path"] {
        assert!(lines[0].contains(word), "{word}: {lines:?}");
    }
}
