//! What happens to per-CPU data when processes fork and threads come and go.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use common::on_each_registration;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use percpu::rseq::{Registration, registration};
use percpu::{Counter, Counters, Indexing, Log, Stack, Topology};
use std::cell::RefCell;
use std::collections::HashSet;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::thread;

fn pop_all(stack: &Stack<u64>) -> HashSet<u64> {
    stack.drain_all();
    let mut all = HashSet::new();
    while let Some(item) = stack.pop_one() {
        assert!(all.insert(item), "{item} was there twice");
    }
    all
}

#[test]
fn a_forks_child_works_on_its_own_copy() {
    on_each_registration("a_forks_child_works_on_its_own_copy", || {
        let stack = Stack::<u64>::new(64, 1000, Indexing::Cpu);
        let counter = Counter::new();
        let items: Vec<u64> = (0..1000).collect();
        stack.push(&items);
        counter.add(1);
        // SAFETY: the child calls what needs no other thread of this process, and ends by _exit.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                counter.add(10);
                // A drain needs membarrier, which the child has not registered for.
                stack.drain_all();
                let mut sum = 0;
                while let Some(item) = stack.pop_one() {
                    sum += item;
                }
                let right = counter.sum() == 11 && sum == 999 * 1000 / 2;
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(if right { 0 } else { 1 }) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            }
        }
        assert_eq!((counter.sum(), pop_all(&stack).len()), (1, 1000));
    });
}

#[test]
fn what_threads_leave_behind_is_there_for_others() {
    on_each_registration("what_threads_leave_behind_is_there_for_others", || {
        let stack = Stack::<u64>::new(64, 64 * 100, Indexing::Auto);
        let counter = Counter::new();
        for round in 0..100 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let items: Vec<u64> = (round * 64..(round + 1) * 64).collect();
                    stack.push(&items);
                    counter.add(1);
                });
            });
        }
        assert_eq!((pop_all(&stack).len(), counter.sum()), (6400, 100));
    });
}

struct AtExit(Arc<Stack<u64>>, Arc<Counter>);

impl Drop for AtExit {
    fn drop(&mut self) {
        if let Some(item) = self.0.pop_one() {
            self.0.push(&[item]);
        }
        self.1.add(1);
    }
}

thread_local! {
    static AT_EXIT: RefCell<Vec<AtExit>> = const { RefCell::new(Vec::new()) };
}

#[test]
fn a_thread_that_is_ending_can_still_use_it() {
    on_each_registration("a_thread_that_is_ending_can_still_use_it", || {
        let (stack, counter) = (Arc::new(Stack::<u64>::new(64, 10, Indexing::Cpu)), Arc::new(Counter::new()));
        stack.push(&[1, 2, 3]);
        for first in [true, false] {
            let (stack, counter) = (stack.clone(), counter.clone());
            thread::spawn(move || {
                // Whichever thread-local is made first is destroyed last.
                if first {
                    counter.add(0);
                }
                AT_EXIT.with_borrow_mut(|list| list.push(AtExit(stack.clone(), counter.clone())));
                counter.add(0);
            })
            .join()
            .unwrap();
        }
        assert_eq!((pop_all(&stack).len(), counter.sum()), (3, 2));
    });
}

#[test]
fn a_thread_that_gave_up_uses_the_shared_path() {
    on_each_registration("a_thread_that_gave_up_uses_the_shared_path", || {
        let stack = Stack::<u64>::new(64, 10, Indexing::Cpu);
        let counter = Counter::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                counter.add(1);
                stack.push(&[1, 2]);
                percpu::rseq::give_up();
                assert!(percpu::rseq::has_given_up() && percpu::rseq::area_address().is_none());
                counter.add(1);
                stack.push(&[3]);
                assert!(stack.pop_one().is_some());
                stack.push(&[4]);
            });
        });
        assert!(!percpu::rseq::has_given_up());
        assert_eq!(counter.sum(), 2);
        // 3 may have been popped, or one of the first two where there is no rseq.
        assert_eq!(pop_all(&stack).len(), 3);
    });
}

