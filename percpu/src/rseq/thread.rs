//! What a thread knows of itself: where its rseq area is, and which number to go by where it has none.
//!
//! One thread-local pointer is all that the hot paths look at. In a thread that is not registered, has given up, or is ending it leads to an area that
//! the kernel does not know: it says "no CPU", which critical sections refuse as they refuse a number beyond their slots.
#![allow(unsafe_code)]

use super::abi::{AREA_BYTES, Area, CPU_ID_OFFSET, MM_CID_OFFSET};
use super::{registration, sys};
use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{io, ptr};

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Has not asked for its area yet.
    New,
    /// Has one.
    Found,
    /// Has asked, and there is none; or it is ending.
    Without,
    /// Does without from now on.
    GivenUp,
}

/// No kernel has more.
const MAX_CPU: u32 = 1 << 20;

/// The area of threads that have not asked for theirs yet, or are ending.
static NOBODYS: Area = Area::new();

thread_local! {
    static AREA: Cell<*const Area> = const { Cell::new(&raw const NOBODYS) };
    /// For a thread that does without for long: what sections write to it is then nobody else's cache line.
    static ASIDE: Area = const { Area::new() };
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
        // Destructors that run after this one find no area, and take the shared path.
        AREA.set(&raw const NOBODYS);
        STATE.set(State::Without);
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

/// The calling thread's area; one without a CPU where it has none, or has not asked yet.
#[inline(always)]
pub(crate) fn area() -> *const Area {
    AREA.get()
}

/// The calling thread's index as it was a moment ago; `None` where it has no area.
#[inline(always)]
pub(crate) fn index(field: IndexField) -> Option<u32> {
    let index = read(field);
    if index <= MAX_CPU {
        return Some(index);
    }
    find().then(|| read(field)).filter(|index| *index <= MAX_CPU)
}

#[inline(always)]
fn read(field: IndexField) -> u32 {
    const { assert!(MM_CID_OFFSET < AREA_BYTES && CPU_ID_OFFSET < AREA_BYTES) };
    // SAFETY: either it was registered for this thread (the C library's lives as long as the thread, our own is replaced before it goes) or it is one
    // that nobody registers and that lives as long. `field` is the offset of one of its numbers, which the kernel writes, and which
    // is read as an atomic.
    unsafe { &*AREA.get().byte_add(field as usize).cast::<AtomicU32>() }.load(Ordering::Relaxed)
}

/// Finds the calling thread's area now and not at its first use of per-CPU data; true where it has one.
///
/// To be called by a thread before a signal's handler may use per-CPU data in it, where the thread itself has not done so. The first use is more than a
/// handler may do: with [`Registration::Own`](super::Registration) it registers a thread-local destructor, which may allocate, and the process's first
/// reads the environment.
pub fn attach() -> bool {
    find();
    has_area()
}

fn has_area() -> bool {
    STATE.get() == State::Found
}

/// The CPU that the calling thread runs on, as its area says; `None` in a thread that has not found one ([`attach`]). For signal handlers:
/// it looks at two words.
pub fn cpu_here() -> Option<u32> {
    Some(read(IndexField::Cpu)).filter(|cpu| *cpu <= MAX_CPU)
}

/// Asks for the thread's area if it has not done so yet; true where that found one.
#[cold]
pub(crate) fn find() -> bool {
    if STATE.get() != State::New {
        return false;
    }
    STATE.set(State::Without);
    let area = registration::find_area().filter(|area| {
        // SAFETY: the registered area of this thread, which lives as long as the thread does.
        let cpu = unsafe { &(**area).cpu_id }.load(Ordering::Relaxed);
        // Where registering failed the C library leaves a number there that is no CPU's.
        cpu <= MAX_CPU
    });
    if area.is_some() {
        STATE.set(State::Found);
    }
    AREA.set(area.unwrap_or_else(aside));
    area.is_some()
}

fn aside() -> *const Area {
    ASIDE.with(ptr::from_ref)
}

/// From now on the calling thread does without per-CPU data: every structure takes its shared path for it.
///
/// For a thread that was pinned and learns that somebody moves it about ([`Policy::GiveUp`](crate::pin::Policy)).
pub fn give_up() {
    AREA.set(aside());
    STATE.set(State::GivenUp);
}

/// Ends what [`give_up`] began: for a thread that is pinned anew.
pub fn take_up_again() {
    if has_given_up() {
        STATE.set(State::New);
    }
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
    attach().then(|| AREA.get() as usize)
}
