//! What a handler writes down of one kernel entry, and the ring it goes through to the control core.
//!
//! The handler runs on the worker and must neither wait nor allocate: the ring has its memory beforehand, and a record that finds no room is
//! counted instead. One thread writes (its handlers block each other's signals) and one reads.
#![allow(unsafe_code)]
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes of the worker's stack that a record keeps: unwinding needs them later. With them a record is a page.
pub(crate) const STACK_BYTES: usize = 4096 - 56;
/// Records the ring holds.
const CAPACITY: u64 = 256;

/// One kernel entry, as the handler saw it.
#[derive(Clone)]
#[repr(C)]
pub struct Record {
    /// Time stamp counter in the handler.
    pub tsc: u64,
    /// Which event: see [`crate::strict::Source`].
    pub source: u32,
    /// The system call's number.
    pub number: i32,
    /// Address of the fault, or of the system call.
    pub address: u64,
    /// The worker's instruction pointer.
    pub ip: u64,
    /// Its stack pointer.
    pub sp: u64,
    /// Its frame pointer.
    pub bp: u64,
    /// How much of `stack` is filled.
    pub stack_bytes: u32,
    /// The stack from `sp` up.
    pub stack: [u8; STACK_BYTES],
}

/// A page of its own, so that it can be kept from children without taking anything else from them.
#[repr(C, align(4096))]
struct Slot(UnsafeCell<MaybeUninit<Record>>);

const _: () = assert!(size_of::<Slot>() == 4096);

/// A ring of records from one thread's handlers to one reader.
pub(crate) struct RecordRing {
    slots: Box<[Slot]>,
    written: AtomicU64,
    read: AtomicU64,
    /// A reader is at it.
    reading: AtomicBool,
}

// SAFETY: a slot is written only by the one writer (`push` is unsafe) while `written - read < CAPACITY` says that the reader is done with
// it, and read only after the release store of `written`, by whoever has set `reading`.
unsafe impl Sync for RecordRing {}
// SAFETY: records are plain data.
unsafe impl Send for RecordRing {}

impl RecordRing {
    pub(crate) fn new() -> Self {
        let slots = (0..CAPACITY).map(|_| Slot(UnsafeCell::new(MaybeUninit::zeroed()))).collect();
        Self { slots, written: AtomicU64::new(0), read: AtomicU64::new(0), reading: AtomicBool::new(false) }
    }

    /// The pages that the writer writes to.
    pub(crate) fn pages(&self) -> std::ops::Range<u64> {
        let pages = self.slots.as_ptr_range();
        pages.start as u64..pages.end as u64
    }

    /// Hands the next free slot to `fill`; false where there is none. Async-signal-safe.
    ///
    /// # Safety
    /// One thread at a time, and not from within `fill`.
    pub(crate) unsafe fn push(&self, fill: impl FnOnce(*mut Record)) -> bool {
        let written = self.written.load(Ordering::Relaxed);
        // Acquire: the reader is done with the slot.
        if written.wrapping_sub(self.read.load(Ordering::Acquire)) >= CAPACITY {
            return false;
        }
        fill(self.slots[(written % CAPACITY) as usize].0.get().cast());
        self.written.store(written.wrapping_add(1), Ordering::Release);
        true
    }

    /// Takes the oldest record. `None` also while another thread takes one.
    pub(crate) fn pop(&self) -> Option<Record> {
        if self.reading.swap(true, Ordering::Acquire) {
            return None;
        }
        let record = self.pop_alone();
        self.reading.store(false, Ordering::Release);
        record
    }

    fn pop_alone(&self) -> Option<Record> {
        let read = self.read.load(Ordering::Relaxed);
        if read == self.written.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: below `written`, so the writer has filled this slot (a `Record` has no invalid bytes, and memory that it left alone was
        // zeroed) and leaves it alone until `read` has passed it.
        let record = unsafe { ptr::read(self.slots[(read % CAPACITY) as usize].0.get().cast::<Record>()) };
        self.read.store(read.wrapping_add(1), Ordering::Release);
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_out_in_order_and_a_full_ring_refuses() {
        let ring = RecordRing::new();
        for round in 0..3_u64 {
            for number in 0..CAPACITY {
                // SAFETY: one thread; the slot is a whole record.
                let pushed = unsafe { ring.push(|slot| (*slot).tsc = round * 1000 + number) };
                assert!(pushed);
            }
            // SAFETY: one thread.
            assert!(!unsafe { ring.push(|_| panic!("no room")) });
            for number in 0..CAPACITY {
                assert_eq!(ring.pop().unwrap().tsc, round * 1000 + number);
            }
            assert!(ring.pop().is_none());
        }
    }

    #[test]
    fn a_reader_on_another_thread_loses_nothing() {
        let ring = RecordRing::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..20_000 {
                    // SAFETY: the only writer.
                    while !unsafe { ring.push(|slot| (*slot).tsc = number) } {
                        std::thread::yield_now();
                    }
                }
            });
            let mut next = 0;
            while next < 20_000 {
                match ring.pop() {
                    Some(record) => {
                        assert_eq!(record.tsc, next);
                        next += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
    }
}
