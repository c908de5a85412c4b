//! Per-CPU data beside what it replaces: thread-locals, atomics, and queues that all threads share.
#![forbid(unsafe_code)]

use super::packet_memory::pool;
use bench::{Ticks, per_item};
use criterion::Criterion;
use crossbeam_queue::ArrayQueue;
use nic::{Batch, PortId};
use percpu::{Counter, Counters, Drained, Indexing, Log, Shared, Stack, pin_on_cpu, tsc};
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

const MANY: usize = 1000;
const BULK: usize = 32;

thread_local! {
    // As a counter is that other threads may read at any time, if they know where it is: each addition is made in memory.
    static LOCAL: AtomicU64 = const { AtomicU64::new(0) };
    static LOCALS: [AtomicU64; 8] = const { [const { AtomicU64::new(0) }; 8] };
}

pub(crate) fn benches(criterion: &mut Criterion<Ticks>) {
    let mut group = criterion.benchmark_group("per_cpu");
    // What is added comes from memory, as a packet's length does: a value that is stored first, to hide it from the compiler, would cost
    // as much as the addition.
    let values = [1_u64; MANY];
    group.bench_function("add, thread-local", |bencher| {
        per_item(bencher, MANY, || {
            for value in black_box(&values) {
                LOCAL.with(|number| add_alone(number, *value));
            }
        });
    });
    group.bench_function("add, Counter", |bencher| {
        let counter = Counter::with_indexing(Indexing::Cpu);
        per_item(bencher, MANY, || black_box(&values).iter().for_each(|value| counter.add(*value)));
    });
    group.bench_function("add to one of 8, thread-local", |bencher| {
        per_item(bencher, MANY, || {
            for number in 0..MANY {
                LOCALS.with(|numbers| add_alone(&numbers[black_box(number) % 8], 1));
            }
        });
    });
    group.bench_function("add to one of 8, Counters", |bencher| {
        let counters = Counters::with_indexing(8, Indexing::Cpu);
        per_item(bencher, MANY, || (0..MANY).for_each(|number| counters.add(black_box(number) % 8, 1)));
    });
    group.bench_function("add, atomic", |bencher| {
        let number = AtomicU64::new(0);
        per_item(bencher, MANY, || {
            for _ in 0..MANY {
                number.fetch_add(black_box(1), Ordering::Relaxed);
            }
        });
    });
    let by_stack = |stack: &Stack<u32>| {
        for _ in 0..MANY {
            if let Some(item) = stack.pop_one() {
                stack.push_one(item);
            }
        }
    };
    let by_queue = |queue: &ArrayQueue<u32>| {
        for _ in 0..MANY {
            if let Some(item) = queue.pop() {
                let _ = queue.push(item);
            }
        }
    };
    group.bench_function("pop and push one, Stack", |bencher| {
        let stack = filled();
        per_item(bencher, MANY, || by_stack(&stack));
    });
    group.bench_function("pop and push one, ArrayQueue", |bencher| {
        let queue = filled_queue();
        per_item(bencher, MANY, || by_queue(&queue));
    });
    // What a free list of several workers is for.
    group.bench_function("pop and push one, Stack, on two CPUs", |bencher| {
        let stack = filled();
        on_two_cpus(&|| by_stack(&stack), || per_item(bencher, MANY, || by_stack(&stack)));
    });
    group.bench_function("pop and push one, ArrayQueue, on two CPUs", |bencher| {
        let queue = filled_queue();
        on_two_cpus(&|| by_queue(&queue), || per_item(bencher, MANY, || by_queue(&queue)));
    });
    group.bench_function("pop and push one, Mutex", |bencher| {
        let list = Mutex::new((0..500_u32).collect::<Vec<_>>());
        per_item(bencher, MANY, || {
            for _ in 0..MANY {
                let item = black_box(list.lock().ok().and_then(|mut list| list.pop()));
                let _ = item.map(|item| list.lock().map(|mut list| list.push(item)));
            }
        });
    });
    group.bench_function(format!("pop and push, bulk {BULK}, Stack"), |bencher| {
        let stack = filled();
        per_item(bencher, BULK, || {
            let mut hand = [MaybeUninit::uninit(); BULK];
            stack.push(black_box(stack.pop(&mut hand)));
        });
    });
    group.bench_function("write 32 bytes, Log", |bencher| {
        let log = Log::with_indexing(1 << 20, Indexing::Cpu);
        per_item(bencher, MANY, || {
            for _ in 0..MANY {
                let _ = log.write(black_box(&[7; 32]));
            }
            log.read_all(|record| {
                black_box(record.len());
            });
        });
    });
    for pinned in [true, false] {
        let how = if pinned { "pinned" } else { "not pinned" };
        let _pinned = pinned.then(|| pin_on_cpu(cpus().1));
        group.bench_function(format!("pool: allocate and free, bulk {BULK}, {how}"), |bencher| {
            let (pool, mut batch) = (pool(), Batch::new());
            per_item(bencher, BULK, || {
                pool.allocate_batch(&mut batch, BULK, 60, PortId(0));
                batch.clear();
            });
        });
    }
    group.bench_function("drain 32 items of another CPU", |bencher| bencher.iter_custom(drain));
    group.finish();
}

