//! The four rings of an AF_XDP socket: memory that we share with the kernel.
//!
//! The kernel may write any of it at any time, so there is never a reference to it: indices are loaded and stored
//! atomically, entries volatile, each once, through raw pointers. What the kernel's index may be is [`Index`]'s matter.
//!
//! Memory order, as in the kernel's `xsk_queue.h`: who publishes an index stores it with release, who reads it loads it with acquire.
#![allow(unsafe_code)]

use super::abi::Plain;
use super::index::Index;
use super::sys;
use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// The other side's index cannot be: the ring is not to be used at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hostile;

/// A mapping of a ring.
struct Mapping {
    address: NonNull<u8>,
    length: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: both are those of one `map_ring`; the ring that held pointers into it is being dropped with it.
        unsafe { sys::unmap(self.address, self.length) };
    }
}

/// What both kinds of rings have: where the kernel put things.
struct Shared<T> {
    producer: NonNull<u32>,
    consumer: NonNull<u32>,
    flags: NonNull<u32>,
    entries: NonNull<T>,
    /// Keeps the addresses above valid.
    _mapping: Mapping,
    _entries: PhantomData<T>,
}

// SAFETY: the addresses point into the mapping that moves along; nothing in them belongs to a thread.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T: Plain> Shared<T> {
    /// Maps the ring of `size` entries that the kernel offers at `page_offset`.
    fn map(
        fd: BorrowedFd<'_>,
        size: u32,
        page_offset: i64,
        offsets: &libc::xdp_ring_offset,
    ) -> io::Result<Self> {
        let entries = (size as usize)
            .checked_mul(size_of::<T>())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let length = (offsets.desc as usize)
            .checked_add(entries)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mapping = Mapping { address: sys::map_ring(fd, length, page_offset)?, length };
        Self::over(mapping, length, offsets)
    }

    fn over(mapping: Mapping, length: usize, offsets: &libc::xdp_ring_offset) -> io::Result<Self> {
        let wrong = || io::Error::from_raw_os_error(libc::EINVAL);
        let word = |offset: u64| {
            let fits = offset.is_multiple_of(4) && offset as usize + 4 <= length;
            // SAFETY: inside the mapping, as just checked.
            fits.then(|| unsafe { mapping.address.add(offset as usize).cast::<u32>() }).ok_or_else(wrong)
        };
        if !(offsets.desc as usize).is_multiple_of(align_of::<T>()) || offsets.desc as usize > length {
            return Err(wrong());
        }
        Ok(Self {
            producer: word(offsets.producer)?,
            consumer: word(offsets.consumer)?,
            flags: word(offsets.flags)?,
            // SAFETY: inside the mapping, as just checked.
            entries: unsafe { mapping.address.add(offsets.desc as usize).cast() },
            _mapping: mapping,
            _entries: PhantomData,
        })
    }
}

fn load(word: NonNull<u32>, order: Ordering) -> u32 {
    // SAFETY: `word` is an aligned word of a live mapping (`Shared::over`); access to it is only ever atomic.
    unsafe { AtomicU32::from_ptr(word.as_ptr()) }.load(order)
}

fn store(word: NonNull<u32>, value: u32) {
    // SAFETY: as in `load`.
    unsafe { AtomicU32::from_ptr(word.as_ptr()) }.store(value, Ordering::Release);
}

/// A ring we fill: the fill ring (of frame addresses) and the transmit ring (of descriptors).
pub(super) struct ProducerRing<T> {
    shared: Shared<T>,
    index: Index,
    /// How many entries were free when the consumer's index was last read, less what we have submitted since.
    free: u32,
}

