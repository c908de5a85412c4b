//! Isolated workers as a user runs them, on a machine that may keep its tick: what soft isolation finds is what the kernel itself counts, and
//! what it cannot find it says.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/worker_thread.rs"]
mod worker_thread;

use common::{l2fwd, read_report, rounds, wait_within};
use isolation::timer_interrupts;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use percpu::Topology;
use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use worker_thread::{count, count_event, is_shielded, worker_thread};

const LIMIT: Duration = Duration::from_secs(20);
const PORTS: [&str; 6] = ["--port", "mem:null", "--port", "mem:null", "--stats-period", "0"];
/// A busy machine has other tasks that take the worker's CPU.
const ATTEMPTS: usize = 5;

/// A running l2fwd with its files; killed when dropped.
struct Running {
    child: Child,
    folder: tempfile::TempDir,
}

/// What it leaves.
struct Ended {
    status: Option<i32>,
    log: String,
    report: Option<Value>,
    violations: Vec<Value>,
}

impl Running {
    /// Starts it by a launcher that becomes l2fwd: a copy, for users who cannot read where it was built.
    #[track_caller]
    fn start(launcher: &[&str], args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // For anybody.
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(folder.path(), permissions).unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (program, report, violations) = (path("l2fwd"), path("report.json"), path("violations.jsonl"));
        std::fs::copy(l2fwd(&[]).get_program(), &program).unwrap();
        let files = ["--report", &report, "--violations", &violations];
        let line = [launcher, &[&program], &PORTS[..], &files, args].concat();
        let log = File::create(path("log")).unwrap();
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).env_remove("ISOPLANE_LOG");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { child, folder }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    #[track_caller]
    fn wait_for<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> T {
        common::wait_for(what, LIMIT, || self.log(), condition)
    }

    /// The thread of worker 0.
    #[track_caller]
    fn worker(&self) -> i32 {
        self.wait_for("worker-0", || worker_thread(self.child.id()))
    }

    /// Ends it, and waits for its end.
    #[track_caller]
    fn end(self) -> Ended {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).unwrap();
        self.wait()
    }

    #[track_caller]
    fn wait(mut self) -> Ended {
        let status = wait_within(&mut self.child, LIMIT).unwrap_or_else(|| panic!("no end: {}", self.log()));
        let report = self.folder.path().join("report.json");
        let violations = std::fs::read_to_string(self.folder.path().join("violations.jsonl"));
        Ended {
            status: status.code(),
            log: self.log(),
            report: report.exists().then(|| read_report(&report)),
            violations: violations
                .unwrap_or_default()
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_root(test: &str) -> bool {
    if !geteuid().is_root() {
        eprintln!("SKIPPED {test}: needs root to hear of interrupts");
    }
    geteuid().is_root()
}

fn text<'a>(violation: &'a Value, key: &str) -> &'a str {
    violation[key].as_str().unwrap()
}

/// The worker's CPU; its control core's is another where there is one.
fn worker_cpu() -> usize {
    Topology::read().unwrap().allowed.iter().last().unwrap()
}

#[test]
fn namespace_soft_isolation_counts_the_ticks_that_the_kernel_counts() {
    const TEST: &str = "namespace_soft_isolation_counts_the_ticks_that_the_kernel_counts";
    if !is_root(TEST) {
        return;
    }
    let cpu = worker_cpu();
    for attempt in 1..=ATTEMPTS {
        // In a session of its own before all others, so that the ticks are the worker's.
        let launcher = ["nice", "-n", "-20", "setsid"];
        let cpu_text = cpu.to_string();
        let args = ["--isolation", "soft", "--signal", "interrupts"];
        let pinned = ["--workers", &cpu_text];
        let pinned: &[&str] = if Topology::read().unwrap().allowed.len() > 1 { &pinned } else { &[] };
        let running = Running::start(&launcher, &[&args, pinned].concat());
        let session = format!("/proc/{}/autogroup", running.child.id());
        running.wait_for("a tick", || running.log().contains("cause=irq:local_timer").then_some(()));
        if Path::new(&session).exists() {
            std::fs::write(session, "-20").unwrap();
        }
        let read = || (SystemTime::now(), timer_interrupts(cpu).unwrap());
        let (from, before) = read();
        std::thread::sleep(Duration::from_secs(2));
        let (to, after) = read();
        let ended = running.end();
        assert_eq!(ended.status, Some(0), "{}", ended.log);
        let report = ended.report.unwrap();
        let by_kernel = after - before;
        let rate = by_kernel as f64 / to.duration_since(from).unwrap().as_secs_f64();
        let between =
            ended.violations.iter().filter(|one| (from..to).contains(&time(one))).collect::<Vec<_>>();
        let is_tick = |one: &&&Value| text(one, "cause") == "irq:local_timer";
        let names_tick = |one: &&&Value| is_tick(one) || text(one, "detail").contains("irq:local_timer");
        let seen = between.iter().filter(names_tick).count() as f64;
        // Ticks that hit others while the worker was away are none of its own.
        let away = between.iter().filter(|one| text(one, "cause").starts_with("task:"));
        let missed: f64 =
            away.map(|one| 1.0 + rate * one["duration_ns"].as_u64().unwrap() as f64 / 1e9).sum();
        eprintln!(
            "the kernel counts {by_kernel} ({rate:.1} a second), {seen} hit the worker, {missed:.0} may have hit others"
        );
        assert_eq!(report["isolation"]["trace_lost"], 0, "{report:#}");
        // Reading the file takes time, in which one may come.
        assert!(seen <= by_kernel as f64 + 2.0, "{seen} of {by_kernel}");
        assert!(seen + missed + 2.0 >= by_kernel as f64, "{seen} of {by_kernel}");
        for tick in between.iter().filter(is_tick) {
            let duration_ns = tick["duration_ns"].as_u64().unwrap();
            assert!((100..4_000_000).contains(&duration_ns), "{tick:#}");
            assert!(!tick["kernel_stack"].as_array().unwrap().is_empty(), "{tick:#}");
        }
        if missed * 4.0 < by_kernel as f64 {
            return;
        }
        eprintln!("attempt {attempt}: {missed:.0} of {by_kernel} ticks may be others': too many");
    }
    panic!("this machine takes the worker's CPU away too often: nothing could be shown");
}

