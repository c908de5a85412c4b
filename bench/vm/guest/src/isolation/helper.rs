//! Other processes that disturb the worker when they are told to: this program again, with other words.
//!
//! Each is started before the worker enters, does its thing at a line on its standard input, and answers with a line.
#![forbid(unsafe_code)]

use super::scene::stay_on;
use super::{CPU, own};
use crate::sys;
use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long the hog keeps the CPU.
pub(crate) const HOG: Duration = Duration::from_millis(20);
/// Reads of `stat_refresh` at an order.
pub(crate) const REFRESHES: usize = 5;

/// How often the pulse takes the CPU at an order, and how long it sleeps each time, by a timer of that CPU.
pub(crate) const PULSES: usize = 100;
const PULSE: Duration = Duration::from_millis(4);

/// A helper, as the check sees it. It ends when this is dropped.
pub(crate) struct Helper {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Helper {
    /// Starts the helper of this name for the thread `tid`, and returns once it is ready.
    pub(crate) fn start(name: &str, tid: i32) -> Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .args(["--helper", name, &tid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a helper")?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut helper = Self { child, orders, answers };
        helper.answer()?;
        Ok(helper)
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Has it do its thing, and returns when that is done.
    pub(crate) fn order(&mut self) -> Result<()> {
        self.begin()?;
        self.answer()
    }

    /// Has it begin its thing.
    pub(crate) fn begin(&mut self) -> Result<()> {
        Ok(self.orders.as_mut().context("it was dismissed")?.write_all(b"\n")?)
    }

    /// Returns when it is done.
    pub(crate) fn answer(&mut self) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(line == "done\n", "the helper says \"{}\"", line.trim_end());
        Ok(())
    }

    /// It ends.
    pub(crate) fn dismiss(&mut self) -> Result<()> {
        self.orders = None;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Fails only for one that has been waited for.
        let _ = self.dismiss();
    }
}

/// What a debugger does until it is dismissed: the thread goes on after every stop, without the signal where that is SIGTRAP.
fn debug(thread: Pid) -> Result<()> {
    loop {
        match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive => {}
            WaitStatus::Stopped(_, Signal::SIGTRAP) | WaitStatus::PtraceEvent(..) => {
                ptrace::cont(thread, None)?
            }
            WaitStatus::Stopped(_, signal) => ptrace::cont(thread, signal)?,
            _ => return Ok(()),
        }
        // Its tracee goes on with the end of this process.
        let stdin = io::stdin();
        if poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], 1_u8)? > 0 {
            return Ok(());
        }
    }
}

/// The helper's own side.
pub(crate) fn help(words: &[&str]) -> Result<()> {
    let [name, tid] = words else { bail!("a helper wants a name and a thread") };
    let tid: i32 = tid.parse()?;
    match *name {
        "the_application_aborts" => return own::aborts(false),
        "a_violation_aborts" => return own::aborts(true),
        _ => {}
    }
    // What the violation is to call it.
    fs::write("/proc/self/comm", name)?;
    stay_on(&[0])?;
    if ["hog", "pulse"].contains(name) {
        sys::be_real_time(50)?;
    }
    let answer = || io::stdout().write_all(b"done\n");
    answer()?;
    for order in io::stdin().lines() {
        order?;
        match *name {
            "refresher" => {
                (0..REFRESHES).try_for_each(|_| fs::read("/proc/sys/vm/stat_refresh").map(drop))?
            }
            "hog" => {
                stay_on(&[CPU])?;
                let start = Instant::now();
                while start.elapsed() < HOG {
                    std::hint::spin_loop();
                }
            }
            "pulse" => {
                stay_on(&[CPU])?;
                for _ in 0..PULSES {
                    thread::sleep(PULSE);
                    // Long enough for ticks to come meanwhile, and for another pulse to wait for this one.
                    let start = Instant::now();
                    while start.elapsed() < PULSE / 2 {
                        std::hint::spin_loop();
                    }
                }
                stay_on(&[0])?;
            }
            "mover" => {
                let mut mask = CpuSet::new();
                mask.set(0)?;
                sched_setaffinity(Pid::from_raw(tid), &mask)?;
            }
            "profiler" => drop(sys::perf_event_of(tid)?),
            "debugger" => {
                ptrace::seize(Pid::from_raw(tid), ptrace::Options::empty())?;
                answer()?;
                return debug(Pid::from_raw(tid));
            }
            name => bail!("no helper \"{name}\""),
        }
        answer()?;
    }
    Ok(())
}
