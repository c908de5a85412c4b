//! The system calls of strict mode, one thin function each.
#![allow(unsafe_code)]
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use perf_event_open_sys as perf;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// `linux/prctl.h`.
const PR_SET_SYSCALL_USER_DISPATCH: libc::c_int = 59;
const PR_SYS_DISPATCH_OFF: libc::c_ulong = 0;
const PR_SYS_DISPATCH_ON: libc::c_ulong = 1;
const SA_RESTORER: libc::c_int = 0x0400_0000;

/// The kernel's own `struct sigaction` of x86-64 (`asm/signal.h`): with the restorer, which the C library keeps to itself.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct KernelSigaction {
    handler: usize,
    flags: u64,
    restorer: u64,
    mask: u64,
}

impl KernelSigaction {
    /// One that blocks every signal while it runs.
    pub(super) fn new(handler: usize, flags: libc::c_int, restorer: u64) -> Self {
        Self { handler, flags: (flags | SA_RESTORER) as u32 as u64, restorer, mask: u64::MAX }
    }

    /// Does what the kernel would have done with this action.
    ///
    /// # Safety
    /// It is what the kernel had for this signal, whose handler's arguments are passed on.
    pub(super) unsafe fn call(
        &self,
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::ucontext_t,
    ) {
        match self.handler {
            libc::SIG_IGN => {}
            libc::SIG_DFL => {
                // Blocked until the handler returns, and then ends the process, as it would have without us.
                // SAFETY: both are async-signal-safe and touch no memory of ours.
                unsafe {
                    libc::signal(signal, libc::SIG_DFL);
                    libc::raise(signal);
                }
            }
            handler if self.flags & libc::SA_SIGINFO as u64 != 0 => {
                // SAFETY: by SA_SIGINFO the address is that of a function of this type.
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::ucontext_t) =
                    unsafe { mem::transmute(handler) };
                handler(signal, info, context);
            }
            handler => {
                // SAFETY: without SA_SIGINFO the address is that of a function of this type.
                let handler: extern "C" fn(libc::c_int) = unsafe { mem::transmute(handler) };
                handler(signal);
            }
        }
    }
}

/// `rt_sigaction(2)`: what is set for a signal, and what shall be from now on.
pub(super) fn sigaction(signal: libc::c_int, new: Option<&KernelSigaction>) -> io::Result<KernelSigaction> {
    let mut old = KernelSigaction::default();
    let new = new.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: both are whole structures of the kernel's form, or null; a new handler is async-signal-safe by its author's word.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, &raw mut old, 8) };
    if result == 0 { Ok(old) } else { Err(io::Error::last_os_error()) }
}

/// Traps the calling thread's system calls outside of `range` while `*selector` is 1.
///
/// # Safety
/// The selector stays readable, and 0 or 1, until the thread has ended or [`stop_dispatch`] was called; SIGSYS has its handler.
pub(super) unsafe fn start_dispatch(range: (u64, u64), selector: *const u8) -> io::Result<()> {
    // SAFETY: the kernel only remembers what it is given.
    match unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, range.0, range.1, selector) }
    {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Traps no more.
pub(super) fn stop_dispatch() {
    // SAFETY: takes no memory. It cannot fail.
    unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_OFF, 0_u64, 0_u64, 0_u64) };
}

