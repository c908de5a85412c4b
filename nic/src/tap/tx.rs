//! The transmit side: packets wait in a ring for the doorbell to write them, and are freed there.
#![forbid(unsafe_code)]

use super::{ETHERNET_HEADER, MAX_SEGMENTS, TX_RING, Tap, VLAN_TAGS};
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{Batch, Packet};
use crate::port::{Doorbell, PortGone, TxQueue};
use crossbeam_queue::ArrayQueue;
use std::io::{self, IoSlice, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Packets that one doorbell writes at most: the kernel handles each on the spot, for some microseconds, and a worker that rings
/// it has other queues.
const WRITE_BUDGET: usize = 32;

/// The ring of one queue, and what became of its packets.
pub(super) struct TxChannel {
    tap: Arc<Tap>,
    waiting: ArrayQueue<Packet>,
    /// Locked while one writes, so that two who ring at a time keep the order.
    writing: Mutex<()>,
    /// Packets that the kernel refused, until the queue has counted them.
    dropped: AtomicU64,
    /// The same, since the interface is down or gone.
    down: AtomicU64,
}

impl TxChannel {
    pub(super) fn new(tap: &Arc<Tap>) -> Self {
        Self {
            tap: Arc::clone(tap),
            waiting: ArrayQueue::new(TX_RING),
            writing: Mutex::new(()),
            dropped: AtomicU64::new(0),
            down: AtomicU64::new(0),
        }
    }

    fn write(&self, packet: &Packet) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); MAX_SEGMENTS];
        let mut count = 0;
        for (slice, segment) in slices.iter_mut().zip(packet.segments()) {
            *slice = IoSlice::new(segment);
            count += 1;
        }
        (&self.tap.file).write_vectored(&slices[..count]).map(drop)
    }

    /// Writes up to `budget` packets.
    fn drain(&self, budget: usize) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..budget {
            let Some(packet) = self.waiting.pop() else { break };
            let written = if self.tap.is_gone() {
                Err(io::Error::from_raw_os_error(libc::ENODEV))
            } else {
                self.write(&packet)
            };
            if let Err(error) = written {
                // The kernel answers EIO where the interface is not up.
                let down = self.tap.is_removal(&error) || error.raw_os_error() == Some(libc::EIO);
                let count = if down { &self.down } else { &self.dropped };
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Doorbell for TxChannel {
    fn ring(&self) -> Result<(), PortGone> {
        self.drain(WRITE_BUDGET);
        self.tap.state()
    }
}

/// Sends to the kernel.
pub(super) struct TapTx {
    channel: Arc<TxChannel>,
    counters: Arc<QueueCounters>,
    /// The longest packet, without VLAN tags.
    max_packet_len: usize,
}

impl TapTx {
    pub(super) fn new(channel: TxChannel, max_packet_len: usize) -> Self {
        Self { channel: Arc::new(channel), counters: Arc::default(), max_packet_len }
    }

    /// Takes back what was counted as sent and was not.
    fn settle(&self) {
        for (count, reason) in
            [(&self.channel.dropped, DropReason::TxDropped), (&self.channel.down, DropReason::TxPortDown)]
        {
            if count.load(Ordering::Relaxed) > 0 {
                let lost = count.swap(0, Ordering::Relaxed);
                self.counters.packets.set(self.counters.packets.get().wrapping_sub(lost));
                self.counters.drops(reason).add(lost);
            }
        }
    }

    /// Why a packet can never be sent.
    #[inline]
    fn refusal(&self, packet: &Packet) -> Option<DropReason> {
        match packet.total_len() {
            length if length < ETHERNET_HEADER => Some(DropReason::TxUndersize),
            length if length > self.max_packet_len + VLAN_TAGS => Some(DropReason::TxOversize),
            _ if packet.segment_count() > MAX_SEGMENTS => Some(DropReason::TxOversize),
            _ => None,
        }
    }
}

impl TxQueue for TapTx {
    fn transmit(&mut self, batch: &mut Batch) {
        if self.channel.tap.is_gone() {
            self.counters.drops(DropReason::TxPortDown).add(batch.len() as u64);
            return batch.clear();
        }
        let free = TX_RING - self.channel.waiting.len();
        let (mut packets, mut bytes) = (0, 0);
        let counters = Arc::clone(&self.counters);
        batch.drain_front(free, |packet| match self.refusal(&packet) {
            Some(reason) => counters.drops(reason).add(1),
            None => {
                packets += 1;
                bytes += packet.total_len() as u64;
                // There is room: nobody else fills this ring.
                drop(self.channel.waiting.push(packet));
            }
        });
        self.counters.packets.add(packets);
        self.counters.bytes.add(bytes);
    }

    #[inline]
    fn needs_doorbell(&mut self) -> bool {
        self.settle();
        let waiting = self.channel.waiting.len();
        self.counters.held.set(waiting as u64);
        waiting > 0
    }

    fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        Some(Arc::clone(&self.channel) as Arc<dyn Doorbell>)
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

impl Drop for TapTx {
    fn drop(&mut self) {
        self.channel.drain(TX_RING);
        self.settle();
        self.counters.held.set(0);
    }
}
