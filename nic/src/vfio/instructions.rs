//! How many instructions a driver takes for a packet, counted one by one: a child process runs the driver on a model of its device, and its parent steps through
//! what is between two marks. See `bench/vfio/instructions.sh`.
//!
//! Many machines have no counter for it, and Callgrind has not the address space that packet memory reserves. A critical section of per-CPU data does not
//! get through under a debugger: each step is an interruption, and the kernel sends the thread back. So the parent takes away, at every step, what the child
//! has said of where it is (`rseq_cs`): then the kernel lets it go on, and nobody else is there who could get in its way.
#![forbid(unsafe_code)]

use crate::memory::{Frame, Pool, PoolConfig};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, gettid};
use std::env;
use std::io::{BufRead, BufReader, Write, stdin};
use std::process::{Command, Stdio};
use std::ptr;

/// Says to the child that it is one.
const CHILD: &str = "ISOPLANE_INSTRUCTIONS";
/// Packets of a burst.
pub(crate) const BURST: usize = 32;
/// Rounds in which the pool is counted alone.
const ROUNDS: usize = 8;
/// Instructions for a packet at most, received and sent, the pool's among them.
const LIMIT: f64 = 100.0;
/// Of `rseq_cs` in `struct rseq`.
const RSEQ_CS_OFFSET: usize = 8;

/// What the child marks by.
pub(crate) struct Marks(());

impl Marks {
    /// Has what `work` does counted.
    pub(crate) fn counted(&self, work: impl FnOnce()) {
        raise(Signal::SIGSTOP).unwrap();
        work();
        raise(Signal::SIGSTOP).unwrap();
    }
}

/// Counts what `run` marks; each mark is about a burst. `test` is the full name of the test that calls this: it is run again, in a child process.
pub(crate) fn count(test: &str, driver: &str, run: impl FnOnce(&Marks)) {
    if env::var_os(CHILD).is_some() {
        println!("\nTHREAD {} {}", gettid(), percpu::rseq::area_address().unwrap_or_default());
        stdin().lock().read_line(&mut String::new()).unwrap();
        let marks = Marks(());
        // What the marks themselves take.
        marks.counted(|| ());
        count_pool(&marks);
        return run(&marks);
    }
    let counts = in_child(test);
    let (marks, rest) = counts.split_first().expect("a mark");
    let (pool, bursts) = rest.split_at(ROUNDS.min(rest.len()));
    let per_packet = |counts: &[u64]| {
        let sum: u64 = counts.iter().map(|count| count.saturating_sub(*marks)).sum();
        sum as f64 / counts.len().max(1) as f64 / BURST as f64
    };
    let (pool, all) = (per_packet(pool), per_packet(bursts));
    println!(
        "INSTRUCTIONS {driver}: {all:.1} a packet, received and sent in bursts of {BURST}, {pool:.1} of them the pool's"
    );
    // Other builds say nothing.
    assert!(cfg!(debug_assertions) || all <= LIMIT, "{all:.1} instructions a packet");
}

/// What the pool takes for a burst's frames.
fn count_pool(marks: &Marks) {
    let pool = Pool::new(&PoolConfig::default()).unwrap();
    for round in 0..64 + ROUNDS {
        let work = || {
            let (mut handles, mut at) = ([0; BURST], 0);
            pool.allocate_frames(BURST, |frame| {
                handles[at % BURST] = frame.into_handle();
                at += 1;
            });
            Frame::free_handles(&handles[..at]);
        };
        if round < 64 { work() } else { marks.counted(work) }
    }
}

/// Runs the child; instructions between each pair of marks.
fn in_child(test: &str) -> Vec<u64> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    let thread = output.find_map(|line| line.unwrap().strip_prefix("THREAD ").map(str::to_owned)).unwrap();
    let (tid, area) = thread.split_once(' ').unwrap();
    let (tid, area) = (Pid::from_raw(tid.parse().unwrap()), area.parse::<usize>().unwrap());
    ptrace::seize(tid, ptrace::Options::PTRACE_O_EXITKILL).unwrap();
    writeln!(child.stdin.take().unwrap(), "go").unwrap();
    let mut counts = Vec::new();
    let mut counting: Option<u64> = None;
    loop {
        match waitpid(tid, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::Stopped(_, Signal::SIGSTOP) => match counting.take() {
                None => counting = Some(0),
                Some(count) => counts.push(count),
            },
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, other) => panic!("the child got {other}"),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => break,
            _ => {}
        }
        match &mut counting {
            Some(count) => {
                *count += 1;
                if area != 0 {
                    ptrace::write(tid, ptr::without_provenance_mut(area + RSEQ_CS_OFFSET), 0).unwrap();
                }
                ptrace::step(tid, None).unwrap();
            }
            None => ptrace::cont(tid, None).unwrap(),
        }
    }
    for line in output.map_while(Result::ok) {
        println!("{line}");
    }
    assert!(counts.len() > 1, "the child marked nothing");
    // Where the thread was not the main one.
    drop(child.wait());
    counts
}
