//! Memory for one slot an index, and which index a thread goes by.
//!
//! By CPU number there is a slot for each CPU that the machine could have; only those that are used are ever touched, but a thread that wanders
//! over many CPUs uses many. By concurrency id there are as many as the process has CPUs: that is for containers with few CPUs
//! on a machine with many. An index beyond the slots (a mask that was widened later) takes the shared path, and so does a thread
//! without an rseq area.
#![allow(unsafe_code)]

use crate::rseq::registration::{Registration, has_concurrency_ids, registration};
use crate::rseq::section::Place;
use crate::rseq::thread::{self, IndexField};
use crate::topology;
use std::alloc::{self, Layout};
use std::ptr::{self, NonNull};

/// What a thread's slot is chosen by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Indexing {
    /// The concurrency id where the process may use at most half of the machine's CPUs and the kernel has such ids (Linux 6.3); else
    /// the CPU number.
    #[default]
    Auto,
    /// The CPU's number.
    Cpu,
    /// The concurrency id; the CPU's number where the kernel has none.
    ConcurrencyId,
}

/// Bytes between two slots are a multiple of this: two cache lines, as the CPU fetches them in pairs.
pub(crate) const SLOT_ALIGN: usize = 128;

/// Which indices there are, and which one is the calling thread's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Indices {
    count: u32,
    /// How many the kernel can give: the machine's CPUs.
    possible: u32,
    /// Where the index stands in a thread's area. Where there is no rseq, every thread's says "none" there.
    field: IndexField,
    has_sections: bool,
}

impl Indices {
    pub(crate) fn new(indexing: Indexing) -> Self {
        let (possible, allowed) = topology::counts();
        let ids = has_concurrency_ids()
            && match indexing {
                Indexing::Auto => allowed * 2 <= possible,
                Indexing::Cpu => false,
                Indexing::ConcurrencyId => true,
            };
        let has_sections = !matches!(registration(), Registration::Off { .. });
        Self {
            count: if ids || !has_sections { allowed } else { possible } as u32,
            possible: possible as u32,
            field: if ids { IndexField::ConcurrencyId } else { IndexField::Cpu },
            has_sections,
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// The calling thread's index as it was a moment ago; `None` where it has none below the count.
    #[inline(always)]
    pub(crate) fn here(&self) -> Option<u32> {
        thread::index(self.field).filter(|index| *index < self.count)
    }

    /// What a thread goes by that has no index: where there are sections the shared slot's, which is the count; else one that it tries
    /// first, and may share with others.
    pub(crate) fn otherwise(&self) -> u32 {
        if self.has_sections { self.count } else { thread::number() % self.count }
    }
}

/// As many slots of zeroes as there are indices, each with its own cache lines.
#[derive(Debug)]
pub(crate) struct Slots {
    base: NonNull<u8>,
    stride: usize,
    indices: Indices,
    /// The slot of each index that the kernel can give; null from the count on.
    table: Box<[*mut u8]>,
    layout: Layout,
}

// SAFETY: it is memory and numbers; who may touch which slot when is up to those who use it.
unsafe impl Send for Slots {}
// SAFETY: as above; no method here touches the memory but `new` and `drop`.
unsafe impl Sync for Slots {}

impl Slots {
    /// Slots of at least `bytes`. Panics only where there is no memory for them, as a `Vec` would.
    pub(crate) fn new(bytes: usize, indexing: Indexing) -> Self {
        Self::allocate(bytes, indexing, 0)
    }

    /// The same with one slot more, number [`count`](Self::count), for threads that have none.
    pub(crate) fn with_shared(bytes: usize, indexing: Indexing) -> Self {
        Self::allocate(bytes, indexing, 1)
    }

    fn allocate(bytes: usize, indexing: Indexing, extra: usize) -> Self {
        let indices = Indices::new(indexing);
        let count = indices.count as usize;
        let stride = bytes.next_multiple_of(SLOT_ALIGN);
        let layout = Layout::from_size_align(stride.saturating_mul(count + extra), SLOT_ALIGN)
            .unwrap_or_else(|_| panic!("{count} slots of {bytes} bytes are more than an address space"));
        // SAFETY: neither the count nor a slot is of size 0.
        let base = unsafe { alloc::alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { alloc::handle_alloc_error(layout) };
        // SAFETY: below the count, so inside the allocation.
        let slot = |index| unsafe { base.as_ptr().add(index * stride) };
        let table = (0..indices.possible as usize)
            .map(|index| if index < count { slot(index) } else { ptr::null_mut() })
            .collect();
        Self { base, stride, indices, table, layout }
    }

    /// How many there are, without the shared one.
    pub(crate) fn count(&self) -> u32 {
        self.indices.count
    }

    /// Bytes of them all.
    pub(crate) fn bytes(&self) -> usize {
        self.layout.size()
    }

    /// Whether threads run critical sections.
    pub(crate) fn has_sections(&self) -> bool {
        self.indices.has_sections
    }

    /// The CPU that slot `index` belongs to; `None` where slots go by something else.
    pub(crate) fn cpu(&self, index: u32) -> Option<u32> {
        (self.indices.has_sections && self.indices.field == IndexField::Cpu).then_some(index)
    }

    /// The address of a slot.
    #[inline(always)]
    pub(crate) fn slot(&self, index: u32) -> *mut u8 {
        debug_assert!(index as usize * self.stride < self.layout.size());
        // SAFETY: callers pass an index below the count, or the count where they have a shared slot: inside the allocation.
        unsafe { self.base.as_ptr().add(index as usize * self.stride) }
    }

    /// What the calling thread's critical sections find its slot by; `None` where it runs none, and takes the shared path.
    #[inline(always)]
    pub(crate) fn place(&self) -> Option<Place> {
        let mut area = thread::area();
        if area.is_null() {
            if !thread::attach() {
                return None;
            }
            area = thread::area();
        }
        Some(Place { area, field: self.indices.field as usize, table: self.table.as_ptr() })
    }

    /// The calling thread's slot as it was a moment ago; `None` where it has none.
    #[inline(always)]
    pub(crate) fn mine(&self) -> Option<*mut u8> {
        self.indices.here().map(|index| self.slot(index))
    }

    /// See [`Indices::otherwise`].
    pub(crate) fn otherwise(&self) -> u32 {
        self.indices.otherwise()
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody has an address into it who does not have us.
        unsafe { alloc::dealloc(self.base.as_ptr(), self.layout) };
    }
}
