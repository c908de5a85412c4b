//! Eight threads push, pop, count and log while another process moves them from CPU to CPU and sends them ten thousand signals a second, whose
//! handler pushes and pops too, and while another thread drains their stacks. In the end every item is there once, every
//! addition counted, and every record read once or refused, on each of the three registrations; by CPU number with narrow items and by concurrency id
//! with wide ones.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use common::{on_each_registration, stress_time};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getpid};
use percpu::{Counters, Indexing, Item, Log, LogError, Stack, Topology};
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const THREADS: usize = 8;
const ITEMS: u32 = 3000;
/// What must come through of the ten thousand signals and the 2500 changes of affinity a second, on a machine that has other work too.
const SIGNALS_PER_SECOND: u64 = 2000;
const MOVES_PER_SECOND: u64 = 500;

static STACK: OnceLock<Stack<u32>> = OnceLock::new();
/// By concurrency id.
static WIDE: OnceLock<Stack<u64>> = OnceLock::new();
static COUNTERS: OnceLock<Counters> = OnceLock::new();
static SIGNALS: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

/// Interrupts sections, and runs its own inside what it interrupted.
extern "C" fn handler(_: i32) {
    if let (Some(stack), Some(wide), Some(counters)) = (STACK.get(), WIDE.get(), COUNTERS.get()) {
        let mut hand = [MaybeUninit::uninit(); 3];
        stack.push(stack.pop(&mut hand));
        wide.pop_one().inspect(|item| wide.push(&[*item]));
        counters.add(1, 1);
    }
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// A real-time signal: of others a thread that waits for a CPU gets one, however many were sent.
fn handle_signals() {
    // SAFETY: all zeroes is an action with an empty mask. The handler calls what may be called anywhere: no allocation, no lock, nothing
    // that it could interrupt half-way.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as extern "C" fn(i32) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGRTMIN(), &action, std::ptr::null_mut())
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
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

/// True where it was done: a thread may have ended.
fn affinity(tid: Pid, cpu: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    sched_setaffinity(tid, &set).is_ok()
}

/// A number in memory that a fork's child shares.
fn shared_number() -> &'static AtomicU64 {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
    let (protection, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
    // SAFETY: new memory where the kernel likes, of zeroes, which is never given back.
    unsafe { mmap_anonymous(None, 4096.try_into().unwrap(), protection, flags).unwrap().cast().as_ref() }
}

/// Another process, which has nothing better to do than to disturb this one's threads, and counts how often it changed one's affinity. It ends by
/// itself.
fn disturber(tids: &[Pid], cpus: &[usize], time: Duration, moves: &AtomicU64) -> Pid {
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
                    unsafe {
                        libc::syscall(libc::SYS_tgkill, process.as_raw(), tid.as_raw(), libc::SIGRTMIN())
                    };
                    sent += 1;
                    if numbers.below(4) == 0 && affinity(tid, cpus[numbers.below(cpus.len())]) {
                        moves.fetch_add(1, Ordering::Relaxed);
                    }
                }
                thread::sleep(Duration::from_micros(50));
            }
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) }
        }
    }
}

/// What a worker still holds in the end, how much it added, and how many records it wrote and was refused.
struct Done {
    held: Vec<u32>,
    held_wide: Vec<u64>,
    added: u64,
    logged: u64,
    refused: u64,
}

fn worker(seed: u64, log: &Log) -> Done {
    let (Some(stack), Some(wide), Some(counters)) = (STACK.get(), WIDE.get(), COUNTERS.get()) else {
        unreachable!("set before")
    };
    let mut numbers = Numbers(seed + 1);
    let room = ITEMS as usize;
    let mut done = Done {
        held: Vec::with_capacity(room),
        held_wide: Vec::with_capacity(room),
        added: 0,
        logged: 0,
        refused: 0,
    };
    while !STOP.load(Ordering::Relaxed) {
        let want = numbers.below(100) + 1;
        take_and_give(stack, &mut done.held, want, &mut numbers);
        take_and_give(wide, &mut done.held_wide, want.div_ceil(2), &mut numbers);
        counters.add(0, want as u64);
        done.added += want as u64;
        match log.write(&[seed.to_ne_bytes(), done.logged.to_ne_bytes()].concat()) {
            Ok(()) => done.logged += 1,
            Err(LogError::Overrun) => done.refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    done
}

/// Pops up to `want` items, and pushes some of those that are held.
fn take_and_give<T: Item>(stack: &Stack<T>, held: &mut Vec<T>, want: usize, numbers: &mut Numbers) {
    let mut hand = [MaybeUninit::uninit(); 100];
    held.extend_from_slice(stack.pop(&mut hand[..want]));
    let keep = held.len() - numbers.below(held.len() + 1);
    stack.push(&held[keep..]);
    held.truncate(keep);
}

/// What is in a stack that nobody uses any more.
fn empty<T: Item>(stack: &Stack<T>) -> Vec<T> {
    let mut all = Vec::new();
    loop {
        let mut hand = [MaybeUninit::uninit(); 64];
        // From a thread that is moved about no more; what sits on other CPUs is drained first.
        stack.drain_all();
        let taken = stack.pop(&mut hand);
        if taken.is_empty() {
            return all;
        }
        all.extend_from_slice(taken);
    }
}

/// What a reader knows of the records: which of each writer's were read, a bit each.
#[derive(Default)]
struct Records {
    seen: [Vec<u64>; THREADS],
    /// The last number of each writer in each log: a CPU's records come out in order.
    last: HashMap<(usize, usize), u64>,
}

impl Records {
    fn read(&mut self, log: &Log) {
        for index in 0..log.logs() {
            log.read(index, |record| {
                let number = |part: &[u8]| u64::from_ne_bytes(part.try_into().unwrap());
                assert_eq!(record.len(), 16, "{record:?}");
                let (writer, count) = (number(&record[..8]) as usize, number(&record[8..]));
                let seen = &mut self.seen[writer];
                let (word, bit) = ((count / 64) as usize, 1 << (count % 64));
                seen.resize(seen.len().max(word + 1), 0);
                assert!(seen[word] & bit == 0, "record {count} of writer {writer} was read twice");
                seen[word] |= bit;
                let before = self.last.insert((index, writer), count);
                assert!(
                    before.is_none_or(|before| before < count),
                    "{count} after {before:?} in log {index}"
                );
            });
        }
    }

    /// Whether these are exactly the numbers from 0 to `count`.
    fn are_all_of(&self, writer: usize, count: u64) -> bool {
        let seen = &self.seen[writer];
        let read: u64 = seen.iter().map(|word| u64::from(word.count_ones())).sum();
        let highest = seen.last().map_or(0, |word| seen.len() as u64 * 64 - u64::from(word.leading_zeros()));
        read == count && highest == count
    }
}

/// Has the workers stop, also where an assertion fails.
struct StopOnDrop;

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        STOP.store(true, Ordering::Relaxed);
    }
}

