//! Allocating, freeing and touching packets.
#![forbid(unsafe_code)]

use bench::{Ticks, per_item};
use criterion::Criterion;
use nic::memory::BATCH_SIZE;
use nic::{Batch, Packet, Pool, PoolConfig, PortId};

/// More than a thread keeps to itself, and as many as the peers' figures are for.
const MANY: usize = 2048;

/// Exchanges source and destination address.
pub(crate) fn macswap(packet: &mut Packet) {
    if let Some(addresses) = packet.data_mut().first_chunk_mut::<12>() {
        addresses.rotate_left(6);
    }
}

pub(crate) fn pool() -> Pool {
    Pool::new(&PoolConfig { frames: 8192, ..PoolConfig::default() }).expect("memory for a small pool")
}

fn fill(pool: &Pool, batches: &mut [Batch]) {
    for batch in batches {
        pool.allocate_batch(batch, BATCH_SIZE, 60, PortId(0));
    }
}

pub(crate) fn benches(criterion: &mut Criterion<Ticks>) {
    let pool = pool();
    let mut group = criterion.benchmark_group("packet_memory");
    for bulk in [32, 64] {
        group.bench_function(format!("allocate and free, bulk {bulk}"), |bencher| {
            let mut batch = Batch::new();
            per_item(bencher, bulk, || {
                pool.allocate_batch(&mut batch, bulk, 60, PortId(0));
                batch.clear();
            });
        });
    }
    let mut batches: Vec<Batch> = (0..MANY / BATCH_SIZE).map(|_| Batch::new()).collect();
    group.bench_function(format!("allocate and free, {MANY} at a time"), |bencher| {
        per_item(bencher, MANY, || {
            fill(&pool, &mut batches);
            batches.iter_mut().for_each(Batch::clear);
        });
    });
    group.bench_function(format!("macswap, {MANY} packets"), |bencher| {
        fill(&pool, &mut batches);
        per_item(bencher, MANY, || batches.iter_mut().flatten().for_each(macswap));
        batches.iter_mut().for_each(Batch::clear);
    });
    group.finish();
    assert_eq!(pool.audit().held, 0);
}