impl<T: Plain> ProducerRing<T> {
    /// Maps the ring of `size` entries (a power of two) that the socket offers at `page_offset`.
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        size: u32,
        page_offset: i64,
        offsets: &libc::xdp_ring_offset,
    ) -> io::Result<Self> {
        let shared = Shared::map(fd, size, page_offset, offsets)?;
        let ours = load(shared.producer, Ordering::Relaxed);
        let index = Index::new(size, ours).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        Ok(Self { shared, index, free: 0 })
    }

    /// How many entries it has.
    pub(super) fn size(&self) -> u32 {
        self.index.size()
    }

    /// How many entries are free, looking at the kernel's index only where fewer than `wanted` were left.
    #[inline(always)]
    pub(super) fn free(&mut self, wanted: u32) -> Result<u32, Hostile> {
        if self.free < wanted {
            self.free = self.index.size() - self.unconsumed()?;
        }
        Ok(self.free)
    }

    /// How many entries the kernel has not taken yet.
    #[inline(always)]
    pub(super) fn unconsumed(&self) -> Result<u32, Hostile> {
        self.index.unconsumed(load(self.shared.consumer, Ordering::Acquire)).ok_or(Hostile)
    }

    /// Writes the entry `ahead` of the next one; it becomes the kernel's by [`submit`](Self::submit).
    #[inline(always)]
    pub(super) fn write(&mut self, ahead: u32, entry: T) {
        // SAFETY: `slot` is below the ring's size, and that many entries lie in the mapping.
        unsafe { self.shared.entries.add(self.index.slot(ahead)).write_volatile(entry) };
    }

    /// The entry `back` before the next one, as it stands in the shared memory: 1 is the last one written.
    pub(super) fn read_back(&self, back: u32) -> T {
        // SAFETY: as in `write`; every bit pattern is a T.
        unsafe { self.shared.entries.add(self.index.slot(back.wrapping_neg())).read_volatile() }
    }

    /// Gives the next `count` entries, all of them written, to the kernel.
    #[inline(always)]
    pub(super) fn submit(&mut self, count: u32) {
        self.index.advance(count);
        self.free = self.free.saturating_sub(count);
        store(self.shared.producer, self.index.value());
    }

    /// Whether the kernel has stopped looking and must be woken.
    #[inline(always)]
    pub(super) fn needs_wakeup(&self) -> bool {
        load(self.shared.flags, Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// A ring the kernel fills: the receive ring (of descriptors) and the completion ring (of frame addresses).
pub(super) struct ConsumerRing<T> {
    shared: Shared<T>,
    index: Index,
}

impl<T: Plain> ConsumerRing<T> {
    /// Maps the ring of `size` entries (a power of two) that the socket offers at `page_offset`.
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        size: u32,
        page_offset: i64,
        offsets: &libc::xdp_ring_offset,
    ) -> io::Result<Self> {
        let shared = Shared::map(fd, size, page_offset, offsets)?;
        let ours = load(shared.consumer, Ordering::Relaxed);
        let index = Index::new(size, ours).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        Ok(Self { shared, index })
    }

    /// How many entries there are to read.
    #[inline(always)]
    pub(super) fn filled(&self) -> Result<u32, Hostile> {
        self.index.filled(load(self.shared.producer, Ordering::Acquire)).ok_or(Hostile)
    }

    /// The entry `ahead` of the next one, of those that [`filled`](Self::filled) counted.
    #[inline(always)]
    pub(super) fn read(&self, ahead: u32) -> T {
        // SAFETY: `slot` is below the ring's size, that many entries lie in the mapping, and every bit pattern is a T.
        unsafe { self.shared.entries.add(self.index.slot(ahead)).read_volatile() }
    }

    /// Gives the next `count` entries back to the kernel.
    #[inline(always)]
    pub(super) fn release(&mut self, count: u32) {
        self.index.advance(count);
        store(self.shared.consumer, self.index.value());
    }
}

/// A ring without a kernel: both ends in the hands of a test.
#[cfg(test)]
pub(super) mod model {
    use super::*;
    use std::os::fd::{AsFd, OwnedFd};

    /// The kernel's end of a ring, which may write anything.
    pub(in super::super) struct Peer<T> {
        shared: Shared<T>,
        size: u32,
        file: OwnedFd,
    }

    /// Where things are in a model ring.
    const OFFSETS: libc::xdp_ring_offset =
        libc::xdp_ring_offset { producer: 0, consumer: 64, flags: 128, desc: 192 };

    impl<T: Plain> Peer<T> {
        pub(in super::super) fn new(size: u32) -> Self {
            let length = OFFSETS.desc as usize + size as usize * size_of::<T>();
            let file = crate::sys::memfd_create(c"ring", 0).unwrap();
            crate::sys::allocate_file(file.as_fd(), length).unwrap();
            let shared = Shared::map(file.as_fd(), size, 0, &OFFSETS).unwrap();
            Self { shared, size, file }
        }

        pub(in super::super) fn producer(&self) -> ProducerRing<T> {
            ProducerRing::map(self.file.as_fd(), self.size, 0, &OFFSETS).unwrap()
        }

        pub(in super::super) fn consumer(&self) -> ConsumerRing<T> {
            ConsumerRing::map(self.file.as_fd(), self.size, 0, &OFFSETS).unwrap()
        }

        pub(in super::super) fn set_producer(&self, value: u32) {
            store(self.shared.producer, value);
        }

        pub(in super::super) fn set_consumer(&self, value: u32) {
            store(self.shared.consumer, value);
        }

        pub(in super::super) fn producer_index(&self) -> u32 {
            load(self.shared.producer, Ordering::Acquire)
        }

        pub(in super::super) fn consumer_index(&self) -> u32 {
            load(self.shared.consumer, Ordering::Acquire)
        }

        pub(in super::super) fn put(&self, place: u32, entry: T) {
            // SAFETY: below the size, in the mapping.
            unsafe { self.shared.entries.add((place & (self.size - 1)) as usize).write_volatile(entry) };
        }

        pub(in super::super) fn get(&self, place: u32) -> T {
            // SAFETY: below the size, in the mapping.
            unsafe { self.shared.entries.add((place & (self.size - 1)) as usize).read_volatile() }
        }
    }
}
