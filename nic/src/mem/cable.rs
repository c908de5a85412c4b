//! `mem:cable`: two ports of one process that are the ends of a cable.
//!
//! What one end sends the other receives: the packets themselves move through a ring, nothing is copied. It joins two applications, or a
//! generator and what it tests, without a kernel in between. A full ring pushes back: packets stay in the sender's batch.
//!
//! A direction of a queue is a [`Wire`]. The ends may close in any order and on different threads; the second to close a wire has both
//! halves of the ring in its hands, so it can count to the packet what was never received.
#![forbid(unsafe_code)]

use super::port::mac_of;
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{Batch, Packet};
use crate::port::{
    LinkState, MacAddress, OpenContext, OpenPort, Port, PortError, PortId, PortPlan, RxQueue, TxQueue,
};
use crate::ring::{Consumer, Observer, Producer, ring};
use crate::spec::PortSpec;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The cables of this process by name. A cable that both ends have left is forgotten.
static CABLES: Mutex<Option<HashMap<String, Weak<Cable>>>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct CablePlan {
    spec: PortSpec,
    name: String,
    queues: usize,
    ring: usize,
}

pub(super) fn check(spec: &PortSpec) -> Result<Box<dyn PortPlan>, PortError> {
    spec.check_keys(&["name", "queues", "ring"])?;
    let name = spec.text("name").unwrap_or("0");
    if name.is_empty() {
        return Err(spec.error("name=: give both ends of the cable the same name, such as name=a"));
    }
    let ring = spec.number("ring", 64..=65536, 1024)? as usize;
    if !ring.is_power_of_two() {
        return Err(spec.error(format!("ring={ring}: choose a power of two from 64 to 65536")));
    }
    let queues = spec.number("queues", 1..=64, 1)? as usize;
    Ok(Box::new(CablePlan { spec: spec.clone(), name: name.to_owned(), queues, ring }))
}

impl PortPlan for CablePlan {
    fn rx_queues(&self) -> usize {
        self.queues
    }

    fn max_tx_queues(&self) -> usize {
        self.queues
    }

    fn frames(&self, tx_queues: usize) -> usize {
        self.ring * tx_queues
    }

    fn open(self: Box<Self>, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
        let (cable, end) = self.plug_in()?;
        let (outward, inward) = (&cable.wires[end], &cable.wires[1 - end]);
        let mut tx: Vec<Box<dyn TxQueue>> = Vec::new();
        for (number, wire) in outward.iter().enumerate() {
            let producer = lock(&wire.state).producer.take();
            let queue = producer.map(|producer| CableTx { producer: Some(producer), wire: wire.clone() });
            // Dropping it closes the wire: the other end then knows that nothing will come by it.
            tx.extend(queue.filter(|_| number < context.tx_queues).map(|queue| Box::new(queue) as _));
        }
        let mut rx: Vec<Box<dyn RxQueue>> = Vec::new();
        for wire in inward {
            wire.has_receiver.store(true, Ordering::Release);
            let consumer = lock(&wire.state).consumer.take();
            let queue = consumer.map(|consumer| CableRx {
                consumer: Some(consumer),
                wire: wire.clone(),
                port: context.id,
                counters: Arc::default(),
            });
            rx.extend(queue.map(|queue| Box::new(queue) as _));
        }
        let port = CablePort { name: self.spec.name(), label: self.name, id: context.id, cable, end };
        Ok(OpenPort { port: Box::new(port), rx, tx })
    }
}

impl CablePlan {
    /// Finds the cable or makes it, and takes the end of it that is free.
    fn plug_in(&self) -> Result<(Arc<Cable>, usize), PortError> {
        let mut cables = lock(&CABLES);
        let cables = cables.get_or_insert_default();
        cables.retain(|_, cable| cable.strong_count() > 0);
        let Some(cable) = cables.get(&self.name).and_then(Weak::upgrade) else {
            let cable = Arc::new(Cable::new(self.queues, self.ring));
            cables.insert(self.name.clone(), Arc::downgrade(&cable));
            return Ok((cable, 0));
        };
        let name = &self.name;
        let first = cable.wires[0].len();
        if first != self.queues {
            return Err(self.spec.error(format!(
                "the other end of the cable \"{name}\" has queues={first}: give both the same number"
            )));
        }
        if cable.second_end_taken.swap(true, Ordering::AcqRel) {
            return Err(self.spec.open_error(format!(
                "both ends of the cable \"{name}\" are taken: choose another name=, or close both ends first"
            )));
        }
        Ok((cable, 1))
    }
}

/// A wire for each direction and queue.
struct Cable {
    /// By the end that sends, then by queue.
    wires: [Vec<Arc<Wire>>; 2],
    second_end_taken: AtomicBool,
}

