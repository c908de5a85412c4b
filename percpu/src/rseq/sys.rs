//! The system calls of restartable sequences, and where the C library keeps its own registration.
#![allow(unsafe_code)]

use super::abi::{AREA_BYTES, AT_RSEQ_FEATURE_SIZE, Area, FLAG_UNREGISTER, SIGNATURE};
use std::io;

/// The address of a symbol that the program need not have, as `*const u8`; null where it has none.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
macro_rules! weak_address {
    ($name:literal) => {{
        let address: *const u8;
        // SAFETY: a load from the table of addresses that the linker makes; an unresolved weak symbol's entry is 0.
        unsafe {
            std::arch::asm!(
                concat!(".weak ", $name),
                concat!("mov {address}, qword ptr [rip + ", $name, "@GOTPCREL]"),
                address = out(reg) address,
                options(nostack, preserves_flags, readonly),
            );
        }
        address
    }};
}
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use weak_address;

/// `rseq(2)`: from now on the kernel keeps the calling thread's `area` up to date.
///
/// # Safety
/// `area` stays where it is until the thread has called [`unregister`] or has ended.
pub(crate) unsafe fn register(area: *const Area) -> io::Result<()> {
    // SAFETY: the area is live and stays so, by the caller's promise; it is made of atomics, which may change under us.
    match unsafe { libc::syscall(libc::SYS_rseq, area, AREA_BYTES, 0, SIGNATURE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes back what [`register`] did.
pub(crate) fn unregister(area: *const Area) {
    // SAFETY: the kernel only compares the address with the one it knows for this thread, and forgets it.
    unsafe { libc::syscall(libc::SYS_rseq, area, AREA_BYTES, FLAG_UNREGISTER, SIGNATURE) };
}

/// Bytes of the area that this kernel fills; 0 where it does not say.
pub(crate) fn feature_size() -> u64 {
    // SAFETY: reads a table that the kernel gave the process; an entry it does not have is 0.
    unsafe { libc::getauxval(AT_RSEQ_FEATURE_SIZE) }
}

/// The calling thread's area that the C library has registered; `None` where it has not.
pub(crate) fn of_the_c_library() -> Option<*const Area> {
    let [offset, size] = c_library_symbols()?;
    // SAFETY: not null, so they are glibc's `const ptrdiff_t __rseq_offset` and `const unsigned int __rseq_size`, which
    // are set before main.
    let (offset, size) = unsafe { (offset.cast::<isize>().read(), size.cast::<u32>().read()) };
    (size > 0).then(|| thread_pointer().wrapping_offset(offset).cast())
}

/// The addresses of `__rseq_offset` and `__rseq_size`, looked up at run time: glibc has them from 2.35 on.
#[cfg(all(target_os = "linux", target_env = "gnu", not(target_feature = "crt-static")))]
fn c_library_symbols() -> Option<[*const u8; 2]> {
    let addresses = [c"__rseq_offset", c"__rseq_size"].map(|name| {
        // SAFETY: the name is NUL-terminated; looking up a variable runs no code of anybody's.
        unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }.cast_const().cast::<u8>()
    });
    addresses.iter().all(|address| !address.is_null()).then_some(addresses)
}

/// The same in a static program, which has no dlsym(3) worth the name: weak symbols, which are null where there are none.
#[cfg(all(
    target_os = "linux",
    target_arch = "x86_64",
    any(target_feature = "crt-static", not(target_env = "gnu"))
))]
fn c_library_symbols() -> Option<[*const u8; 2]> {
    let (offset, size) = (weak_address!("__rseq_offset"), weak_address!("__rseq_size"));
    (!offset.is_null() && !size.is_null()).then_some([offset, size])
}

#[cfg(not(any(
    all(target_os = "linux", target_env = "gnu", not(target_feature = "crt-static")),
    all(target_os = "linux", target_arch = "x86_64")
)))]
fn c_library_symbols() -> Option<[*const u8; 2]> {
    None
}

#[cfg(target_arch = "x86_64")]
fn thread_pointer() -> *const u8 {
    let pointer;
    // SAFETY: the x86-64 ABI has the thread control block's own address as its first word, at fs:0.
    unsafe {
        std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, preserves_flags, readonly, pure))
    };
    pointer
}

#[cfg(not(target_arch = "x86_64"))]
fn thread_pointer() -> *const u8 {
    // Never used: without critical sections for this architecture there is no registration.
    std::ptr::null()
}
