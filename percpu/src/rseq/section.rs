//! The critical sections: add, pop, push, reserve.
//!
//! Each begins by saying where it is (`rseq_cs`), makes sure that the thread still has the index that the address was made with, and ends with the
//! one store that makes it true. Interrupted before that store it has done nothing that anybody looks at; after it, it is over. What
//! lies between may only write where nobody looks: the caller's own buffer, and places of a stack above its length.
//!
//! `tests/abort.rs` interrupts each of them at every instruction.
#![allow(unsafe_code)]

use super::abi::CriticalSection;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::abi::{RSEQ_CS_OFFSET, SIGNATURE};
use super::thread::Here;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// How a section that did not get through ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The thread was interrupted, or has another index by now: to be tried again.
    Interrupted,
    /// Somebody else works on this slot.
    Claimed,
    /// There is no room for all of it.
    Full,
}

/// What the sections leave in their status register.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod status {
    pub(super) const DONE: u32 = 0;
    pub(super) const CLAIMED: u32 = 2;
    pub(super) const FULL: u32 = 3;
}

/// The first 64 bytes of a stack's slot; its items follow.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct StackHeader {
    /// Not 0 while a thread works on the slot from outside: see `claim.rs`.
    pub(crate) claim: crate::claim::Claim,
    /// Bytes of items. Storing it is what commits a push or a pop.
    pub(crate) len_bytes: AtomicU32,
    /// Not 0 while somebody asks the slot's own threads to empty it.
    pub(crate) requested: AtomicU32,
}

/// Where a log's slot stands.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct LogHeader {
    /// Bytes ever reserved. Storing it is what commits a reservation.
    pub(crate) head: AtomicU64,
    /// Bytes ever read and given free again.
    pub(crate) tail: AtomicU64,
    /// Taken by the one who reads.
    pub(crate) reader: crate::claim::Claim,
}

