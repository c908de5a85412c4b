//! Buffers of records, one for each CPU: written by the threads of that CPU, read by any.
//!
//! A writer reserves room by one critical section, fills it in at leisure (it may be preempted, or move to another CPU meanwhile), and finishes it
//! by one store. Records of one CPU come out in the order in which they were reserved; a reader stops at the first that is not finished yet, so a
//! writer that is stopped in the middle holds up its CPU's records, and nobody else's. Where there is no room a record is refused
//! and counted: nothing is overwritten.
//!
//! Progress: writing is wait-free on a CPU's own buffer; a thread without one writes to a shared buffer, lock-free. Order: what was written before
//! a record was finished is seen by whoever reads it.
#![allow(unsafe_code)]

use crate::Counter;
use crate::counter::ATTEMPTS;
use crate::rseq::section::{self, LogHeader, Refused};
use crate::rseq::thread;
use crate::slots::{Indexing, Slots};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{ptr, slice};
use thiserror::Error;

/// Bytes before each record, which say how long it is, and whether it is finished.
const RECORD_HEADER: u64 = 8;
/// In the low bits of a record's header, above which is its length.
const FINISHED: u64 = 1;
const DISCARDED: u64 = 2;
const LENGTH_SHIFT: u32 = 2;

/// Why a record was not written.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LogError {
    /// Readers are behind. It is counted: see [`Log::overruns`].
    #[error("the log of this CPU is full: read it more often, or make it larger")]
    Overrun,
    /// It would not fit into an empty log.
    #[error("a record of {length} bytes does not fit a log of {capacity}: make the log larger")]
    TooLong {
        /// Bytes of the record.
        length: usize,
        /// Bytes of one CPU's log, with 8 for each record's header.
        capacity: usize,
    },
}

/// A log for each CPU.
#[derive(Debug)]
pub struct Log {
    /// Header, then the ring of bytes. The last slot is the one that threads without a CPU share.
    slots: Slots,
    /// A power of two.
    capacity: u64,
    overruns: Counter,
}

/// Room for one record. Dropped without [`commit`](Self::commit), it is passed over by readers.
#[derive(Debug)]
#[must_use = "a record is written by `write` and `commit`"]
pub struct Reservation<'a> {
    log: &'a Log,
    slot: *mut u8,
    /// Where the record's header is, as a count of bytes ever reserved.
    at: u64,
    length: u64,
    written: u64,
}

impl Log {
    /// Logs of at least `capacity` bytes (rounded up to a power of two) for each CPU.
    pub fn new(capacity: usize) -> Self {
        Self::with_indexing(capacity, Indexing::Auto)
    }

    /// The same, with a choice of what slots go by.
    pub fn with_indexing(capacity: usize, indexing: Indexing) -> Self {
        let capacity = capacity.max(64).next_power_of_two();
        Self {
            slots: Slots::with_shared(size_of::<LogHeader>() + capacity, indexing),
            capacity: capacity as u64,
            overruns: Counter::new(),
        }
    }

    /// How many logs there are: one for each slot, and the shared one.
    pub fn logs(&self) -> usize {
        self.slots.count() as usize + 1
    }

    /// Bytes of all logs, used or not.
    pub fn memory_bytes(&self) -> usize {
        self.slots.bytes()
    }

    /// Records that were refused for want of room.
    pub fn overruns(&self) -> u64 {
        self.overruns.sum()
    }

    /// Writes one record.
    #[inline]
    pub fn write(&self, record: &[u8]) -> Result<(), LogError> {
        let mut reservation = self.reserve(record.len())?;
        reservation.write(record);
        reservation.commit();
        Ok(())
    }

