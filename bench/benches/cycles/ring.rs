//! The single-producer single-consumer ring, items of 16 bytes.
#![forbid(unsafe_code)]

use super::packet_memory::pool;
use bench::{Ticks, per_item};
use criterion::Criterion;
use crossbeam_queue::ArrayQueue;
use nic::{Batch, PortId, ring::ring};
use percpu::tsc;
use std::hint::{black_box, spin_loop};
use std::thread;

const BULK: usize = 32;

pub(crate) fn benches(criterion: &mut Criterion<Ticks>) {
    let mut group = criterion.benchmark_group("ring");
    group.bench_function(format!("push and pop, bulk {BULK}, one thread"), |bencher| {
        let (mut producer, mut consumer) = ring::<[u64; 2]>(1024);
        let (items, mut taken) = ([[7; 2]; BULK], [[0; 2]; BULK]);
        per_item(bencher, BULK, || {
            producer.push_slice(black_box(&items));
            consumer.pop_slice(black_box(&mut taken));
        });
    });
    group.bench_function(format!("push and pop packets, bulk {BULK}, one thread"), |bencher| {
        let (mut producer, mut consumer) = ring(1024);
        let (pool, mut batch) = (pool(), Batch::new());
        pool.allocate_batch(&mut batch, BULK, 60, PortId(0));
        per_item(bencher, BULK, || {
            producer.push_batch(black_box(&mut batch));
            consumer.pop_batch(black_box(&mut batch));
        });
        batch.clear();
    });
    group.bench_function("push and pop one, ArrayQueue, one thread", |bencher| {
        let queue = ArrayQueue::new(1024);
        per_item(bencher, BULK, || {
            for _ in 0..BULK {
                let _ = black_box(queue.push([7_u64; 2]));
            }
            for _ in 0..BULK {
                black_box(queue.pop());
            }
        });
    });
    group.bench_function(format!("push and pop, bulk {BULK}, two threads"), |bencher| {
        bencher.iter_custom(|rounds| across(rounds) / BULK as f64);
    });
    group.finish();
}

/// Ticks from the first push to the last pop of `rounds` bulks, on two CPUs where there are two. A side that has to wait
/// spins a little, then lets others run, so that one CPU will do.
fn across(rounds: u64) -> f64 {
    let (mut producer, mut consumer) = ring::<[u64; 2]>(1024);
    let mut turns = 0_u32;
    let mut wait = move || {
        turns = turns.wrapping_add(1);
        if turns.is_multiple_of(1024) { thread::yield_now() } else { spin_loop() }
    };
    let mut other_wait = wait;
    thread::scope(|scope| {
        let start = tsc::now();
        scope.spawn(move || {
            for _ in 0..rounds {
                let items = [[7; 2]; BULK];
                let mut left = items.as_slice();
                while !left.is_empty() {
                    match producer.push_slice(left) {
                        0 => wait(),
                        pushed => left = &left[pushed..],
                    }
                }
            }
        });
        let (mut left, mut taken) = (rounds * BULK as u64, [[0; 2]; BULK]);
        while left > 0 {
            match consumer.pop_slice(&mut taken) {
                0 => other_wait(),
                popped => left -= popped as u64,
            }
            black_box(&taken);
        }
        tsc::now().wrapping_sub(start) as f64
    })
}
