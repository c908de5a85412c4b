//! The registers and the stack of a thread that runs: a signal whose handler copies them.
//!
//! SIGWINCH, which nobody minds: by default it is ignored. The handler is there only while a sample is taken, and only where the program has
//! none of its own; a system call that it comes in on is made again (SA_RESTART). Memory is read by the kernel (`process_vm_readv(2)`), to which
//! an address that is none is an error and no fault.
#![allow(unsafe_code)]

use super::thread;
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So much of a stack is copied at the most.
pub(super) const STACK_BYTES: usize = 16 * 1024;
/// What is read at once: a part that is not there does not spoil the rest.
const PAGE: usize = 4096;
const PIECES: usize = STACK_BYTES / PAGE + 1;

/// A thread that runs takes its signal at once; one that has lost its CPU meanwhile, when it gets it back.
const PATIENCE: Duration = Duration::from_millis(100);
const LOOK_PERIOD: Duration = Duration::from_micros(200);

/// Where a thread was.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    pub(super) ip: u64,
    pub(super) sp: u64,
    pub(super) bp: u64,
    /// From `sp` up.
    pub(super) stack: Vec<u8>,
}

/// What the handler writes to.
struct Exchange {
    state: AtomicU32,
    tid: AtomicI32,
    copy: UnsafeCell<Copied>,
}

struct Copied {
    ip: u64,
    sp: u64,
    bp: u64,
    length: usize,
    stack: [u8; STACK_BYTES],
}

/// Nobody wants anything.
const IDLE: u32 = 0;
/// The thread `tid` is to copy its stack.
const WANTED: u32 = 1;
/// It does.
const COPYING: u32 = 2;
/// It has.
const COPIED: u32 = 3;

// SAFETY: `copy` is touched by the handler that has made WANTED into COPYING, until it says COPIED, and then by the one sampler,
// until it says IDLE; acquire and release order these.
unsafe impl Sync for Exchange {}

static EXCHANGE: Exchange = Exchange {
    state: AtomicU32::new(IDLE),
    tid: AtomicI32::new(0),
    copy: UnsafeCell::new(Copied { ip: 0, sp: 0, bp: 0, length: 0, stack: [0; STACK_BYTES] }),
};

/// Takes a sample of another thread of this process; in words why that cannot be.
pub(super) fn sample(tid: i32) -> Result<Sample, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if thread::blocks(tid, libc::SIGWINCH) {
        return Err("cannot be had: the thread blocks signals, as isolated workers do".into());
    }
    // One that came too late for its sampler is nobody's.
    let _ = EXCHANGE.state.compare_exchange(COPIED, IDLE, Ordering::AcqRel, Ordering::Relaxed);
    if EXCHANGE.state.load(Ordering::Acquire) != IDLE {
        return Err("cannot be had: an earlier signal is still on its way".into());
    }
    let _handler = Handler::install()?;
    EXCHANGE.tid.store(tid, Ordering::Relaxed);
    EXCHANGE.state.store(WANTED, Ordering::Release);
    // SAFETY: takes numbers only. A thread that has ended since is an error.
    if unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGWINCH) } != 0 {
        EXCHANGE.state.store(IDLE, Ordering::Release);
        return Err("cannot be had: the thread has ended".into());
    }
    let start = Instant::now();
    while EXCHANGE.state.load(Ordering::Acquire) != COPIED {
        // One that is at it is waited for as long again, and then left to it.
        let copying = EXCHANGE.state.load(Ordering::Relaxed) == COPYING;
        if start.elapsed() > if copying { PATIENCE * 2 } else { PATIENCE } {
            let state = &EXCHANGE.state;
            match state.compare_exchange(WANTED, IDLE, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Err("cannot be had: the thread does not take the signal".into()),
                Err(COPIED) => break,
                Err(_) if start.elapsed() > PATIENCE * 2 => {
                    return Err("cannot be had: the thread was stopped while it took the signal".into());
                }
                Err(_) => {}
            }
        }
        std::thread::sleep(LOOK_PERIOD);
    }
    // SAFETY: the state is COPIED: the handler is done with it, and no other sampler is here.
    let copied = unsafe { &*EXCHANGE.copy.get() };
    let stack = copied.stack[..copied.length.min(STACK_BYTES)].to_vec();
    let sample = Sample { ip: copied.ip, sp: copied.sp, bp: copied.bp, stack };
    EXCHANGE.state.store(IDLE, Ordering::Release);
    Ok(sample)
}

/// Bytes of this process from that address on, as far as there are any.
pub(super) fn read_memory(address: u64, bytes: usize) -> Vec<u8> {
    let mut buffer = [0; STACK_BYTES];
    let bytes = bytes.min(STACK_BYTES);
    let read = copy_memory(address, &mut buffer[..bytes]);
    buffer[..read].to_vec()
}

