//! The code that may make system calls while its thread's are trapped.
//!
//! Syscall User Dispatch lets calls through that come from one range of addresses: this one. A trapped call has not run. It runs when
//! the handler returns, not to the place of the call but here, with the caller's registers, stack and signal mask: so it behaves as
//! if it had not been trapped, whatever call it is. The address to go on at lies on the stack, below the 128 bytes that the caller
//! may use without saying so (the red zone of the System V ABI), and `ret 128` leaves the stack as it was.
//!
//! Where a call makes a thread with a stack of its own, the child finds the address to go on at right below that stack's end.
#![allow(unsafe_code)]

use std::arch::global_asm;

/// Bytes below the stack pointer that a function may use without moving it.
pub(super) const RED_ZONE: u64 = 128;

global_asm!(
    ".pushsection .text.isolation_stub, \"ax\", @progbits",
    ".balign 64",
    ".globl isolation_stub_begin",
    ".hidden isolation_stub_begin",
    "isolation_stub_begin:",
    // What debuggers know a signal frame by: these two instructions, to the byte.
    ".globl isolation_stub_sigreturn",
    ".hidden isolation_stub_sigreturn",
    "isolation_stub_sigreturn:",
    "mov rax, 15",
    "syscall",
    "ud2",
    ".globl isolation_stub_resume",
    ".hidden isolation_stub_resume",
    "isolation_stub_resume:",
    "syscall",
    "ret 128",
    ".globl isolation_stub_clone",
    ".hidden isolation_stub_clone",
    "isolation_stub_clone:",
    "syscall",
    "test rax, rax",
    "jz 2f",
    "ret 128",
    "2:",
    "jmp qword ptr [rsp - 8]",
    // isolation_stub_call(number, a, b, c, d): for handlers.
    ".globl isolation_stub_call",
    ".hidden isolation_stub_call",
    "isolation_stub_call:",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "mov r10, r8",
    "syscall",
    "ret",
    ".globl isolation_stub_end",
    ".hidden isolation_stub_end",
    "isolation_stub_end:",
    ".popsection",
);

unsafe extern "C" {
    static isolation_stub_begin: u8;
    static isolation_stub_end: u8;
    fn isolation_stub_sigreturn();
    fn isolation_stub_resume();
    fn isolation_stub_clone();
    fn isolation_stub_call(number: i64, a: u64, b: u64, c: u64, d: u64) -> i64;
}

/// Where the stubs begin, and how many bytes they are.
pub(super) fn range() -> (u64, u64) {
    let (begin, end) = (&raw const isolation_stub_begin, &raw const isolation_stub_end);
    (begin as u64, end as u64 - begin as u64)
}

/// `rt_sigreturn(2)`: to be jumped to, as a handler's return address too.
pub(super) fn sigreturn() -> u64 {
    isolation_stub_sigreturn as *const () as u64
}

/// Makes the call that is in the registers, then returns over the red zone.
pub(super) fn resume() -> u64 {
    isolation_stub_resume as *const () as u64
}

/// The same for calls that make a thread with a stack of its own.
pub(super) fn clone() -> u64 {
    isolation_stub_clone as *const () as u64
}

/// A system call that is never trapped; gives what the kernel does, an errno as its negative.
///
/// # Safety
/// The call's own conditions hold.
pub(super) unsafe fn call(number: i64, a: u64, b: u64, c: u64, d: u64) -> i64 {
    // SAFETY: by the caller; the function keeps what the C ABI wants kept, and the kernel keeps the rest.
    unsafe { isolation_stub_call(number, a, b, c, d) }
}
