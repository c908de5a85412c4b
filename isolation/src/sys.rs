//! The system calls of this crate outside of strict mode, one thin function each.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `linux/mount.h`.
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
/// `asm-generic/mman-common.h`.
const MADV_POPULATE_READ: libc::c_int = 22;
const MADV_POPULATE_WRITE: libc::c_int = 23;

fn result(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

fn own(fd: libc::c_long) -> OwnedFd {
    // SAFETY: every caller has it new from the kernel, and gives it to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }
}

/// Mounts a file system on a descriptor and nowhere else: `fsopen(2)`, `fsconfig(2)`, `fsmount(2)`.
pub(crate) fn mount_alone(file_system: &str) -> io::Result<OwnedFd> {
    let name = CString::new(file_system)?;
    // SAFETY: the name is a live string, which the kernel only reads.
    let context = own(result(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) })?);
    // SAFETY: creating takes neither key nor value.
    result(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, 0, 0, 0) })?;
    // SAFETY: takes no memory.
    Ok(own(result(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })?))
}

/// Opens a file below a folder, to read.
pub(crate) fn open_below(folder: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let path = CString::new(path)?;
    // SAFETY: the path is a live string, which the kernel only reads.
    let fd = unsafe { libc::openat(folder.as_raw_fd(), path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    result(fd.into()).map(own)
}

/// `mlock(2)`: pages of this range stay where they are, and are there now.
pub(crate) fn lock(range: &Range<u64>) -> io::Result<()> {
    // SAFETY: changes no content and no protection of any page.
    result(
        unsafe { libc::mlock(range.start as *const libc::c_void, (range.end - range.start) as usize) }.into(),
    )
    .map(drop)
}

/// Makes the pages of a range present, writable ones as if they had been written to.
pub(crate) fn populate(range: &Range<u64>, writable: bool) -> io::Result<()> {
    let advice = if writable { MADV_POPULATE_WRITE } else { MADV_POPULATE_READ };
    advise(range, advice)
}

/// Keeps a range from children by fork, or lets them have it again: without it, writing to a page that a child shares is a fault.
pub(crate) fn keep_from_children(range: &Range<u64>, keep: bool) -> io::Result<()> {
    advise(range, if keep { libc::MADV_DONTFORK } else { libc::MADV_DOFORK })
}

fn advise(range: &Range<u64>, advice: libc::c_int) -> io::Result<()> {
    let (start, bytes) = (range.start as *mut libc::c_void, (range.end - range.start) as usize);
    // SAFETY: none of the advices in this file changes what the program reads in its own memory.
    result(unsafe { libc::madvise(start, bytes, advice) }.into()).map(drop)
}

/// Keeps the C library's heap from giving memory back to the kernel, from maps of its own, and from more than one arena: each would
/// interrupt every CPU that this process runs on.
#[cfg(target_env = "gnu")]
pub(crate) fn keep_heap() {
    const MIB: libc::c_int = 1 << 20;
    // SAFETY: sets four numbers of the allocator's; values out of its range are refused without effect.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 * MIB);
        libc::mallopt(libc::M_TOP_PAD, 16 * MIB);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Other C libraries have no such settings.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_heap() {}
