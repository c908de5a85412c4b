//! A transmit queue: a ring of buffers that the device sends in order.
//!
//! The device reports on the last descriptor of a burst (RS), and in between on one about every 32; only those are looked at again. A report says that all
//! before it is sent: then packets are counted as sent, and their frames are free. Until then they are held.
#![forbid(unsafe_code)]

use super::DESCRIPTOR_BYTES;
use super::format::TxFormat;
use super::ring::{Descriptors, FrameRing};
use crate::counters::{DropReason, QueueCounters};
use crate::ethernet::{ETHERNET_HEADER, vlan_bytes};
use crate::memory::{Batch, Packet};
use crate::port::TxQueue;
use crate::vfio::checksum::{self, Offload};
use crate::vfio::dma::{PoolMapping, observe};
use crate::vfio::gate::{Gate, Turn};
use crate::vfio::nic::Halt;
use crate::vfio::registers::TailRegister;
use crate::vfio::usual::Usual;
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What is shorter the device cannot pad by itself (82576 datasheet 7.2.1; the same from the 82574 to the X550).
const LEAST_LENGTH: usize = 17;
/// Descriptors between two reports, where the burst does not end before.
const REPORT_EVERY: u32 = 32;
/// Segments of one packet at most.
pub(crate) const MAX_SEGMENTS: usize = 17;
/// How long the device may take at the end for what it has begun.
const LAST_REPORTS: Duration = Duration::from_millis(50);

/// What a transmit queue is made of.
pub(crate) struct TxParts<'a> {
    /// Descriptors, a power of two.
    pub(crate) size: u16,
    /// The longest packet in bytes, VLAN tags not counted.
    pub(crate) max_packet_len: usize,
    /// Packets may have their checksums filled in.
    pub(crate) checksum: bool,
    /// The frames that it can send.
    pub(crate) frames: &'a Arc<PoolMapping>,
    /// TDT.
    pub(crate) tail: TailRegister,
    /// The port's halt.
    pub(crate) halt: &'a Arc<Halt>,
    /// This queue's gate.
    pub(crate) gate: Arc<Gate>,
    /// Whether there is a link.
    pub(crate) carrier: &'a Arc<Carrier>,
}

/// Whether there is a link: written by the control side, read by the queues.
#[derive(Debug, Default)]
pub(crate) struct Carrier(AtomicBool);

impl Carrier {
    /// Says so.
    pub(crate) fn set(&self, up: bool) {
        self.0.store(up, Ordering::Relaxed);
    }