#[test]
fn memory_is_that_of_the_cpus_the_process_may_use_also_where_a_pinned_thread_asks_for_it() {
    let whole = Topology::read().unwrap();
    let (one, usable) = (whole.allowed.iter().next().unwrap(), whole.cpuset.unwrap().len());
    // In whole cache line pairs, and one for threads without a slot.
    let bytes = (usable + 1) * 8064;
    thread::scope(|scope| {
        scope.spawn(|| {
            let _pinned = percpu::pin_on_cpu(one).unwrap();
            let by_id = Counters::with_indexing(1000, Indexing::ConcurrencyId);
            if percpu::rseq::has_concurrency_ids() {
                assert_eq!(by_id.memory_bytes(), bytes);
            }
            if usable * 2 > whole.possible.len() {
                let auto = Counters::with_indexing(1000, Indexing::Auto);
                let by_cpu = Counters::with_indexing(1000, Indexing::Cpu);
                assert_eq!(
                    auto.memory_bytes(),
                    by_cpu.memory_bytes(),
                    "its own mask was taken for the process's"
                );
            }
            thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| by_id.add(7, 1)))));
            assert_eq!(by_id.sum(7), 4);
        });
    });
}

/// Slots of 4 MiB: the pages of those that are used are in memory, and no others.
#[test]
fn slots_that_nobody_uses_take_no_memory() {
    on_each_registration("slots_that_nobody_uses_take_no_memory", || {
        const CAPACITY: usize = 1 << 20;
        let before = resident_bytes();
        let stacks: Vec<_> = (0..32).map(|_| Stack::<u32>::new(CAPACITY, 1000, Indexing::Cpu)).collect();
        let grown = resident_bytes().saturating_sub(before);
        let all: usize = stacks.iter().map(Stack::memory_bytes).sum();
        assert!(all >= 32 * CAPACITY * 4 && grown < all / 8, "{grown} of {all} bytes are in memory");
    });
}

/// `VmRSS` of `proc(5)`.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
}

/// Takes the calling thread's registration away, whoever made it.
fn unregister(area: usize) {
    // SAFETY: the address, size and signature that glibc and percpu register with; the kernel only forgets them.
    let result = unsafe { libc::syscall(libc::SYS_rseq, area, 32, 1, 0x5305_3053) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Everything works in a thread that the kernel does not know, and is seen by others.
fn use_everything(stack: &Stack<u64>, counter: &Counter, log: &Log) {
    counter.add(1);
    stack.push(&[1, 2, 3]);
    stack.push(&[4]);
    let mut hand = [std::mem::MaybeUninit::uninit(); 3];
    let popped = stack.pop(&mut hand).to_vec();
    let one = stack.pop_one();
    assert!(popped.len() == 3 && one.is_some() && stack.is_empty());
    stack.push(&popped);
    log.write(b"a record").unwrap();
    assert_eq!(log.read_all(|record| assert_eq!(record, b"a record")), 1);
}

#[test]
fn a_thread_that_never_was_registered_or_is_no_more_takes_the_shared_path() {
    let name = "a_thread_that_never_was_registered_or_is_no_more_takes_the_shared_path";
    on_each_registration(name, || {
        let (stack, counter, log) =
            (Stack::<u64>::new(64, 10, Indexing::Cpu), Counter::with_indexing(Indexing::Cpu), Log::new(4096));
        let one = Topology::read().unwrap().allowed.iter().next().unwrap();
        let registration = registration();
        for before_the_first_use in [true, false] {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let _pinned = percpu::pin_on_cpu(one).unwrap();
                    match registration {
                        Registration::Off { .. } => {}
                        // Pinning has looked at the area only where one was registered before.
                        Registration::Glibc if before_the_first_use => unregister(glibc_area()),
                        // Somebody else's comes first.
                        Registration::Own if before_the_first_use => register_another(),
                        _ => unregister(percpu::rseq::area_address().unwrap()),
                    }
                    let slots = || (0..stack.stacks()).map(|index| stack.stack_len(index)).sum::<usize>();
                    use_everything(&stack, &counter, &log);
                    let by_rseq = !matches!(registration, Registration::Off { .. });
                    assert!(!by_rseq || slots() == 0, "it works on slots that it is not protected on");
                    assert!(!before_the_first_use || !percpu::rseq::attach());
                    while stack.pop_one().is_some() {}
                });
            });
        }
        assert_eq!(counter.sum(), 2);
    });
}

