//! Test runs by bpf(2), and the timer that ends one.
#![allow(unsafe_code)]

use super::abi::{BPF_PROG_TEST_RUN, TestRun};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::Duration;

/// Runs a program `repeat` times, each on a frame that begins as a copy of `data`.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    data: &[u8],
    repeat: u32,
    batch_size: u32,
    flags: u32,
) -> io::Result<()> {
    let mut attr = TestRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: data.len() as u32,
        data_in: data.as_ptr() as u64,
        repeat,
        flags,
        batch_size,
        ..Default::default()
    };
    let size = size_of::<TestRun>();
    // SAFETY: `attr` is as long as said; `data`, the only other memory, outlives the call and is only read.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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
