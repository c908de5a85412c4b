//! bpf(2), one thin function for each command; and the timer that ends a run.
#![allow(unsafe_code)]

use super::abi::{
    BPF_LINK_CREATE, BPF_MAP_CREATE, BPF_MAP_LOOKUP_ELEM, BPF_MAP_TYPE_ARRAY, BPF_PROG_LOAD,
    BPF_PROG_TEST_RUN, Instruction, LinkCreate, MapCreate, MapLookup, ProgLoad, TestRun,
};
use std::io;
use std::mem::{self, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

/// # Safety
/// Every address in `attr` is that of live memory as large as the command takes or writes there.
unsafe fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is exclusively borrowed and of the size passed; what its addresses lead to is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// # Safety
/// As for [`bpf`]; and the command is one that makes a descriptor.
unsafe fn bpf_fd<T>(command: u32, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; the descriptor is new, so nobody else owns it.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(command, attr)?)) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// An array of one entry, which is `N` numbers, all 0.
pub(crate) fn create_array<const N: usize>() -> io::Result<OwnedFd> {
    let mut attr = MapCreate {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: size_of::<u32>() as u32,
        value_size: size_of::<[u64; N]>() as u32,
        max_entries: 1,
        ..Default::default()
    };
    // SAFETY: this command has no addresses in it.
    unsafe { bpf_fd(BPF_MAP_CREATE, &mut attr) }
}

/// The entry of an array that [`create_array`] made with the same `N`.
pub(crate) fn read_array<const N: usize>(array: BorrowedFd<'_>) -> io::Result<[u64; N]> {
    let key = 0_u32;
    let mut value = [0_u64; N];
    let mut attr = MapLookup {
        map_fd: number(array),
        key: (&raw const key) as u64,
        value: (&raw mut value) as u64,
        ..Default::default()
    };
    // SAFETY: both live until the call returns, and have the sizes the array was made with.
    unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr)? };
    Ok(value)
}

/// Loads a program.
pub(crate) fn load(program: &[Instruction], prog_type: u32) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let mut attr = ProgLoad {
        prog_type,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the instructions, as many as counted, and the NUL-terminated license outlive the call.
    unsafe { bpf_fd(BPF_PROG_LOAD, &mut attr) }
}

/// Attaches a program to an interface, for as long as the descriptor given back is open.
pub(crate) fn attach(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate { prog_fd: number(program), target_ifindex: ifindex, attach_type, flags: 0 };
    // SAFETY: this command has no addresses in it.
    unsafe { bpf_fd(BPF_LINK_CREATE, &mut attr) }
}

/// Runs a program `repeat` times, each on a frame that begins as a copy of `data`.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    data: &[u8],
    repeat: u32,
    batch_size: u32,
    flags: u32,
) -> io::Result<()> {
    let mut attr = TestRun {
        prog_fd: number(program),
        data_size_in: data.len() as u32,
        data_in: data.as_ptr() as u64,
        repeat,
        flags,
        batch_size,
        ..Default::default()
    };
    // SAFETY: `data` outlives the call and is only read; there is no output buffer.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }.map(drop)
}

extern "C" fn nothing(_: libc::c_int) {}

/// Interrupts system calls of the thread that made it, by SIGALRM.
///
/// A timer and not another thread: where the caller runs by a real-time policy and never sleeps, another thread of its
/// CPU would not get its turn.
pub(crate) struct Alarm(libc::timer_t);

impl Alarm {
    /// Makes SIGALRM a signal that ends a system call and does nothing else, and a timer that is not running yet.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: sigaction is plain data, for which all zeroes means no flags (so no SA_RESTART) and an empty mask.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: `action` is whole; the handler does nothing, so it may run at any point of any thread.
        if unsafe { libc::sigaction(libc::SIGALRM, &action, ptr::null_mut()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: sigevent is plain data too.
        let mut event: libc::sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGALRM;
        // SAFETY: takes nothing and cannot fail.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: both are live; the kernel reads the one and writes the other.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(timer))
    }

    /// Goes off after `first`, and then again and again, since a signal that comes just before the call ends nothing.
    pub(crate) fn start(&self, first: Duration, again: Duration) -> io::Result<()> {
        let timespec = |duration: Duration| libc::timespec {
            tv_sec: duration.as_secs() as libc::time_t,
            tv_nsec: duration.subsec_nanos().into(),
        };
        let times = libc::itimerspec { it_value: timespec(first), it_interval: timespec(again) };
        // SAFETY: the timer is ours until it is dropped; `times` is only read.
        match unsafe { libc::timer_settime(self.0, 0, &times, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: ours, and deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}
