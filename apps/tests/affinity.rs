//! Somebody changes the affinity of a worker that runs: it is noticed and reported, and the packets go on.
#![allow(clippy::unwrap_used)]

mod common;

use common::{assert_books, l2fwd, read_report, wait_within};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use percpu::{CpuList, Topology};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// A running l2fwd, killed when dropped, and what it has said so far.
struct Running {
    child: Child,
    tables: Arc<Mutex<String>>,
    log: Arc<Mutex<String>>,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut child = l2fwd(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let tables = collect(child.stdout.take().unwrap());
        let log = collect(child.stderr.take().unwrap());
        Self { child, tables, log }
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    #[track_caller]
    fn wait_for<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> T {
        common::wait_for(what, LIMIT, || self.log(), condition)
    }

    /// The thread that the kernel knows by this name.
    #[track_caller]
    fn thread(&self, name: &str) -> Pid {
        let tasks = format!("/proc/{}/task", self.child.id());
        self.wait_for(name, || {
            let task = std::fs::read_dir(&tasks).unwrap().map_while(Result::ok).find(|task| {
                std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
            })?;
            Some(Pid::from_raw(task.file_name().to_str()?.parse().ok()?))
        })
    }

    /// What the first port received a second, in whatever unit, table by table.
    fn rates(&self) -> Vec<f64> {
        let tables = self.tables.lock().unwrap();
        let rows = tables.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row.len() > 3 && row[0] == "0" && row[1] == "mem:gen")
            .map(|row| row[2].parse().unwrap())
            .collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(stream: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let lines = Arc::clone(&text);
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            *lines.lock().unwrap() += &(line + "\n");
        }
    });
    text
}

/// What `taskset -pc` does.
fn taskset(thread: Pid, cpus: &CpuList) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(cpu).unwrap());
    sched_setaffinity(thread, &set).unwrap();
}

#[test]
fn an_outsiders_taskset_is_reported_with_both_masks_and_packets_go_on() {
    const TEST: &str = "an_outsiders_taskset_is_reported_with_both_masks_and_packets_go_on";
    let allowed = Topology::read().unwrap().allowed;
    let mut cpus = allowed.iter();
    let (Some(other), Some(home)) = (cpus.next(), cpus.next()) else {
        eprintln!("SKIPPED {TEST}: needs a second CPU");
        return;
    };
    let (other, home) = (CpuList::from_iter([other]), CpuList::from_iter([home]));
    let both: CpuList = other.iter().chain(home.iter()).collect();
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let (control, worker) = (other.to_string(), home.to_string());
    #[rustfmt::skip]
    let mut running = Running::start(&[
        "--port", "mem:gen", "--port", "mem:gen", "--control", &control, "--workers", &worker, "--no-color",
        "--stats-period", "0.2", "--duration", "120", "--report", report.to_str().unwrap(),
    ]);
    let thread = running.thread("worker-0");
    running.wait_for("the first table", || running.rates().first().copied());
    assert!(!running.log().contains("affinity"), "{}", running.log());

    // Widened: nothing that the worker itself would see, as long as it is not moved. Then moved for sure.
    let changes = [(&home, &both, None), (&both, &other, Some(&other))];
    for (before, now, moved_to) in changes {
        taskset(thread, now);
        let words = format!("worker 0: affinity was changed from outside: {before} -> {now}, ");
        let line = running
            .wait_for(&words, || running.log().lines().find(|line| line.contains(&words)).map(str::to_owned));
        if let Some(cpu) = moved_to {
            assert!(line.contains(&format!("moved from CPU {home} to CPU {cpu}")), "{line}");
        }
        assert!(
            line.contains("WARN") && line.contains(&format!("\"taskset -pc {home} {thread}\"")),
            "{line}"
        );
        let tables = running.rates().len();
        let rates = running.wait_for("three tables more", || {
            let rates = running.rates();
            (rates.len() >= tables + 3).then_some(rates)
        });
        assert!(rates[tables + 1..].iter().all(|rate| *rate > 0.0), "packets stop: {rates:?}");
    }
    // As the line says.
    taskset(thread, &home);
    let words = format!("affinity was changed from outside: {other} -> {home}, now on CPU {home}");
    running.wait_for(&words, || running.log().contains(&words).then_some(()));

    kill(Pid::from_raw(running.child.id() as i32), Signal::SIGINT).unwrap();
    let status = wait_within(&mut running.child, LIMIT).unwrap();
    assert!(status.success(), "{}", running.log());
    let report = read_report(&report);
    assert_books(&report);
    // A worker that was moved while its mask was wide is one change more.
    let changes = report["workers"][0]["affinity_changes"].as_u64().unwrap();
    let lines = running.log().matches("affinity was changed from outside").count() as u64;
    assert!((3..=4).contains(&changes) && changes == lines, "{changes} changes: {}", running.log());
}