/// Where glibc says that the calling thread's area is.
#[cfg(target_arch = "x86_64")]
fn glibc_area() -> usize {
    let offset: usize;
    // SAFETY: a variable of glibc 2.35 and later, which has registered this thread; the word at fs:0 is the thread pointer itself.
    unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<usize>();
        std::arch::asm!("mov {}, fs:0", out(reg) offset, options(nostack, preserves_flags, readonly));
        offset.wrapping_add(symbol.read())
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn glibc_area() -> usize {
    unreachable!("there are no sections")
}

fn register_another() {
    #[repr(align(32))]
    struct Area([u32; 8]);
    let area = Box::leak(Box::new(Area([0; 8])));
    // SAFETY: never freed, and nobody else touches it.
    let result =
        unsafe { libc::syscall(libc::SYS_rseq, std::ptr::from_mut(&mut area.0), 32, 0, 0x5305_3053) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_thread_can_be_attached_before_its_handlers_come() {
    on_each_registration("a_thread_can_be_attached_before_its_handlers_come", || {
        // Also where nothing of this crate was used before.
        let by_rseq = !matches!(registration(), Registration::Off { .. });
        let attached = thread::spawn(|| {
            (percpu::rseq::attach(), percpu::rseq::attach(), percpu::rseq::area_address().is_some())
        });
        assert_eq!(attached.join().unwrap(), (by_rseq, by_rseq, by_rseq));
    });
}

/// A program that has used it is replaced by another in the same process, which uses it anew.
#[test]
fn after_exec_all_begins_anew() {
    const EXECUTED: &str = "PERCPU_TEST_EXECUTED";
    on_each_registration("after_exec_all_begins_anew", || {
        let (stack, counter, log) =
            (Stack::<u64>::new(64, 10, Indexing::Cpu), Counter::new(), Log::new(4096));
        use_everything(&stack, &counter, &log);
        assert_eq!((counter.sum(), stack.len()), (1, 3));
        match std::env::var(EXECUTED) {
            Err(_) => {
                let mut program = Command::new(std::env::current_exe().unwrap());
                program.args(std::env::args_os().skip(1)).env(EXECUTED, std::process::id().to_string());
                panic!("exec: {}", program.exec());
            }
            Ok(process) => assert_eq!(process, std::process::id().to_string()),
        }
    });
}

#[test]
fn an_isolated_cpu_is_asked_and_answers_at_its_next_turn() {
    on_each_registration("an_isolated_cpu_is_asked_and_answers_at_its_next_turn", || {
        if let Registration::Off { .. } = registration() {
            // Stacks belong to no CPU there, and a drain interrupts none.
            return;
        }
        let cpu = Topology::read().unwrap().allowed.iter().next().unwrap();
        let _pinned = percpu::pin_on_cpu(cpu).unwrap();
        let stack = Stack::<u64>::new(200, 200, Indexing::Cpu);
        let items: Vec<u64> = (0..100).collect();
        stack.push(&items);
        let mark = percpu::mark_isolated(cpu).unwrap();
        assert_eq!((stack.drain(cpu), stack.stack_len(cpu)), (percpu::Drained::Requested, 100));
        stack.serve();
        assert_eq!((stack.stack_len(cpu), stack.len()), (0, 100));
        stack.push(&items[..50]);
        stack.serve();
        assert_eq!(stack.stack_len(cpu), 50, "a request is answered once");
        drop(mark);
        assert_eq!(stack.drain(cpu), percpu::Drained::Moved(50));
    });
}
