//! A worker that does not come round is told of, once, with what keeps it, and again when it is back.
#![allow(clippy::unwrap_used)]

use clap::Parser;
use dataplane::{Application, DataplaneArgs, Outcome, Outputs, Plan};
use nic::{Batch, PortId};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    dataplane: DataplaneArgs,
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// The lines with this in them.
    fn lines(&self, with: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(with)).map(str::to_owned).collect()
    }

    /// Waits for such a line; false where none comes.
    fn wait_for(&self, with: &str) -> bool {
        let start = Instant::now();
        while self.lines(with).is_empty() {
            if start.elapsed() > LIMIT {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

/// What its first packets are for: then it is through.
struct Late {
    hold: fn(&AtomicBool),
    go_on: Arc<AtomicBool>,
    held: bool,
    end: Arc<AtomicBool>,
}

impl Application for Late {
    fn process(&mut self, packets: &mut Batch, from: PortId, out: &mut Outputs) {
        if !std::mem::replace(&mut self.held, true) {
            (self.hold)(&self.go_on);
        }
        out.send(PortId(from.0 ^ 1), packets);
    }

    fn is_finished(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }
}

/// Runs one worker that is held up in `process` until it was told of, and on until it was told to be back.
#[track_caller]
fn run(limit_ms: &str, hold: fn(&AtomicBool)) -> (Outcome<Late>, Log) {
    let args = ["test", "--quiet", "--watchdog", limit_ms, "--port", "mem:gen", "--port", "mem:gen"];
    let args = Args::parse_from(args.iter().chain(&["--queues-per-worker", "2", "--kick", "worker"]));
    let (log, go_on, end) = (Log::default(), Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let seen = thread::spawn({
        let (log, go_on, end) = (log.clone(), Arc::clone(&go_on), Arc::clone(&end));
        move || {
            let told = log.wait_for("stands still");
            go_on.store(true, Ordering::Relaxed);
            let back = log.wait_for("is back");
            end.store(true, Ordering::Relaxed);
            (told, back)
        }
    });
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let outcome = tracing::subscriber::with_default(subscriber, || {
        let dataplane = Plan::check(&args.dataplane).unwrap().open().unwrap();
        let (go_on, end) = (Arc::clone(&go_on), Arc::clone(&end));
        dataplane.run(|_| Late { hold, go_on: Arc::clone(&go_on), held: false, end: Arc::clone(&end) })
    });
    assert_eq!(seen.join().unwrap(), (true, true), "{:?}", log.lines(""));
    (outcome.unwrap(), log)
}

/// The milliseconds in a line, after these words.
#[track_caller]
fn milliseconds(line: &str, after: &str) -> u64 {
    line.split_once(after).unwrap().1.split_once(" ms").unwrap().0.parse().unwrap()
}

/// That it was told of in time and once, and that it is back.
#[track_caller]
fn assert_told(log: &Log, limit_ms: u64, outcome: &Outcome<Late>) -> String {
    let (told, back) = (log.lines("worker 0 stands still"), log.lines("worker 0 is back"));
    // A busy machine may hold it up for as long as that once more.
    assert!(told[0].contains("ERROR"), "{told:?}");
    assert!(told.len() - back.len() <= 1, "{told:?} {back:?}");
    let (still, away) = (milliseconds(&told[0], "for "), milliseconds(&back[0], "for "));
    assert!((limit_ms..limit_ms * 5 / 2).contains(&still), "{told:?}");
    assert!(away >= still, "{told:?} {back:?}");
    assert_eq!(outcome.report.workers[0].stalls, told.len() as u64);
    assert_eq!(outcome.report.pool.leaked, 0);
    told[0].clone()
}

/// One at a time: their workers have the same CPU.
static ALONE: Mutex<()> = Mutex::new(());

/// The line that tells of it. Where the machine is so busy that the worker truly waits for its CPU at that moment, that is what the line says: then again.
#[track_caller]
fn told_of(hold: fn(&AtomicBool)) -> String {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut line = String::new();
    for _ in 0..10 {
        let (outcome, log) = run("500", hold);
        line = assert_told(&log, 500, &outcome);
        if !line.contains("another task has its CPU") && !line.contains("does not take the signal") {
            break;
        }
    }
    line
}

#[inline(never)]
fn spins_until_told(go_on: &AtomicBool) {
    let start = Instant::now();
    while !go_on.load(Ordering::Relaxed) && start.elapsed() < LIMIT {
        // The clock is read in the vDSO, of whose code no file tells.
        (0..10_000).for_each(|_| std::hint::spin_loop());
    }
}

#[test]
fn code_that_does_not_come_back_is_named_by_its_stack() {
    let line = told_of(spins_until_told);
    assert!(line.contains("its own code does not come back"), "{line}");
    assert!(line.contains("spins_until_told"), "{line}");
    assert!(line.contains("process"), "its callers: {line}");
}

#[inline(never)]
fn sleeps_until_told(go_on: &AtomicBool) {
    let start = Instant::now();
    while !go_on.load(Ordering::Relaxed) && start.elapsed() < LIMIT {
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_worker_that_the_kernel_holds_is_not_taken_for_one_that_runs() {
    let line = told_of(sleeps_until_told);
    assert!(line.contains("blocked in the kernel (state S)"), "{line}");
    if nix::unistd::geteuid().is_root() {
        assert!(line.contains("nanosleep"), "{line}");
    }
}

#[test]
fn one_that_does_not_see_the_end_is_told_of_too() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let args = ["test", "--quiet", "--port", "mem:gen", "--duration", "0.3", "--kick", "worker"];
    let args = Args::parse_from(args);
    let (log, go_on) = (Log::default(), Arc::<AtomicBool>::default());
    let told = thread::spawn({
        let (log, go_on) = (log.clone(), Arc::clone(&go_on));
        move || {
            let told = [log.wait_for("worker 0 has not ended"), log.wait_for("worker 0 stands still")];
            go_on.store(true, Ordering::Relaxed);
            told
        }
    });
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let outcome = tracing::subscriber::with_default(subscriber, || {
        let dataplane = Plan::check(&args.dataplane).unwrap().open().unwrap();
        let late =
            || Late { hold: spins_until_told, go_on: Arc::clone(&go_on), held: false, end: Arc::default() };
        dataplane.run(|_| late())
    });
    assert_eq!(told.join().unwrap(), [true, true], "{:?}", log.lines(""));
    assert_eq!(outcome.unwrap().report.pool.leaked, 0);
}

#[test]
fn a_watchdog_that_is_off_says_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let args = ["test", "--quiet", "--watchdog", "0", "--port", "mem:gen", "--duration", "0.5"];
    let args = Args::parse_from(args);
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let hold: fn(&AtomicBool) = |_| thread::sleep(Duration::from_millis(300));
    let outcome = tracing::subscriber::with_default(subscriber, || {
        let dataplane = Plan::check(&args.dataplane).unwrap().open().unwrap();
        dataplane.run(|_| Late { hold, go_on: Arc::default(), held: false, end: Arc::default() })
    });
    assert_eq!(outcome.unwrap().report.workers[0].stalls, 0);
    assert!(log.lines("stands still").is_empty());
}
