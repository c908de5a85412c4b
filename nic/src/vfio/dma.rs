//! Memory that a device reads and writes.
//!
//! One [`DmaSpace`] for all ports behind one IOMMU domain: the frames of a pool are mapped in it once, and rings are allocated from it. A device may
//! write at any time, so nothing here ever becomes a reference: each access is one volatile load or store through a raw pointer.
//!
//! Order: a descriptor is written, then [`publish`]ed by the tail register; a descriptor that says "done" is followed by [`observe`] before what it
//! tells of is read.
#![allow(unsafe_code)]

use super::iova::{IovaAllocator, PAGE};
use super::membership::lock;
use crate::memory::{Frame, POOL_SHIFT, PageSize, Pool};
use crate::sys;
use std::io;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, Weak};

/// Everything written to memory before is seen by a device that sees what is written to memory or a register after.
#[inline(always)]
pub(crate) fn publish() {
    fence(Ordering::Release);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier changes no register and no memory. Devices are in the outer shareable domain, which fence() does not order.
    unsafe {
        std::arch::asm!("dmb oshst", options(nostack, preserves_flags));
    }
}

/// Everything read from memory after is at least as new as what was read before.
#[inline(always)]
pub(crate) fn observe() {
    fence(Ordering::Acquire);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("dmb oshld", options(nostack, preserves_flags));
    }
}

/// Everything written before is seen by a device before anything is read that comes after: for a driver and a device that each write a word and then look
/// at the other's. The one barrier that costs time, so once a burst at the most.
#[inline(always)]
pub(crate) fn exchange() {
    fence(Ordering::SeqCst);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("dmb osh", options(nostack, preserves_flags));
    }
}

/// What translates a device's addresses.
pub(crate) trait Iommu: Send + Sync {
    /// The addresses that may be mapped.
    fn ranges(&self) -> Vec<RangeInclusive<u64>>;
    /// Lets devices reach `length` bytes of ours at `iova`; all multiples of a page.
    fn map(&self, iova: u64, address: NonNull<u8>, length: usize) -> io::Result<()>;
    /// Ends that.
    fn unmap(&self, iova: u64, length: usize) -> io::Result<()>;
    /// False where there is none, and devices reach all memory.
    fn translates(&self) -> bool {
        true
    }
    /// Where memory at `address` has to be mapped, if the choice is not ours (without an IOMMU it is the physical address).
    fn fixed_iova(&self, _address: NonNull<u8>, _length: usize) -> io::Result<Option<u64>> {
        Ok(None)
    }
    /// The pages that rings are on. Without an IOMMU they must be such as the kernel does not move.
    fn ring_pages(&self) -> PageSize {
        PageSize::Base
    }
}

/// The memory that the devices of one IOMMU domain can reach.
pub(crate) struct DmaSpace {
    iommu: Box<dyn Iommu>,
    allocator: Mutex<IovaAllocator>,
    /// Each pool's mapping by the pool's number, which the mapping keeps taken.
    pools: Mutex<Vec<(u32, Weak<PoolMapping>)>>,
}

impl DmaSpace {
    /// A space with nothing mapped.
    pub(crate) fn new(iommu: Box<dyn Iommu>) -> Arc<Self> {
        let allocator = Mutex::new(IovaAllocator::new(&iommu.ranges()));
        Arc::new(Self { iommu, allocator, pools: Mutex::default() })
    }

    /// A device more is behind this IOMMU: from now on only addresses that it can use are given, too.
    pub(crate) fn narrow(&self) {
        lock(&self.allocator).narrow(&self.iommu.ranges());
    }

    /// Whether an IOMMU stands between devices and memory.
    pub(crate) fn translates(&self) -> bool {
        self.iommu.translates()
    }

    /// Zeroed memory for rings: whole pages, mapped. Its length is `bytes`, rounded up to pages; its addresses are multiples of a page on both sides.
    pub(crate) fn allocate(self: &Arc<Self>, bytes: usize) -> io::Result<DmaBuffer> {
        let page = self.iommu.ring_pages();
        let length = bytes.max(1).next_multiple_of(page.bytes());
        let file = sys::memfd_create(c"isoplane-rings", page.memfd_flags())?;
        sys::allocate_file(file.as_fd(), length)?;
        let base = sys::map_shared(file.as_fd(), length, 0)?;
        match self.map(base, length, PAGE) {
            Ok(iova) => Ok(DmaBuffer { base, length, iova, space: Arc::clone(self) }),
            Err(error) => {
                // SAFETY: mapped just above, and known to nobody else.
                unsafe { sys::unmap(base, length) };
                Err(error)
            }
        }
    }

