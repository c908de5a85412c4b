//! The ring that perf events write their records to, read without a system call and without waking anybody.
//!
//! The kernel writes records and moves `data_head`; we read and move `data_tail` (`struct perf_event_mmap_page`, `linux/perf_event.h`). Whatever
//! stands there is checked before it is followed.
#![allow(unsafe_code)]

use super::sys::{Map, PAGE_BYTES};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Of `struct perf_event_mmap_page`.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;
/// `struct perf_event_header`: type u32, misc u16, size u16.
const HEADER_BYTES: usize = 8;
/// A record's size has 16 bits.
const MAX_RECORD_BYTES: usize = 1 << 16;

/// One record's type, flags and what follows its header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw<'a> {
    pub(super) kind: u32,
    pub(super) misc: u16,
    pub(super) body: &'a [u8],
}

/// Says whether a ring has anything to read; any number of threads may ask.
#[derive(Clone, Debug)]
pub struct Peek(Arc<Map>);

impl Peek {
    /// Two loads.
    #[inline]
    pub fn has_more(&self) -> bool {
        word(&self.0, DATA_HEAD).load(Ordering::Acquire) != word(&self.0, DATA_TAIL).load(Ordering::Relaxed)
    }
}

fn word(map: &Map, offset: usize) -> &AtomicU64 {
    // SAFETY: inside the first page, aligned; the kernel and we access it as one word.
    unsafe { &*map.start().add(offset).cast::<AtomicU64>() }
}

/// The reading end of one ring.
#[derive(Debug)]
pub(super) struct Ring {
    map: Arc<Map>,
    capacity: usize,
    tail: u64,
    /// A record, in one piece.
    record: Vec<u8>,
}

impl Ring {
    /// Maps the ring of an event: `data_bytes`, or what the kernel allows, a power of two.
    pub(super) fn new(event: BorrowedFd<'_>, data_bytes: usize) -> io::Result<Self> {
        let mut capacity = data_bytes.next_power_of_two().max(PAGE_BYTES);
        let map = loop {
            match Map::new(event, capacity) {
                Ok(map) => break map,
                // Beyond perf_event_mlock_kb.
                Err(error)
                    if error.kind() == io::ErrorKind::PermissionDenied && capacity > 8 * PAGE_BYTES =>
                {
                    capacity /= 2;
                }
                Err(error) => return Err(error),
            }
        };
        let mut ring = Self { map: Arc::new(map), capacity, tail: 0, record: vec![0; MAX_RECORD_BYTES] };
        // The kernel's first fault on the tail's page would be ours.
        ring.store_tail();
        Ok(ring)
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        word(&self.map, offset)
    }

    /// For other threads.
    pub(super) fn peek(&self) -> Peek {
        Peek(Arc::clone(&self.map))
    }

    fn store_tail(&mut self) {
        // Release: we are done with what lies before it.
        self.word(DATA_TAIL).store(self.tail, Ordering::Release);
    }

    /// Hands the records that are there to `each`, oldest first, and says how many. What does not make sense ends the reading, and all up
    /// to the head is given up.
    pub(super) fn read(&mut self, mut each: impl FnMut(Raw<'_>)) -> usize {
        // Acquire: the records before it.
        let head = self.word(DATA_HEAD).load(Ordering::Acquire);
        let mut count = 0;
        while self.tail != head {
            let left = head.wrapping_sub(self.tail);
            let header = self.bytes(HEADER_BYTES);
            let kind = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
            let misc = u16::from_ne_bytes([header[4], header[5]]);
            let size = usize::from(u16::from_ne_bytes([header[6], header[7]]));
            if size < HEADER_BYTES || size as u64 > left || left > self.capacity as u64 {
                self.tail = head;
                break;
            }
            each(Raw { kind, misc, body: &self.bytes(size)[HEADER_BYTES..] });
            self.tail = self.tail.wrapping_add(size as u64);
            count += 1;
        }
        self.store_tail();
        count
    }

    /// The next bytes, copied out: the kernel does not write them again before the tail has moved, but they may go round the end.
    fn bytes(&mut self, count: usize) -> &[u8] {
        let at = (self.tail % self.capacity as u64) as usize;
        let first = count.min(self.capacity - at);
        let data = self.map.start().wrapping_add(PAGE_BYTES);
        // SAFETY: both stretches are inside the data pages, and `count` is at most MAX_RECORD_BYTES, the buffer's size.
        unsafe {
            data.add(at).copy_to_nonoverlapping(self.record.as_mut_ptr(), first);
            data.copy_to_nonoverlapping(self.record.as_mut_ptr().add(first), count - first);
        }
        &self.record[..count]
    }
}
