//! The transmit side: puts packets on the transmit ring and takes their frames back from the completion ring.
//!
//! A packet is counted as sent when its frames come back, for only then has the kernel taken it; until then it is held. Packets that the kernel
//! took and the device refused come back as well: the doorbell is told how many, and they move from sent to `tx_dropped`
//! (their bytes stay in `bytes`: which ones they were, nobody says). What is still on the ring at the end is `tx_unsent`.
#![forbid(unsafe_code)]

use super::doorbell::{Brake, Gather};
use super::ledger::Ledger;
use super::ring::{ConsumerRing, Hostile, ProducerRing};
use super::rx::MAX_SEGMENTS;
use super::socket::{Socket, TxSide};
use super::stall::Stall;
use crate::counters::{DropReason, QueueCounters};
use crate::ethernet::{ETHERNET_HEADER, vlan_bytes};
use crate::memory::{Batch, Packet, Pool, Returned};
use crate::port::{Doorbell, TxQueue};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a NIC may take at the end for what it has begun.
const LAST_COMPLETIONS: Duration = Duration::from_millis(50);
/// Doorbells rung at the end for what is still on the ring.
const LAST_TRIES: usize = 64;

/// The rings' worker, apart from the socket: all of it can be tested without one.
pub(super) struct Sender {
    ring: ProducerRing<libc::xdp_desc>,
    completion: ConsumerRing<u64>,
    /// Note: the packet's length, with the frame that ends it; 0 with the others.
    ledger: Ledger<u32>,
    returned: Returned,
    pool: Pool,
    max_segments: usize,
    max_packet_len: usize,
    gather: Gather,
    /// Packets whose frames came back.
    completed: u64,
    /// The kernel's index was out of range when last seen: counted once.
    hostile: bool,
    stall: Stall,
    /// Completions of what we had not sent, and indices out of range. No packet is lost by them.
    invalid: Arc<AtomicU64>,
    counters: Arc<QueueCounters>,
}

impl Sender {
    pub(super) fn new(side: TxSide, pool: Pool, max_segments: usize, gather: Gather) -> Self {
        Self {
            ring: side.ring,
            completion: side.completion,
            ledger: side.ledger,
            returned: Returned::default(),
            pool,
            max_segments,
            max_packet_len: 0,
            gather,
            completed: 0,
            hostile: false,
            stall: Stall::default(),
            invalid: Arc::default(),
            counters: Arc::default(),
        }
    }

    /// How many entries of the completion ring were not to be used.
    pub(super) fn invalid(&self) -> &Arc<AtomicU64> {
        &self.invalid
    }

    /// Where it leaves word of an index that cannot be.
    pub(super) fn stall(&self) -> &Stall {
        &self.stall
    }

