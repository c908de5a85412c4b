//! What happens to per-CPU data when processes fork and threads come and go.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use common::on_each_registration;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use percpu::rseq::{Registration, registration};
use percpu::{Counter, Counters, Indexing, Stack, Topology};
use std::cell::RefCell;
use std::collections::HashSet;
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
fn by_concurrency_id_memory_is_that_of_the_cpus_we_may_use() {
    let one = Topology::read().unwrap().allowed.iter().next().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let all = Counters::with_indexing(1000, Indexing::Cpu);
            let _pinned = percpu::pin_on_cpu(one).unwrap();
            let few = Counters::with_indexing(1000, Indexing::ConcurrencyId);
            if percpu::rseq::has_concurrency_ids() {
                assert_eq!(few.memory_bytes(), 2 * 8064, "one slot, and the shared one");
            }
            assert!(all.memory_bytes() >= few.memory_bytes());
            thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| few.add(7, 1)))));
            assert_eq!(few.sum(7), 4);
        });
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