impl Cable {
    fn new(queues: usize, ring: usize) -> Self {
        let wires = || (0..queues).map(|_| Arc::new(Wire::new(ring))).collect();
        Self { wires: [wires(), wires()], second_end_taken: AtomicBool::new(false) }
    }
}

/// One direction of one queue.
struct Wire {
    /// True while somebody receives at the far end.
    has_receiver: AtomicBool,
    /// True once the sender has closed.
    sender_closed: AtomicBool,
    state: Mutex<WireState>,
    observer: Observer<Packet>,
    /// The transmit queue's.
    counters: Arc<QueueCounters>,
}

/// The halves of the ring while no queue has them: before the end is opened and after it was closed.
struct WireState {
    producer: Option<Producer<Packet>>,
    consumer: Option<Consumer<Packet>>,
    /// Packets and bytes that were sent and never received.
    unsent: (u64, u64),
}

impl Wire {
    fn new(capacity: usize) -> Self {
        let (producer, consumer) = ring(capacity);
        Self {
            has_receiver: AtomicBool::new(false),
            sender_closed: AtomicBool::new(false),
            observer: consumer.observer(),
            state: Mutex::new(WireState {
                producer: Some(producer),
                consumer: Some(consumer),
                unsent: (0, 0),
            }),
            counters: Arc::default(),
        }
    }

    /// Frees what is inside, and once the sender has closed, whose thread has the counters until then, corrects its numbers.
    fn settle(&self, state: &mut WireState) {
        if let Some(consumer) = &mut state.consumer {
            let mut batch = Batch::new();
            while consumer.pop_batch(&mut batch) > 0 {
                state.unsent.0 += batch.len() as u64;
                state.unsent.1 += batch.total_bytes();
                batch.clear();
            }
        }
        if self.sender_closed.load(Ordering::Acquire) {
            let (packets, bytes) = std::mem::take(&mut state.unsent);
            self.counters.drops(DropReason::TxUnsent).add(packets);
            self.counters.packets.set(self.counters.packets.get() - packets);
            self.counters.bytes.set(self.counters.bytes.get() - bytes);
        }
    }
}

struct CableTx {
    /// There until it is dropped.
    producer: Option<Producer<Packet>>,
    wire: Arc<Wire>,
}

impl TxQueue for CableTx {
    fn transmit(&mut self, batch: &mut Batch) {
        let counters = &self.wire.counters;
        let Some(producer) =
            self.producer.as_mut().filter(|_| self.wire.has_receiver.load(Ordering::Acquire))
        else {
            counters.drops(DropReason::TxPortDown).add(batch.len() as u64);
            batch.clear();
            return;
        };
        let (packets, bytes) = (batch.len(), batch.total_bytes());
        producer.push_batch(batch);
        counters.packets.add((packets - batch.len()) as u64);
        counters.bytes.add(bytes - batch.total_bytes());
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.wire.counters
    }
}

impl Drop for CableTx {
    fn drop(&mut self) {
        let mut state = lock(&self.wire.state);
        state.producer = self.producer.take();
        self.wire.sender_closed.store(true, Ordering::Release);
        // The receiver goes on with what is inside; where it has closed, nobody will.
        self.wire.settle(&mut state);
    }
}

struct CableRx {
    /// There until it is dropped.
    consumer: Option<Consumer<Packet>>,
    wire: Arc<Wire>,
    port: PortId,
    counters: Arc<QueueCounters>,
}

impl RxQueue for CableRx {
    fn receive(&mut self, batch: &mut Batch) {
        let Some(consumer) = &mut self.consumer else { return };
        let before = batch.len();
        if consumer.pop_batch(batch) == 0 {
            return;
        }
        let mut bytes = 0;
        for packet in &mut batch.as_mut_slice()[before..] {
            packet.set_port(self.port);
            bytes += packet.total_len() as u64;
        }
        self.counters.packets.add((batch.len() - before) as u64);
        self.counters.bytes.add(bytes);
    }

