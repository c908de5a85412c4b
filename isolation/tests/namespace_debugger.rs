//! A debugger is not bothered by the signals of a worker it looks at: a real one, in a process of its own. It needs root: the names begin with
//! `namespace_`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{isolated, soft};
use isolation::{Signals, Source, Watched};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const TEST: &str = "namespace_a_debugger_is_not_stopped_by_signals";
const THREAD: &str = "ISOPLANE_TEST_DEBUGS";
const LIMIT: Duration = Duration::from_secs(20);

/// What the debugger's process does: goes on after every stop without the signal, as debuggers do with SIGTRAP, and answers each line with the number of
/// stops; at the end of its input it lets go.
fn debug(tid: i32) {
    let thread = Pid::from_raw(tid);
    ptrace::seize(thread, ptrace::Options::empty()).unwrap();
    let (ask, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).for_each(|_| ask.send(()).unwrap())
    });
    let mut stops = 0_u64;
    loop {
        match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Stopped(_, Signal::SIGTRAP)) => {
                stops += 1;
                ptrace::cont(thread, None).unwrap();
            }
            Ok(WaitStatus::Stopped(_, other)) => ptrace::cont(thread, other).unwrap(),
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_micros(100)),
            Ok(WaitStatus::PtraceEvent(..)) => ptrace::cont(thread, None).unwrap(),
            other => panic!("{other:?}"),
        }
        match asked.try_recv() {
            Ok(()) => println!("stops {stops}"),
            Err(std::sync::mpsc::TryRecvError::Empty) => {}
            // Its tracee goes on with the end of this process.
            Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
        }
    }
}

struct Debugger {
    child: Child,
    ask: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Debugger {
    fn attach(tid: i32) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--test-threads=1", "--nocapture"])
            .env(THREAD, tid.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { ask: child.stdin.take(), child, answers }
    }

    /// How often the worker was stopped for it so far.
    fn stops(&mut self) -> u64 {
        writeln!(self.ask.as_ref().unwrap()).unwrap();
        let stops = |line: String| line.rsplit_once("stops ")?.1.parse().ok();
        self.answers.by_ref().map_while(Result::ok).find_map(stops).expect("the debugger has ended")
    }

    fn detach(mut self) {
        drop(self.ask.take());
        self.answers.by_ref().for_each(drop);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

#[track_caller]
fn within(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signals(watched: &Watched) -> u64 {
    Source::all().map(|source| watched.count(source)).sum()
}

/// Attaches, suspends, lets go, and takes up again, as the control core does.
fn visit(watched: &Watched, ticks: bool) {
    let mut debugger = Debugger::attach(watched.tid());
    within("the debugger", || watched.debugger().is_some());
    if ticks {
        within("a stop by a tick", || debugger.stops() > 2);
    }
    within("the suspension", || watched.suspend(true));
    // Fifty ticks of the slowest clock that kernels have would be 500 ms; the worker needs one turn.
    let mut before = debugger.stops();
    within("half a second without a stop", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = debugger.stops();
        std::mem::replace(&mut before, now) == now
    });
    let counted = signals(watched);
    debugger.detach();
    within("the debugger's end", || watched.debugger().is_none());
    assert_eq!(signals(watched), counted, "counted while it was suspended");
    within("the suspension's end", || watched.suspend(false));
    if ticks {
        within("a signal after the debugger", || signals(watched) > counted);
    }
}

#[test]
fn namespace_a_debugger_is_not_stopped_by_signals() {
    if let Ok(tid) = std::env::var(THREAD) {
        return debug(tid.parse().unwrap());
    }
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED {TEST}: needs root to signal interrupts");
    }
    let allowed = percpu::Topology::read().unwrap().allowed;
    if allowed.len() < 2 {
        return eprintln!("SKIPPED {TEST}: needs a second CPU");
    }
    isolated(&soft(Signals::INTERRUPTS), |guard| {
        let watched = guard.watched().unwrap();
        let ticks = !guard.shortcomings().is_empty();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let control = scope.spawn(|| {
                let others = allowed.iter().filter(|cpu| *cpu != watched.cpu());
                let mut mask = nix::sched::CpuSet::new();
                others.for_each(|cpu| mask.set(cpu).unwrap());
                nix::sched::sched_setaffinity(Pid::from_raw(0), &mask).unwrap();
                // Also after a panic.
                let result =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| visit(&watched, ticks)));
                done.store(true, Ordering::Relaxed);
                result
            });
            while !done.load(Ordering::Relaxed) {
                guard.turn();
                std::hint::spin_loop();
            }
            if let Err(panic) = control.join().unwrap() {
                std::panic::resume_unwind(panic);
            }
        });
    });
}
