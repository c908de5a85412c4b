//! What each worker of pktgen does: send its share, receive what comes, and know when it is over.
#![forbid(unsafe_code)]

use super::Traffic;
use dataplane::{Application, Outputs, WorkerContext};
use nic::memory::BATCH_SIZE;
use nic::traffic::{Addresses, Generator, Start, Tracker, TrafficConfig, flow_of};
use nic::{Batch, MacAddress, Pool, PortId};
use percpu::tsc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How long nothing must have come, once everything has been sent, for the run to be over.
const SILENCE_NS: u64 = 200_000_000;
/// How long stragglers are waited for at most.
const MOST_WAIT_NS: u64 = 2_000_000_000;
/// Flows that a port has books on beyond its partner's: what else may come by.
const SPARE_FLOWS: usize = 64;

/// How many workers are still sending. Nobody stops listening before all have ended.
#[derive(Debug, Default)]
pub struct Senders(AtomicUsize);

/// One worker's sending and receiving.
pub struct Pktgen {
    pool: Pool,
    senders: Vec<Sender>,
    trackers: Vec<Tracker>,
    active: Arc<Senders>,
    /// Some worker sends: the run ends by itself.
    ends: bool,
    sending: bool,
    /// In ticks; set when it first runs.
    ends_at_tsc: Option<u64>,
    duration_tsc: Option<u64>,
    drain: Option<Drain>,
    came: bool,
    finished: bool,
}

/// What a worker sends to one port.
struct Sender {
    port: PortId,
    generator: Generator,
    /// What the port has not taken yet.
    batch: Batch,
    /// The flows of packets that it never took.
    unsent: Vec<u16>,
}

/// The wait for stragglers, in ticks.
#[derive(Clone, Copy)]
struct Drain {
    since: u64,
    last_arrival: u64,
}