/// An addition to what only one thread adds to.
#[inline(always)]
fn add_alone(number: &AtomicU64, value: u64) {
    number.store(number.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
}

fn filled() -> Stack<u32> {
    let stack = Stack::new(512, 1000, Indexing::Cpu);
    stack.push(&(0..500).collect::<Vec<u32>>());
    stack
}

fn filled_queue() -> ArrayQueue<u32> {
    let queue = ArrayQueue::new(1024);
    for item in 0..500 {
        let _ = queue.push(item);
    }
    queue
}

/// Measures on the first CPU while another thread does the same on the last.
fn on_two_cpus(same: &(dyn Fn() + Sync), measure: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let (here, there) = cpus();
    thread::scope(|scope| {
        scope.spawn(|| {
            let _pinned = pin_on_cpu(there);
            while !stop.load(Ordering::Relaxed) {
                same();
            }
        });
        let _pinned = pin_on_cpu(here);
        measure();
        stop.store(true, Ordering::Relaxed);
    });
}

/// The first CPU and the last.
fn cpus() -> (usize, usize) {
    let cpus: Vec<usize> =
        percpu::Topology::read().map(|found| found.allowed.iter().collect()).unwrap_or_default();
    (cpus.first().copied().unwrap_or(0), cpus.last().copied().unwrap_or(0))
}

/// Ticks for `rounds` drains of the stack of a CPU whose thread is in and out of critical sections all the time.
fn drain(rounds: u64) -> f64 {
    // In the shared part, where the thread of the other CPU finds them.
    let stack = Stack::<u32>::new(512, 1000, Indexing::Cpu);
    stack.shared().give(&(0..500).collect::<Vec<u32>>());
    let stop = AtomicBool::new(false);
    let (here, cpu) = cpus();
    let mut ticks = 0;
    thread::scope(|scope| {
        // Its mask has both CPUs: it is made before this thread is pinned away from it.
        scope.spawn(|| {
            let _pinned = pin_on_cpu(cpu);
            while !stop.load(Ordering::Relaxed) {
                let mut hand = [MaybeUninit::uninit(); BULK];
                let taken = stack.pop(&mut hand);
                stack.push(taken);
            }
        });
        let _pinned = pin_on_cpu(here);
        let mut done = 0;
        while done < rounds {
            if stack.stack_len(cpu) < BULK {
                std::hint::spin_loop();
                continue;
            }
            let start = tsc::now();
            if let Drained::Moved(1..) = stack.drain(cpu) {
                ticks += tsc::now() - start;
                done += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    ticks as f64
}
