//! The two signal handlers of isolated threads: SIGSYS for trapped system calls, SIGTRAP for perf events.
//!
//! Both run with every signal blocked, on the thread's alternate stack, and return by a sigreturn of our own, since the C library's would
//! be trapped. They use nothing but atomics, the thread's [`Shared`] and the ring: async-signal-safe. A signal that is not ours goes to whoever
//! had it before.
#![allow(unsafe_code)]

use super::dispatch::{CloneArgs, Way, new_mask, way};
use super::record::{Record, STACK_BYTES};
use super::shared::{OPEN, Shared, attention};
use super::source::Source;
use super::stub;
use super::sys::{self, KernelSigaction};
use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock, PoisonError};

/// `SYS_USER_DISPATCH` and `TRAP_PERF` of `asm-generic/siginfo.h`.
const SYS_USER_DISPATCH: libc::c_int = 2;
const TRAP_PERF: libc::c_int = 6;
/// `linux/audit.h`.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Marks a perf event as one of ours, in the high half of its number.
pub(super) const TAG: u64 = 0x4953_4f4c;

const RIP: usize = libc::REG_RIP as usize;
const RSP: usize = libc::REG_RSP as usize;
const RBP: usize = libc::REG_RBP as usize;
const RAX: usize = libc::REG_RAX as usize;
const RDI: usize = libc::REG_RDI as usize;
const RSI: usize = libc::REG_RSI as usize;
const RDX: usize = libc::REG_RDX as usize;
const R10: usize = libc::REG_R10 as usize;

thread_local! {
    /// The calling thread's, while it is isolated. A plain word: reading it in a handler takes no lock and no allocation.
    static CURRENT: Cell<*const Shared> = const { Cell::new(ptr::null()) };
}

/// From now on this thread's handlers work on `shared`, or on nothing.
///
/// # Safety
/// It stays alive until this is called again on this thread.
pub(super) unsafe fn set_current(shared: Option<&Shared>) {
    CURRENT.set(shared.map_or(ptr::null(), ptr::from_ref));
}

/// The code that may make system calls while they are trapped: where it begins, and its bytes.
pub(super) fn allowed_range() -> (u64, u64) {
    stub::range()
}

fn current() -> Option<&'static Shared> {
    // SAFETY: null, or alive until the thread that we are sets another: see `set_current`. The handler ends before that.
    unsafe { CURRENT.get().as_ref() }
}

const SIGNALS: [libc::c_int; 2] = [libc::SIGSYS, libc::SIGTRAP];
/// Who had these signals before us.
static PREVIOUS: [OnceLock<KernelSigaction>; 2] = [const { OnceLock::new() }; 2];

/// Installs both, once a process.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    for (signal, previous) in SIGNALS.into_iter().zip(&PREVIOUS) {
        // Known before our handler can run.
        let _ = previous.set(sys::sigaction(signal, None)?);
        let handler: Handler = if signal == libc::SIGSYS { on_sigsys } else { on_sigtrap };
        // SA_ONSTACK: the thread's stack may be the very thing that is wrong.
        let flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        let action = KernelSigaction::new(handler as *const () as usize, flags, stub::sigreturn());
        sys::sigaction(signal, Some(&action))?;
    }
    *installed = true;
    Ok(())
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::ucontext_t);

/// The 64-bit word of a siginfo that is `index` words in; those of SIGSYS and SIGTRAP are in `asm-generic/siginfo.h`.
///
/// # Safety
/// `info` is what the kernel gave a handler, and `index` below 16.
unsafe fn word(info: *const libc::siginfo_t, index: usize) -> u64 {
    // SAFETY: a siginfo_t is 128 bytes, 8-aligned, and the kernel has written all of it.
    unsafe { info.cast::<u64>().add(index).read() }
}

extern "C" fn on_sigsys(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel calls a handler with SA_SIGINFO with a whole siginfo.
    let (code, address, call) = unsafe { ((*info).si_code, word(info, 2), word(info, 3)) };
    let (number, arch) = (call as i32, (call >> 32) as u32);
    let Some(shared) = current().filter(|_| code == SYS_USER_DISPATCH) else {
        return pass_on(signal, info, context);
    };
    // SAFETY: the kernel's third argument is the interrupted context, which is ours until we return.
    let context = unsafe { &mut *context };
    let registers = &context.uc_mcontext.gregs;
    let arguments = [RDI, RSI, RDX, R10].map(|register| registers[register] as u64);
    // SAFETY: the caller of clone3 gave this address, for this structure; were it wrong, clone3 would fail and we end by SIGSEGV: a
    // program that passes a bad pointer there is broken.
    let clone_args = |args| unsafe { read_clone_args(args) };
    let way = match arch {
        AUDIT_ARCH_X86_64 => way(number.into(), arguments, clone_args),
        // A 32-bit call, by `int 0x80`: its number means another.
        _ => Way::InPlace,
    };
    if way != Way::Sigreturn && !shared.suspended.load(Ordering::Relaxed) && !shared.has_ended() {
        entered(shared, Source::Syscall, context, number, address, shared.wishes.allow_syscalls);
    }
    go_on(shared, context, way, number.into(), arguments);
}

