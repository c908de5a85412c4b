//! The transmit side: packets wait in a ring for the doorbell to write them, and are freed there.
#![forbid(unsafe_code)]

use super::{ETHERNET_HEADER, MAX_SEGMENTS, TX_RING, Tap, VLAN_TAGS};
use crate::counters::{DropReason, QueueCounters};
use crate::memory::{Batch, Packet};
use crate::port::{Doorbell, PortGone, TxQueue};
use crate::ring::{Consumer, Observer, Producer, ring};
use std::io::{self, IoSlice, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Packets that one doorbell writes at most: the kernel handles each on the spot, for some microseconds, and a worker that rings
/// it has other queues.
const WRITE_BUDGET: usize = 32;

/// The far end of one queue's ring, and what became of its packets.
pub(super) struct TxChannel {
    tap: Arc<Tap>,
    /// Locked while one writes, so that two who ring at a time keep the order.
    waiting: Mutex<Consumer<Packet>>,
    /// Packets that the kernel took, and their bytes.
    sent: [AtomicU64; 2],
    /// Packets that it refused.
    dropped: AtomicU64,
    /// The same, since the interface is down or gone.
    down: AtomicU64,
}

impl TxChannel {
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
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..budget {
            let Some(packet) = waiting.pop() else { break };
            let written = if self.tap.is_gone() {
                Err(io::Error::from_raw_os_error(libc::ENODEV))
            } else {
                self.write(&packet)
            };
            match written {
                Ok(()) => {
                    self.sent[0].fetch_add(1, Ordering::Relaxed);
                    self.sent[1].fetch_add(packet.total_len() as u64, Ordering::Relaxed);
                }
                // The kernel answers EIO where the interface is not up.
                Err(error) if self.tap.is_removal(&error) || error.raw_os_error() == Some(libc::EIO) => {
                    self.down.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
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
    waiting: Producer<Packet>,
    ring: Observer<Packet>,
    channel: Arc<TxChannel>,
    counters: Arc<QueueCounters>,
    /// Dropped here, since the interface has gone.
    refused: u64,
    /// The longest packet, without VLAN tags.
    max_packet_len: usize,
}

impl TapTx {
    pub(super) fn new(tap: &Arc<Tap>, max_packet_len: usize) -> Self {
        let (waiting, consumer) = ring(TX_RING);
        let channel = Arc::new(TxChannel {
            tap: Arc::clone(tap),
            waiting: Mutex::new(consumer),
            sent: Default::default(),
            dropped: AtomicU64::new(0),
            down: AtomicU64::new(0),
        });
        let ring = waiting.observer();
        Self { waiting, ring, channel, counters: Arc::default(), refused: 0, max_packet_len }
    }

    /// Brings the counters up to date: a packet waits until the kernel has answered for it.
    fn settle(&self) {
        let TxChannel { sent: [packets, bytes], dropped, down, .. } = &*self.channel;
        self.counters.held.set(self.ring.len() as u64);
        self.counters.packets.set(packets.load(Ordering::Relaxed));
        self.counters.bytes.set(bytes.load(Ordering::Relaxed));
        self.counters.drops(DropReason::TxDropped).set(dropped.load(Ordering::Relaxed));
        self.counters.drops(DropReason::TxPortDown).set(down.load(Ordering::Relaxed) + self.refused);
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
            self.refused += batch.len() as u64;
            self.settle();
            return batch.clear();
        }
        let free = TX_RING - self.ring.len();
        batch.drain_front(free, |packet| match self.refusal(&packet) {
            Some(reason) => self.counters.drops(reason).add(1),
            // There is room: nobody else fills this ring.
            None => drop(self.waiting.push(packet)),
        });
    }

    #[inline]
    fn needs_doorbell(&mut self) -> bool {
        self.settle();
        self.counters.held.get() > 0
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
    }
}
