//! Another CPU's stack from outside: drained, stolen from, read, asked for; and what the one who does it may meet.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use common::on_each_registration;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use percpu::rseq::{Registration, registration};
use percpu::{CpuList, Drained, Indexing, Shared, Stack, Topology, mark_isolated, pin_on_cpu};
use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(10);

fn without_rseq() -> bool {
    matches!(registration(), Registration::Off { .. })
}

fn cpus() -> Vec<usize> {
    Topology::read().unwrap().allowed.iter().collect()
}

/// The first two CPUs; says SKIPPED where there is one.
fn two_cpus(test: &str) -> Option<(usize, usize)> {
    let cpus = cpus();
    if cpus.len() < 2 {
        eprintln!("SKIPPED {test}: needs a second CPU");
        return None;
    }
    Some((cpus[0], cpus[1]))
}

/// Binds a thread (0 is the calling one) to a CPU, from which the mask that it was started with may keep it. It may have ended.
fn bind(tid: i32, cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    let result = sched_setaffinity(Pid::from_raw(tid), &set);
    assert!(matches!(result, Ok(()) | Err(Errno::ESRCH)), "{result:?}");
}

/// Pushes from a thread of CPU `cpu`, which has ended when this returns.
fn push_on(stack: &Stack<u64>, cpu: usize, items: &[u64]) {
    thread::scope(|scope| {
        scope.spawn(|| {
            bind(0, cpu);
            stack.push(items);
        });
    });
}

/// Tells a thread to stop, also where an assertion fails meanwhile.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The stack that has items.
fn only_stack(stack: &Stack<u64>) -> usize {
    let mut filled = (0..stack.stacks()).filter(|index| stack.stack_len(*index) > 0);
    let index = filled.next().unwrap();
    assert_eq!(filled.next(), None);
    index
}

fn pop_all(stack: &Stack<u64>) -> HashSet<u64> {
    stack.drain_all();
    std::iter::from_fn(|| stack.pop_one()).collect()
}

#[test]
fn what_is_stolen_is_the_thiefs_and_what_is_read_stays() {
    let name = "what_is_stolen_is_the_thiefs_and_what_is_read_stays";
    on_each_registration(name, || {
        let Some((here, there)) = two_cpus(name) else { return };
        let _pinned = pin_on_cpu(here).unwrap();
        for indexing in [Indexing::Cpu, Indexing::ConcurrencyId] {
            let stack = Stack::<u64>::new(64, 100, indexing);
            push_on(&stack, there, &[1, 2, 3, 4, 5]);
            let index = only_stack(&stack);
            let mut hand = [0; 8];
            assert_eq!((stack.read(index, &mut hand), hand), (Drained::Moved(5), [1, 2, 3, 4, 5, 0, 0, 0]));
            assert_eq!((stack.read(index, &mut hand[..2]), &hand[..2]), (Drained::Moved(2), &[4, 5][..]));
            assert_eq!((stack.steal(index, &mut hand[..2]), &hand[..2]), (Drained::Moved(2), &[4, 5][..]));
            assert_eq!((stack.stack_len(index), stack.shared().len()), (3, 0));
            assert_eq!((stack.steal(index, &mut hand), &hand[..3]), (Drained::Moved(3), &[1, 2, 3][..]));
            assert_eq!((stack.steal(index, &mut hand), stack.len()), (Drained::Moved(0), 0));
        }
    });
}

/// The owner pops and pushes without a pause; the thief gives back what it takes.
#[test]
fn theft_and_reading_lose_nothing_while_the_owner_works() {
    let name = "theft_and_reading_lose_nothing_while_the_owner_works";
    on_each_registration(name, || {
        let Some((here, there)) = two_cpus(name) else { return };
        const ITEMS: u64 = 150;
        let stack = Stack::<u64>::new(200, ITEMS as usize, Indexing::Cpu);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            scope.spawn(|| {
                let _pinned = pin_on_cpu(there).unwrap();
                stack.push(&(0..ITEMS).collect::<Vec<_>>());
                let mut hand = [std::mem::MaybeUninit::uninit(); 7];
                while !stop.load(Ordering::Relaxed) {
                    stack.push(stack.pop(&mut hand));
                }
            });
            let _pinned = pin_on_cpu(here).unwrap();
            let (start, mut stolen, mut read) = (Instant::now(), 0, 0);
            while (stolen < 1000 || read < 1000) && start.elapsed() < LIMIT {
                let mut hand = [0; 40];
                for index in 0..stack.stacks() {
                    if let Drained::Moved(count) = stack.read(index, &mut hand) {
                        let distinct: HashSet<u64> = hand[..count].iter().copied().collect();
                        assert!(distinct.len() == count && distinct.iter().all(|item| *item < ITEMS));
                        read += count;
                    }
                    if let Drained::Moved(count) = stack.steal(index, &mut hand) {
                        stack.shared().give(&hand[..count]);
                        stolen += count;
                    }
                }
            }
            assert!(stolen >= 1000 && read >= 1000, "{stolen} stolen, {read} read within {LIMIT:?}");
        });
        assert_eq!(pop_all(&stack), (0..ITEMS).collect());
    });
}