    /// Lets devices reach a pool's frames; the same mapping for every port that asks.
    pub(crate) fn map_pool(self: &Arc<Self>, pool: &Pool) -> io::Result<Arc<PoolMapping>> {
        let mut pools = lock(&self.pools);
        pools.retain(|(_, mapping)| mapping.strong_count() > 0);
        let known = pools.iter().find(|(number, _)| *number == pool.number());
        if let Some(mapping) = known.and_then(|(_, mapping)| mapping.upgrade()) {
            return Ok(mapping);
        }
        let region = pool.region();
        let iova = self.map(region.base(), region.length(), region.page().bytes() as u64)?;
        let mapping = Arc::new(PoolMapping { iova, pool: pool.clone(), space: Arc::clone(self) });
        pools.push((pool.number(), Arc::downgrade(&mapping)));
        Ok(mapping)
    }

    /// Addresses for a pool at which a device finds nothing, ever: for the test of what happens then.
    pub(crate) fn map_nothing(self: &Arc<Self>, pool: &Pool) -> io::Result<Arc<PoolMapping>> {
        let region = pool.region();
        let iova = lock(&self.allocator).allocate(region.length() as u64, PAGE);
        let iova = iova.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        Ok(Arc::new(PoolMapping { iova, pool: pool.clone(), space: Arc::clone(self) }))
    }

    fn map(&self, address: NonNull<u8>, length: usize, align: u64) -> io::Result<u64> {
        if let Some(iova) = self.iommu.fixed_iova(address, length)? {
            return Ok(iova);
        }
        let mut allocator = lock(&self.allocator);
        let iova = allocator
            .allocate(length as u64, align)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        self.iommu.map(iova, address, length).inspect_err(|_| allocator.free(iova, length as u64))?;
        Ok(iova)
    }

    fn unmap(&self, iova: u64, length: usize) {
        let mut allocator = lock(&self.allocator);
        // Addresses that a device may still use are never given again.
        if self.iommu.unmap(iova, length).is_ok() {
            allocator.free(iova, length as u64);
        }
    }
}

/// A pool's frames as devices see them.
pub(crate) struct PoolMapping {
    iova: u64,
    pool: Pool,
    space: Arc<DmaSpace>,
}

impl PoolMapping {
    /// The pool.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The device's address of what would be the first byte of the window of all pools, to which a frame's place in the window is added
    /// ([`Frame::window_offset_of`]): the sum, which may wrap, is right for this pool's frames.
    #[inline(always)]
    pub(crate) fn origin(&self) -> u64 {
        self.iova.wrapping_sub(Frame::window_offset_of(self.pool.number() << POOL_SHIFT))
    }

    /// The device's address of a frame's first byte. The frame is of this pool.
    #[inline(always)]
    pub(crate) fn iova(&self, frame: &Frame) -> u64 {
        debug_assert_eq!(frame.pool_number(), self.pool.number());
        self.iova + frame.region_offset()
    }
}

impl Drop for PoolMapping {
    fn drop(&mut self) {
        self.space.unmap(self.iova, self.pool.region().length());
    }
}

/// Zeroed memory for rings. One thread uses it at a time, and devices at any time.
pub(crate) struct DmaBuffer {
    base: NonNull<u8>,
    length: usize,
    iova: u64,
    space: Arc<DmaSpace>,
}

// SAFETY: it owns its mapping, which no thread in particular has; all accesses are volatile and of plain integers. Not Sync.
unsafe impl Send for DmaBuffer {}

macro_rules! accessors {
    ($read:ident $write:ident $type:ty) => {
        /// One volatile load, little-endian, at `offset`, a multiple of its size inside the buffer.
        #[inline(always)]
        pub(crate) fn $read(&self, offset: usize) -> $type {
            // SAFETY: `place` gives an address inside the mapping, aligned for the type; any bits are a valid integer.
            <$type>::from_le(unsafe { self.place::<$type>(offset).read_volatile() })
        }

        /// One volatile store, little-endian, at `offset`, a multiple of its size inside the buffer.
        #[inline(always)]
        pub(crate) fn $write(&self, offset: usize, value: $type) {
            // SAFETY: as for the load; the mapping is writable, and no reference to its bytes is ever made.
            unsafe { self.place::<$type>(offset).write_volatile(value.to_le()) }
        }
    };
}

