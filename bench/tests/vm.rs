//! Tests in a guest, and of the guest: see `bench::vm` and CONTRIBUTING.md.
//!
//! The checks themselves are in `bench/vm/guest`. They are one test here, since they share one boot.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;
mod nics;

use bench::vm::{Guest, Kit, Session, VmError, build, build_static, build_test};
use common::{json_behind, kit, number, tell_checks};
use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn guest_checks() {
    let Some(kit) = kit("guest_checks") else { return };
    let program = build_static("guest", "guest").unwrap_or_else(|error| panic!("{error}"));
    let list = Command::new(&program).arg("--list").output().unwrap();
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
    let names = String::from_utf8(list.stdout).unwrap();

    let guest = Guest::new("checks")
        // Debian's own list, less what nobody here uses, is what it takes to run the BPF security module.
        .append("lsm=landlock,lockdown,yama,integrity,apparmor,bpf")
        .file("bin/guest", &program)
        .run("guest")
        .timeout(Duration::from_secs(120));
    let report = guest.boot(&kit).unwrap_or_else(|error| panic!("{error}"));

    tell_checks("guest_checks", &report, &names);
}

/// A container's view: one CPU of a machine of eight.
#[test]
fn guest_checks_on_eight_cpus() {
    let Some(kit) = kit("guest_checks_on_eight_cpus") else { return };
    let program = build_static("guest", "guest").unwrap_or_else(|error| panic!("{error}"));
    let checks = [
        "a_cpuset_of_one_cpu_takes_the_memory_of_one",
        "items_on_a_cpu_outside_the_cpuset_are_drained",
        "an_unplug_is_noticed_by_thread_and_watch",
    ];
    let guest = Guest::new("eight")
        .cpus(8)
        .file("bin/guest", &program)
        .run(&format!("guest {}", checks.join(" ")))
        .timeout(Duration::from_secs(120));
    let report = guest.boot(&kit).unwrap_or_else(|error| panic!("{error}"));
    tell_checks("guest_checks_on_eight_cpus", &report, &checks.join("\n"));
}

/// percpu's own tests on another kernel: the critical sections, and what takes a kernel with the BPF security module.
#[test]
fn guest_runs_percpu_tests() {
    let Some(kit) = kit("guest_runs_percpu_tests") else { return };
    let mut guest = Guest::new("percpu")
        .append("lsm=landlock,lockdown,yama,integrity,apparmor,bpf")
        .timeout(Duration::from_secs(120));
    let tests = ["abort", "outsider"];
    for test in tests {
        let program = build_test(test).unwrap_or_else(|error| panic!("{error}"));
        guest =
            guest.file(&format!("bin/{test}"), &program).run(&format!("{test} --nocapture --test-threads=1"));
    }
    let report = guest.boot(&kit).unwrap_or_else(|error| panic!("{error}"));
    let lines = |words: &str| report.output.iter().filter(|line| line.contains(words)).collect::<Vec<_>>();
    assert_eq!(lines("test result: ok").len(), tests.len(), "{:#?}", report.output);
    assert!(lines("SKIPPED").is_empty(), "this guest has all that they need: {:?}", lines("SKIPPED"));
    lines("test result: ok").iter().for_each(|line| println!("{line}"));
}