#[test]
fn an_isolated_owner_answers_a_remote_request_at_its_next_turn() {
    let name = "an_isolated_owner_answers_a_remote_request_at_its_next_turn";
    on_each_registration(name, || {
        if without_rseq() {
            // Stacks belong to no CPU there, and a drain interrupts none.
            return;
        }
        let Some((here, there)) = two_cpus(name) else { return };
        let stack = Stack::<u64>::new(200, 100, Indexing::Cpu);
        let _mark = mark_isolated(there).unwrap();
        let (ready, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            scope.spawn(|| {
                let _pinned = pin_on_cpu(there).unwrap();
                stack.push(&(0..100).collect::<Vec<_>>());
                ready.store(true, Ordering::Release);
                while !stop.load(Ordering::Relaxed) {
                    stack.serve();
                }
            });
            let _pinned = pin_on_cpu(here).unwrap();
            let start = Instant::now();
            let within = |done: &dyn Fn() -> bool| {
                while !done() && start.elapsed() < LIMIT {
                    thread::yield_now();
                }
                done()
            };
            let pushed = within(&|| ready.load(Ordering::Acquire));
            let before = stack.stack_len(there);
            let mut hand = [0; 10];
            let asked = (stack.steal(there, &mut hand), stack.drain(there));
            let left_to_its_owner = stack.serve_requests();
            let answered = within(&|| stack.shared().len() == 100);
            assert!(pushed && before == 100, "{before}");
            // The owner may have answered the first before the second.
            assert_eq!((asked.0, left_to_its_owner), (Drained::Requested, 0));
            assert!(matches!(asked.1, Drained::Requested | Drained::Moved(0)), "{asked:?}");
            assert!(answered, "{} of 100 items within {LIMIT:?}", stack.shared().len());
        });
    });
}

#[test]
fn what_an_isolated_thread_asks_for_a_control_thread_brings() {
    let name = "what_an_isolated_thread_asks_for_a_control_thread_brings";
    on_each_registration(name, || {
        if without_rseq() {
            return;
        }
        let Some((isolated, other)) = two_cpus(name) else { return };
        let stack = Stack::<u64>::new(200, 100, Indexing::Cpu);
        push_on(&stack, other, &(0..100).collect::<Vec<_>>());
        let mark = mark_isolated(isolated).unwrap();
        let pinned = pin_on_cpu(isolated).unwrap();
        assert_eq!((stack.pop_one(), stack.drain_all()), (None, 0), "no system call from an isolated CPU");
        assert_eq!(stack.serve_requests(), 0, "nor for others");
        thread::scope(|scope| {
            let control = scope.spawn(|| {
                bind(0, other);
                (stack.serve_requests(), stack.serve_requests())
            });
            assert_eq!(control.join().unwrap(), (100, 0));
        });
        assert!(stack.pop_one().is_some());
        drop((pinned, mark));
    });
}

/// By concurrency id nobody knows whose CPU a stack is used on.
#[test]
fn by_concurrency_id_a_stack_is_asked_while_any_cpu_is_isolated() {
    on_each_registration("by_concurrency_id_a_stack_is_asked_while_any_cpu_is_isolated", || {
        if !percpu::rseq::has_concurrency_ids() {
            return;
        }
        let stack = Stack::<u64>::new(200, 100, Indexing::ConcurrencyId);
        stack.push(&[1, 2, 3]);
        let index = only_stack(&stack);
        let mark = mark_isolated(60_000).unwrap();
        let mut hand = [0; 3];
        assert_eq!(
            [stack.drain(index), stack.steal(index, &mut hand), stack.read(index, &mut hand)],
            [Drained::Requested, Drained::Requested, Drained::Busy]
        );
        assert_eq!(stack.serve_requests(), 0);
        drop(mark);
        assert_eq!((stack.serve_requests(), stack.shared().len()), (3, 3));
    });
}

/// Takes CPUs from every thread of this process, for good: for a test's own process.
fn confine_to(cpu: usize) {
    for task in fs::read_dir("/proc/self/task").unwrap() {
        bind(task.unwrap().file_name().to_str().unwrap().parse().unwrap(), cpu);
    }
}