    /// The counters.
    pub(super) fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    /// Takes back the frames that the kernel is done with. `refused`: how many packets of all were not sent.
    #[inline]
    fn reclaim(&mut self, refused: u64) {
        let filled = match self.completion.filled() {
            Ok(filled) => filled,
            Err(Hostile) => {
                if !mem::replace(&mut self.hostile, true) {
                    self.stall.report();
                    self.invalid.fetch_add(1, Ordering::Relaxed);
                }
                return;
            }
        };
        let mut bytes = 0;
        for ahead in 0..filled {
            let Some((frame, length, _)) = self.ledger.settle(self.completion.read(ahead)) else {
                self.invalid.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            self.completed += u64::from(length > 0);
            bytes += u64::from(length);
            self.returned.add(frame);
        }
        self.hostile = false;
        if filled > 0 {
            self.completion.release(filled);
            self.returned.free();
            self.counters.bytes.add(bytes);
        }
        self.counters.packets.set(self.completed.saturating_sub(refused));
        self.counters.drops(DropReason::TxDropped).set(refused);
        self.counters.held.set(self.ledger.len() as u64);
    }

    /// Puts packets from the front of `batch` on the ring, as many as there is room for.
    #[inline]
    fn send(&mut self, batch: &mut Batch) {
        let full = batch.room() == 0;
        self.gather.more_follows(false);
        // An index that cannot be leaves no room; the batch stays with the caller.
        let Ok(free) = self.ring.free((batch.len() * self.max_segments) as u32) else {
            return self.stall.report();
        };
        let count = fitting(batch, free as usize);
        let mut written = 0;
        batch.drain_front(count, |packet| written = self.put(packet, written));
        if written > 0 {
            self.ring.submit(written);
            self.counters.held.set(self.ledger.len() as u64);
        }
        self.gather.more_follows(full && batch.is_empty());
    }

    /// Writes a packet's descriptors behind the `written` ones; returns how many there are then.
    #[inline(always)]
    fn put(&mut self, packet: Packet, written: u32) -> u32 {
        let length = packet.len();
        // One comparison for the packet that is like all others.
        if length.wrapping_sub(ETHERNET_HEADER) > self.max_packet_len.wrapping_sub(ETHERNET_HEADER)
            || packet.is_chained()
        {
            return self.put_unusual(packet, written);
        }
        self.put_single(packet, written)
    }

    #[inline(always)]
    fn put_single(&mut self, packet: Packet, written: u32) -> u32 {
        let (offset, length) = (packet.offset(), packet.len() as u32);
        match self.ledger.enter(packet.into_frame(), length) {
            Ok(address) => {
                let addr = address + offset as u64;
                self.ring.write(written, libc::xdp_desc { addr, len: length, options: 0 });
                written + 1
            }
            Err(frame) => match frame.into_packet(offset, length as usize) {
                Some(packet) => self.put_chain(packet, length as usize, 1, written),
                None => written,
            },
        }
    }

    /// A packet that is chained, short or long.
    #[cold]
    fn put_unusual(&mut self, packet: Packet, written: u32) -> u32 {
        let total = packet.total_len();
        let drop = |reason| {
            self.counters.drops(reason).add(1);
            written
        };
        if total < ETHERNET_HEADER {
            return drop(DropReason::TxUndersize);
        }
        if total > self.max_packet_len + vlan_bytes(packet.data()) {
            return drop(DropReason::TxOversize);
        }
        if !packet.is_chained() {
            return self.put_single(packet, written);
        }
        // The kernel refuses empty segments; a packet without them is the same packet.
        let segments = packet.segments().filter(|segment| !segment.is_empty()).count();
        if segments > self.max_segments {
            return drop(DropReason::TxOversize);
        }
        self.put_chain(packet, total, segments, written)
    }

    /// Puts the segments that are not empty. One of another pool goes out as a copy; where that cannot be made, none does.
    fn put_chain(&mut self, packet: Packet, total: usize, segments: usize, written: u32) -> u32 {
        let mut addresses = [0; MAX_SEGMENTS];
        let mut done = 0;
        let mut rest = Some(packet);
        while let Some(mut segment) = rest {
            rest = segment.split_first();
            if segment.is_empty() {
                continue;
            }
            let (offset, len) = (segment.offset(), segment.len() as u32);
            let is_last = done + 1 == segments;
            let note = if is_last { total as u32 } else { 0 };
            let entered = match self.ledger.enter(segment.into_frame(), note) {
                Ok(address) => Some(address + offset as u64),
                Err(frame) => self.enter_copy(frame.into_packet(offset, len as usize), note),
            };
            let Some(addr) = entered else {
                addresses[..done].iter().for_each(|address| drop(self.ledger.settle(*address)));
                self.counters.drops(DropReason::TxForeignPool).add(1);
                return written;
            };
            let options = if is_last { 0 } else { libc::XDP_PKT_CONTD };
            self.ring.write(written + done as u32, libc::xdp_desc { addr, len, options });
            addresses[done] = addr;
            done += 1;
        }
        written + done as u32
    }

    /// Enters a frame of ours with what is in one that is not.
    #[cold]
    fn enter_copy(&mut self, segment: Option<Packet>, note: u32) -> Option<u64> {
        let segment = segment?;
        let mut copy = self.pool.allocate(segment.len())?;
        copy.data_mut().copy_from_slice(segment.data());
        let offset = copy.offset() as u64;
        self.ledger.enter(copy.into_frame(), note).ok().map(|address| address + offset)
    }
}

/// How many packets from the front have no more than `free` segments together.
#[inline(always)]
fn fitting(batch: &Batch, free: usize) -> usize {
    if batch.iter().fold(false, |chained, packet| chained | packet.is_chained()) {
        let mut left = free;
        return batch
            .iter()
            .take_while(|packet| {
                // Longer ones are dropped, and must not wait for room that there never is.
                let segments = packet.segment_count().min(MAX_SEGMENTS);
                let fits = segments <= left;
                left = left.saturating_sub(segments);
                fits
            })
            .count();
    }
    batch.len().min(free)
}

/// The transmit queue.
pub(super) struct AfxdpTx {
    sender: Sender,
    brake: Brake,
    doorbell: Arc<dyn Doorbell>,
    /// Last, so that the rings are unmapped when the socket is closed.
    socket: Arc<Socket>,
}

impl AfxdpTx {
    pub(super) fn new(sender: Sender, doorbell: Arc<dyn Doorbell>, socket: Arc<Socket>) -> Self {
        Self { sender, brake: Brake::default(), doorbell, socket }
    }
}

impl TxQueue for AfxdpTx {
    #[inline]
    fn transmit(&mut self, batch: &mut Batch) {
        self.sender.reclaim(self.socket.refused.load(Ordering::Relaxed));
        if self.socket.down.load(Ordering::Relaxed) || self.socket.gone.load(Ordering::Relaxed) {
            self.sender.counters.drops(DropReason::TxPortDown).add(batch.len() as u64);
            return batch.clear();
        }
        self.sender.max_packet_len = self.socket.device.max_packet_len.load(Ordering::Relaxed);
        self.sender.send(batch);
    }

