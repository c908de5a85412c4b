//! `mem:gen`: numbered packets out of nothing, and a sink that knows them.
//!
//! It stands in for a NIC with a traffic generator behind it: what it receives is made on the spot, what it sends is checked. Two of them
//! with a forwarder in between show, without any hardware, whether the forwarder loses, doubles, reorders or damages.
#![forbid(unsafe_code)]

use super::port::{MemPort, mac_of};
use super::sink::{Sink, SinkConfig};
use crate::counters::QueueCounters;
use crate::memory::{Batch, Pool};
use crate::port::{MacAddress, OpenContext, OpenPort, PortError, PortId, PortPlan, RxQueue};
use crate::spec::PortSpec;
use crate::traffic::{Addresses, Generator, MAX_FLOWS, Sizes, TrafficConfig};
use std::sync::Arc;

struct GeneratorPlan {
    spec: PortSpec,
    sizes: Sizes,
    flows: u16,
    rate_pps: u64,
    count: Option<u64>,
    queues: u16,
    sink: SinkConfig,
}

pub(super) fn check(spec: &PortSpec) -> Result<Box<dyn PortPlan>, PortError> {
    spec.check_keys(&["size", "flows", "rate", "count", "queues", "check"])?;
    let sizes = match spec.text("size") {
        None => Sizes::Fixed(64),
        Some(text) => text.parse().map_err(|problem| spec.error(format!("size={text}: {problem}")))?,
    };
    let queues = spec.number("queues", 1..=64, 1)? as u16;
    let flows = spec.number("flows", 1..=MAX_FLOWS.into(), queues.into())? as u16;
    if flows < queues {
        return Err(spec.error(format!(
            "flows={flows} with queues={queues}: a flow stays on one queue, so choose flows={queues} or more"
        )));
    }
    let rate_pps = spec.number("rate", 0..=1_000_000_000, 0)?;
    if rate_pps > 0 && rate_pps < queues.into() {
        return Err(spec.error(format!(
            "rate={rate_pps} with queues={queues}: each queue gets a share, so choose rate={queues} or more"
        )));
    }
    Ok(Box::new(GeneratorPlan {
        spec: spec.clone(),
        sizes,
        flows,
        rate_pps,
        count: Some(spec.number("count", 0..=u64::MAX, 0)?).filter(|count| *count > 0),
        queues,
        sink: SinkConfig::read(spec, flows)?,
    }))
}

impl PortPlan for GeneratorPlan {
    fn rx_queues(&self) -> usize {
        self.queues.into()
    }

    fn max_tx_queues(&self) -> usize {
        usize::MAX
    }

    fn frames(&self, _tx_queues: usize) -> usize {
        0
    }

    fn open(self: Box<Self>, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
        let config = TrafficConfig {
            addresses: Addresses {
                source: mac_of(context.id),
                destination: MacAddress([0x02, 0, 0, 0, 0, 0]),
                sender: context.id.0,
            },
            sizes: self.sizes,
            flows: self.flows,
            rate_pps: self.rate_pps,
            count: self.count,
            udp_checksum: false,
        };
        let rx = |queue| -> Box<dyn RxQueue> {
            Box::new(GeneratorRx {
                generator: Generator::new(&config, queue, self.queues),
                pool: context.pool.clone(),
                port: context.id,
                counters: Arc::default(),
            })
        };
        let sink = Sink::new(self.sink, context.tx_queues);
        let flows = if self.flows == 1 { "1 flow".to_owned() } else { format!("{} flows", self.flows) };
        let rate = match self.rate_pps {
            0 => String::new(),
            rate => format!(", {rate} packets a second"),
        };
        Ok(OpenPort {
            port: Box::new(MemPort {
                name: self.spec.name(),
                mode: format!("{}, {flows}{rate}, {}", self.sizes, self.sink),
                id: context.id,
                max_packet_len: usize::from(u16::MAX),
                sinks: sink.totals,
            }),
            rx: (0..self.queues).map(rx).collect(),
            tx: sink.queues,
        })
    }
}

struct GeneratorRx {
    generator: Generator,
    pool: Pool,
    port: PortId,
    counters: Arc<QueueCounters>,
}