/// # Safety
/// `at` is the address of a `struct clone_args` of at least 64 bytes.
unsafe fn read_clone_args(at: u64) -> CloneArgs {
    let at = at as *const u64;
    // SAFETY: by the caller: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    unsafe {
        CloneArgs {
            flags: at.read_unaligned(),
            stack: at.add(5).read_unaligned(),
            stack_bytes: at.add(6).read_unaligned(),
        }
    }
}

/// Makes the trapped call go on: see [`Way`].
fn go_on(shared: &Shared, context: &mut libc::ucontext_t, way: Way, number: i64, arguments: [u64; 4]) {
    let after_call = context.uc_mcontext.gregs[RIP] as u64;
    let registers = &mut context.uc_mcontext.gregs;
    let mut by_stub = |stub: u64| {
        // The kernel has put the number back to rax (`syscall_rollback`).
        let slot = registers[RSP] as u64 - stub::RED_ZONE - 8;
        registers[RSP] = slot as i64;
        registers[RIP] = stub as i64;
        // SAFETY: below the red zone of the interrupted function, so nobody's; the stack had room for the signal frame or has for
        // eight bytes more, as for any call.
        unsafe { (slot as *mut u64).write(after_call) };
    };
    match way {
        Way::Resume => by_stub(stub::resume()),
        Way::Fork => {
            by_stub(stub::resume());
            // Without its stack the child would not live for one instruction, and without the other one for no signal. Where they were not
            // kept, nothing changes.
            for stack in [&shared.stack, &shared.alternate_stack] {
                let (advice, bytes) = (libc::MADV_DOFORK as u64, stack.end - stack.start);
                // SAFETY: changes no content of the range, which is this thread's.
                unsafe { stub::call(libc::SYS_madvise, stack.start, bytes, advice, 0) };
            }
        }
        Way::CloneWithStack(end) => {
            by_stub(stub::clone());
            // SAFETY: the caller gives this stack to the child, which begins at its end; what is below is not used yet.
            unsafe { ((end - 8) as *mut u64).write_unaligned(after_call) };
        }
        Way::Sigreturn => registers[RIP] = stub::sigreturn() as i64,
        Way::InPlace => {
            shared.gate.selector.store(OPEN, Ordering::Relaxed);
            shared.raise(attention::SHUT_GATE);
            // `syscall` and `int 0x80` are both two bytes.
            registers[RIP] = (after_call - 2) as i64;
            registers[RAX] = number;
        }
        Way::Mask => {
            let [how, set, old, bytes] = arguments;
            context.uc_mcontext.gregs[RAX] = mask(context, how, set, old, bytes);
        }
    }
}

/// `rt_sigprocmask(2)` on the mask that the thread will have again. The kernel checks the addresses, by calls of its own: what those do to the
/// mask of this handler ends with the handler. The new set is read before the old mask is written: both may be in one place.
fn mask(context: &mut libc::ucontext_t, how: u64, set: u64, old: u64, bytes: u64) -> i64 {
    let block = libc::SIG_BLOCK as u64;
    let mask = (&raw mut context.uc_sigmask).cast::<u64>();
    // SAFETY: the kernel's mask is the first 64 bits of uc_sigmask.
    let before = unsafe { mask.read_unaligned() };
    let mut after = before;
    if set != 0 {
        // SAFETY: the caller of rt_sigprocmask passed the same, and the kernel only reads it.
        let result = unsafe { stub::call(libc::SYS_rt_sigprocmask, block, set, 0, bytes) };
        if result < 0 {
            return result;
        }
        let ours = SIGNALS.iter().fold(0, |bits, signal| bits | 1 << (signal - 1));
        // SAFETY: the kernel has just read it.
        let set = unsafe { (set as *const u64).read_unaligned() };
        match new_mask(how, before, set, ours) {
            Some(mask) => after = mask,
            None => return -i64::from(libc::EINVAL),
        }
    }
    if old != 0 {
        // SAFETY: the caller of rt_sigprocmask passed the same.
        let result = unsafe { stub::call(libc::SYS_rt_sigprocmask, block, 0, old, bytes) };
        if result < 0 {
            return result;
        }
        // SAFETY: the kernel has just written it.
        unsafe { (old as *mut u64).write_unaligned(before) };
    }
    // SAFETY: as above.
    unsafe { mask.write_unaligned(after) };
    0
}

