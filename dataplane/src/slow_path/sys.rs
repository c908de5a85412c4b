//! What the slow path asks the kernel for: futexes, other threads' CPU clocks, priorities, and the signal that stops a job.
//!
//! A job is stopped by a signal, SIGURG (which nobody gets unasked, and which is ignored by default), whose handler waits until the job may
//! go on. A thread inside the slow path's own code is not stopped: it may hold its lock.
#![allow(unsafe_code)]

use super::seat::Seat;
use percpu::CpuList;
use std::cell::Cell;
use std::io;
use std::mem;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while `word` is `value`, until it is woken, a signal comes, or the time is over.
pub(super) fn futex_wait(word: &AtomicU32, value: u32, timeout: Option<Duration>) {
    let limit = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the kernel reads a word and a time that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            value,
            limit,
        );
    }
}

/// Wakes so many who sleep on `word`.
pub(super) fn futex_wake(word: &AtomicU32, count: i32) {
    // SAFETY: the kernel uses the address only as a name.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, count);
    }
}

/// The number of the calling thread's CPU clock.
pub(super) fn own_cpu_clock() -> io::Result<libc::clockid_t> {
    let mut clock = 0;
    // SAFETY: the calling thread exists, and one number is written.
    match unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) } {
        0 => Ok(clock),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The time by a clock, in nanoseconds; 0 where there is no such clock (its thread has ended).
pub(super) fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one time is written.
    match unsafe { libc::clock_gettime(clock, &mut time) } {
        0 => time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64,
        _ => 0,
    }
}

/// CLOCK_MONOTONIC, as the kernel's records have it.
pub(super) fn now_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Lets the calling thread run only where nobody else wants to.
pub(super) fn run_when_idle() -> io::Result<()> {
    run_by(libc::SCHED_IDLE)
}

/// The contrary, with the nice value that it had.
pub(super) fn run_as_others() -> io::Result<()> {
    run_by(libc::SCHED_OTHER)
}

fn run_by(policy: libc::c_int) -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads one structure.
    match unsafe { libc::sched_setscheduler(0, policy, &parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts the calling thread before others of its kind, where that is allowed.
pub(super) fn run_first() -> io::Result<()> {
    // SAFETY: takes numbers; 0 is the calling thread.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Binds the calling thread to these CPUs.
pub(super) fn stay_on(cpus: &CpuList) -> io::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    for cpu in cpus.iter() {
        set.set(cpu)?;
    }
    Ok(nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?)
}

thread_local! {
    /// The seat of this thread, where it has one.
    static SEAT: Cell<*const Seat> = const { Cell::new(ptr::null()) };
}

/// From now on the calling thread has this seat, for as long as the process lives: threads may outlive the slow path.
pub(super) fn take_seat(seat: &'static Seat) {
    SEAT.set(seat);
}

/// The calling thread's seat.
pub(super) fn own_seat() -> Option<&'static Seat> {
    // SAFETY: null, or what `take_seat` was given, which lives for ever.
    unsafe { SEAT.get().as_ref() }
}

/// Stops what the thread runs, soon: see [`Seat::obey`].
pub(super) fn signal(tid: libc::pid_t) {
    // SAFETY: takes numbers. A thread that has ended is not found; the process is our own.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGURG) };
}

extern "C" fn handler(_signal: libc::c_int) {
    // SAFETY: always valid, and this thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above. What was interrupted may be about to read it.
    let saved = unsafe { *errno };
    if let Some(seat) = own_seat() {
        // Atomic words and a futex: nothing else is allowed here.
        seat.obey();
    }
    // SAFETY: as above.
    unsafe { *errno = saved };
}

/// Installs the handler, once in a process.
pub(super) fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Option<i32>> = OnceLock::new();
    let errno = INSTALLED.get_or_init(|| {
        // SAFETY: all zeroes is a valid sigaction.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        // What a job waits for in the kernel goes on afterwards, where the kernel can do that.
        // And it runs on the stack that the standard library gives each thread for signals: a fiber's has no room for what the kernel saves.
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        // SAFETY: the handler does only what a handler may.
        match unsafe { libc::sigaction(libc::SIGURG, &action, ptr::null_mut()) } {
            0 => None,
            _ => io::Error::last_os_error().raw_os_error(),
        }
    });
    errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}
