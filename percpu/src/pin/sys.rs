//! The perf event and the handler of its signal.
//!
//! The handler finds its counter by a number that the event carries, not by an address: a signal may still be under way to
//! another thread when its event is closed, and must then find nothing rather than freed memory.
#![allow(unsafe_code)]

use perf_event_open_sys as perf;
use std::io;
use std::mem;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Events at a time.
pub(super) const SLOTS: usize = 256;
/// `TRAP_PERF` of `siginfo.h`, `asm-generic`.
const TRAP_PERF: libc::c_int = 6;
/// Marks an event as one of ours, in the high half of its number.
const TAG: u64 = 0x4950_4d47;

struct Counter {
    /// The number of the event that has it; 0 where none has.
    key: AtomicU64,
    count: AtomicU64,
    flag: AtomicBool,
}

static COUNTERS: [Counter; SLOTS] =
    [const { Counter { key: AtomicU64::new(0), count: AtomicU64::new(0), flag: AtomicBool::new(false) } };
        SLOTS];

/// One of the handler's counters.
#[derive(Debug)]
pub(super) struct Slot {
    index: usize,
    key: u64,
}

impl Slot {
    pub(super) fn take() -> Option<Self> {
        static GENERATION: AtomicU32 = AtomicU32::new(0);
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed) & 0xff_ffff;
        COUNTERS.iter().enumerate().find_map(|(index, counter)| {
            let key = TAG << 32 | u64::from(generation) << 8 | index as u64;
            counter.key.compare_exchange(0, key, Ordering::AcqRel, Ordering::Relaxed).ok()?;
            counter.count.store(0, Ordering::Relaxed);
            counter.flag.store(false, Ordering::Relaxed);
            Some(Self { index, key })
        })
    }

    pub(super) fn key(&self) -> u64 {
        self.key
    }

    pub(super) fn count(&self) -> u64 {
        COUNTERS[self.index].count.load(Ordering::Acquire)
    }

    pub(super) fn take_flag(&self) -> bool {
        let flag = &COUNTERS[self.index].flag;
        flag.load(Ordering::Relaxed) && flag.swap(false, Ordering::AcqRel)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        COUNTERS[self.index].key.store(0, Ordering::Release);
    }
}

/// Async-signal-safe: atomics only, unless the signal is somebody else's.
extern "C" fn on_trap(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel calls a handler with SA_SIGINFO with the address of a whole siginfo_t, 128 bytes, 8-aligned.
    // On 64-bit Linux `si_perf_data` is 24 bytes into it (asm-generic/siginfo.h).
    let (code, key) = unsafe { ((*info).si_code, info.cast::<u64>().add(3).read()) };
    if code != TRAP_PERF || key >> 32 != TAG {
        return pass_on(signal, info, context);
    }
    let counter = &COUNTERS[key as usize % SLOTS];
    if counter.key.load(Ordering::Acquire) == key {
        // The flag first: who has seen the count sees it, too.
        counter.flag.store(true, Ordering::Release);
        counter.count.fetch_add(1, Ordering::Release);
    }
}

static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// To whoever had SIGTRAP before us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(previous) = PREVIOUS.get() else { return };
    match previous.sa_sigaction {
        libc::SIG_IGN => {}
        libc::SIG_DFL => {
            // SAFETY: `previous` is what the kernel gave for this signal. The signal raised is blocked until
            // the handler returns, and then ends the process, as it would have without us.
            unsafe {
                libc::sigaction(signal, previous, ptr::null_mut());
                libc::raise(signal);
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: by SA_SIGINFO the address is that of a function of this type.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
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

/// Once a process.
pub(super) fn install_handler() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    if !cfg!(target_pointer_width = "64") {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // SAFETY: sigaction is plain data, for which all zeroes means no flags and an empty mask.
    let (mut action, mut previous): (libc::sigaction, libc::sigaction) = unsafe { mem::zeroed() };
    action.sa_sigaction = on_trap as extern "C" fn(_, _, _) as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: only asks; `previous` is live. It must be known before our handler can run.
    if unsafe { libc::sigaction(libc::SIGTRAP, ptr::null(), &mut previous) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let _ = PREVIOUS.set(previous);
    // SAFETY: `action` is whole, and its handler is async-signal-safe.
    if unsafe { libc::sigaction(libc::SIGTRAP, &action, ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

/// An event that sends SIGTRAP with `key` to the thread each time it is migrated.
pub(super) fn open_migrations(tid: libc::pid_t, key: u64) -> io::Result<OwnedFd> {
    let mut attr = perf::bindings::perf_event_attr {
        type_: perf::bindings::PERF_TYPE_SOFTWARE,
        size: mem::size_of::<perf::bindings::perf_event_attr>() as u32,
        config: perf::bindings::PERF_COUNT_SW_CPU_MIGRATIONS.into(),
        sig_data: key,
        ..Default::default()
    };
    attr.__bindgen_anon_1.sample_period = 1;
    // With exclude_kernel it would open, and count nothing: the scheduler is in the kernel.
    attr.set_exclude_kernel(0);
    // The kernel takes sigtrap only with this: a new program would have no handler.
    attr.set_remove_on_exec(1);
    attr.set_sigtrap(1);
    let cloexec = perf::bindings::PERF_FLAG_FD_CLOEXEC.into();
    // SAFETY: `attr` is whole and of the size it says; the kernel only reads it (and writes its `size` on E2BIG).
    let fd = unsafe { perf::perf_event_open(&mut attr, tid, -1, -1, cloexec) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, raise};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    /// Says what the process below should have had before.
    const BEFORE: &str = "ISOPLANE_TEST_SIGTRAP";
    static PASSED_ON: AtomicU32 = AtomicU32::new(0);

    extern "C" fn count(_: libc::c_int) {
        PASSED_ON.fetch_add(1, Ordering::Relaxed);
    }

    /// No test, but what the next one runs: in this process other tests have SIGTRAP already.
    #[test]
    #[ignore = "another process"]
    fn a_breakpoint() {
        let Ok(before) = std::env::var(BEFORE) else { return };
        let handler = match &*before {
            "ignored" => libc::SIG_IGN,
            "handled" => count as extern "C" fn(libc::c_int) as libc::sighandler_t,
            _ => libc::SIG_DFL,
        };
        // SAFETY: the handler only counts.
        unsafe { libc::signal(libc::SIGTRAP, handler) };
        install_handler().unwrap();
        raise(Signal::SIGTRAP).unwrap();
        assert_eq!(PASSED_ON.load(Ordering::Relaxed), u32::from(before == "handled"));
    }

    #[test]
    fn a_signal_that_is_somebody_elses_does_what_it_did_before() {
        let end = |before: &str| -> ExitStatus {
            let test = concat!(module_path!(), "::a_breakpoint");
            let (_, test) = test.split_once("::").unwrap();
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--ignored", "--exact", test]).env(BEFORE, before);
            command.output().unwrap().status
        };
        assert_eq!(end("default").signal(), Some(libc::SIGTRAP));
        assert!(end("ignored").success());
        assert!(end("handled").success());
    }
}