extern "C" fn on_sigtrap(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel calls a handler with SA_SIGINFO with a whole siginfo.
    let (code, address, key) = unsafe { ((*info).si_code, word(info, 2), word(info, 3)) };
    if code != TRAP_PERF || key >> 32 != TAG {
        return pass_on(signal, info, context);
    }
    // One that is late, for a thread that is isolated no more, is of no interest.
    let (Some(shared), Some(source)) = (current(), Source::from_number(key as u32)) else { return };
    if source == Source::PageFault {
        shared.faults_signalled.fetch_add(1, Ordering::Relaxed);
    }
    if shared.suspended.load(Ordering::Relaxed) || shared.has_ended() {
        return;
    }
    let allowed = source == Source::PageFault && shared.wishes.allow_exceptions;
    let address = if source == Source::PageFault { address } else { 0 };
    // SAFETY: the kernel's third argument is the interrupted context.
    entered(shared, source, unsafe { &*context }, 0, address, allowed);
    if source == Source::Migration {
        shared.end(source);
    }
}

/// Counts and writes down one kernel entry.
fn entered(
    shared: &Shared,
    source: Source,
    context: &libc::ucontext_t,
    number: i32,
    address: u64,
    allowed: bool,
) {
    // Signals of one kind that come together are one: that of a migration may be lost beside others.
    if source != Source::Migration && percpu::rseq::cpu_here().is_some_and(|cpu| cpu != shared.cpu) {
        entered(shared, Source::Migration, context, 0, 0, false);
        return shared.end(Source::Migration);
    }
    if allowed {
        shared.allowed.fetch_add(1, Ordering::Relaxed);
        shared.raise(attention::ENTERED);
        return;
    }
    shared.count(source);
    let registers = &context.uc_mcontext.gregs;
    // SAFETY: handlers of one thread block each other, so this is the only writer.
    let written =
        unsafe { shared.ring.push(|record| fill(record, shared, source, registers, number, address)) };
    if !written {
        shared.skipped.fetch_add(1, Ordering::Relaxed);
    }
    if shared.wishes.abort {
        shared.open_for_good();
        last_words(source, number, registers[RIP] as u64);
        // SAFETY: async-signal-safe; ends the process.
        unsafe { libc::abort() };
    }
    let own = if matches!(source, Source::Syscall | Source::PageFault) { attention::OWN } else { 0 };
    shared.raise(attention::VIOLATED | own);
    if shared.wishes.one_shot {
        shared.end(source);
    }
}

/// One line to standard error, by what a handler may do: the control core will not come to it.
fn last_words(source: Source, number: i32, ip: u64) {
    let kind: &[u8] = match source {
        Source::Syscall => b"syscall",
        Source::PageFault => b"exception:page_fault",
        Source::Migration => b"migration",
        Source::Switch => b"task",
        Source::DeviceInterrupt => b"irq:device",
        Source::Vector(name) => name.as_bytes(),
    };
    let mut line = [0_u8; 128];
    let mut length = 0;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            if let Some(place) = line.get_mut(length) {
                *place = *byte;
                length += 1;
            }
        }
    };
    let hex = |value: u64| {
        std::array::from_fn::<u8, 16, _>(|at| b"0123456789abcdef"[(value >> (60 - 4 * at) & 15) as usize])
    };
    add(b"isolation lost, and the process ends for it: cause=");
    add(kind);
    add(b" number=0x");
    add(&hex(number as u64)[8..]);
    add(b" at=0x");
    add(&hex(ip));
    add(b"\n");
    // SAFETY: the line is live, and the kernel only reads it.
    unsafe { stub::call(libc::SYS_write, 2, line.as_ptr() as u64, length as u64, 0) };
}

fn fill(
    record: *mut Record,
    shared: &Shared,
    source: Source,
    registers: &[libc::greg_t; 23],
    number: i32,
    address: u64,
) {
    let sp = registers[RSP] as u64;
    let stack_bytes = if shared.stack.contains(&sp) {
        (shared.stack.end - sp).min(STACK_BYTES as u64) as usize
    } else {
        // A fiber's, or one that is no stack at all: not to be touched.
        0
    };
    // SAFETY: the ring gives a slot that is a whole record and ours alone; from `sp` on, up to its end, the thread's own stack can be read,
    // and the thread that would write it is in this handler.
    unsafe {
        (*record).tsc = percpu::tsc::now();
        (*record).source = source.number();
        (*record).number = number;
        (*record).address = address;
        (*record).ip = registers[RIP] as u64;
        (*record).sp = sp;
        (*record).bp = registers[RBP] as u64;
        (*record).stack_bytes = stack_bytes as u32;
        ptr::copy_nonoverlapping(sp as *const u8, (&raw mut (*record).stack).cast(), stack_bytes);
    }
}

/// To whoever had this signal before us, with the gate open: that handler knows nothing of it.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    let gate = current().map(|shared| &shared.gate.selector);
    let before = gate.map(|selector| selector.swap(OPEN, Ordering::Relaxed));
    let index = usize::from(signal != libc::SIGSYS);
    if let Some(previous) = PREVIOUS[index].get() {
        // SAFETY: the kernel had this as the signal's action, and these are the signal's own arguments.
        unsafe { previous.call(signal, info, context) };
    }
    if let (Some(selector), Some(before)) = (gate, before) {
        selector.store(before, Ordering::Relaxed);
    }
}