/// Copies from that address on, and says how many bytes; async-signal-safe.
fn copy_memory(address: u64, into: &mut [u8]) -> usize {
    let mut pieces = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; PIECES];
    let (mut at, end, mut count) = (address as usize, (address as usize).saturating_add(into.len()), 0);
    while at < end && count < PIECES {
        // Up to the end of the page.
        let length = (PAGE - at % PAGE).min(end - at);
        pieces[count] = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: length };
        (at, count) = (at + length, count + 1);
    }
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: the kernel writes to `into` alone, as much as it is long, and checks the addresses it reads from.
    let read = unsafe {
        libc::syscall(
            libc::SYS_process_vm_readv,
            libc::getpid(),
            &raw const local,
            1_usize,
            pieces.as_ptr(),
            count,
            0_usize,
        )
    };
    usize::try_from(read).unwrap_or(0).min(into.len())
}

/// The handler, as long as this lives.
struct Handler(libc::sigaction);

impl Handler {
    fn install() -> Result<Self, String> {
        let mut before = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: asks only, into memory of that size.
        if unsafe { libc::sigaction(libc::SIGWINCH, ptr::null(), before.as_mut_ptr()) } != 0 {
            return Err("cannot be had: no signal handler".into());
        }
        // SAFETY: filled in by the call.
        let before = unsafe { before.assume_init() };
        if before.sa_sigaction != libc::SIG_DFL && before.sa_sigaction != libc::SIG_IGN {
            return Err("cannot be had: the program uses SIGWINCH itself".into());
        }
        // SAFETY: all zeros is a valid `sigaction`.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
        // SAFETY: the handler is async-signal-safe and of the kind that SA_SIGINFO says.
        if unsafe { libc::sigaction(libc::SIGWINCH, &action, ptr::null_mut()) } != 0 {
            return Err("cannot be had: no signal handler".into());
        }
        Ok(Self(before))
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // SAFETY: what was there before. A signal that comes later is ignored.
        unsafe { libc::sigaction(libc::SIGWINCH, &self.0, ptr::null_mut()) };
    }
}

/// Copies the registers and the stack of the thread it interrupts, where that is the one that is wanted.
extern "C" fn handle(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: takes nothing.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    let state = &EXCHANGE.state;
    if tid != i64::from(EXCHANGE.tid.load(Ordering::Relaxed))
        || state.compare_exchange(WANTED, COPYING, Ordering::AcqRel, Ordering::Relaxed).is_err()
    {
        return;
    }
    // SAFETY: the thread's own, which the interrupted code must find as it was.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel gives the handler a context; the state says that `copy` is ours.
    let (registers, copy) = unsafe { (&(*context).uc_mcontext.gregs, &mut *EXCHANGE.copy.get()) };
    copy.ip = registers[libc::REG_RIP as usize] as u64;
    copy.sp = registers[libc::REG_RSP as usize] as u64;
    copy.bp = registers[libc::REG_RBP as usize] as u64;
    copy.length = copy_memory(copy.sp, &mut copy.stack);
    state.store(COPIED, Ordering::Release);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    #[test]
    fn memory_that_is_not_there_is_no_fault() {
        let bytes = [7_u8; 100];
        assert_eq!(read_memory(bytes.as_ptr() as u64, 100), bytes);
        assert!(read_memory(8, 100).is_empty());
        assert!(read_memory(u64::MAX - 5, 100).is_empty());
    }

    /// A thread that runs gives where it is; one that blocks signals, or is none, says why not.
    #[test]
    fn a_thread_that_runs_is_sampled_as_often_as_is_wanted() {
        let (tid, stop, blocked) = (AtomicI32::new(0), AtomicBool::new(false), AtomicBool::new(false));
        let rounds = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                tid.store(nix::unistd::gettid().as_raw(), Ordering::Release);
                let start = Instant::now();
                while !stop.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(60) {
                    if blocked.load(Ordering::Relaxed) {
                        nix::sys::signal::SigSet::all().thread_block().unwrap();
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
            let start = Instant::now();
            while tid.load(Ordering::Acquire) == 0 && start.elapsed() < Duration::from_secs(30) {
                std::thread::yield_now();
            }
            let tid = tid.load(Ordering::Relaxed);
            let mut taken = 0;
            while taken < 10 && start.elapsed() < Duration::from_secs(30) {
                // On a busy machine it may not run within the patience.
                if let Ok(sample) = super::sample(tid) {
                    assert!(sample.ip != 0 && sample.stack.len() >= 256, "{sample:?}");
                    taken += 1;
                }
            }
            assert_eq!(taken, 10);
            blocked.store(true, Ordering::Relaxed);
            while !thread::blocks(tid, libc::SIGWINCH) && start.elapsed() < Duration::from_secs(60) {
                std::thread::yield_now();
            }
            let words = super::sample(tid).unwrap_err();
            stop.store(true, Ordering::Relaxed);
            assert!(words.contains("blocks signals"), "{words}");
        });
        assert!(super::sample(1 << 23).is_err());
    }
}