impl DmaBuffer {
    /// The device's address of its first byte.
    pub(crate) fn iova(&self) -> u64 {
        self.iova
    }

    /// Where it is, for rings: what is there is read and written as volatile, while the buffer lives.
    pub(crate) fn pointer(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn place<T>(&self, offset: usize) -> *mut T {
        let size = size_of::<T>();
        // Offsets are ours: rings keep indices below their size, which is a power of two.
        assert!(offset.is_multiple_of(size) && offset < self.length, "an offset outside a ring");
        // SAFETY: inside the mapping: both are multiples of the size, so there is room for one behind `offset`.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }

    accessors!(read8 write8 u8);
    accessors!(read16 write16 u16);
    accessors!(read32 write32 u32);
    accessors!(read64 write64 u64);

    /// Sets all of it to zero.
    pub(crate) fn clear(&self) {
        (0..self.length).step_by(8).for_each(|offset| self.write64(offset, 0));
    }
}

impl DmaBuffer {
    /// `count` elements of `STRIDE` bytes, the first one at `offset`: checked here, once for all of them.
    #[inline(always)]
    pub(crate) fn row<const STRIDE: usize>(&self, offset: usize, count: usize) -> Row<'_, STRIDE> {
        let bytes = count * STRIDE;
        assert!(
            offset.is_multiple_of(Row::<STRIDE>::ALIGN)
                && offset <= self.length
                && bytes <= self.length - offset
        );
        // SAFETY: inside the mapping, or just behind it.
        Row { first: unsafe { self.base.as_ptr().add(offset) }, buffer: PhantomData }
    }
}

/// Elements that follow each other in a buffer.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a, const STRIDE: usize> {
    first: *mut u8,
    buffer: PhantomData<&'a DmaBuffer>,
}

impl<'a, const STRIDE: usize> Row<'a, STRIDE> {
    /// What elements are aligned to.
    const ALIGN: usize = if STRIDE.is_multiple_of(16) { 16 } else { 4 };

    /// One of them.
    ///
    /// # Safety
    /// `index` is below the count that was asked for.
    #[inline(always)]
    pub(crate) unsafe fn element(self, index: usize) -> Element<'a, STRIDE> {
        // SAFETY: the caller's promise: inside the mapping, which the row borrows.
        Element { base: unsafe { self.first.add(index * STRIDE) }, buffer: PhantomData }
    }
}

/// An element of a row.
pub(crate) struct Element<'a, const STRIDE: usize> {
    base: *mut u8,
    buffer: PhantomData<&'a DmaBuffer>,
}

impl<const STRIDE: usize> Element<'_, STRIDE> {
    #[inline(always)]
    fn place<const AT: usize, T>(&self) -> *mut T {
        const { assert!(AT + size_of::<T>() <= STRIDE && AT.is_multiple_of(size_of::<T>())) };
        const { assert!(size_of::<T>() <= Row::<STRIDE>::ALIGN) };
        // SAFETY: inside the element.
        unsafe { self.base.add(AT).cast() }
    }

    /// One volatile load, little-endian.
    #[inline(always)]
    pub(crate) fn read32<const AT: usize>(&self) -> u32 {
        // SAFETY: inside the mapping, which lives as long as the buffer that is borrowed, and aligned; any bits are a valid integer.
        u32::from_le(unsafe { self.place::<AT, u32>().read_volatile() })
    }

    /// One volatile load, little-endian.
    #[inline(always)]
    pub(crate) fn read64<const AT: usize>(&self) -> u64 {
        // SAFETY: as above.
        u64::from_le(unsafe { self.place::<AT, u64>().read_volatile() })
    }

    /// One volatile store, little-endian.
    #[inline(always)]
    pub(crate) fn write64<const AT: usize>(&self, value: u64) {
        // SAFETY: as above; the mapping is writable, and no reference to its bytes is ever made.
        unsafe { self.place::<AT, u64>().write_volatile(value.to_le()) }
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        self.space.unmap(self.iova, self.length);
        // SAFETY: base and length are those of `allocate`; nobody else has the address, and whoever had the device halted it before.
        unsafe { sys::unmap(self.base, self.length) };
    }
}
