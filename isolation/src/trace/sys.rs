//! The perf events that are read and not signalled, one thin function for each call.
#![allow(unsafe_code)]

use perf_event_open_sys as perf;
use perf_event_open_sys::bindings::{self, perf_event_attr};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// Frames of the kernel's stack that a record has at most.
const STACK_FRAMES: u16 = 16;

/// What every record begins with, in this order: its event's number, the thread, the time.
const SAMPLE: u64 =
    (bindings::PERF_SAMPLE_IDENTIFIER | bindings::PERF_SAMPLE_TID | bindings::PERF_SAMPLE_TIME) as u64;

fn attributes(event_type: u32, config: u64) -> perf_event_attr {
    let mut attr = perf_event_attr {
        type_: event_type,
        size: mem::size_of::<perf_event_attr>() as u32,
        config,
        clockid: libc::CLOCK_MONOTONIC,
        sample_type: SAMPLE,
        ..Default::default()
    };
    attr.__bindgen_anon_1.sample_period = 1;
    attr.set_disabled(1);
    attr.set_use_clockid(1);
    attr.set_sample_id_all(1);
    // Nobody is woken: the ring is looked at.
    attr.set_watermark(1);
    attr.__bindgen_anon_2.wakeup_watermark = u32::MAX;
    attr
}

fn open(attr: &mut perf_event_attr, tid: libc::pid_t, cpu: libc::c_int) -> io::Result<OwnedFd> {
    let cloexec = bindings::PERF_FLAG_FD_CLOEXEC.into();
    // SAFETY: `attr` is whole and of the size it says; the kernel only reads it (and writes its `size` on E2BIG).
    let fd = unsafe { perf::perf_event_open(attr, tid, cpu, -1, cloexec) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A trace event of all that runs on `cpu`, switched off; with the kernel's stack where `stack` says so.
pub(super) fn open_on_cpu(cpu: usize, trace_event: u64, stack: bool) -> io::Result<OwnedFd> {
    let mut attr = attributes(bindings::PERF_TYPE_TRACEPOINT, trace_event);
    attr.sample_type |= bindings::PERF_SAMPLE_RAW as u64;
    if stack {
        attr.sample_type |= bindings::PERF_SAMPLE_CALLCHAIN as u64;
        attr.set_exclude_callchain_user(1);
        attr.sample_max_stack = STACK_FRAMES;
    }
    open(&mut attr, -1, cpu as libc::c_int)
}

/// The switches of one thread, in and out, without saying to whom: what needs no privilege. Switched off.
pub(super) fn open_switches(tid: libc::pid_t) -> io::Result<OwnedFd> {
    switches(tid, -1)
}

/// The same, of what the thread does on this CPU: so can threads share a ring.
pub(super) fn open_switches_on_cpu(tid: libc::pid_t, cpu: usize) -> io::Result<OwnedFd> {
    switches(tid, cpu as libc::c_int)
}

fn switches(tid: libc::pid_t, cpu: libc::c_int) -> io::Result<OwnedFd> {
    let mut attr = attributes(bindings::PERF_TYPE_SOFTWARE, bindings::PERF_COUNT_SW_DUMMY.into());
    attr.set_exclude_kernel(1);
    attr.set_context_switch(1);
    open(&mut attr, tid, cpu)
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends the records of `event` to the ring of another event.
pub(super) fn redirect(event: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes two descriptors and no memory.
    done(unsafe { perf::ioctls::SET_OUTPUT(event.as_raw_fd(), to.as_raw_fd()) })
}

/// Switches an event on.
pub(super) fn enable(event: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no memory.
    done(unsafe { perf::ioctls::ENABLE(event.as_raw_fd(), 0) })
}

/// The number that the event's records carry.
pub(super) fn id(event: BorrowedFd<'_>) -> io::Result<u64> {
    let mut id = 0;
    // SAFETY: the kernel writes one u64.
    done(unsafe { perf::ioctls::ID(event.as_raw_fd(), &mut id) })?;
    Ok(id)
}

/// Pages that an event shares with the kernel.
#[derive(Debug)]
pub(super) struct Map {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the map belongs to whoever has this, wherever that is; all accesses to it are volatile or atomic, through raw pointers.
unsafe impl Send for Map {}
// SAFETY: the same; what is shared is only read, as whole atomic words.
unsafe impl Sync for Map {}

impl Map {
    /// Maps the event's first page and `data_bytes` behind it.
    pub(super) fn new(event: BorrowedFd<'_>, data_bytes: usize) -> io::Result<Self> {
        let bytes = PAGE_BYTES + data_bytes;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new map, at an address of the kernel's choice.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, access, libc::MAP_SHARED, event.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), bytes })
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start
    }
}

/// x86-64's.
pub(super) const PAGE_BYTES: usize = 4096;

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; no pointer into it outlives the ring that has it.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}
