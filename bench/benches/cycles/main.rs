//! What the parts cost, in ticks of the time stamp counter for each packet or item: `cargo bench -p bench`.
//!
//! The figures of peers that the names recall (DPDK's mempool, mbuf and ring benchmarks) have the same bulk sizes.
#![forbid(unsafe_code)]

mod forwarding;
mod packet_memory;
mod per_cpu;
mod qsbr;
mod ring;
mod slow_path;
mod traffic;

use criterion::{criterion_group, criterion_main};

criterion_group! {
    name = cycles;
    config = bench::criterion();
    targets = packet_memory::benches, per_cpu::benches, qsbr::benches, ring::benches, traffic::benches, forwarding::benches, slow_path::benches
}
criterion_main!(cycles);