impl RxQueue for GeneratorRx {
    fn receive(&mut self, batch: &mut Batch) {
        let (before, bytes_before) = (batch.len(), batch.total_bytes());
        self.generator.generate(&self.pool, batch, self.port);
        self.counters.packets.add((batch.len() - before) as u64);
        self.counters.bytes.add(batch.total_bytes() - bytes_before);
    }

    fn is_finished(&self) -> bool {
        self.generator.is_finished()
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use crate::memory::{Audit, BATCH_SIZE, PoolConfig};
    use std::time::{Duration, Instant};

    fn pool() -> Pool {
        Pool::new(&PoolConfig { frames: 1024, ..PoolConfig::default() }).unwrap()
    }

    fn open(text: &str, pool: &Pool, id: u16, tx_queues: usize) -> OpenPort {
        let spec: PortSpec = text.parse().unwrap();
        let context = OpenContext { pool, id: PortId(id), tx_queues, promiscuous: false };
        check(&spec).unwrap().open(&context).unwrap()
    }

    fn extra(port: &OpenPort, name: &str) -> u64 {
        port.port.extra_counters().iter().find(|(known, _)| known == name).unwrap().1
    }

    #[track_caller]
    fn assert_whole(pool: &Pool) {
        let frames = pool.frames();
        assert_eq!(pool.audit(), Audit { frames, free: frames, held: 0, withheld: 0, duplicated: 0 });
    }

    /// Receives from one port's queues and sends to another's until nothing more will come.
    fn forward(from: &mut OpenPort, to: &mut OpenPort, mut on_the_way: impl FnMut(&mut Batch)) -> u64 {
        let mut batch = Batch::new();
        let mut turns = 0;
        while !from.rx.iter().all(|queue| queue.is_finished()) {
            for (rx, tx) in from.rx.iter_mut().zip(&mut to.tx) {
                rx.receive(&mut batch);
                on_the_way(&mut batch);
                tx.transmit(&mut batch);
                assert!(batch.is_empty());
            }
            turns += 1;
            assert!(turns < 10_000_000, "does not end");
        }
        from.rx.iter().map(|queue| queue.counters().packets.get()).sum()
    }

    #[test]
    fn what_one_makes_the_other_knows() {
        for (options, packets) in [
            ("count=1000", 1000),
            ("count=1001&queues=2", 1001),
            ("count=5000&size=60&flows=7&queues=3", 5000),
            ("count=5000&size=imix&flows=100", 5000),
            ("count=3000&size=60-9018&flows=3&queues=3", 3000),
            ("count=100&size=9018", 100),
        ] {
            let pool = pool();
            let mut from = open(&format!("mem:gen?{options}"), &pool, 0, 3);
            let mut to = open("mem:sink?queues=3&flows=100", &pool, 1, 3);
            assert_eq!(forward(&mut from, &mut to, |_| ()), packets, "{options}");
            let sent: u64 = to.tx.iter().map(|queue| queue.counters().packets.get()).sum();
            let bytes = |port: &OpenPort| {
                let rx: u64 = port.rx.iter().map(|queue| queue.counters().bytes.get()).sum();
                rx + port.tx.iter().map(|queue| queue.counters().bytes.get()).sum::<u64>()
            };
            assert_eq!((sent, bytes(&from)), (packets, bytes(&to)), "{options}");
            assert_eq!(extra(&to, "sink_received"), packets, "{options}: {:?}", to.port.extra_counters());
            for bad in ["lost", "duplicate", "reordered", "late", "corrupt", "foreign", "untracked"] {
                assert_eq!(extra(&to, &format!("sink_{bad}")), 0, "{options}: {bad}");
            }
            assert_whole(&pool);
        }
    }

    #[test]
    fn the_sink_sees_what_a_forwarder_does_wrong() {
        let pool = pool();
        let mut from = open("mem:gen?count=64", &pool, 0, 1);
        let mut to = open("mem:sink", &pool, 1, 1);
        forward(&mut from, &mut to, |batch| {
            let packets = batch.as_mut_slice();
            if packets.len() == BATCH_SIZE {
                packets.swap(10, 11);
                packets[20].data_mut()[63] ^= 1;
                packets[30].data_mut()[12] = 0;
                let copy = packets[39].data().to_vec();
                packets[40].data_mut().copy_from_slice(&copy);
                packets[50].data_mut()[..12].fill(0xFF);
            }
        });
        let counters: Vec<u64> = to.port.extra_counters().into_iter().map(|(_, value)| value).collect();
        // packets, received, lost, duplicate, reordered, late, corrupt, foreign, untracked
        assert_eq!(counters, [64, 61, 3, 1, 1, 0, 1, 1, 0]);
        assert_whole(&pool);
    }

    #[test]
    fn an_empty_pool_delays_but_loses_nothing() {
        for size in [64, 9018] {
            let pool = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
            let mut from = open(&format!("mem:gen?count=500&size={size}"), &pool, 0, 1);
            let mut to = open("mem:gen?count=1", &pool, 1, 1);
            let mut hoard: Vec<crate::Packet> = Vec::new();
            forward(&mut from, &mut to, |_| match hoard.len() {
                0 => hoard.extend(std::iter::from_fn(|| pool.allocate(60)).take(60)),
                _ => hoard.clear(),
            });
            assert_eq!((extra(&to, "sink_received"), extra(&to, "sink_lost")), (500, 0), "{size}");
            drop(hoard);
            assert_whole(&pool);
        }
    }

    #[test]
    fn the_rate_is_kept() {
        let pool = pool();
        let mut from = open("mem:gen?rate=100k&queues=2", &pool, 0, 0);
        let mut to = open("mem:sink?check=off&queues=2", &pool, 1, 2);
        assert!(to.port.extra_counters().is_empty());
        let (mut batch, start) = (Batch::new(), Instant::now());
        let mut sent = [0_u64; 2];
        let asked;
        // To the end, and until both owe nothing: a stall of this thread is caught up with.
        loop {
            let before = start.elapsed();
            let mut came = 0;
            for ((rx, tx), sent) in from.rx.iter_mut().zip(&mut to.tx).zip(&mut sent) {
                rx.receive(&mut batch);
                came += batch.len();
                *sent += batch.len() as u64;
                tx.transmit(&mut batch);
            }
            if came == 0 && before > Duration::from_millis(100) {
                asked = before;
                break;
            }
        }
        let (least, most) = (asked.as_secs_f64() * 50_000.0, start.elapsed().as_secs_f64() * 50_000.0);
        for sent in sent.map(|sent| sent as f64) {
            assert!(least * 0.98 - 2.0 < sent && sent < most * 1.02, "{least} < {sent} < {most}");
        }
        assert_whole(&pool);
    }

    #[test]
    fn bad_options_are_refused_in_one_line() {
        for (text, words) in [
            ("mem:gen?size=59", "60 to 9018"),
            ("mem:gen?size=9019", "60 to 9018"),
            ("mem:gen?size=100-60", "60 to 9018"),
            ("mem:gen?size=", "imix"),
            ("mem:gen?flows=0", "from 1 to 60000"),
            ("mem:gen?flows=70000", "from 1 to 60000"),
            ("mem:gen?rate=2G", "from 0 to 1000000000"),
            ("mem:gen?rate=fast", "whole number"),
            ("mem:gen?count=-1", "whole number"),
            ("mem:gen?queues=0", "from 1 to 64"),
            ("mem:gen?queues=65", "from 1 to 64"),
            ("mem:gen?queues=4&flows=2", "flows=4"),
            ("mem:gen?queues=4&rate=2", "rate=4"),
            ("mem:gen?check=1", "on, off"),
            ("mem:gen?speed=1", "unknown option \"speed\""),
            ("mem:sink?size=64", "unknown option \"size\""),
            ("mem:sink?check=yes", "on, off"),
            ("mem:gem", "mem:gen"),
        ] {
            let spec: PortSpec = text.parse().unwrap();
            let error = check(&spec).err().unwrap_or_else(|| panic!("{text} passed")).to_string();
            assert!(error.contains(words) && error.starts_with(text) && !error.contains('\n'), "{error}");
        }
    }
}
