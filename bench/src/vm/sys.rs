//! What the standard library cannot say about QEMU's process and about interfaces.
#![allow(unsafe_code)]

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::sys::{prctl, signal::Signal};
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{self, Command};

/// Has the kernel kill the process that `command` starts when the thread that starts it ends, however it ends. The process keeps
/// these descriptors under their numbers.
pub(super) fn prepare(command: &mut Command, inherited: Vec<OwnedFd>) {
    let us = process::id();
    let prepare = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // We may have ended before the line above: then nobody sends the signal.
        if nix::unistd::getppid().as_raw().cast_unsigned() != us {
            return Err(io::Error::from(io::ErrorKind::Interrupted));
        }
        for descriptor in &inherited {
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls and no allocation, and takes no lock: an error of any is a
    // plain number.
    unsafe { command.pre_exec(prepare) };
}

/// `TUNSETIFF`: makes the interface `name`, or adds a queue to it where it has several, which goes when the descriptor is closed
/// ([`linux/if_tun.h`](https://github.com/torvalds/linux/blob/master/include/uapi/linux/if_tun.h)).
pub(super) fn attach_tap(file: &File, name: &str, several: bool) -> io::Result<()> {
    // SAFETY: an ifreq is integers and a union of integers, addresses and bytes: zero is a value of each.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | if several { libc::IFF_MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which the reference has.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket of which each message is a frame on the interface of this number, in the calling thread's network namespace.
pub(super) fn packet_socket(interface: u32) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    // SAFETY: a sockaddr_ll is integers and bytes: zero is a value of each.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = interface.cast_signed();
    let length = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer is to a sockaddr_ll of this length, which the kernel reads.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}