    #[inline]
    fn needs_doorbell(&mut self) -> bool {
        if self.sender.ledger.len() == 0 {
            return false;
        }
        let sender = &mut self.sender;
        // Completions come in when nobody sends, too, and a frame on a ring is one that nobody can use.
        sender.reclaim(self.socket.refused.load(Ordering::Relaxed));
        let stands = sender.ring.needs_wakeup()
            && sender.ring.unconsumed().is_ok_and(|count| sender.gather.is_worth_a_call(count));
        if !stands || self.socket.gone.load(Ordering::Relaxed) {
            return false;
        }
        self.brake.lets_ring(self.socket.down.load(Ordering::Relaxed))
    }

    fn is_gathering(&self) -> bool {
        self.sender.gather.has_put_off()
    }

    fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        Some(self.doorbell.clone())
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.sender.counters
    }
}

impl Drop for AfxdpTx {
    /// Sends what can still be sent without waiting, and settles the accounts.
    fn drop(&mut self) {
        for _ in 0..LAST_TRIES {
            if !self.needs_doorbell() || self.doorbell.ring().is_err() {
                break;
            }
        }
        // Somebody else's call may still be under way: it is waited for, and none comes after it.
        self.socket.sending().end();
        // A NIC reads frames on its own time; in copy mode the doorbell has sent what it took.
        let deadline = Instant::now() + LAST_COMPLETIONS;
        loop {
            self.sender.reclaim(self.socket.refused.load(Ordering::Relaxed));
            let done = !self.socket.zero_copy || self.sender.ledger.len() == 0;
            if done || self.socket.gone.load(Ordering::Relaxed) || Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let invalid = self.socket.statistics().map_or(0, |statistics| statistics.tx_invalid_descs);
        let refused = self.socket.refused.load(Ordering::Relaxed);
        self.sender.settle_unsent(invalid, refused, !self.socket.zero_copy);
        self.socket.park_tx(mem::replace(&mut self.sender.ledger, Ledger::closed()));
    }
}

impl Sender {
    /// Says of each packet that has not come back what became of it. The kernel has no say any more in what was not on its
    /// side of the ring. Of the others it sent all but the `invalid` ones where `taken_is_sent` (copy mode); a NIC that had them
    /// and did not complete them is stopped before it has sent them.
    fn settle_unsent(&mut self, invalid: u64, refused: u64, taken_is_sent: bool) {
        let on_ring = self.ring.unconsumed().unwrap_or(0);
        let mut unsent = 0;
        let mut frames = Vec::new();
        for back in 1..=on_ring {
            let descriptor = self.ring.read_back(back);
            if let Some((frame, length, _)) = self.ledger.settle(descriptor.addr) {
                unsent += u64::from(length > 0);
                frames.push((frame, length));
            }
        }
        let (mut packets, mut bytes) = (0_u64, 0);
        self.ledger.for_each_note(|length| {
            packets += u64::from(*length > 0);
            bytes += u64::from(*length);
        });
        // Back into the books: until the socket is closed the kernel may still read them.
        for (frame, length) in frames {
            drop(self.ledger.enter(frame, length));
        }
        let taken = packets.saturating_sub(invalid);
        if taken_is_sent {
            self.completed += taken;
        } else {
            (unsent, bytes) = (unsent + taken, 0);
        }
        self.counters.packets.set(self.completed.saturating_sub(refused));
        self.counters.bytes.add(bytes);
        self.counters.drops(DropReason::TxDropped).set(refused);
        self.counters.drops(DropReason::TxInvalidDescriptor).set(invalid);
        self.counters.drops(DropReason::TxUnsent).add(unsent);
        self.counters.held.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::model::Peer;
    use super::super::stall::Stalls;
    use super::*;
    use crate::memory::PoolConfig;
    use proptest::prelude::*;

    const RING: u32 = 64;

    /// The kernel's part of the transmit side.
    struct Kernel {
        tx: Peer<libc::xdp_desc>,
        completion: Peer<u64>,
        consumed: u32,
        completed: u32,
        /// Taken from the ring and not given back.
        under_way: Vec<u64>,
        /// What it sent, by packet: segments and bytes.
        sent: Vec<(usize, usize)>,
        chain: (usize, usize),
    }

    impl Kernel {
        fn new(pool: &Pool) -> (Self, Sender) {
            let kernel = Self {
                tx: Peer::new(RING),
                completion: Peer::new(RING),
                consumed: 0,
                completed: 0,
                under_way: Vec::new(),
                sent: Vec::new(),
                chain: (0, 0),
            };
            let side = TxSide {
                ring: kernel.tx.producer(),
                completion: kernel.completion.consumer(),
                ledger: Ledger::new(pool),
            };
            let mut sender = Sender::new(side, pool.clone(), MAX_SEGMENTS, Gather::default());
            sender.max_packet_len = 9014;
            (kernel, sender)
        }

        /// Takes descriptors without a look at what they say.
        fn look(&mut self, count: u32) {
            let filled = self.tx.producer_index().wrapping_sub(self.consumed);
            for _ in 0..count.min(filled) {
                self.under_way.push(self.tx.get(self.consumed).addr);
                self.consumed = self.consumed.wrapping_add(1);
            }
            self.tx.set_consumer(self.consumed);
        }

        fn consume(&mut self, count: u32, frames: usize) {
            let filled = self.tx.producer_index().wrapping_sub(self.consumed);
            let room = (RING as usize).saturating_sub(self.under_way.len());
            for _ in 0..count.min(filled).min(room as u32) {
                let descriptor = self.tx.get(self.consumed);
                self.consumed = self.consumed.wrapping_add(1);
                let inside = (descriptor.addr % 2048) as usize + descriptor.len as usize;
                assert!(descriptor.len > 0 && inside <= 2048 && descriptor.addr < frames as u64 * 2048);
                self.under_way.push(descriptor.addr);
                self.chain = (self.chain.0 + 1, self.chain.1 + descriptor.len as usize);
                if descriptor.options & libc::XDP_PKT_CONTD == 0 {
                    self.sent.push(std::mem::take(&mut self.chain));
                }
            }
            self.tx.set_consumer(self.consumed);
        }

        fn complete(&mut self, count: usize) {
            let room = RING.saturating_sub(self.completed.wrapping_sub(self.completion.consumer_index()));
            for _ in 0..count.min(self.under_way.len()).min(room as usize) {
                // In another order than it was sent in: a device may.
                let address = self.under_way.swap_remove(0);
                self.give_back(address);
            }
            self.completion.set_producer(self.completed);
        }

        fn give_back(&mut self, address: u64) {
            self.completion.put(self.completed, address);
            self.completed = self.completed.wrapping_add(1);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Lengths of the segments; true: of another pool.
        Send(Vec<usize>, bool),
        Consume(u32),
        Complete(usize),
        Address(u64),
        Completions(u32),
        Consumer(u32),
    }

    fn honest() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (proptest::collection::vec(0_usize..1400, 1..8), proptest::bool::weighted(0.2))
                .prop_map(|(lengths, foreign)| Step::Send(lengths, foreign)),
            3 => (0_usize..1500).prop_map(|length| Step::Send(vec![length], false)),
            2 => (0_u32..100).prop_map(Step::Consume),
            2 => (0_usize..100).prop_map(Step::Complete),
        ]
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => honest(),
            1 => prop_oneof![any::<u64>(), 0_u64..256 * 2048].prop_map(Step::Address),
            1 => any::<u32>().prop_map(Step::Completions),
            1 => any::<u32>().prop_map(Step::Consumer),
        ]
    }

