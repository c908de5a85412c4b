//! The critical sections: add, pop, push, reserve.
//!
//! Each begins by saying where it is (`rseq_cs`), reads the thread's index and looks up the slot, and ends with the one store that
//! makes it true: from the first to the last the index cannot change without an interruption. Interrupted before that store it has done nothing that anybody looks at; after it, it is over. What
//! lies between may only write where nobody looks: the caller's own buffer, and places of a stack above its length.
//!
//! `tests/abort.rs` interrupts each of them at every instruction.
#![allow(unsafe_code)]

use super::abi::{Area, CriticalSection};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::abi::{RSEQ_CS_OFFSET, SIGNATURE};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::sys::weak_address;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// How a section that did not get through ended.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The thread was interrupted: to be tried again.
    Interrupted,
    /// There is no slot for this index: a CPU that was unknown when the slots were made, or no CPU at all, in a thread without an area.
    Nowhere,
    /// A push found no room for all of it, a pop found nothing; or somebody else works on this slot.
    Full,
}

/// What the sections leave in their status register.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod status {
    pub(super) const DONE: u32 = 0;
    // 1 is for an interrupted one.
    pub(super) const NOWHERE: u32 = 2;
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
    /// Not 0 where a thread without sections was here since somebody last looked for idle slots.
    pub(crate) used: AtomicU32,
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

/// What a section finds its slot by.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The calling thread's area, or one that says "no CPU".
    pub(crate) area: *const Area,
    /// Where in it the index stands.
    pub(crate) field: usize,
    /// The address of each slot.
    pub(crate) table: *const usize,
    /// How many there are.
    pub(crate) count: u32,
}

/// What sections of a stack find instead of a slot that somebody else works on: it is full and empty, so nobody ever writes to it. The
/// length is compared without a sign by those who push, and with one by those who pop.
#[repr(C, align(64))]
pub(crate) struct Elsewhere([u32; 16]);

pub(crate) static FULL_AND_EMPTY: Elsewhere = {
    let mut words = [0; 16];
    words[std::mem::offset_of!(StackHeader, len_bytes) / size_of::<u32>()] = 1 << 31;
    Elsewhere(words)
};

/// What is before the first instruction, and where interrupted ones go. `3` is the descriptor, `4` to `5` the section, `6` behind it all. How a
/// refusal is told is up to the section: by what it does when it was interrupted, has no slot, or finds it full.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
macro_rules! section_telling {
    ($place:ident, [$($before:literal),*], [$interrupted:literal, $nowhere:literal, $full:literal], [$($body:literal),* $(,)?], $($operands:tt)*) => {
        std::arch::asm!(
            ".pushsection rseq_descriptors, \"aw\", @progbits",
            ".balign 32",
            "3:",
            ".long 0, 0",
            ".quad 4f, 5f - 4f, 44f",
            ".popsection",
            $($before,)*
            "lea {scratch}, [rip + 3b]",
            "mov qword ptr [{area} + {RSEQ_CS}], {scratch}",
            "4:",
            "mov {slot:e}, dword ptr [{area} + {field}]",
            "cmp {slot:e}, {count:e}",
            "jae 8f",
            "mov {slot}, qword ptr [{table} + {slot} * 8]",
            $($body,)*
            "5:",
            ".pushsection rseq_aborts, \"ax\", @progbits",
            // ud1 edi, [rip + SIGNATURE], which disassemblers can read.
            ".byte 0x0f, 0xb9, 0x3d",
            ".long {SIGNATURE}",
            "44:",
            $interrupted,
            "jmp 6f",
            "8:",
            $nowhere,
            "jmp 6f",
            "9:",
            $full,
            "jmp 6f",
            ".popsection",
            "6:",
            RSEQ_CS = const RSEQ_CS_OFFSET,
            SIGNATURE = const SIGNATURE,
            area = in(reg) $place.area,
            field = in(reg) $place.field,
            table = in(reg) $place.table,
            count = in(reg) $place.count,
            slot = out(reg) _,
            scratch = out(reg) _,
            $($operands)*
            options(nostack),
        )
    };
}