/// Two workers, which need three CPUs: each has its queues of both ports, moves packets, and the books are right.
#[test]
fn guest_two_workers_share_the_queues() {
    let Some(kit) = kit("guest_two_workers_share_the_queues") else { return };
    let [l2fwd, pktgen] =
        ["l2fwd", "pktgen"].map(|program| build(program).unwrap_or_else(|error| panic!("{error}")));
    let generator = "--port 'mem:gen?queues=2&flows=8'";
    let cable = "--port 'mem:cable?queues=2'";
    let guest = Guest::new("workers")
        .cpus(4)
        .timeout(Duration::from_secs(120))
        .file("bin/l2fwd", &l2fwd)
        .file("bin/pktgen", &pktgen)
        .run(&format!("l2fwd {generator} {generator} --queues-per-worker 2 --duration 2 --quiet --report /tmp/l2fwd"))
        .run("echo l2fwd && cat /tmp/l2fwd")
        .run(&format!(
            "pktgen {cable} {cable} --workers 2,3 --control 0 --flows 8 --count 20k --expect-no-loss --quiet --report /tmp/pktgen"
        ))
        .run("echo pktgen && cat /tmp/pktgen");
    let said = guest.boot(&kit).unwrap_or_else(|error| panic!("{error}"));

    let l2fwd = json_behind(&said, "l2fwd");
    let sum = |key: &str| (0..2).map(|port| number(&l2fwd, &format!("/ports/{port}/{key}"))).sum::<u64>();
    let drops: u64 = (0..2)
        .flat_map(|port| l2fwd["ports"][port]["drops"].as_object().unwrap().iter())
        .filter(|(reason, _)| !reason.starts_with("rx_"))
        .map(|(_, count)| count.as_u64().unwrap())
        .sum();
    assert_eq!(sum("rx_packets"), sum("tx_packets") + drops, "{l2fwd:#}");
    let packets = |worker| number(&l2fwd, &format!("/workers/{worker}/packets"));
    assert_eq!(packets(0) + packets(1), sum("rx_packets"), "{l2fwd:#}");
    // A queue's generator waits for nobody: a worker that gets none has been forgotten.
    assert!(packets(0) > 1000 && packets(1) > 1000, "{l2fwd:#}");
    assert_eq!(number(&l2fwd, "/ports/0/extra/sink_lost"), 0, "{l2fwd:#}");

    let pktgen = json_behind(&said, "pktgen");
    assert_eq!(number(&pktgen, "/traffic/received"), 40_000, "{pktgen:#}");
    for worker in 0..2 {
        // Of each end's 20000, those of the flows that this worker sends or receives.
        assert!(number(&pktgen, &format!("/workers/{worker}/packets")) > 1000, "{pktgen:#}");
    }
    for report in [&l2fwd, &pktgen] {
        assert_eq!(report["workers"].as_array().unwrap().len(), 2, "{report:#}");
        assert_ne!(report["workers"][0]["cpu"], report["workers"][1]["cpu"], "{report:#}");
        assert_eq!(number(report, "/pool/leaked"), 0, "{report:#}");
        assert_eq!(number(report, "/pool/free"), number(report, "/pool/frames"), "{report:#}");
    }
}

/// Packet memory on a page of 1 GiB, which few machines keep free.
#[test]
fn guest_gigabyte_pages_hold_packet_memory() {
    let Some(kit) = kit("guest_gigabyte_pages_hold_packet_memory") else { return };
    let l2fwd = build("l2fwd").unwrap_or_else(|error| panic!("{error}"));
    let free = "cat /sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages";
    let guest = Guest::new("gigabyte")
        // QEMU puts the second half behind 4 GiB. Of its two gigabytes the kernel has begun to use the upper one when it reserves
        // the page. The host gives what is touched.
        .memory_mib(4096)
        .append("hugepagesz=1G hugepages=1")
        .timeout(Duration::from_secs(120))
        .file("bin/l2fwd", &l2fwd)
        .run(&format!("echo before $({free})"))
        // It runs until it is killed, so that the page is seen in use, and given back without its help.
        .run("l2fwd --pages 1G --duration 100 --stats-period 0.1 --no-color >/tmp/tables & echo $! >/tmp/pid")
        .run("for turn in $(seq 300); do grep -q mem:gen /tmp/tables && break; sleep 0.1; done; grep -q mem:gen /tmp/tables")
        .run(&format!("echo meanwhile $({free}); kill -9 $(cat /tmp/pid)"))
        .run(&format!("for turn in $(seq 300); do [ $({free}) = 1 ] && break; sleep 0.1; done; echo after $({free})"))
        .run("l2fwd --pages 1G --duration 1 --quiet --report /tmp/l2fwd")
        .run("echo l2fwd && cat /tmp/l2fwd");
    let said = guest.boot(&kit).unwrap_or_else(|error| panic!("{error}"));
    let counts: Vec<&String> = said.output.iter().take_while(|line| *line != "l2fwd").collect();
    assert_eq!(counts, ["before 1", "meanwhile 0", "after 1"]);
    let report = json_behind(&said, "l2fwd");
    assert!(number(&report, "/ports/0/rx_packets") > 1000, "{report:#}");
    assert_eq!(number(&report, "/pool/leaked"), 0, "{report:#}");
    assert_eq!(number(&report, "/pool/free"), number(&report, "/pool/frames"), "{report:#}");
}