/// A perf event of the calling thread that sends it SIGTRAP with `key` each time, disabled. `kernel` says whether what happens while the
/// thread is in the kernel counts.
pub(super) fn open_trap(event_type: u32, config: u64, key: u64, kernel: bool) -> io::Result<OwnedFd> {
    let mut attr = perf::bindings::perf_event_attr {
        type_: event_type,
        size: mem::size_of::<perf::bindings::perf_event_attr>() as u32,
        config,
        sig_data: key,
        ..Default::default()
    };
    attr.__bindgen_anon_1.sample_period = 1;
    attr.set_disabled(1);
    attr.set_exclude_kernel(u64::from(!kernel));
    attr.set_exclude_hv(1);
    // The kernel takes sigtrap only with this: a new program would have no handler.
    attr.set_remove_on_exec(1);
    attr.set_sigtrap(1);
    // By events the kernel would wake a reader each time, which takes an interrupt of its own.
    attr.set_watermark(1);
    attr.__bindgen_anon_2.wakeup_watermark = u32::MAX;
    let cloexec = perf::bindings::PERF_FLAG_FD_CLOEXEC.into();
    // SAFETY: `attr` is whole and of the size it says; the kernel only reads it (and writes its `size` on E2BIG).
    let fd = unsafe { perf::perf_event_open(&mut attr, 0, -1, -1, cloexec) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Switches a perf event on or off.
pub(super) fn enable(event: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let fd = event.as_raw_fd();
    // SAFETY: takes no memory.
    let result = unsafe { if on { perf::ioctls::ENABLE(fd, 0) } else { perf::ioctls::DISABLE(fd, 0) } };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The calling thread's stack, from its lowest address to its end.
pub(super) fn stack() -> io::Result<Range<u64>> {
    let (mut address, mut bytes) = (ptr::null_mut(), 0);
    // SAFETY: the attributes are initialised by the first call, read by the second, and given back by the third.
    let result = unsafe {
        let mut attributes: libc::pthread_attr_t = mem::zeroed();
        let mut result = libc::pthread_getattr_np(libc::pthread_self(), &mut attributes);
        if result == 0 {
            result = libc::pthread_attr_getstack(&attributes, &mut address, &mut bytes);
            libc::pthread_attr_destroy(&mut attributes);
        }
        result
    };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    Ok(address as u64..address as u64 + bytes as u64)
}

/// What of a stack can be kept from children by fork: all below the C library's description of the thread, which lies at the stack's end.
/// glibc's fork goes through those of all threads in the child.
pub(super) fn below_thread_block(stack: &Range<u64>) -> Range<u64> {
    const PAGE: u64 = 4096;
    // SAFETY: takes nothing; the number is the description's address.
    let block = unsafe { libc::pthread_self() } as u64;
    let end = if stack.contains(&block) { block / PAGE * PAGE } else { stack.end };
    stack.start..end
}

/// An alternate stack for the calling thread's handlers, in place of the one it had.
pub(super) struct AlternateStack {
    memory: Option<Box<[Page]>>,
    before: libc::stack_t,
}

/// A signal frame with AVX-512 and AMX state takes 11 KiB.
const ALTERNATE_STACK_BYTES: usize = 64 << 10;

/// A page of its own, so that it can be kept from children without taking anything else from them.
#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

impl AlternateStack {
    pub(super) fn set() -> io::Result<Self> {
        const PAGES: usize = ALTERNATE_STACK_BYTES / size_of::<Page>();
        let mut memory = vec![Page([0; 4096]); PAGES].into_boxed_slice();
        let start = memory.as_mut_ptr().cast();
        let new = libc::stack_t { ss_sp: start, ss_flags: 0, ss_size: ALTERNATE_STACK_BYTES };
        let mut before = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: the memory lives until the stack is put back; `before` is written.
        match unsafe { libc::sigaltstack(&new, &mut before) } {
            0 => Ok(Self { memory: Some(memory), before }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Its pages, to which the kernel and handlers write at each signal.
    pub(super) fn pages(&self) -> Range<u64> {
        let pages = self.memory.as_deref().unwrap_or_default().as_ptr_range();
        pages.start as u64..pages.end as u64
    }
}

impl Drop for AlternateStack {
    fn drop(&mut self) {
        // SAFETY: what was there before, which whoever set it keeps alive.
        if unsafe { libc::sigaltstack(&self.before, ptr::null_mut()) } != 0
            && let Some(memory) = self.memory.take()
        {
            // Still in use: better lost than freed.
            Box::leak(memory);
        }
    }
}
