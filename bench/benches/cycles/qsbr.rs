//! What a worker pays for tables that are replaced under it: a quiescent state a turn, and a check and a load a lookup.
#![forbid(unsafe_code)]

use bench::{Ticks, per_item};
use criterion::Criterion;
use percpu::qsbr::{Domain, Published};
use std::hint::black_box;

/// Turns, or lookups, at a time.
const MANY: usize = 64;

pub(crate) fn benches(criterion: &mut Criterion<Ticks>) {
    let mut group = criterion.benchmark_group("qsbr");
    let domain = Domain::new();
    let table = Published::new(&domain, [7_u64; 8]).shared();
    let mut reader = domain.reader(0);
    reader.begin();
    group.bench_function("quiescent state", |bencher| {
        per_item(bencher, MANY, || (0..MANY).for_each(|_| black_box(&mut reader).quiescent()));
    });
    group.bench_function("get", |bencher| {
        per_item(bencher, MANY, || {
            (0..MANY).for_each(|_| {
                black_box(black_box(&table).get(black_box(&reader)));
            });
        });
    });
    group.finish();
}
