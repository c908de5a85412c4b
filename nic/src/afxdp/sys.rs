//! Every system call of the AF_XDP driver, one thin function each.
#![allow(unsafe_code)]

use super::abi::Plain;
use std::ffi::OsString;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr::{self, NonNull};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `socket(2)`, close-on-exec.
pub(crate) fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `setsockopt(2)`.
pub(crate) fn set_option<T: Plain>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: `value` is size_of::<T>() readable bytes without padding.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// `getsockopt(2)`; an answer shorter than `T` is an error.
pub(crate) fn option<T: Plain>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which `value` has.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length)
    })?;
    if length as usize != size_of::<T>() {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    // SAFETY: zeroed, then filled by the kernel; every bit pattern is a T (Plain).
    Ok(unsafe { value.assume_init() })
}

/// `bind(2)` of an AF_XDP socket.
pub(crate) fn bind_xdp(fd: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    // SAFETY: the kernel reads size_of::<sockaddr_xdp>() bytes, which the reference has.
    check(unsafe {
        libc::bind(
            fd.as_raw_fd(),
            ptr::from_ref(address).cast(),
            size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// `sendto(2)` without data: lets the kernel look at the transmit ring.
#[inline]
pub(crate) fn wake_tx(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let sent = unsafe {
        libc::sendto(fd.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL, ptr::null(), 0)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `recvfrom(2)` without room: lets the kernel look at the fill ring, and busy-polls where the socket is set to.
#[inline]
pub(crate) fn wake_rx(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let received = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    if received < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `ioctl(2)` with a `struct ifreq`.
pub(crate) fn interface_request(
    fd: BorrowedFd<'_>,
    request: libc::c_ulong,
    argument: &mut libc::ifreq,
) -> io::Result<()> {
    // SAFETY: the network device requests used here read and write one ifreq; those whose ifreq holds an address go
    // through `ethtool`, which answers for it.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, ptr::from_mut(argument)) })?;
    Ok(())
}

/// An empty `struct ifreq` for the interface called `name`, which must be shorter than `IFNAMSIZ`.
pub(crate) fn interface_argument(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq is integers and a union of integers, addresses and bytes: zero is a value of each.
    let mut argument: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= argument.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in argument.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(argument)
}

/// The integer that an `ifreq` came back with (`ifr_ifindex`, `ifr_mtu`).
pub(crate) fn argument_number(argument: &libc::ifreq) -> i32 {
    // SAFETY: all union fields are plain bytes, initialised by `interface_argument`.
    unsafe { argument.ifr_ifru.ifru_mtu }
}

/// Puts an integer into an `ifreq`.
pub(crate) fn set_argument_number(argument: &mut libc::ifreq, number: i32) {
    argument.ifr_ifru.ifru_mtu = number;
}

/// The flags that an `ifreq` came back with.
pub(crate) fn argument_flags(argument: &libc::ifreq) -> i32 {
    // SAFETY: as above.
    i32::from(unsafe { argument.ifr_ifru.ifru_flags })
}

/// The hardware address that an `ifreq` came back with: its type and first six bytes.
pub(crate) fn argument_address(argument: &libc::ifreq) -> (u16, [u8; 6]) {
    // SAFETY: as above.
    let address = unsafe { argument.ifr_ifru.ifru_hwaddr };
    (address.sa_family, std::array::from_fn(|index| address.sa_data[index] as u8))
}

/// The name in an `ifreq`.
pub(crate) fn argument_name(argument: &libc::ifreq) -> OsString {
    let bytes = argument.ifr_name.iter().take_while(|byte| **byte != 0);
    OsString::from_vec(bytes.map(|byte| *byte as u8).collect())
}

/// `SIOCETHTOOL` with a command of fixed size, for the interface that `argument` names.
pub(crate) fn ethtool<T: Plain>(
    fd: BorrowedFd<'_>,
    mut argument: libc::ifreq,
    command: &mut T,
) -> io::Result<()> {
    argument.ifr_ifru.ifru_data = ptr::from_mut(command).cast();
    // The commands used with this function have one size, which is that of their structure in `abi`.
    interface_request(fd, libc::SIOCETHTOOL as libc::c_ulong, &mut argument)
}

/// `SIOCETHTOOL` with a command that the kernel answers with as many entries as the driver has. The head is two or
/// three u32; the caller leaves room for several times the entries the driver announced.
pub(crate) fn ethtool_long(
    fd: BorrowedFd<'_>,
    mut argument: libc::ifreq,
    buffer: &mut [u64],
) -> io::Result<()> {
    argument.ifr_ifru.ifru_data = buffer.as_mut_ptr().cast();
    interface_request(fd, libc::SIOCETHTOOL as libc::c_ulong, &mut argument)
}

/// `mmap(2)` of one of an AF_XDP socket's rings.
pub(crate) fn map_ring(fd: BorrowedFd<'_>, length: usize, offset: i64) -> io::Result<NonNull<u8>> {
    crate::sys::map_shared(fd, length, offset)
}

/// `munmap(2)`.
///
/// # Safety
/// `address` and `length` are those of one [`map_ring`] call, and nothing refers to the memory any more.
pub(crate) unsafe fn unmap(address: NonNull<u8>, length: usize) {
    // SAFETY: the caller's promise.
    unsafe { crate::sys::unmap(address, length) };
}

/// `membarrier(2)`'s global command: an RCU grace period, some 20 ms. A kernel with `nohz_full` CPUs answers `EINVAL`.
pub(crate) fn membarrier_global() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