    fn pool() -> Pool {
        Pool::new(&PoolConfig { frames: 256, ..PoolConfig::default() }).unwrap()
    }

    fn packet(pool: &Pool, lengths: &[usize]) -> Option<Packet> {
        let mut parts = lengths.iter().map(|length| pool.allocate(*length));
        let mut packet = parts.next()??;
        for part in parts {
            packet.chain(part?);
        }
        Some(packet)
    }

    #[test]
    fn what_a_nic_took_and_did_not_complete_is_unsent_and_what_the_kernel_copied_is_sent() {
        for taken_is_sent in [true, false] {
            let pool = pool();
            let (mut kernel, mut sender) = Kernel::new(&pool);
            let mut batch = Batch::new();
            (0..10).for_each(|_| batch.push(pool.allocate(60).unwrap()).unwrap());
            sender.send(&mut batch);
            kernel.consume(7, 256);
            kernel.complete(4);
            sender.reclaim(0);
            sender.settle_unsent(0, 0, taken_is_sent);
            let counters = sender.counters.clone();
            let unsent = counters.drops(DropReason::TxUnsent).get();
            let (sent, lost) = if taken_is_sent { (7, 3) } else { (4, 6) };
            assert_eq!((counters.packets.get(), counters.bytes.get(), unsent), (sent, sent * 60, lost));
            drop(sender);
            assert_eq!(pool.audit().held, 0);
        }
    }

