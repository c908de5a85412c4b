//! The one system call of this driver that the standard library has no name for.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;

/// `IFF_TUN_EXCL` of `linux/if_tun.h`: the name must be free.
const IFF_TUN_EXCL: libc::c_int = 0x8000;

/// `TUNSETIFF`: makes the interface `name`, which carries whole Ethernet frames and goes when the descriptor is closed
/// ([`linux/if_tun.h`](https://github.com/torvalds/linux/blob/master/include/uapi/linux/if_tun.h)).
pub(super) fn create_interface(file: &File, name: &str) -> io::Result<()> {
    // SAFETY: an ifreq is integers and a union of integers, addresses and bytes: zero is a value of each.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which the reference has.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