/// A section that says in its status register how it ended: numbers of [`status`].
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
macro_rules! section {
    ($place:ident, [$($body:literal),* $(,)?], $($operands:tt)*) => {
        section_telling!(
            $place,
            ["xor {status:e}, {status:e}"],
            ["mov {status:e}, 1", "mov {status:e}, 2", "mov {status:e}, 3"],
            [$($body),*],
            $($operands)*
        )
    };
}

/// A section that goes to the label `refused`, whatever the reason: it has nothing else to hand out, and its caller tries again another way.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
macro_rules! section_or_refused {
    ($place:ident, [$($body:literal),* $(,)?], $($operands:tt)*) => {
        section_telling!(
            $place,
            [],
            ["jmp {refused}", "jmp {refused}", "jmp {refused}"],
            [$($body),*],
            $($operands)*
        )
    };
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn refused(status: u32) -> Refused {
    match status {
        status::NOWHERE => Refused::Nowhere,
        status::FULL => Refused::Full,
        _ => Refused::Interrupted,
    }
}

/// Adds to the number at `offset` in the slot; false where it did not get through.
///
/// # Safety
/// `place` is the calling thread's, and its slots have an aligned number at `offset`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline(always)]
pub(crate) unsafe fn add(place: Place, offset: usize, value: u64) -> bool {
    // SAFETY: writes the area's rseq_cs, which is this thread's to write, and one live number. An aligned store is not torn for those
    // who read it as an atomic, and the kernel lets no other thread of this index in between.
    unsafe {
        section_or_refused!(
            place,
            ["add qword ptr [{slot} + {offset}], {value}"],
            offset = in(reg) offset,
            value = in(reg) value,
            refused = label { return false },
        );
    }
    true
}

/// Moves up to `want_bytes` (a multiple of 4) from the top of a stack to `to`, the lowest first, and says how many; one that is empty is refused
/// as [`Refused::Full`].
///
/// # Safety
/// `place` is the calling thread's, its slots have as many bytes of items behind a header as its length ever says; `to` has room for
/// `want_bytes`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline(always)]
pub(crate) unsafe fn pop(place: Place, to: *mut u8, want_bytes: u32) -> Result<u32, Refused> {
    let status: u32;
    let mut taken = want_bytes;
    // SAFETY: reads below the slot's length, writes the caller's buffer, and then the length.
    unsafe {
        section!(
            place,
            [
                "mov {left:e}, dword ptr [{slot} + 4]",
                "test {left:e}, {left:e}",
                "jle 9f",
                "cmp {taken:e}, {left:e}",
                "cmova {taken:e}, {left:e}",
                "sub {left:e}, {taken:e}",
                "lea {from}, [{slot} + {left} + 64]",
                "mov {scratch:e}, {taken:e}",
                // The odd items at the end, then sixteen bytes at a time.
                "22:",
                "test {scratch:e}, 12",
                "jz 23f",
                "sub {scratch:e}, 4",
                "movd {wide}, dword ptr [{from} + {scratch}]",
                "movd dword ptr [{to} + {scratch}], {wide}",
                "jmp 22b",
                "23:",
                "test {scratch:e}, {scratch:e}",
                "jz 25f",
                "24:",
                "movups {wide}, xmmword ptr [{from} + {scratch} - 16]",
                "movups xmmword ptr [{to} + {scratch} - 16], {wide}",
                "sub {scratch:e}, 16",
                "jnz 24b",
                "25:",
                "mov dword ptr [{slot} + 4], {left:e}",
            ],
            to = in(reg) to,
            taken = inout(reg) taken,
            left = out(reg) _,
            from = out(reg) _,
            wide = out(xmm_reg) _,
            status = out(reg) status,
        );
    }
    if status == status::DONE { Ok(taken) } else { Err(refused(status)) }
}

/// Moves `bytes` (a multiple of 4) from `from` to the top of a stack: all of them or none.
///
/// # Safety
/// `place` is the calling thread's, its slots have `capacity_bytes` of items behind a header; `from` has `bytes`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline(always)]
pub(crate) unsafe fn push(
    place: Place,
    capacity_bytes: u32,
    from: *const u8,
    bytes: u32,
) -> Result<(), Refused> {
    let status: u32;
    // SAFETY: reads the caller's items, writes between the slot's length and its capacity, and then the length.
    unsafe {
        section!(
            place,
            [
                "mov {end:e}, dword ptr [{slot} + 4]",
                "lea {to}, [{slot} + {end} + 64]",
                "add {end:e}, {rest:e}",
                "cmp {end:e}, {capacity:e}",
                "ja 9f",
                "22:",
                "test {rest:e}, 12",
                "jz 23f",
                "sub {rest:e}, 4",
                "movd {wide}, dword ptr [{from} + {rest}]",
                "movd dword ptr [{to} + {rest}], {wide}",
                "jmp 22b",
                "23:",
                "test {rest:e}, {rest:e}",
                "jz 25f",
                "24:",
                "movups {wide}, xmmword ptr [{from} + {rest} - 16]",
                "movups xmmword ptr [{to} + {rest} - 16], {wide}",
                "sub {rest:e}, 16",
                "jnz 24b",
                "25:",
                "mov dword ptr [{slot} + 4], {end:e}",
            ],
            capacity = in(reg) capacity_bytes,
            from = in(reg) from,
            rest = inout(reg) u64::from(bytes) => _,
            end = out(reg) _,
            to = out(reg) _,
            wide = out(xmm_reg) _,
            status = out(reg) status,
        );
    }
    if status == status::DONE { Ok(()) } else { Err(refused(status)) }
}

/// [`pop`] of one item of 4 or 8 bytes, in a register: so that an item that was just pushed does not go through memory twice. `None` where
/// the stack is empty, or the section did not get through.
///
/// # Safety
/// As for [`pop`], and the stack's items are of `T`'s size.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline(always)]
pub(crate) unsafe fn pop_one<T: Copy>(place: Place) -> Option<T> {
    let item: u64;
    // SAFETY: reads the item below the slot's length, and writes the length.
    unsafe {
        if const { size_of::<T>() == 4 } {
            // What no item of 32 bits is says that there is none.
            section_telling!(
                place,
                [],
                ["mov {item}, -1", "mov {item}, -1", "mov {item}, -1"],
                [
                    "mov {left:e}, dword ptr [{slot} + 4]",
                    "sub {left:e}, 4",
                    "jl 9f",
                    "mov {item:e}, dword ptr [{slot} + {left} + 64]",
                    "mov dword ptr [{slot} + 4], {left:e}",
                ],
                left = out(reg) _,
                item = out(reg) item,
            );
            if item == u64::MAX {
                return None;
            }
        } else {
            let status: u32;
            section!(
                place,
                [
                    "mov {left:e}, dword ptr [{slot} + 4]",
                    "sub {left:e}, 8",
                    "jl 9f",
                    "mov {item}, qword ptr [{slot} + {left} + 64]",
                    "mov dword ptr [{slot} + 4], {left:e}",
                ],
                left = out(reg) _,
                item = out(reg) item,
                status = out(reg) status,
            );
            if status != status::DONE {
                return None;
            }
        }
        // The low bytes of the register, which come first on this architecture.
        Some((&raw const item).cast::<T>().read())
    }
}

/// [`push`] of one item of 4 or 8 bytes, from a register; false where the section did not get through, or there is no room.
///
/// # Safety
/// As for [`push`], and the stack's items are of `T`'s size.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline(always)]
pub(crate) unsafe fn push_one<T: Copy>(place: Place, capacity_bytes: u32, item: T) -> bool {
    // SAFETY: writes one item between the slot's length and its capacity, and the length; an item is a plain number of 4 or 8 bytes.
    unsafe {
        if const { size_of::<T>() == 4 } {
            section_or_refused!(
                place,
                [
                    "mov {end:e}, dword ptr [{slot} + 4]",
                    "cmp {end:e}, {capacity:e}",
                    "jae 9f",
                    "mov dword ptr [{slot} + {end} + 64], {item:e}",
                    "add {end:e}, 4",
                    "mov dword ptr [{slot} + 4], {end:e}",
                ],
                capacity = in(reg) capacity_bytes,
                item = in(reg) std::mem::transmute_copy::<T, u32>(&item),
                end = out(reg) _,
                refused = label { return false },
            );
        } else {
            section_or_refused!(
                place,
                [
                    "mov {end:e}, dword ptr [{slot} + 4]",
                    "cmp {end:e}, {capacity:e}",
                    "jae 9f",
                    "mov qword ptr [{slot} + {end} + 64], {item}",
                    "add {end:e}, 8",
                    "mov dword ptr [{slot} + 4], {end:e}",
                ],
                capacity = in(reg) capacity_bytes,
                item = in(reg) std::mem::transmute_copy::<T, u64>(&item),
                end = out(reg) _,
                refused = label { return false },
            );
        }
    }
    true
}

/// Reserves `bytes` of a log, and says where: the slot, and the count of bytes reserved before.
///
/// # Safety
/// `place` is the calling thread's, and its slots begin with a header.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline(always)]
pub(crate) unsafe fn reserve(
    place: Place,
    capacity_bytes: u64,
    bytes: u64,
) -> Result<(*mut u8, u64), Refused> {
    let status: u32;
    let at: u64;
    let slot_out: *mut u8;
    // SAFETY: reads the slot's two counts and writes the first.
    unsafe {
        section!(
            place,
            [
                "mov {at}, qword ptr [{slot}]",
                "lea {end}, [{at} + {bytes}]",
                "mov {scratch}, {end}",
                "sub {scratch}, qword ptr [{slot} + 8]",
                "cmp {scratch}, {capacity}",
                "ja 9f",
                "mov {found}, {slot}",
                "mov qword ptr [{slot}], {end}",
            ],
            capacity = in(reg) capacity_bytes,
            bytes = in(reg) bytes,
            at = out(reg) at,
            found = out(reg) slot_out,
            end = out(reg) _,
            status = out(reg) status,
        );
    }
    if status == status::DONE { Ok((slot_out, at)) } else { Err(refused(status)) }
}

/// Elsewhere there are none: no thread is ever registered, and if it were, it would take the shared path.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod none {
    use super::{Place, Refused};

    pub(crate) unsafe fn add(_: Place, _: usize, _: u64) -> bool {
        false
    }

    pub(crate) unsafe fn pop(_: Place, _: *mut u8, _: u32) -> Result<u32, Refused> {
        Err(Refused::Nowhere)
    }

    pub(crate) unsafe fn pop_one<T: Copy>(_: Place) -> Option<T> {
        None
    }

    pub(crate) unsafe fn push(_: Place, _: u32, _: *const u8, _: u32) -> Result<(), Refused> {
        Err(Refused::Nowhere)
    }

    pub(crate) unsafe fn push_one<T: Copy>(_: Place, _: u32, _: T) -> bool {
        false
    }

    pub(crate) unsafe fn reserve(_: Place, _: u64, _: u64) -> Result<(*mut u8, u64), Refused> {
        Err(Refused::Nowhere)
    }
}
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) use none::{add, pop, pop_one, push, push_one, reserve};

/// Every critical section of this program, inlined copies too: for debuggers, which must not stop in one, and for tests, which do.
pub fn critical_sections() -> &'static [CriticalSection] {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        // The linker puts these symbols around the section of that name; in a program without one they are null.
        let start = weak_address!("__start_rseq_descriptors").cast::<CriticalSection>();
        let stop = weak_address!("__stop_rseq_descriptors").cast::<CriticalSection>();
        if start.is_null() {
            return &[];
        }
        // SAFETY: whole descriptors lie between them, and nobody writes them.
        unsafe { std::slice::from_raw_parts(start, stop.offset_from_unsigned(start)) }
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    &[]
}