    proptest! {
        #[test]
        fn property_every_packet_is_sent_or_dropped_by_name_and_every_frame_comes_back(
            steps in proptest::collection::vec(honest(), 1..150),
        ) {
            let (pool, other) = (pool(), pool());
            let (mut kernel, mut sender) = Kernel::new(&pool);
            let mut offered = 0;
            let mut batch = Batch::new();
            for step in steps {
                match step {
                    Step::Send(lengths, foreign) if batch.room() > 0 => {
                        if let Some(packet) = packet(if foreign { &other } else { &pool }, &lengths) {
                            offered += 1;
                            batch.push(packet).unwrap();
                        }
                        sender.send(&mut batch);
                    }
                    Step::Consume(count) => kernel.consume(count, 256),
                    Step::Complete(count) => kernel.complete(count),
                    _ => {}
                }
                sender.reclaim(0);
            }
            let counters = sender.counters.clone();
            let left = batch.len() as u64;
            batch.clear();
            // What the kernel has not looked at is unsent; what it has is sent, given back or not.
            sender.settle_unsent(0, 0, true);
            let dropped: u64 = counters.all_drops().map(|(_, count)| count).sum();
            prop_assert_eq!(offered, counters.packets.get() + dropped + left);
            // A packet of which the kernel has seen a part is not sent.
            prop_assert_eq!(counters.packets.get(), kernel.sent.len() as u64);
            let bytes: usize = kernel.sent.iter().map(|(_, bytes)| bytes).sum();
            prop_assert_eq!(counters.bytes.get(), bytes as u64);
            prop_assert!(kernel.sent.iter().all(|(segments, bytes)| *segments <= MAX_SEGMENTS && *bytes >= 14));
            drop(sender);
            prop_assert_eq!((pool.audit().held, other.audit().held), (0, 0));
        }

        #[test]
        fn property_whatever_the_kernel_writes_no_frame_is_freed_twice_or_lost(
            steps in proptest::collection::vec(any_step(), 1..150),
        ) {
            let pool = pool();
            let (mut kernel, mut sender) = Kernel::new(&pool);
            for step in steps {
                match step {
                    Step::Send(lengths, _) => {
                        let mut batch = Batch::new();
                        if let Some(packet) = packet(&pool, &lengths) {
                            batch.push(packet).unwrap();
                        }
                        sender.send(&mut batch);
                    }
                    // Where its index is out of range, the model would read what nobody wrote.
                    Step::Consume(count) if kernel.tx.producer_index().wrapping_sub(kernel.consumed) <= RING => {
                        kernel.look(count);
                    }
                    Step::Consume(_) => {}
                    Step::Complete(count) => kernel.complete(count),
                    Step::Address(address) => {
                        kernel.give_back(address);
                        kernel.completion.set_producer(kernel.completed);
                    }
                    Step::Completions(value) => {
                        kernel.completed = value;
                        kernel.completion.set_producer(value);
                    }
                    Step::Consumer(value) => {
                        kernel.consumed = value;
                        kernel.tx.set_consumer(value);
                    }
                }
                sender.reclaim(0);
            }
            sender.settle_unsent(0, 0, true);
            drop(sender);
            let audit = pool.audit();
            prop_assert_eq!((audit.held, audit.duplicated), (0, 0));
        }
    }