/// What is before the first instruction, and where interrupted ones go. `3` is the descriptor, `4` to `5` the section, `6` behind it all.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
macro_rules! section {
    ([$($body:literal),* $(,)?], $($operands:tt)*) => {
        std::arch::asm!(
            ".pushsection rseq_descriptors, \"aw\", @progbits",
            ".balign 32",
            "3:",
            ".long 0, 0",
            ".quad 4f, 5f - 4f, 44f",
            ".popsection",
            "xor {status:e}, {status:e}",
            "lea {scratch}, [rip + 3b]",
            "mov qword ptr [{area} + {RSEQ_CS}], {scratch}",
            "4:",
            "cmp dword ptr [{index_at}], {index:e}",
            "jne 7f",
            $($body,)*
            "5:",
            ".pushsection rseq_aborts, \"ax\", @progbits",
            // ud1 edi, [rip + SIGNATURE], which disassemblers can read.
            ".byte 0x0f, 0xb9, 0x3d",
            ".long {SIGNATURE}",
            "44:",
            "7:",
            "mov {status:e}, 1",
            "jmp 6f",
            "8:",
            "mov {status:e}, {CLAIMED}",
            "jmp 6f",
            "9:",
            "mov {status:e}, {FULL}",
            "jmp 6f",
            ".popsection",
            "6:",
            RSEQ_CS = const RSEQ_CS_OFFSET,
            SIGNATURE = const SIGNATURE,
            CLAIMED = const status::CLAIMED,
            FULL = const status::FULL,
            $($operands)*
            options(nostack),
        )
    };
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn refused(status: u32) -> Refused {
    match status {
        status::CLAIMED => Refused::Claimed,
        status::FULL => Refused::Full,
        _ => Refused::Interrupted,
    }
}

/// Adds to a number of this index's slot.
///
/// # Safety
/// `here` is the calling thread's, and `number` lives in the slot of its index.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline(always)]
pub(crate) unsafe fn add(here: Here, number: *const AtomicU64, value: u64) -> Result<(), Refused> {
    let status: u32;
    // SAFETY: writes the area's rseq_cs, which is this thread's to write, and one live number. An aligned store is not torn for those
    // who read it as an atomic, and the kernel lets no other thread of this index in between.
    unsafe {
        section!(
            ["add qword ptr [{number}], {value}"],
            area = in(reg) here.area,
            index_at = in(reg) here.index_at,
            index = in(reg) here.index,
            number = in(reg) number,
            value = in(reg) value,
            scratch = out(reg) _,
            status = out(reg) status,
        );
    }
    if status == status::DONE { Ok(()) } else { Err(refused(status)) }
}

/// Moves up to `want_bytes` (a multiple of 4) from the top of a stack to `to`, the lowest first, and says how many.
///
/// # Safety
/// `here` is the calling thread's, `slot` its index's, with as many bytes of items behind its header as its length ever says; `to` has
/// room for `want_bytes`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline(always)]
pub(crate) unsafe fn pop(
    here: Here,
    slot: *const StackHeader,
    to: *mut u8,
    want_bytes: u32,
) -> Result<u32, Refused> {
    let status: u32;
    let mut taken = want_bytes;
    // SAFETY: reads below the slot's length, writes the caller's buffer, and then the length.
    unsafe {
        section!(
            [
                "cmp dword ptr [{slot}], 0",
                "jne 8f",
                "mov {left:e}, dword ptr [{slot} + 4]",
                "cmp {taken:e}, {left:e}",
                "cmova {taken:e}, {left:e}",
                "sub {left:e}, {taken:e}",
                "lea {from}, [{slot} + {left} + 64]",
                "mov {scratch:e}, {taken:e}",
                "sub {scratch:e}, 16",
                "jb 22f",
                "23:",
                "movups {wide}, xmmword ptr [{from}]",
                "movups xmmword ptr [{to}], {wide}",
                "add {from}, 16",
                "add {to}, 16",
                "sub {scratch:e}, 16",
                "jae 23b",
                "22:",
                "add {scratch:e}, 16",
                "jz 25f",
                "24:",
                "movd {wide}, dword ptr [{from}]",
                "movd dword ptr [{to}], {wide}",
                "add {from}, 4",
                "add {to}, 4",
                "sub {scratch:e}, 4",
                "jnz 24b",
                "25:",
                "mov dword ptr [{slot} + 4], {left:e}",
            ],
            area = in(reg) here.area,
            index_at = in(reg) here.index_at,
            index = in(reg) here.index,
            slot = in(reg) slot,
            to = inout(reg) to => _,
            taken = inout(reg) taken,
            left = out(reg) _,
            from = out(reg) _,
            wide = out(xmm_reg) _,
            scratch = out(reg) _,
            status = out(reg) status,
        );
    }
    if status == status::DONE { Ok(taken) } else { Err(refused(status)) }
}

/// Moves `bytes` (a multiple of 4) from `from` to the top of a stack: all of them or none.
///
/// # Safety
/// `here` is the calling thread's, `slot` its index's, with `capacity_bytes` of items behind its header; `from` has `bytes`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline(always)]
pub(crate) unsafe fn push(
    here: Here,
    slot: *const StackHeader,
    capacity_bytes: u32,
    from: *const u8,
    bytes: u32,
) -> Result<(), Refused> {
    let status: u32;
    // SAFETY: reads the caller's items, writes between the slot's length and its capacity, and then the length.
    unsafe {
        section!(
            [
                "cmp dword ptr [{slot}], 0",
                "jne 8f",
                "mov {end:e}, dword ptr [{slot} + 4]",
                "lea {to}, [{slot} + {end} + 64]",
                "add {end:e}, {rest:e}",
                "cmp {end:e}, {capacity:e}",
                "ja 9f",
                "sub {rest:e}, 16",
                "jb 22f",
                "23:",
                "movups {wide}, xmmword ptr [{from}]",
                "movups xmmword ptr [{to}], {wide}",
                "add {from}, 16",
                "add {to}, 16",
                "sub {rest:e}, 16",
                "jae 23b",
                "22:",
                "add {rest:e}, 16",
                "jz 25f",
                "24:",
                "movd {wide}, dword ptr [{from}]",
                "movd dword ptr [{to}], {wide}",
                "add {from}, 4",
                "add {to}, 4",
                "sub {rest:e}, 4",
                "jnz 24b",
                "25:",
                "mov dword ptr [{slot} + 4], {end:e}",
            ],
            area = in(reg) here.area,
            index_at = in(reg) here.index_at,
            index = in(reg) here.index,
            slot = in(reg) slot,
            capacity = in(reg) capacity_bytes,
            from = inout(reg) from => _,
            rest = inout(reg) bytes => _,
            end = out(reg) _,
            to = out(reg) _,
            wide = out(xmm_reg) _,
            scratch = out(reg) _,
            status = out(reg) status,
        );
    }
    if status == status::DONE { Ok(()) } else { Err(refused(status)) }
}

/// Reserves `bytes` of a log, and says where: the count of bytes reserved before.
///
/// # Safety
/// `here` is the calling thread's and `slot` its index's.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline(always)]
pub(crate) unsafe fn reserve(
    here: Here,
    slot: *const LogHeader,
    capacity_bytes: u64,
    bytes: u64,
) -> Result<u64, Refused> {
    let status: u32;
    let at: u64;
    // SAFETY: reads the slot's two counts and writes the first.
    unsafe {
        section!(
            [
                "mov {at}, qword ptr [{slot}]",
                "lea {end}, [{at} + {bytes}]",
                "mov {scratch}, {end}",
                "sub {scratch}, qword ptr [{slot} + 8]",
                "cmp {scratch}, {capacity}",
                "ja 9f",
                "mov qword ptr [{slot}], {end}",
            ],
            area = in(reg) here.area,
            index_at = in(reg) here.index_at,
            index = in(reg) here.index,
            slot = in(reg) slot,
            capacity = in(reg) capacity_bytes,
            bytes = in(reg) bytes,
            at = out(reg) at,
            end = out(reg) _,
            scratch = out(reg) _,
            status = out(reg) status,
        );
    }
    if status == status::DONE { Ok(at) } else { Err(refused(status)) }
}

/// Elsewhere there are none: no thread is ever registered, and if it were, it would take the shared path.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod none {
    use super::*;

    pub(crate) unsafe fn add(_: Here, _: *const AtomicU64, _: u64) -> Result<(), Refused> {
        Err(Refused::Claimed)
    }

    pub(crate) unsafe fn pop(_: Here, _: *const StackHeader, _: *mut u8, _: u32) -> Result<u32, Refused> {
        Err(Refused::Claimed)
    }

    pub(crate) unsafe fn push(
        _: Here,
        _: *const StackHeader,
        _: u32,
        _: *const u8,
        _: u32,
    ) -> Result<(), Refused> {
        Err(Refused::Claimed)
    }

    pub(crate) unsafe fn reserve(_: Here, _: *const LogHeader, _: u64, _: u64) -> Result<u64, Refused> {
        Err(Refused::Claimed)
    }
}
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) use none::{add, pop, push, reserve};

/// Every critical section of this program, inlined copies too: for debuggers, which must not stop in one, and for tests, which do.
pub fn critical_sections() -> &'static [CriticalSection] {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        let (start, stop): (*const CriticalSection, *const CriticalSection);
        // SAFETY: two loads from the linker's table of addresses. It puts these symbols around the section of that name; in a program
        // without one they are weak, and null.
        unsafe {
            std::arch::asm!(
                ".weak __start_rseq_descriptors",
                ".weak __stop_rseq_descriptors",
                "mov {start}, qword ptr [rip + __start_rseq_descriptors@GOTPCREL]",
                "mov {stop}, qword ptr [rip + __stop_rseq_descriptors@GOTPCREL]",
                start = out(reg) start,
                stop = out(reg) stop,
                options(nostack, preserves_flags, readonly),
            );
        }
        if start.is_null() {
            return &[];
        }
        // SAFETY: whole descriptors lie between them, and nobody writes them.
        unsafe { std::slice::from_raw_parts(start, stop.offset_from_unsigned(start)) }
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    &[]
}