/// In a conversation, whose other errors are named too.
#[test]
fn guest_panic_is_named() {
    let Some(kit) = kit("guest_panic_is_named") else { return };
    let guest = Guest::new("panic").run("echo before");
    let talk = |session: &mut Session| {
        assert_eq!(session.run("echo one; echo EXIT 0 two")?, ["one", "EXIT 0 two"]);
        session.run("mkdir /tmp/left && cd /tmp/left")?;
        assert_eq!(session.run("pwd; ls /tmp")?, ["/", "left"]);
        assert!(session.run("echo a\necho b").unwrap_err().to_string().contains("one line"));
        assert!(session.wire(0, 1).unwrap_err().to_string().contains("NIC 0"));
        let failed = session.run("(exit 3)").unwrap_err();
        assert!(matches!(failed, VmError::Command { status: 3, .. }), "{failed}");
        session.run("echo c >/proc/sysrq-trigger")
    };
    let error = guest.converse(&kit, talk).unwrap_err();
    let VmError::Panicked { reason, console, .. } = &error else { panic!("{error}") };
    assert_eq!(reason, "Kernel panic - not syncing: sysrq triggered crash");
    assert!(console.contains("Call Trace"), "{console}");
}

#[test]
fn guest_that_hangs_is_killed_in_time() {
    let Some(kit) = kit("guest_that_hangs_is_killed_in_time") else { return };
    let limit = Duration::from_secs(2);
    let start = Instant::now();
    let error = Guest::new("hang").run("sleep 1000").timeout(limit).boot(&kit).unwrap_err();
    assert!(matches!(error, VmError::TimedOut { .. }), "{error}");
    assert!(start.elapsed() < limit + Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(!qemu_runs_with(&kit.logs("hang")), "QEMU has outlived its test");
}

/// Not a test of its own: the next one runs it in another process.
#[test]
#[ignore = "waits to be killed"]
fn guest_that_waits() {
    let kit = Kit::find().unwrap();
    let error =
        Guest::new("orphan").run("sleep 1000").timeout(Duration::from_secs(60)).boot(&kit).unwrap_err();
    panic!("{error}");
}

#[test]
fn guest_dies_with_its_test() {
    let Some(kit) = kit("guest_dies_with_its_test") else { return };
    let logs = kit.logs("orphan");
    let mut test = Command::new(env::current_exe().unwrap());
    let mut test = test
        .args(["--ignored", "--exact", "guest_that_waits"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = within(Duration::from_secs(20), || qemu_runs_with(&logs));
    test.kill().unwrap();
    test.wait().unwrap();
    assert!(started, "no QEMU was started");
    let gone = within(Duration::from_secs(5), || !qemu_runs_with(&logs));
    assert!(gone, "QEMU has outlived its test");
}

/// Asks again and again for at most this long.
fn within(limit: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Whether there is a QEMU whose logs go to this folder.
fn qemu_runs_with(logs: &Path) -> bool {
    let logs = logs.to_str().unwrap();
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        fs::read(entry.path().join("cmdline")).is_ok_and(|arguments| {
            let arguments = String::from_utf8_lossy(&arguments);
            arguments.contains("qemu-system") && arguments.contains(logs)
        })
    })
}