    #[test]
    fn short_and_long_packets_are_dropped_by_name_and_a_vlan_tag_is_no_extra_length() {
        let pool = pool();
        let (mut kernel, mut sender) = Kernel::new(&pool);
        sender.max_packet_len = 1514;
        let mut batch = Batch::new();
        for length in [13, 14, 1514, 1515, 1518, 1519] {
            let mut packet = pool.allocate(length).unwrap();
            if length > 1515 {
                packet.data_mut()[12..14].copy_from_slice(&[0x81, 0]);
                packet.data_mut()[16..18].copy_from_slice(&[8, 0]);
            }
            batch.push(packet).unwrap();
        }
        sender.send(&mut batch);
        kernel.consume(RING, 256);
        let lengths: Vec<usize> = kernel.sent.iter().map(|(_, bytes)| *bytes).collect();
        assert_eq!(lengths, [14, 1514, 1518]);
        let drops = |reason| sender.counters.drops(reason).get();
        assert_eq!((drops(DropReason::TxUndersize), drops(DropReason::TxOversize)), (1, 2));
    }

    #[test]
    fn a_chain_that_can_never_fit_does_not_block_the_ring() {
        let pool = pool();
        let (_kernel, mut sender) = Kernel::new(&pool);
        let mut batch = Batch::new();
        batch.push(packet(&pool, &[20; RING as usize + 1]).unwrap()).unwrap();
        sender.send(&mut batch);
        assert_eq!((batch.len(), sender.counters.drops(DropReason::TxOversize).get()), (0, 1));
    }

    #[test]
    fn completions_of_what_was_not_sent_are_counted() {
        let pool = pool();
        let (mut kernel, mut sender) = Kernel::new(&pool);
        kernel.give_back(4096);
        kernel.completion.set_producer(kernel.completed);
        sender.reclaim(0);
        let mut stalls = Stalls::default();
        stalls.watch("it".into(), sender.stall());
        assert!(stalls.news().is_empty());
        kernel.completion.set_producer(RING + 2);
        sender.reclaim(0);
        assert_eq!(stalls.news().len(), 1);
        sender.reclaim(0);
        assert_eq!(sender.invalid.load(Ordering::Relaxed), 2);
        assert_eq!((sender.counters.packets.get(), pool.audit().held), (0, 0));
    }

    #[test]
    fn a_ring_that_never_has_room_is_told_of() {
        let pool = pool();
        let (kernel, mut sender) = Kernel::new(&pool);
        let mut stalls = Stalls::default();
        stalls.watch("it".into(), sender.stall());
        kernel.tx.set_consumer(1 << 20);
        let mut batch = Batch::new();
        batch.push(packet(&pool, &[60]).unwrap()).unwrap();
        sender.send(&mut batch);
        assert_eq!((batch.len(), stalls.news().len()), (1, 1));
    }
}