    fn is_finished(&self) -> bool {
        // In this order: what was sent before the sender closed is seen.
        self.wire.sender_closed.load(Ordering::Acquire) && self.wire.observer.is_empty()
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

impl Drop for CableRx {
    fn drop(&mut self) {
        self.wire.has_receiver.store(false, Ordering::Release);
        let mut state = lock(&self.wire.state);
        state.consumer = self.consumer.take();
        self.wire.settle(&mut state);
    }
}

/// The control handle of one end.
struct CablePort {
    name: String,
    label: String,
    id: PortId,
    cable: Arc<Cable>,
    end: usize,
}

impl CablePort {
    /// While this end is closing it stays as it was: that the far end may close at the same time is no event.
    fn is_connected(&self) -> bool {
        let receives =
            |end: usize| self.cable.wires[end].iter().any(|wire| wire.has_receiver.load(Ordering::Acquire));
        let closing = !receives(1 - self.end);
        self.cable.second_end_taken.load(Ordering::Acquire) && (closing || receives(self.end))
    }
}

impl Port for CablePort {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "mem"
    }

    fn mode(&self) -> String {
        let queues = match self.cable.wires[self.end].len() {
            1 => "1 queue".to_owned(),
            queues => format!("{queues} queues"),
        };
        match self.cable.second_end_taken.load(Ordering::Acquire) {
            true => format!("cable \"{}\", {queues}", self.label),
            false => format!("unconnected: open a second mem:cable?name={}, {queues}", self.label),
        }
    }

    fn mac(&self) -> MacAddress {
        mac_of(self.id)
    }

    fn max_packet_len(&self) -> usize {
        usize::from(u16::MAX)
    }

    fn link(&mut self) -> LinkState {
        if self.is_connected() { LinkState::Up { speed_mbps: None } } else { LinkState::Down }
    }

    fn refresh(&mut self) {
        for wire in &self.cable.wires[self.end] {
            wire.counters.held.set(wire.observer.len() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Audit, BATCH_SIZE, Pool, PoolConfig};
    use std::thread;
    use std::time::{Duration, Instant};

    fn pool() -> Pool {
        Pool::new(&PoolConfig { frames: 1024, ..PoolConfig::default() }).unwrap()
    }

    fn try_open(text: &str, pool: &Pool, id: u16, tx_queues: usize) -> Result<OpenPort, PortError> {
        let spec: PortSpec = text.parse().unwrap();
        let context = OpenContext { pool, id: PortId(id), tx_queues, promiscuous: false };
        check(&spec)?.open(&context)
    }

    fn pair(name: &str, options: &str, pool: &Pool, queues: usize) -> (OpenPort, OpenPort) {
        let text = format!("mem:cable?name={name}{options}");
        (try_open(&text, pool, 0, queues).unwrap(), try_open(&text, pool, 1, queues).unwrap())
    }

    fn packets(pool: &Pool, count: usize, mark: u8) -> Batch {
        let mut batch = Batch::new();
        assert_eq!(pool.allocate_batch(&mut batch, count, 60, PortId(9)), count);
        batch.iter_mut().for_each(|packet| packet.data_mut().fill(mark));
        batch
    }

    #[track_caller]
    fn assert_whole(pool: &Pool) {
        let frames = pool.frames();
        assert_eq!(pool.audit(), Audit { frames, free: frames, held: 0, withheld: 0, duplicated: 0 });
    }

    fn drops(port: &OpenPort, reason: DropReason) -> u64 {
        port.tx[0].counters().drops(reason).get()
    }

    #[test]
    fn what_one_end_sends_the_other_receives_queue_by_queue() {
        let pool = pool();
        let (mut a, mut b) = pair("both-ways", "&queues=2", &pool, 2);
        assert_eq!((a.port.link(), b.port.link()), (LinkState::Up { speed_mbps: None }, b.port.link()));
        for queue in 0..2 {
            let mut batch = packets(&pool, 7, queue as u8);
            let frames: Vec<usize> = batch.iter().map(|packet| packet.data().as_ptr() as usize).collect();
            a.tx[queue].transmit(&mut batch);
            assert!(batch.is_empty());
            a.port.refresh();
            assert_eq!(a.tx[queue].counters().held.get(), 7);
            b.rx[queue].receive(&mut batch);
            let moved: Vec<usize> = batch.iter().map(|packet| packet.data().as_ptr() as usize).collect();
            assert_eq!(frames, moved, "the packets themselves, not copies");
            assert!(
                batch.iter().all(|packet| packet.port() == PortId(1) && packet.data() == [queue as u8; 60])
            );
            b.tx[queue].transmit(&mut batch);
            a.rx[queue].receive(&mut batch);
            assert!(batch.len() == 7 && batch.iter().all(|packet| packet.port() == PortId(0)));
            assert_eq!(a.rx[queue].counters().bytes.get(), 420);
            a.port.refresh();
            assert_eq!(a.tx[queue].counters().held.get(), 0);
        }
        drop((a, b));
        assert_whole(&pool);
    }

    #[test]
    fn a_full_ring_pushes_back() {
        let pool = pool();
        let (mut a, mut b) = pair("full", "&ring=64", &pool, 1);
        let mut first = packets(&pool, 40, 1);
        a.tx[0].transmit(&mut first);
        let mut second = packets(&pool, 40, 2);
        a.tx[0].transmit(&mut second);
        assert_eq!((first.len(), second.len(), a.tx[0].counters().packets.get()), (0, 16, 64));
        let mut received = Batch::new();
        b.rx[0].receive(&mut received);
        assert_eq!(received.len(), BATCH_SIZE);
        a.tx[0].transmit(&mut second);
        assert_eq!((second.len(), a.tx[0].counters().packets.get()), (0, 80));
        drop((a, b, received));
        assert_whole(&pool);
    }

    #[test]
    fn an_end_alone_says_so_and_drops() {
        let pool = pool();
        let mut a = try_open("mem:cable?name=alone", &pool, 0, 1).unwrap();
        assert!(a.port.mode().contains("unconnected"), "{}", a.port.mode());
        assert_eq!(a.port.link(), LinkState::Down);
        a.tx[0].transmit(&mut packets(&pool, 5, 0));
        assert_eq!((drops(&a, DropReason::TxPortDown), a.tx[0].counters().packets.get()), (5, 0));
        assert!(!a.rx[0].is_finished());
        drop(a);
        assert_whole(&pool);
        // And the name is free again.
        drop(pair("alone", "", &pool, 1));
    }

    #[test]
    fn a_third_end_and_unlike_ends_are_refused() {
        let pool = pool();
        let ends = pair("third", "", &pool, 1);
        let error = try_open("mem:cable?name=third", &pool, 2, 1).err().unwrap().to_string();
        assert!(error.contains("both ends") && error.contains("name="), "{error}");
        drop(ends.0);
        assert!(try_open("mem:cable?name=third", &pool, 2, 1).is_err());
        drop(ends.1);
        drop(pair("third", "", &pool, 1));
        let _one = try_open("mem:cable?name=unlike&queues=2", &pool, 0, 2).unwrap();
        let error = try_open("mem:cable?name=unlike", &pool, 1, 1).err().unwrap().to_string();
        assert!(error.contains("queues=2"), "{error}");
        for wrong in ["name=", "ring=100", "ring=32", "queues=0", "nome=x"] {
            assert!(try_open(&format!("mem:cable?{wrong}"), &pool, 0, 1).is_err(), "{wrong}");
        }
    }

    #[test]
    fn closing_gives_the_frames_back_and_corrects_the_books() {
        // Receiver first, then sender; sender first, then receiver.
        for receiver_first in [true, false] {
            let pool = pool();
            let (mut a, mut b) = pair("closing", "", &pool, 1);
            let counters = a.tx[0].counters().clone();
            a.tx[0].transmit(&mut packets(&pool, 60, 0));
            let mut some = Batch::new();
            some.append(&mut packets(&pool, 50, 0));
            b.rx[0].receive(&mut some);
            assert_eq!(some.len(), BATCH_SIZE);
            drop(some);
            if receiver_first {
                b.rx.clear();
                assert_eq!(pool.audit().held, 0);
                a.tx[0].transmit(&mut packets(&pool, 3, 0));
                assert_eq!(counters.drops(DropReason::TxPortDown).get(), 3);
                a.tx.clear();
            } else {
                a.tx.clear();
                assert!(!b.rx[0].is_finished(), "46 packets are still to come");
                b.rx.clear();
            }
            a.port.refresh();
            let unsent = counters.drops(DropReason::TxUnsent).get();
            assert_eq!((unsent, counters.packets.get(), counters.bytes.get()), (46, 14, 14 * 60));
            assert_eq!(counters.held.get(), 0);
            assert_whole(&pool);
        }
    }

    #[test]
    fn ends_that_close_at_any_moment_lose_nothing_in_silence() {
        for round in 0..50_u64 {
            let pool = pool();
            let (mut a, mut b) = pair("any-moment", "&ring=64", &pool, 1);
            let (sent, received) = (a.tx[0].counters().clone(), b.rx[0].counters().clone());
            let sender = thread::spawn({
                let pool = pool.clone();
                move || {
                    let mut offered = 0;
                    for _ in 0..200 {
                        let mut batch = Batch::new();
                        offered += pool.allocate_batch(&mut batch, 17, 60, PortId(0)) as u64;
                        a.tx[0].transmit(&mut batch);
                        offered -= batch.len() as u64;
                    }
                    offered
                }
            });
            let (start, mut batch) = (Instant::now(), Batch::new());
            while start.elapsed() < Duration::from_micros(20 * round) && !b.rx[0].is_finished() {
                b.rx[0].receive(&mut batch);
                batch.clear();
            }
            drop(b);
            let offered = sender.join().unwrap();
            let dropped: u64 = sent.all_drops().map(|(_, count)| count).sum();
            assert_eq!(sent.packets.get() + dropped, offered);
            assert_eq!(sent.packets.get(), received.packets.get());
            assert_eq!(sent.bytes.get(), received.bytes.get());
            assert_whole(&pool);
        }
    }
}
