//! What a user can get wrong: one line with the way out each, exit status 2 or 1, no panic, nothing left behind.

mod common;

use common::{error_lines, l2fwd, run_within};
use percpu::Topology;
use std::time::Duration;

/// Runs l2fwd with wrong arguments; its one error line must hold all of `words`, and not only in what it repeats of them.
#[track_caller]
fn refuse(args: &[&str], status: i32, words: &[&str]) {
    assert_eq!(refusal(args, words), Some(status), "{args:?}");
}

/// The same for errors whose exit status depends on the machine, 1 or 2; gives it.
#[track_caller]
fn refusal(args: &[&str], words: &[&str]) -> Option<i32> {
    let output = run_within(&mut l2fwd(args), Duration::from_secs(10));
    let lines = error_lines(&output);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {lines:?}");
    assert_eq!(lines.len(), 1, "{args:?}: {lines:?}");
    assert!(lines[0].starts_with("error: "), "{args:?}: {lines:?}");
    // The specification is repeated in front; the words must be in what is said of it.
    let spec = args.iter().find(|arg| arg.contains(':')).copied().unwrap_or_default();
    let said = lines[0].replacen(spec, "", 1);
    for word in words {
        assert!(said.contains(word), "{args:?}: \"{word}\" is not in: {said}");
    }
    output.status.code()
}

#[test]
fn specifications() {
    let port = |spec: &str, words: &[&str]| {
        refuse(&["--port", spec, "--port", "mem:null", "--duration", "1"], 2, words)
    };
    port("eth0", &["no driver", "afxdp:eth0"]);
    port("", &["no driver"]);
    port("afxdp:", &["nothing behind"]);
    port("dpdk:eth0", &["unknown driver \"dpdk\"", "mem"]);
    port("mem:nul", &["unknown in-memory port", "mem:null"]);
    port("mem:null?size", &["no value"]);
    port("mem:null?size=13", &["size=13", "from 14"]);
    port("mem:null?size=100000", &["size=100000", "to 1526"]);
    port("mem:null?size=large", &["size=large: choose", "from 14 to 1526"]);
    port("mem:null?size=-64", &["size=-64: choose", "from 14 to 1526"]);
    port("mem:null?sise=64", &["unknown option \"sise\"", "size"]);
    port("mem:null?size=64&size=64", &["twice"]);
    port("mem:null?queues=0", &["queues=0", "from 1"]);
    port("mem:gen?rate=fast", &["rate=fast: choose", "to 1000000000"]);
    port("mem:gen?check=perhaps", &["check=perhaps", "on, off"]);
}

#[test]
fn captures() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("text"), "this is no capture, only a line of text").unwrap();
    std::fs::write(path("empty"), "").unwrap();
    let port = |spec: String, words: &[&str]| {
        refusal(&["--port", &spec, "--port", "mem:null", "--duration", "1"], words)
    };
    port(format!("pcap:{}", path("missing")), &["No such file"]);
    port(format!("pcap:{}", folder.path().display()), &["not a regular file"]);
    port(format!("pcap:{}", path("text")), &["neither pcap nor pcapng"]);
    port(format!("pcap:{}", path("empty")), &["empty"]);
    port(format!("pcap:{}?speed=slow", path("text")), &["speed=slow", "wire"]);
    port(format!("pcap:{}?loop=often", path("text")), &["loop=often: choose a whole number"]);
}

#[test]
fn interfaces() {
    let port = |spec: &str, words: &[&str]| {
        refusal(&["--port", spec, "--port", "mem:null", "--duration", "1"], words)
    };
    port("afxdp:nosuch0", &["no interface \"nosuch0\"", "choose from"]);
    port("afxdp:an-interface-name-that-is-too-long", &["no interface"]);
    port("afxdp:lo?queues=99", &["lo has 1 queue", "pass queues=1"]);
    port("afxdp:lo?mode=fast", &["mode=fast", "zerocopy"]);
    port("afxdp:lo?bind=somehow", &["bind=somehow", "skb"]);
    port("afxdp:lo?busy_poll=-1", &["busy_poll=-1: choose", "0 to 100000"]);
    port("afxdp:lo?colour=red", &["unknown option \"colour\"", "it takes queues, mode"]);
    port("veth:a/b", &["is no name for an interface", "letters and digits"]);
    port("veth:x?mtu=9", &["68 to 9000"]);
    port("afxdp:lo?frame=1000", &["choose 2048, 4096"]);
    port("afxdp:lo?rx_ring=100", &["64 or 128"]);
    port("veth:x?address=here", &["such as 10.0.0.1/24"]);
}

