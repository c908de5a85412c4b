//! The system calls every kind of port and the packet memory need, one thin function each.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `memfd_create(2)`: an anonymous file that vanishes with its last descriptor and mapping.
pub(crate) fn memfd_create(name: &CStr, flags: libc::c_uint) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a NUL-terminated string the kernel only reads.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `ftruncate(2)` and `fallocate(2)`: sets a file's size and gets its pages now, so that a machine without
/// enough of them says so here and not by SIGBUS at the first touch.
pub(crate) fn allocate_file(file: BorrowedFd<'_>, length: usize) -> io::Result<()> {
    let length = libc::off_t::try_from(length).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: acts on a descriptor the borrow keeps open; no memory is passed.
    check(unsafe { libc::ftruncate(file.as_raw_fd(), length) })?;
    // SAFETY: as above.
    check(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) })?;
    Ok(())
}

/// `mmap(2)` of `length` bytes of address space with nothing behind it: no memory, no access.
pub(crate) fn reserve(length: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping at an address of the kernel's choice overlays nothing that exists.
    unsafe { map(ptr::null_mut(), length, libc::PROT_NONE, RESERVED, (-1, 0)) }
}

const RESERVED: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// `mmap(2)` of the first `length` bytes of `file` at `address`: shared, readable and writable, populated.
///
/// # Safety
/// The range is inside one that [`reserve`] gave, and nobody else maps anything there.
pub(crate) unsafe fn map_reserved(
    address: NonNull<u8>,
    length: usize,
    file: BorrowedFd<'_>,
) -> io::Result<()> {
    let flags = libc::MAP_SHARED | libc::MAP_POPULATE | libc::MAP_FIXED;
    // SAFETY: the caller's promise: what MAP_FIXED replaces is reserved address space that nothing refers to.
    unsafe {
        map(address.as_ptr(), length, libc::PROT_READ | libc::PROT_WRITE, flags, (file.as_raw_fd(), 0))
    }?;
    Ok(())
}

/// `mmap(2)` that turns a range of [`map_reserved`] into reserved address space again.
///
/// # Safety
/// The range is that of one [`map_reserved`] call, and nothing refers to its memory any more.
pub(crate) unsafe fn unmap_reserved(address: NonNull<u8>, length: usize) {
    // SAFETY: the caller's promise. It cannot fail but for want of kernel memory; the range then stays mapped.
    let _ = unsafe { map(address.as_ptr(), length, libc::PROT_NONE, RESERVED | libc::MAP_FIXED, (-1, 0)) };
}

/// `mmap(2)` of `length` bytes of `file` from `offset` at an address of the kernel's choice: shared, readable and
/// writable, populated.
pub(crate) fn map_shared(file: BorrowedFd<'_>, length: usize, offset: i64) -> io::Result<NonNull<u8>> {
    let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
    // SAFETY: without MAP_FIXED it overlays nothing that exists.
    unsafe {
        map(ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, (file.as_raw_fd(), offset))
    }
}

/// `munmap(2)`.
///
/// # Safety
/// `address` and `length` are those of one [`map_shared`] call, and nothing refers to the memory any more.
pub(crate) unsafe fn unmap(address: NonNull<u8>, length: usize) {
    // SAFETY: the caller's promise is what munmap needs; it can then only fail on a wrong argument.
    unsafe { libc::munmap(address.as_ptr().cast(), length) };
}

/// # Safety
/// With MAP_FIXED in `flags`, the range may be replaced.
unsafe fn map(
    address: *mut u8,
    length: usize,
    protection: libc::c_int,
    flags: libc::c_int,
    (fd, offset): (libc::c_int, i64),
) -> io::Result<NonNull<u8>> {
    // SAFETY: the caller's promise; without MAP_FIXED nothing existing is touched.
    let address = unsafe { libc::mmap(address.cast(), length, protection, flags, fd, offset) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}