#[test]
fn under_every_disturbance_nothing_is_lost_and_nothing_is_there_twice() {
    let name = "under_every_disturbance_nothing_is_lost_and_nothing_is_there_twice";
    on_each_registration(name, || {
        let cpus: Vec<usize> = Topology::read().unwrap().allowed.iter().collect();
        let stack = STACK.get_or_init(|| Stack::new(256, ITEMS as usize, Indexing::Cpu));
        let wide = WIDE.get_or_init(|| Stack::new(100, ITEMS as usize, Indexing::ConcurrencyId));
        let counters = COUNTERS.get_or_init(|| Counters::new(2));
        let log = Log::new(64 * 1024);
        stack.push(&(0..ITEMS).collect::<Vec<_>>());
        wide.push(&(0..u64::from(ITEMS)).collect::<Vec<_>>());
        handle_signals();

        let moves = shared_number();
        let (tids_in, tids) = std::sync::mpsc::channel();
        let mut records = Records::default();
        let (mut drained, mut drains) = (0, 0_u64);
        let done: Vec<Done> = thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS as u64)
                .map(|seed| {
                    let (tids_in, log) = (tids_in.clone(), &log);
                    scope.spawn(move || {
                        // Before the first signal, whose handler would have to.
                        percpu::rseq::attach();
                        tids_in.send(nix::unistd::gettid()).unwrap();
                        worker(seed, log)
                    })
                })
                .collect();
            let stop = StopOnDrop;
            let tids: Vec<Pid> = tids.iter().take(THREADS).collect();
            let child = disturber(&tids, &cpus, stress_time(), moves);
            let start = Instant::now();
            while start.elapsed() < stress_time() {
                let moved = stack.drain_all() + wide.drain_all();
                drained += moved;
                drains += u64::from(moved > 0);
                records.read(&log);
                thread::sleep(Duration::from_micros(200));
            }
            drop(stop);
            waitpid(child, None).unwrap();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        records.read(&log);

        let mut all: Vec<u32> =
            done.iter().flat_map(|done| &done.held).copied().chain(empty(stack)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..ITEMS).collect::<Vec<_>>(), "items were lost or are there twice");
        let mut all: Vec<u64> =
            done.iter().flat_map(|done| &done.held_wide).copied().chain(empty(wide)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..u64::from(ITEMS)).collect::<Vec<_>>(), "wide items were lost or are there twice");
        let signals = SIGNALS.load(Ordering::Relaxed);
        let added: u64 = done.iter().map(|done| done.added).sum();
        assert_eq!((counters.sum(0), counters.sum(1)), (added, signals), "additions were lost");
        for (writer, done) in done.iter().enumerate() {
            assert!(records.are_all_of(writer, done.logged), "records of writer {writer} were lost");
        }
        let (logged, refused): (u64, u64) =
            (done.iter().map(|done| done.logged).sum(), done.iter().map(|done| done.refused).sum());
        assert_eq!(log.overruns(), refused, "not every refused record was counted");
        let (moves, seconds) = (moves.load(Ordering::Relaxed), stress_time().as_secs());
        assert!(
            signals >= SIGNALS_PER_SECOND * seconds
                && moves >= MOVES_PER_SECOND * seconds
                && drains >= seconds,
            "{signals} signals, {moves} changes of affinity, {drains} drains in {seconds} s: too few to show anything"
        );
        eprintln!(
            "  {signals} signals, {moves} changes of affinity, {drained} items drained in {drains} drains, {logged} records, {refused} refused, {added} added"
        );
    });
}