#[test]
fn cpus() {
    let topology = Topology::read().unwrap();
    let beyond = (topology.possible.iter().last().unwrap() + 1).to_string();
    let first = topology.allowed.iter().next().unwrap().to_string();
    let all = topology.allowed.to_string();
    let ports = ["--port", "mem:null", "--port", "mem:null", "--duration", "1"];
    let cpu = |args: &[&str], words: &[&str]| refuse(&[&ports[..], args].concat(), 2, words);
    cpu(&["--workers", &beyond], &["does not exist"]);
    cpu(&["--control", &beyond], &["does not exist"]);
    cpu(&["--workers", &format!("{first},{first}")], &["twice"]);
    cpu(&["--workers", "3-1"], &["backwards"]);
    cpu(&["--workers", "one"], &["0,2-5"]);
    cpu(&["--queues-per-worker", "0"], &["at least one queue"]);
    if topology.allowed.len() > 1 {
        cpu(&["--workers", &first, "--control", &first], &["control core and to a worker"]);
        cpu(&["--workers", &all], &["leave one out"]);
        cpu(&["--workers", &first, "--queues-per-worker", "1"], &["--queues-per-worker"]);
        refuse(&["--port", "mem:null", "--workers", "", "--duration", "1"], 2, &["names no CPU"]);
    } else {
        eprintln!("SKIPPED cpus (part): needs two CPUs");
    }
}

#[test]
fn port_maps() {
    let ports = ["--port", "mem:null", "--port", "mem:null", "--duration", "1", "--portmap"];
    let map = |text: &str, words: &[&str]| refuse(&[&ports[..], &[text]].concat(), 2, words);
    map("0,1", &["(0,1)(2,3)"]);
    map("(0,7)", &["no port 7"]);
    map("(0,1)(1,1)", &["two pairs"]);
    map("(0,0)", &["no partner"]);
    map("(a,b)", &["port numbers"]);
}

#[test]
fn memory() {
    let ports = ["--port", "mem:null", "--port", "mem:null", "--duration", "1"];
    let memory =
        |args: &[&str], status: i32, words: &[&str]| refuse(&[&ports[..], args].concat(), status, words);
    memory(&["--frames", "10"], 2, &["--frames 10", "at least"]);
    memory(&["--frames", "99999999999"], 2, &["not possible"]);
    memory(&["--frames", "100000000"], 1, &["fewer frames"]);
    memory(&["--frames", "many"], 2, &["--frames"]);
    memory(&["--frame-size", "3000"], 2, &["2048 or 4096"]);
    // More pages than are free.
    let folder = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    if let Ok(text) = std::fs::read_to_string(format!("{folder}/free_hugepages")) {
        let free: u64 = text.trim().parse().unwrap();
        let frames = ((2 * free + 4) * 1024).to_string();
        let words = ["free hugepages of 2M", "/nr_hugepages", "--pages 4K"];
        memory(&["--pages", "2M", "--frames", &frames], 1, &words);
    }
    memory(&["--pages", "3M"], 2, &["4K, 2M or 1G"]);
    // More 1 GiB pages than any test machine keeps free.
    let known = std::path::Path::new("/sys/kernel/mm/hugepages/hugepages-1048576kB").exists();
    let words = if known { "hugepages-1048576kB" } else { "cannot get" };
    memory(&["--pages", "1G", "--frames", "100000000"], 1, &[words, "--pages 4K"]);
}

#[test]
fn the_run() {
    let ports = ["--port", "mem:null", "--port", "mem:null"];
    let run =
        |args: &[&str], status: i32, words: &[&str]| refuse(&[&ports[..], args].concat(), status, words);
    run(&["--duration", "-1"], 2, &["--duration"]);
    run(&["--duration", "soon"], 2, &["number of seconds"]);
    run(&["--stats-period", "1e30"], 2, &["31536000"]);
    run(&["--report", "/no/such/folder/report.json"], 1, &["/no/such/folder", "choose a path"]);
    run(&["--report", "/proc"], 1, &["/proc", "choose a path"]);
    run(&["--reprot", "x"], 2, &["--report"]);
    run(&["eth0"], 2, &["eth0"]);
    run(&["--no-such-option"], 2, &["--no-such-option"]);
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