#[test]
fn what_is_stranded_is_found_whatever_slots_go_by() {
    let name = "what_is_stranded_is_found_whatever_slots_go_by";
    on_each_registration(name, || {
        let Some((kept, lost)) = two_cpus(name) else { return };
        let by_cpu = Stack::<u64>::new(64, 100, Indexing::Cpu);
        push_on(&by_cpu, lost, &[1, 2, 3]);
        let by_id = Stack::<u64>::new(64, 100, Indexing::ConcurrencyId);
        if percpu::rseq::has_concurrency_ids() {
            strand_by_id(&by_id);
        } else {
            push_on(&by_id, lost, &[1, 2, 3]);
        }
        for stack in [&by_cpu, &by_id] {
            assert_eq!(stack.drain_stranded().unwrap(), 0, "taken from where somebody comes by");
            assert_eq!((stack.len(), stack.shared().len()), (3, 0));
        }
        confine_to(kept);
        assert_eq!(Topology::read().unwrap().allowed, CpuList::from_iter([kept]));
        for stack in [&by_cpu, &by_id] {
            // A thread that has been joined may still be on its way out, and have both CPUs.
            let (start, mut drained) = (Instant::now(), 0);
            while drained == 0 && start.elapsed() < LIMIT {
                drained = stack.drain_stranded().unwrap();
            }
            assert_eq!((drained, stack.shared().len()), (3, 3), "within {LIMIT:?}");
            assert_eq!(stack.drain_stranded().unwrap(), 0);
        }
    });
}

/// Leaves three items on the stack of the highest id: threads that run at the same time have all ids between them.
fn strand_by_id(stack: &Stack<u64>) {
    let (last, start) = (stack.stacks() - 1, Instant::now());
    // Whoever sees the three there may see those of a thread that is about to take them back: then again.
    while stack.stack_len(last) < 3 {
        assert!(start.elapsed() < LIMIT, "no thread came by with the highest id within {LIMIT:?}");
        let done = &AtomicBool::new(false);
        thread::scope(|scope| {
            for cpu in cpus() {
                scope.spawn(move || {
                    let _pinned = pin_on_cpu(cpu).unwrap();
                    while !done.load(Ordering::Relaxed) && start.elapsed() < LIMIT {
                        stack.push(&[1, 2, 3]);
                        if stack.stack_len(last) >= 3 && !done.swap(true, Ordering::Relaxed) {
                            return;
                        }
                        let mut hand = [std::mem::MaybeUninit::uninit(); 3];
                        stack.pop(&mut hand);
                    }
                });
            }
        });
    }
    // What else was left: three each, or nothing.
    for index in (0..stack.stacks()).filter(|index| *index != last) {
        while stack.steal(index, &mut [0; 64]) != Drained::Moved(0) {}
    }
    let surplus = stack.stack_len(last) - 3;
    assert_eq!(stack.steal(last, &mut vec![0; surplus]), Drained::Moved(surplus));
    while stack.shared().take(&mut [0; 64]) > 0 {}
}

/// A shared part that says it has filled more than it was given.
struct Boastful;

impl Shared<u64> for Boastful {
    fn give(&self, _: &[u64]) {}

    fn take(&self, into: &mut [u64]) -> usize {
        into.fill(7);
        into.len() * 1000
    }

    fn len(&self) -> usize {
        usize::MAX / 2
    }
}

#[test]
fn a_shared_part_that_boasts_is_not_believed() {
    on_each_registration("a_shared_part_that_boasts_is_not_believed", || {
        let stack = Stack::over(Boastful, 64, Indexing::Cpu);
        let mut hand = [std::mem::MaybeUninit::uninit(); 300];
        for count in [1, 2, 64, 65, 300] {
            assert_eq!(stack.pop(&mut hand[..count]), vec![7; count]);
        }
        assert_eq!(stack.pop_one(), Some(7));
    });
}

/// A sandbox that a process enters after it has begun: from then on membarrier(2) is answered by EPERM.
fn forbid_membarrier() {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter, sock_fprog};
    let line = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        line(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0),
        line(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, libc::SYS_membarrier as u32),
        line(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        line(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: a whole program of that many instructions, which the kernel copies; the first call takes numbers.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn where_membarrier_is_forbidden_a_drain_says_so_and_the_owner_goes_on() {
    on_each_registration("where_membarrier_is_forbidden_a_drain_says_so_and_the_owner_goes_on", || {
        let stack = Stack::<u64>::new(64, 100, Indexing::Cpu);
        let _pinned = pin_on_cpu(cpus()[0]).unwrap();
        stack.push(&[1, 2, 3]);
        let index = only_stack(&stack);
        // A filter is the thread's that installs it.
        thread::scope(|scope| {
            scope.spawn(|| {
                forbid_membarrier();
                let expected = if without_rseq() { Drained::Moved(3) } else { Drained::Refused };
                assert_eq!(stack.drain(index), expected);
            });
        });
        assert_eq!(pop_all(&stack), HashSet::from([1, 2, 3]));
    });
}
