//! Eight threads push, pop and count while another process moves them from CPU to CPU and sends them ten thousand signals a second, whose
//! handler pushes and pops too, and while other threads drain their stacks. In the end every item is there once and every
//! addition counted, on each of the three registrations.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use common::{on_each_registration, stress_time};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getpid};
use percpu::{Counters, Drained, Indexing, Log, Stack, Topology};
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const THREADS: usize = 8;
const ITEMS: u32 = 3000;

static STACK: OnceLock<Stack<u32>> = OnceLock::new();
static COUNTERS: OnceLock<Counters> = OnceLock::new();
static SIGNALS: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

/// Interrupts sections, and runs its own inside what it interrupted.
extern "C" fn handler(_: i32) {
    if let (Some(stack), Some(counters)) = (STACK.get(), COUNTERS.get()) {
        let mut hand = [MaybeUninit::uninit(); 3];
        stack.push(stack.pop(&mut hand));
        counters.add(1, 1);
    }
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// A small generator of numbers that look random: xorshift64.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

fn affinity(tid: Pid, cpus: &[usize]) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu).unwrap());
    // A thread may have ended.
    let _ = sched_setaffinity(tid, &set);
}

/// Another process, which has nothing better to do than to disturb this one's threads; it ends with it.
fn disturber(tids: &[Pid], cpus: &[usize], time: Duration) -> Pid {
    let process = getpid();
    // SAFETY: the child only makes system calls on what it has, and ends by _exit; this process's other threads are not in it.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // Eight threads that never sleep want the CPUs too. Not allowed to everybody, and then it takes what it gets.
            // SAFETY: a number for this process's priority.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
            let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
            let start = Instant::now();
            let mut sent = 0;
            while start.elapsed() < time {
                // Ten thousand a second, as far as the machine lets us.
                while sent < start.elapsed().as_micros() as u64 / 100 {
                    let tid = tids[numbers.below(tids.len())];
                    // SAFETY: a signal that has a handler, to a thread of the process that started us.
                    unsafe { libc::syscall(libc::SYS_tgkill, process.as_raw(), tid.as_raw(), libc::SIGUSR1) };
                    sent += 1;
                    if numbers.below(4) == 0 {
                        affinity(tid, &[cpus[numbers.below(cpus.len())]]);
                    }
                }
                thread::sleep(Duration::from_micros(50));
            }
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) }
        }
    }
}

/// One worker: what it still holds in the end, and how often it added.
fn worker(seed: u64, log: &Log) -> (Vec<u32>, u64, u64) {
    let (Some(stack), Some(counters)) = (STACK.get(), COUNTERS.get()) else { unreachable!("set before") };
    let mut numbers = Numbers(seed + 1);
    let (mut held, mut added, mut logged) = (Vec::with_capacity(ITEMS as usize), 0, 0_u64);
    while !STOP.load(Ordering::Relaxed) {
        let mut hand = [MaybeUninit::uninit(); 100];
        let want = numbers.below(100) + 1;
        held.extend_from_slice(stack.pop(&mut hand[..want]));
        counters.add(0, want as u64);
        added += want as u64;
        if log.write(&[seed.to_ne_bytes(), logged.to_ne_bytes()].concat()).is_ok() {
            logged += 1;
        }
        let keep = held.len() - numbers.below(held.len() + 1);
        stack.push(&held[keep..]);
        held.truncate(keep);
    }
    (held, added, logged)
}

#[test]
fn under_every_disturbance_nothing_is_lost_and_nothing_is_there_twice() {
    let name = "under_every_disturbance_nothing_is_lost_and_nothing_is_there_twice";
    on_each_registration(name, || {
        let cpus: Vec<usize> = Topology::read().unwrap().allowed.iter().collect();
        let stack = STACK.get_or_init(|| Stack::new(256, ITEMS as usize, Indexing::Cpu));
        let counters = COUNTERS.get_or_init(|| Counters::new(2));
        let log = Log::new(64 * 1024);
        stack.push(&(0..ITEMS).collect::<Vec<_>>());
        let action = SigAction::new(SigHandler::Handler(handler), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler calls what may be called anywhere: no allocation, no lock, nothing that it could interrupt half-way.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();

        let (tids_in, tids) = std::sync::mpsc::channel();
        let mut latest: HashMap<u64, u64> = HashMap::new();
        let (mut read, mut drained, mut drains) = (0_u64, 0, 0_u64);
        let mut all = Vec::new();
        let (mut added, mut logged) = (0, 0);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS as u64)
                .map(|seed| {
                    let (tids_in, log) = (tids_in.clone(), &log);
                    scope.spawn(move || {
                        tids_in.send(nix::unistd::gettid()).unwrap();
                        worker(seed, log)
                    })
                })
                .collect();
            let tids: Vec<Pid> = tids.iter().take(THREADS).collect();
            let child = disturber(&tids, &cpus, stress_time());
            let start = Instant::now();
            let mut each = |record: &[u8]| {
                let number = |part: &[u8]| u64::from_ne_bytes(part.try_into().unwrap());
                let (writer, count) = (number(&record[..8]), number(&record[8..]));
                *latest.entry(writer).or_default() += 1;
                assert!(writer < THREADS as u64 && count < u64::MAX, "{record:?}");
                read += 1;
            };
            while start.elapsed() < stress_time() {
                for index in 0..stack.stacks() {
                    if let Drained::Moved(count) = stack.drain(index) {
                        drained += count;
                        drains += u64::from(count > 0);
                    }
                }
                log.read_all(&mut each);
                thread::sleep(Duration::from_micros(200));
            }
            STOP.store(true, Ordering::Relaxed);
            waitpid(child, None).unwrap();
            for worker in workers {
                let (held, its_added, its_logged) = worker.join().unwrap();
                all.extend(held);
                added += its_added;
                logged += its_logged;
            }
            log.read_all(&mut each);
        });
        loop {
            let mut hand = [MaybeUninit::uninit(); 64];
            // From a thread that is moved about no more; what sits on other CPUs is drained first.
            stack.drain_all();
            let taken = stack.pop(&mut hand);
            if taken.is_empty() {
                break;
            }
            all.extend_from_slice(taken);
        }
        all.sort_unstable();
        assert_eq!(all, (0..ITEMS).collect::<Vec<_>>(), "items were lost or are there twice");
        let signals = SIGNALS.load(Ordering::Relaxed);
        assert_eq!((counters.sum(0), counters.sum(1)), (added, signals), "additions were lost");
        assert_eq!(read, logged, "records were lost or read twice");
        assert!(signals > 1000 && drains > 0, "{signals} signals, {drains} drains: nothing was shown");
        eprintln!(
            "  {signals} signals, {drained} items drained in {drains} drains, {logged} records, {added} added"
        );
    });
}