    /// Reserves room for a record of `length` bytes, to be written in pieces.
    #[inline]
    pub fn reserve(&self, length: usize) -> Result<Reservation<'_>, LogError> {
        let bytes = (length as u64).next_multiple_of(8).saturating_add(RECORD_HEADER);
        if bytes > self.capacity {
            return Err(LogError::TooLong { length, capacity: self.capacity as usize });
        }
        let reservation = |slot, at| Reservation { log: self, slot, at, length: length as u64, written: 0 };
        for _ in 0..ATTEMPTS {
            // SAFETY: the slots begin with a header.
            match unsafe { section::reserve(self.slots.place(), self.capacity, bytes) } {
                Ok((slot, at)) => return Ok(reservation(slot, at)),
                Err(Refused::Full) => return self.refuse(),
                Err(Refused::Interrupted) => {}
                Err(Refused::Nowhere) if thread::attach() => {}
                Err(Refused::Nowhere) => break,
            }
        }
        let index = self.slots.otherwise();
        let slot = self.slots.slot(index);
        match self.reserve_atomically(self.header(index), bytes) {
            Some(at) => Ok(reservation(slot, at)),
            None => self.refuse(),
        }
    }

    #[cold]
    fn refuse(&self) -> Result<Reservation<'_>, LogError> {
        self.overruns.add(1);
        Err(LogError::Overrun)
    }

    /// On a slot where no thread runs sections.
    fn reserve_atomically(&self, header: &LogHeader, bytes: u64) -> Option<u64> {
        let room = |head: u64| head.wrapping_add(bytes).wrapping_sub(header.tail.load(Ordering::Acquire));
        header
            .head
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |head| {
                (room(head) <= self.capacity).then(|| head.wrapping_add(bytes))
            })
            .ok()
    }

    fn header(&self, index: u32) -> &LogHeader {
        // SAFETY: every slot begins with a header, made of atomics; sections write it by aligned instructions.
        unsafe { &*self.slots.slot(index).cast::<LogHeader>() }
    }

    /// The address of the byte that is `at` in the count of bytes ever reserved.
    #[inline(always)]
    fn place(&self, slot: *mut u8, at: u64) -> *mut u8 {
        slot.wrapping_add(size_of::<LogHeader>() + (at & (self.capacity - 1)) as usize)
    }

    /// The header of the record at `at`. Records begin at multiples of 8, so it does not wrap.
    #[inline(always)]
    fn record_header(&self, slot: *mut u8, at: u64) -> &AtomicU64 {
        // SAFETY: inside the slot's ring and aligned; it is only ever accessed as an atomic, or zeroed by the reader while no
        // writer can have it.
        unsafe { &*self.place(slot, at).cast::<AtomicU64>() }
    }

    /// Hands every finished record of log `index` to `each`, oldest first, gives the room free, and says how many there were. Panics
    /// where there is no such log. Where another thread is reading this log it does nothing.
    pub fn read(&self, index: usize, mut each: impl FnMut(&[u8])) -> usize {
        assert!(index < self.logs(), "log {index} of {}", self.logs());
        let (slot, header) = (self.slots.slot(index as u32), self.header(index as u32));
        let Ok(_reading) = header.reader.try_claim(|| Ok::<_, ()>(())) else { return 0 };
        let mut copy = Vec::new();
        let mut count = 0;
        let mut at = header.tail.load(Ordering::Relaxed);
        // Read once: a writer that is faster than we are does not keep us here for ever. A section's store of the head is not ordered
        // with the header that a writer stores, but the latter is looked at for itself.
        let head = header.head.load(Ordering::Acquire);
        while at != head {
            // Acquire: the writer's bytes, which it wrote before.
            let word = self.record_header(slot, at).load(Ordering::Acquire);
            if word == 0 {
                break;
            }
            let length = word >> LENGTH_SHIFT;
            if word & DISCARDED == 0 {
                copy.clear();
                self.copy_out(slot, at + RECORD_HEADER, length as usize, &mut copy);
                each(&copy);
                count += 1;
            }
            let bytes = RECORD_HEADER + length.next_multiple_of(8);
            self.zero(slot, at, bytes as usize);
            at = at.wrapping_add(bytes);
            // Release: a writer that gets this room finds zeroes there.
            header.tail.store(at, Ordering::Release);
        }
        count
    }

    /// [`read`](Self::read) of every log.
    pub fn read_all(&self, mut each: impl FnMut(&[u8])) -> usize {
        (0..self.logs()).map(|index| self.read(index, &mut each)).sum()
    }

    /// The two stretches of memory that `length` bytes from `at` lie in.
    #[inline(always)]
    fn stretches(&self, slot: *mut u8, at: u64, length: usize) -> [(*mut u8, usize); 2] {
        let first = length.min((self.capacity - (at & (self.capacity - 1))) as usize);
        [(self.place(slot, at), first), (self.place(slot, 0), length - first)]
    }

    fn copy_out(&self, slot: *mut u8, at: u64, length: usize, to: &mut Vec<u8>) {
        for (from, count) in self.stretches(slot, at, length) {
            // SAFETY: inside the ring; the record is finished, so its writer is done, and only the reader gives its room to others.
            to.extend_from_slice(unsafe { slice::from_raw_parts(from, count) });
        }
    }

    fn zero(&self, slot: *mut u8, at: u64, length: usize) {
        for (from, count) in self.stretches(slot, at, length) {
            // SAFETY: as in `copy_out`; the room is not given free yet, so nobody else touches it.
            unsafe { ptr::write_bytes(from, 0, count) };
        }
    }

    /// The address of the slot of log `index`, for debuggers and tests. Panics where there is no such log.
    pub fn slot_address(&self, index: usize) -> usize {
        assert!(index < self.logs(), "log {index} of {}", self.logs());
        self.slots.slot(index as u32) as usize
    }
}

