//! Memory for one slot an index, and which index a thread goes by.
//!
//! By CPU number there is a slot for each CPU that the machine could have. The allocator clears small blocks by hand, but large ones (128 KiB
//! with glibc) are fresh pages: then slots that nobody uses take address space and no memory, as far as they share no page
//! with used ones. By concurrency id there are as many slots as the process has CPUs: that is for containers with few CPUs on a machine with
//! many. An index beyond the slots (a mask that was widened later) takes the shared path, and so does a thread without an rseq area.
#![allow(unsafe_code)]

use crate::claim::{Diverted, Word};
use crate::rseq::registration::{Registration, has_concurrency_ids, registration};
use crate::rseq::section::Place;
use crate::rseq::thread::{self, IndexField};
use crate::topology;
use std::alloc::{self, Layout};
use std::ptr::NonNull;

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
/// What every allocator gives by itself.
const BLOCK_ALIGN: usize = 16;

/// Which indices there are, and which one is the calling thread's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Indices {
    count: u32,
    /// Where the index stands in a thread's area. Where there is no rseq, every thread's says "none" there.
    field: IndexField,
    has_sections: bool,
}

impl Indices {
    pub(crate) fn new(indexing: Indexing) -> Self {
        let possible = topology::possible_count();
        let ids = has_concurrency_ids()
            && match indexing {
                Indexing::Auto => topology::usable_count() * 2 <= possible,
                Indexing::Cpu => false,
                Indexing::ConcurrencyId => true,
            };
        let has_sections = !matches!(registration(), Registration::Off { .. });
        Self {
            count: if ids || !has_sections { topology::usable_count() } else { possible } as u32,
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
    /// How many there are, the shared one included.
    slots: usize,
    indices: Indices,
    /// The address of each slot that belongs to an index: what sections read, see [`Place`].
    table: Box<[Word]>,
    /// What `base` lies in.
    block: NonNull<u8>,
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
        let slots = count + extra;
        // With room to align it by hand: for a larger alignment than its own the allocator would clear, and so touch, every page of it.
        let layout = stride
            .checked_mul(slots)
            .and_then(|bytes| Layout::from_size_align(bytes.checked_add(SLOT_ALIGN)?, BLOCK_ALIGN).ok())
            .unwrap_or_else(|| panic!("{slots} slots of {bytes} bytes are more than an address space"));
        // SAFETY: neither the count nor a slot is of size 0.
        let block = unsafe { alloc::alloc_zeroed(layout) };
        let Some(block) = NonNull::new(block) else { alloc::handle_alloc_error(layout) };
        // SAFETY: less than SLOT_ALIGN further, and that much more than the slots was allocated.
        let base = unsafe { block.add(block.align_offset(SLOT_ALIGN)) };
        let slot = |index| base.addr().get() + index * stride;
        // Sections get at the slots by these numbers.
        base.as_ptr().expose_provenance();
        let table = (0..count).map(slot).map(Word::new).collect();
        Self { base, stride, slots, indices, table, block, layout }
    }

    /// How many there are, without the shared one.
    pub(crate) fn count(&self) -> u32 {
        self.indices.count
    }

    /// Bytes of them all, used or not.
    pub(crate) fn bytes(&self) -> usize {
        self.slots * self.stride
    }

    /// Whether threads run critical sections.
    pub(crate) fn has_sections(&self) -> bool {
        self.indices.has_sections
    }

    /// Whether there are sections, and slots go by CPU numbers.
    pub(crate) fn go_by_cpu(&self) -> bool {
        self.indices.has_sections && self.indices.field == IndexField::Cpu
    }

    /// The CPU that slot `index` belongs to; `None` where slots go by something else.
    pub(crate) fn cpu(&self, index: u32) -> Option<u32> {
        self.go_by_cpu().then_some(index)
    }

    /// The address of a slot.
    #[inline(always)]
    pub(crate) fn slot(&self, index: u32) -> *mut u8 {
        debug_assert!((index as usize) < self.slots);
        // SAFETY: callers pass an index below the count, or the count where they have a shared slot: inside the allocation.
        unsafe { self.base.as_ptr().add(index as usize * self.stride) }
    }

    /// What the calling thread's critical sections find its slot by. They refuse where it has none, or has not asked yet: then see
    /// [`place_again`](Self::place_again).
    #[inline(always)]
    pub(crate) fn place(&self) -> Place {
        Place {
            area: thread::area(),
            field: self.indices.field as usize,
            table: self.table.as_ptr().cast(),
            count: self.indices.count,
        }
    }

    /// The same for a second try; `None` where the thread runs no sections, and takes the shared path.
    pub(crate) fn place_again(&self) -> Option<Place> {
        thread::attach().then(|| self.place())
    }

    /// Shows the sections of an index another slot from now on, until what this returns is dropped. For the one who has the slot's claim.
    pub(crate) fn divert(&self, index: u32, address: usize) -> Diverted<'_> {
        self.table[index as usize].divert(address)
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
        unsafe { alloc::dealloc(self.block.as_ptr(), self.layout) };
    }
}