/// When it began.
fn time(violation: &Value) -> SystemTime {
    humantime::parse_rfc3339(text(violation, "time")).unwrap()
}

/// Spins on a CPU until it is dropped.
struct Rival<'a>(&'a AtomicBool);

impl Drop for Rival<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn without_privilege_soft_isolation_says_what_it_lacks_and_finds_preemption() {
    // Above 2 the kernel gives perf events to nobody without privilege: there is nothing to show.
    let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap();
    let nobody: &[&str] = if geteuid().is_root() {
        &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"]
    } else {
        &["env"]
    };
    let strict = Running::start(nobody, &["--isolation", "strict", "--duration", "1"]).wait();
    let errors: Vec<&str> = strict.log.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!((strict.status, errors.len()), (Some(1), 1), "{}", strict.log);
    if paranoid.trim().parse::<i32>().unwrap() > 2 {
        eprintln!("perf_event_paranoid is {}: not a word more can be known", paranoid.trim());
        return;
    }
    let (done, cpu) = (AtomicBool::new(false), worker_cpu());
    let ended = std::thread::scope(|scope| {
        let _end = Rival(&done);
        scope.spawn(|| {
            let _pinned = percpu::pin_on_cpu(cpu).unwrap();
            while !done.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Running::start(nobody, &["--isolation", "soft", "--duration", "2"]).wait()
    });
    assert_eq!(ended.status, Some(0), "{}", ended.log);
    let report = ended.report.unwrap();
    let isolation = &report["isolation"];
    let list = |key: &str| -> Vec<&str> {
        isolation[key].as_array().unwrap().iter().map(|words| words.as_str().unwrap()).collect()
    };
    for (key, words) in [
        ("lacks", "interrupts are signalled by trace events"),
        ("cannot_know", "cannot be known without CAP_PERFMON"),
    ] {
        assert!(list(key).iter().any(|line| line.contains(words)), "{key}: {isolation:#}");
        for line in list(key) {
            assert!(
                ended.log.contains(line),
                "\"{line}\" is in the report and not in the log: {}",
                ended.log
            );
            // It is what has been done.
            assert!(!line.contains("--isolation soft"), "{line}");
        }
    }
    // The rival is as good as the worker.
    let unknown: Vec<&Value> =
        ended.violations.iter().filter(|one| text(one, "cause") == "task:unknown").collect();
    assert!(!unknown.is_empty(), "{report:#}");
    for one in &unknown {
        assert!(text(one, "detail").contains("cannot be known without CAP_PERFMON"), "{one:#}");
        assert!(one["duration_ns"].as_u64().unwrap() > 0, "{one:#}");
    }
    // What needs a privilege is not claimed.
    let known = ["task:unknown", "blocked", "exception:page_fault"];
    for one in &ended.violations {
        assert!(known.contains(&text(one, "cause")), "{one:#}");
    }
    assert_eq!(report["violations"]["task:unknown"], unknown.len());
}

#[test]
fn namespace_an_isolated_worker_makes_no_system_call() {
    if !is_root("namespace_an_isolated_worker_makes_no_system_call") {
        return;
    }
    let args = ["--isolation", "soft", "--signal", "syscalls,exceptions"];
    let running = Running::start(&["env"], &args);
    let tid = running.worker();
    let mut calls = count_event("raw_syscalls/sys_enter", tid);
    // It has entered: its signals are blocked, and what it did for that is done.
    let entered = running.wait_for("isolation", || {
        let before = count(&mut calls);
        std::thread::sleep(Duration::from_millis(100));
        (is_shielded(tid) && count(&mut calls) == before).then_some(before)
    });
    let time = Duration::from_secs(rounds(2, 10) as u64);
    std::thread::sleep(time);
    let made = count(&mut calls) - entered;
    let ended = running.end();
    let report = ended.report.unwrap();
    assert!(report["workers"][0]["packets"].as_u64().unwrap() > 100_000, "{report:#}");
    assert_eq!(made, 0, "{made} system calls in {time:?}: {:#}", report["violations"]);
    assert_eq!(report["violations"], serde_json::json!({}), "{report:#}");
    // It counts: at its end the worker makes some.
    assert!(count(&mut calls) > entered, "the event counts nothing");
}