    /// Whether there is one.
    #[inline(always)]
    pub(crate) fn is_up(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A descriptor that the device reports on.
#[derive(Default)]
struct Report {
    /// Its place.
    place: u32,
    /// Places from the last report's to this one.
    places: u32,
    /// Packets in them.
    packets: u32,
    /// Their bytes.
    bytes: u32,
}

/// The queue; `F` is how it writes its descriptors.
pub(crate) struct IntelTx<F: TxFormat> {
    gate: Arc<Gate>,
    carrier: Arc<Carrier>,
    ring: Descriptors,
    frames: FrameRing,
    /// Reports that have not come; never more than the ring has places, so it never grows.
    reports: VecDeque<Report>,
    /// What was written since the last one that was asked for.
    open: Report,
    mapping: Arc<PoolMapping>,
    pool_number: u32,
    max_packet_len: usize,
    checksum: bool,
    /// What goes by `send_plain`.
    plain: Usual,
    /// The context that the device has.
    context: Option<Offload>,
    /// The second word of the last descriptor.
    last_word: u64,
    /// Something was sent since the doorbell was asked for.
    busy: bool,
    counters: Arc<QueueCounters>,
    tail: TailRegister,
    halt: Arc<Halt>,
    format: PhantomData<fn() -> F>,
}

impl<F: TxFormat> IntelTx<F> {
    /// A queue with an empty ring.
    pub(crate) fn new(parts: TxParts<'_>) -> io::Result<Self> {
        let buffer = parts.halt.function().dma().allocate(usize::from(parts.size) * DESCRIPTOR_BYTES)?;
        Ok(Self {
            gate: parts.gate,
            carrier: Arc::clone(parts.carrier),
            ring: Descriptors::new(buffer, parts.size),
            frames: FrameRing::new(parts.size),
            reports: VecDeque::with_capacity(parts.size.into()),
            open: Report::default(),
            mapping: Arc::clone(parts.frames),
            plain: Usual::new(
                parts.frames.pool().number(),
                LEAST_LENGTH,
                parts.max_packet_len,
                0,
                parts.checksum,
            ),
            pool_number: parts.frames.pool().number(),
            max_packet_len: parts.max_packet_len,
            checksum: parts.checksum,
            context: None,
            last_word: 0,
            busy: false,
            counters: Arc::default(),
            tail: parts.tail,
            halt: Arc::clone(parts.halt),
            format: PhantomData,
        })
    }

    /// The device's address of the ring, and its length in bytes.
    pub(crate) fn ring(&self) -> (u64, usize) {
        self.ring.place()
    }

    /// Its counters, for what the device counts.
    pub(crate) fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    /// Takes back the frames of what the device has reported.
    #[inline]
    fn reclaim(&mut self) {
        let (mut packets, mut bytes) = (0, 0);
        while let Some(report) = self.reports.front() {
            if self.ring.read(report.place) & F::DONE == 0 {
                break;
            }
            self.frames.free_front(report.places as usize);
            packets += u64::from(report.packets);
            bytes += u64::from(report.bytes);
            self.reports.pop_front();
        }
        if packets > 0 {
            observe();
            self.counters.packets.add(packets);
            self.counters.bytes.add(bytes);
            self.counters.held.set(self.frames.len() as u64);
        }
    }

    /// Puts packets from the front of `batch` on the ring, as many as there is room for.
    #[inline]
    fn send(&mut self, batch: &mut Batch) {
        if batch.is_empty() {
            return;
        }
        let before = self.frames.tail();
        if self.plain.are(batch.as_slice()) {
            self.send_plain(batch);
        } else {
            let count = self.fitting(batch);
            batch.drain_front(count, |packet| self.put(packet));
        }
        if self.frames.tail() == before {
            return;
        }
        if self.open.places > 0 {
            self.ask_report();
        }
        self.tail.write32(self.frames.tail_index());
        self.busy = true;
        self.counters.held.set(self.frames.len() as u64);
    }

    /// Sends what there is room for.
    #[inline(always)]
    fn send_plain(&mut self, batch: &mut Batch) {
        let mut left = batch.len().min(self.frames.free());
        while left > 0 {
            let count = left.min((REPORT_EVERY - self.open.places) as usize);
            let (bytes, word) = self.frames.send_whole::<F>(&self.ring, batch, self.mapping.origin(), count);
            self.last_word = word;
            self.open.places += count as u32;
            self.open.packets += count as u32;
            self.open.bytes += bytes as u32;
            left -= count;
            if self.open.places >= REPORT_EVERY {
                self.ask_report();
            }
        }
    }

    /// How many packets from the front of the batch there is room for.
    #[cold]
    fn fitting(&self, batch: &Batch) -> usize {
        let mut left = self.frames.free();
        let fits = |packet: &&Packet| {
            // Those with more segments are dropped, and must not wait for room that there never is.
            let segments = packet.segment_count().min(self.most_segments());
            let places = segments + usize::from(self.checksum && packet.wants_checksum());
            let fits = places <= left;
            left = left.saturating_sub(places);
            fits
        };
        batch.iter().take_while(fits).count()
    }

    /// Segments of one packet at most: with a context, no more than the ring has.
    fn most_segments(&self) -> usize {
        MAX_SEGMENTS.min(self.frames.size() - 2)
    }

    /// Writes the next descriptor, for the first segment of a packet of `total` bytes.
    fn put_segment(&mut self, segment: Packet, total: usize, end: bool, offload: Option<&Offload>) {
        let (offset, length) = (segment.offset() as u64, segment.len() as u32);
        let frame = segment.into_frame();
        let (place, address) = (self.frames.tail(), self.mapping.iova(&frame) + offset);
        // There is room: `make_sendable` has looked.
        if self.frames.push(frame).is_ok() {
            self.last_word = F::data(length, total as u32, end, offload);
            self.ring.write(place, [address, self.last_word]);
            self.open.places += 1;
        }
    }

    /// Behind the last descriptor of a packet of `length` bytes.
    fn close(&mut self, length: usize) {
        self.open.packets += 1;
        self.open.bytes += length as u32;
        if self.open.places >= REPORT_EVERY {
            self.ask_report();
        }
    }

    /// Has the device report on the last descriptor, which ends a packet.
    #[inline]
    fn ask_report(&mut self) {
        let place = self.frames.tail().wrapping_sub(1);
        self.ring.write_second(place, self.last_word | F::REPORT);
        self.reports.push_back(Report { place, ..mem::take(&mut self.open) });
    }

    /// Writes a packet's descriptors; there is room for what `fitting` lets through, as a rule.
    #[cold]
    #[inline(never)]
    fn put(&mut self, mut packet: Packet) {
        let total = packet.total_len();
        let refused = if total < ETHERNET_HEADER {
            Some(DropReason::TxUndersize)
        } else if total > self.max_packet_len + vlan_bytes(packet.data()) {
            Some(DropReason::TxOversize)
        } else {
            self.make_sendable(&mut packet, total).err()
        };
        if let Some(reason) = refused {
            return self.counters.drops(reason).add(1);
        }
        let padded = total.max(LEAST_LENGTH);
        let asks = self.checksum && packet.wants_checksum();
        let offload = if asks { checksum::prepare(packet.data_mut(), padded) } else { None };
        if asks && offload.is_none_or(|offload| offload.l4.is_none()) && checksum::stays_open(&packet) {
            return self.counters.drops(DropReason::TxChecksum).add(1);
        }
        let known = |offload: &Offload| F::KEEPS_CONTEXT && self.context == Some(*offload);
        if let Some(offload) = offload.filter(|offload| !known(offload)) {
            self.ring.write(self.frames.tail(), F::context(&offload));
            self.frames.push_nothing();
            self.open.places += 1;
            self.context = Some(offload);
        }
        let mut segments = packet.segments().filter(|segment| !segment.is_empty()).count();
        let mut rest = Some(packet);
        while let Some(mut segment) = rest {
            rest = segment.split_first();
            if !segment.is_empty() {
                segments -= 1;
                self.put_segment(segment, padded, segments == 0, offload.as_ref());
            }
        }
        self.close(total);
    }

    /// A packet of our pool with no more segments than may be, and long enough.
    fn make_sendable(&self, packet: &mut Packet, total: usize) -> Result<(), DropReason> {
        let segments = |packet: &Packet| packet.segments().filter(|segment| !segment.is_empty()).count();
        if segments(packet) > self.most_segments() {
            return Err(DropReason::TxOversize);
        }
        let missing = LEAST_LENGTH.saturating_sub(total);
        if !packet.is_of_pool(self.pool_number) || packet.tailroom() < missing {
            *packet = self.copy(packet).ok_or(DropReason::TxForeignPool)?;
            // Frames of another size make other segments.
            if segments(packet) > self.most_segments() {
                return Err(DropReason::TxOversize);
            }
        }
        let places = segments(packet) + usize::from(self.checksum && packet.wants_checksum());
        if places > self.frames.free() {
            return Err(DropReason::TxRingFull);
        }
        if missing > 0 {
            packet.append(missing).ok_or(DropReason::TxUndersize)?.fill(0);
        }
        Ok(())
    }

    /// The same packet in frames of ours.
    fn copy(&self, packet: &Packet) -> Option<Packet> {
        let pool = self.mapping.pool();
        let mut copy: Option<Packet> = None;
        for part in packet.segments().flat_map(|segment| segment.chunks(pool.data_room())) {
            let mut segment = pool.allocate(part.len())?;
            segment.data_mut().copy_from_slice(part);
            match &mut copy {
                Some(copy) => copy.chain(segment),
                None => copy = Some(segment),
            }
        }
        if let Some(copy) = &mut copy {
            copy.fill_checksum(packet.wants_checksum());
        }
        copy
    }

    /// Gives up what the device has not reported.
    fn give_up(&mut self) {
        self.reclaim();
        let unsent: u64 = self.reports.drain(..).map(|report| u64::from(report.packets)).sum();
        self.counters.drops(DropReason::TxUnsent).add(unsent);
        self.frames.clear();
        self.counters.held.set(0);
    }

    /// What the queue does while its gate is not open.
    #[cold]
    fn at_the_gate(&mut self, turn: Turn) {
        if turn == Turn::Rebuild {
            self.give_up();
            self.frames.rewind();
            self.context = None;
            self.gate.ready();
        }
    }

    /// Nothing can be sent.
    #[cold]
    fn refuse(&self, batch: &mut Batch) {
        self.counters.drops(DropReason::TxPortDown).add(batch.len() as u64);
        batch.clear();
    }
}

impl<F: TxFormat> TxQueue for IntelTx<F> {
    #[inline]
    fn transmit(&mut self, batch: &mut Batch) {
        if let Some(turn) = self.gate.closed() {
            self.at_the_gate(turn);
            return self.refuse(batch);
        }
        self.reclaim();
        if !self.carrier.is_up() {
            return self.refuse(batch);
        }
        self.send(batch);
    }

    /// Never; but it is asked when nobody sends, too, and a frame on a ring is one that nobody can use.
    #[inline]
    fn needs_doorbell(&mut self) -> bool {
        // A queue that has nothing to send must answer at its gate, too.
        if let Some(turn) = self.gate.closed() {
            self.at_the_gate(turn);
        } else if !mem::take(&mut self.busy) && self.frames.len() > 0 {
            self.reclaim();
        }
        false
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

impl<F: TxFormat> Drop for IntelTx<F> {
    /// Lets the device finish what it has begun, if it does; only when it is stopped, frames and ring are freed.
    fn drop(&mut self) {
        let start = Instant::now();
        while self.frames.len() > 0
            && !self.halt.is_halted()
            && self.carrier.is_up()
            && self.gate.closed().is_none()
            && start.elapsed() < LAST_REPORTS
        {
            self.reclaim();
            thread::sleep(Duration::from_micros(50));
        }
        self.halt.halt();
        self.give_up();
    }
}