impl Reservation<'_> {
    /// Appends to the record as much of `bytes` as there is room reserved for, and says how much.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min((self.length - self.written) as usize);
        let at = self.at + RECORD_HEADER + self.written;
        let mut rest = &bytes[..count];
        for (to, count) in self.log.stretches(self.slot, at, count) {
            let (now, later) = rest.split_at(count);
            // SAFETY: inside the ring, in the room that was reserved for this record alone.
            unsafe { to.copy_from_nonoverlapping(now.as_ptr(), count) };
            rest = later;
        }
        self.written += count as u64;
        count
    }

    /// Finishes the record; what was not written is zeroes.
    #[inline]
    pub fn commit(self) {
        self.finish(FINISHED);
        std::mem::forget(self);
    }

    fn finish(&self, flags: u64) {
        // Release: the bytes before the header.
        self.log
            .record_header(self.slot, self.at)
            .store(self.length << LENGTH_SHIFT | flags, Ordering::Release);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.finish(FINISHED | DISCARDED);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn read(log: &Log) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        log.read_all(|record| records.push(record.to_vec()));
        records
    }

    #[test]
    fn an_unfinished_record_holds_up_those_behind_it_and_a_dropped_one_does_not() {
        let log = Log::new(1024);
        let _pinned =
            crate::pin_on_cpu(crate::Topology::read().unwrap().allowed.iter().next().unwrap()).unwrap();
        log.write(b"one").unwrap();
        let mut two = log.reserve(3).unwrap();
        log.write(b"three").unwrap();
        assert_eq!(read(&log), [b"one"]);
        assert_eq!((two.write(b"two and more"), two.write(b"more")), (3, 0));
        two.commit();
        drop(log.reserve(500).unwrap());
        log.write(b"").unwrap();
        assert_eq!(read(&log), [&b"two"[..], b"three", b""]);
    }

    #[test]
    fn a_full_log_refuses_and_counts() {
        let log = Log::new(64);
        let _pinned =
            crate::pin_on_cpu(crate::Topology::read().unwrap().allowed.iter().next().unwrap()).unwrap();
        assert_eq!(log.write(&[7; 57]), Err(LogError::TooLong { length: 57, capacity: 64 }));
        log.write(&[1; 40]).unwrap();
        assert_eq!((log.write(&[2; 20]), log.overruns()), (Err(LogError::Overrun), 1));
        assert_eq!(read(&log), [[1; 40]]);
        log.write(&[3; 56]).unwrap();
        assert_eq!(read(&log), [[3; 56]]);
    }

    proptest! {
        #[test]
        fn property_a_log_is_a_queue_with_limited_room(
            steps in proptest::collection::vec(prop_oneof![3 => (0..90_usize).prop_map(Some), 1 => Just(None)], 1..200),
        ) {
            let log = Log::new(256);
            let cpus = crate::Topology::read().unwrap().allowed;
            let _pinned = crate::pin_on_cpu(cpus.iter().next().unwrap()).unwrap();
            let (mut model, mut used, mut number) = (VecDeque::new(), 0, 0_u8);
            for step in steps {
                match step {
                    Some(length) => {
                        number = number.wrapping_add(1);
                        let bytes = 8 + length.next_multiple_of(8);
                        let written = log.write(&vec![number; length]);
                        prop_assert_eq!(written.is_ok(), used + bytes <= 256);
                        if written.is_ok() {
                            model.push_back(vec![number; length]);
                            used += bytes;
                        }
                    }
                    None => {
                        prop_assert_eq!(read(&log), model.drain(..).collect::<Vec<_>>());
                        used = 0;
                    }
                }
            }
        }
    }
}