impl Pktgen {
    /// The application of one worker. Where there are more workers than flows the last ones only receive.
    pub fn new(worker: &WorkerContext, traffic: &Traffic, active: &Arc<Senders>) -> Self {
        let sharing = worker.workers.min(traffic.flows.into());
        let sends = traffic.send && worker.worker < sharing;
        let sender = |id: PortId| Sender {
            port: id,
            generator: Generator::new(
                &TrafficConfig {
                    addresses: Addresses {
                        source: worker.port(id).mac,
                        destination: MacAddress([0x02, 0, 0, 0, 0, id.0 as u8]),
                        sender: traffic.sender(id),
                    },
                    sizes: traffic.sizes,
                    flows: traffic.flows,
                    rate_pps: traffic.rate_pps,
                    count: traffic.count,
                    udp_checksum: traffic.udp_checksum,
                },
                worker.worker as u16,
                sharing as u16,
            ),
            batch: Batch::new(),
            unsent: Vec::with_capacity(BATCH_SIZE),
        };
        let start = if traffic.join { Start::FirstSeen } else { Start::Zero };
        let room = usize::from(traffic.flows) + SPARE_FLOWS;
        if sends {
            active.0.fetch_add(1, Ordering::AcqRel);
        }
        Self {
            pool: worker.pool.clone(),
            senders: worker.ports.iter().filter(|_| sends).map(|port| sender(port.id)).collect(),
            trackers: worker.ports.iter().map(|_| Tracker::new(room, start)).collect(),
            active: Arc::clone(active),
            ends: traffic.send,
            sending: sends,
            ends_at_tsc: None,
            duration_tsc: traffic
                .duration
                .map(|duration| tsc::from_ns(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))),
            drain: None,
            came: false,
            finished: false,
        }
    }

    /// True where the run came to its own end, with the wait for stragglers.
    pub fn has_finished(&self) -> bool {
        self.finished
    }

    /// What this worker sent: port, flow, and how many of it the port took.
    pub fn sent(&self) -> Vec<(PortId, u16, u64)> {
        let flows = |sender: &Sender| -> Vec<(PortId, u16, u64)> {
            let unsent = |flow| sender.unsent.iter().filter(|unsent| **unsent == flow).count() as u64;
            sender.generator.sent().map(|(flow, made)| (sender.port, flow, made - unsent(flow))).collect()
        };
        self.senders.iter().flat_map(flows).collect()
    }

    /// The books of what came in by each port.
    pub fn trackers(&self) -> &[Tracker] {
        &self.trackers
    }

    fn send(&mut self, out: &mut Outputs) {
        let now = self.duration_tsc.map(|duration| {
            let now = tsc::now();
            (now, *self.ends_at_tsc.get_or_insert_with(|| now.saturating_add(duration)))
        });
        let mut over = now.is_some_and(|(now, end)| now >= end);
        let mut all_made = true;
        for sender in &mut self.senders {
            if !over {
                sender.generator.generate(&self.pool, &mut sender.batch, sender.port);
            }
            // What the port does not take stays for the next turn: pktgen's own packets are never dropped for want of room.
            if !sender.batch.is_empty() {
                out.try_send(sender.port, &mut sender.batch);
            }
            all_made &= sender.generator.is_finished() && sender.batch.is_empty();
        }
        over |= all_made;
        if over {
            self.sending = false;
            self.let_go();
            self.active.0.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Frees what no port has taken.
    fn let_go(&mut self) {
        for sender in &mut self.senders {
            sender.unsent.extend(sender.batch.iter().filter_map(|packet| flow_of(packet.data())));
            sender.batch.clear();
        }
    }

    #[inline(never)]
    fn drain(&mut self) {
        let now = tsc::now();
        let drain = self.drain.get_or_insert(Drain { since: now, last_arrival: now });
        if std::mem::take(&mut self.came) {
            drain.last_arrival = now;
        }
        self.finished = now.saturating_sub(drain.last_arrival) > tsc::from_ns(SILENCE_NS)
            || now.saturating_sub(drain.since) > tsc::from_ns(MOST_WAIT_NS);
    }
}

impl Application for Pktgen {
    #[inline]
    fn process(&mut self, packets: &mut Batch, from: PortId, _out: &mut Outputs) {
        self.trackers[usize::from(from.0)].receive_batch(packets);
        self.came = true;
        packets.clear();
    }

    #[inline]
    fn poll(&mut self, out: &mut Outputs) {
        if self.sending {
            self.send(out);
        } else if self.ends && self.active.0.load(Ordering::Acquire) == 0 {
            self.drain();
        }
    }

    fn is_sending(&self) -> bool {
        self.ends && !self.finished
    }

    fn is_finished(&self) -> bool {
        self.finished
    }

    fn stop(&mut self) {
        self.let_go();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::PortInfo;
    use nic::PoolConfig;
    use nic::traffic::Sizes;

    #[test]
    fn what_no_port_took_was_not_sent() {
        for size in [64, 9000] {
            let pool = Pool::new(&PoolConfig { frames: 512, ..PoolConfig::default() }).unwrap();
            let port = |id| PortInfo {
                id: PortId(id),
                name: "mem:test".into(),
                mac: MacAddress::default(),
                max_packet_len: 65535,
                local: None,
            };
            let ports = [port(0), port(1)].into();
            let worker =
                WorkerContext { worker: 0, workers: 1, cpu: 0, ports, pool: pool.clone(), slow_path: None };
            let traffic = Traffic {
                sizes: Sizes::Fixed(size),
                flows: 3,
                rate_pps: 0,
                count: Some(20),
                duration: None,
                udp_checksum: false,
                send: true,
                join: false,
                run: 1,
            };
            let mut pktgen = Pktgen::new(&worker, &traffic, &Arc::default());
            let sender = &mut pktgen.senders[1];
            sender.generator.generate(&pool, &mut sender.batch, sender.port);
            assert_eq!(sender.batch.len(), 20);
            // The port takes the first seven: three of flow 0, two of the others.
            sender.batch.drain_front(7, drop);
            pktgen.stop();
            let sent = pktgen.sent();
            let of_port =
                |id| sent.iter().filter(|sent| sent.0 == PortId(id)).map(|sent| sent.2).collect::<Vec<u64>>();
            assert_eq!((of_port(0), of_port(1)), (vec![0, 0, 0], vec![3, 2, 2]));
            assert_eq!(pool.audit().held, 0);
        }
    }
}
