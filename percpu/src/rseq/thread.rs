//! What a thread knows of itself: where its rseq area is, and which number to go by where it has none.
//!
//! A thread that is not registered, has given up, or is ending points to an area that says "no CPU": then the one comparison that bounds
//! an index is the one that finds out.
#![allow(unsafe_code)]

use super::abi::{AREA_BYTES, Area, CPU_ID_OFFSET, MM_CID_OFFSET};
use super::{registration, sys};
use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// Of a thread without a registration: no CPU. Nobody writes to it.
static NOBODY: Area = Area::new();

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Has not asked for its area yet.
    New,
    /// Has asked: it has one, or there is none.
    Asked,
    /// Does without from now on.
    GivenUp,
}

thread_local! {
    static AREA: Cell<*const Area> = const { Cell::new(&raw const NOBODY) };
    static STATE: Cell<State> = const { Cell::new(State::New) };
    static NUMBER: Cell<u32> = const { Cell::new(u32::MAX) };
    static OWN: Own = const { Own { area: Area::new(), registered: Cell::new(false) } };
}

/// An area of our own, for where the C library has none.
struct Own {
    area: Area,
    registered: Cell<bool>,
}

impl Own {
    fn register(&self) -> io::Result<()> {
        if !self.registered.get() {
            // SAFETY: a thread-local with a destructor stays where it is until that has run, and it unregisters.
            unsafe { sys::register(&self.area) }?;
            self.registered.set(true);
        }
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Destructors that run after this one find no CPU, and take the shared path.
        AREA.set(&raw const NOBODY);
        STATE.set(State::Asked);
        if self.registered.get() {
            sys::unregister(&self.area);
        }
    }
}

/// Registers the calling thread's own area, to see whether that works.
pub(super) fn try_own() -> io::Result<()> {
    OWN.with(Own::register)
}

/// The calling thread's own area; `None` where the kernel refuses, or the thread is ending.
pub(super) fn own() -> Option<*const Area> {
    OWN.try_with(|own| own.register().is_ok().then_some(&raw const own.area)).ok().flatten()
}

/// Where in the area a thread's index stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum IndexField {
    Cpu = CPU_ID_OFFSET as usize,
    ConcurrencyId = MM_CID_OFFSET as usize,
}

/// The calling thread's area and the index that stood there just now.
#[derive(Clone, Copy)]
pub(crate) struct Here {
    pub(crate) area: *const Area,
    pub(crate) index_at: *const AtomicU32,
    pub(crate) index: u32,
}

/// Where the calling thread is; an index of `u32::MAX` where it has no area.
#[inline(always)]
pub(crate) fn here(field: IndexField) -> Here {
    let area = AREA.get();
    const { assert!(MM_CID_OFFSET < AREA_BYTES && CPU_ID_OFFSET < AREA_BYTES) };
    // SAFETY: `field` is the offset of one of the area's numbers. The area is NOBODY, which is static, or was registered for this
    // thread: the C library's lives as long as the thread, our own is replaced by NOBODY before it goes.
    let index_at = unsafe { area.byte_add(field as usize).cast::<AtomicU32>() };
    // SAFETY: as above; the kernel writes it, and it is read as an atomic.
    let index = unsafe { &*index_at }.load(Ordering::Relaxed);
    Here { area, index_at, index }
}

/// Asks for the thread's area if it has not done so yet; true where that found one.
#[cold]
pub(crate) fn attach() -> bool {
    if STATE.get() != State::New {
        return false;
    }
    STATE.set(State::Asked);
    match registration::find_area() {
        Some(area) => AREA.set(area),
        None => return false,
    }
    true
}

/// From now on the calling thread does without per-CPU data, for good: every structure takes its shared path for it.
///
/// For a thread that was pinned and learns that somebody moves it about.
pub fn give_up() {
    AREA.set(&raw const NOBODY);
    STATE.set(State::GivenUp);
}

/// True where the calling thread has called [`give_up`].
pub fn has_given_up() -> bool {
    STATE.get() == State::GivenUp
}

/// A number of the calling thread, counted from 0 in the order in which threads asked.
pub(crate) fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if NUMBER.get() == u32::MAX {
        NUMBER.set(NEXT.fetch_add(1, Ordering::Relaxed) & 0x7FFF_FFFF);
    }
    NUMBER.get()
}

/// The address of the calling thread's `struct rseq`; `None` where it has none.
pub fn area_address() -> Option<usize> {
    attach();
    let area = AREA.get();
    (area != &raw const NOBODY).then_some(area as usize)
}
