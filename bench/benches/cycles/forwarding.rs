//! From one in-memory port to another, through the traits that every driver has: no worker loop, no counters but the queues'.
#![forbid(unsafe_code)]

use super::packet_memory::{macswap, pool};
use bench::{Ticks, per_item};
use criterion::Criterion;
use nic::memory::BATCH_SIZE;
use nic::{Batch, OpenContext, OpenPort, Pool, PortId, PortSpec, drivers};

fn open(text: &str, pool: &Pool, id: u16) -> OpenPort {
    let spec: PortSpec = text.parse().expect("a specification");
    let context = OpenContext { pool, id: PortId(id), tx_queues: 1, promiscuous: false };
    drivers::check(&spec).and_then(|plan| plan.open(&context)).expect("an in-memory port")
}

pub(crate) fn benches(criterion: &mut Criterion<Ticks>) {
    let mut group = criterion.benchmark_group("forwarding");
    type Touch = fn(&mut Batch);
    let io: Touch = |_| ();
    let swap: Touch = |batch| batch.iter_mut().for_each(macswap);
    for (name, from, to, touch) in [
        ("io, mem:null to mem:null", "mem:null", "mem:null", io),
        ("macswap, mem:null to mem:null", "mem:null", "mem:null", swap),
        ("io, mem:gen to mem:sink unchecked", "mem:gen", "mem:sink?check=off", io),
        ("macswap, mem:gen to mem:sink", "mem:gen", "mem:sink", swap),
    ] {
        let pool = pool();
        let (mut from, mut to) = (open(from, &pool, 0), open(to, &pool, 1));
        let mut batch = Batch::new();
        group.bench_function(name, |bencher| {
            per_item(bencher, BATCH_SIZE, || {
                from.rx[0].receive(&mut batch);
                touch(&mut batch);
                to.tx[0].transmit(&mut batch);
            });
        });
        assert_eq!(from.rx[0].counters().packets.get(), to.tx[0].counters().packets.get());
        assert_eq!(pool.audit().held, 0);
    }
    group.finish();
}
