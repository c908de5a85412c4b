//! Waiting until the kernel has let go of a queue.
//!
//! close(2) of an AF_XDP socket comes back before the driver has been told: that is deferred, and until it is done a NIC in
//! zero-copy mode may still write to the frames of its fill ring. What can be seen from here is that the queue can be bound to
//! again. So each queue has a second socket, which only ever tries that, at the end. It is made beforehand: by then
//! the process may have given up the privilege.
#![forbid(unsafe_code)]

use super::sys;
use crate::memory::Pool;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long the kernel has been seen to take, on a loaded machine.
pub(super) const SEEN: Duration = Duration::from_millis(1700);
/// How long it may take to let go of what we have closed.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
const ENTRIES: u32 = 64;

/// What a socket must have for a UMEM: the pool's first bytes, which nobody writes to for it. It is in no map, and
/// its fill ring stays empty.
const UMEM_BYTES: usize = 4096;

/// A socket that is ready to be bound to a queue.
pub(super) struct Prober {
    fd: OwnedFd,
    address: libc::sockaddr_xdp,
}

impl Prober {
    /// One for this queue of this interface.
    pub(super) fn new(pool: &Pool, interface: u32, queue: u32) -> io::Result<Self> {
        let fd = sys::socket(libc::AF_XDP, libc::SOCK_RAW, 0)?;
        let registration = libc::xdp_umem_reg {
            addr: pool.region().base().as_ptr() as u64,
            len: UMEM_BYTES as u64,
            chunk_size: 2048,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        sys::set_option(fd.as_fd(), libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)?;
        for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING] {
            sys::set_option(fd.as_fd(), libc::SOL_XDP, ring, &ENTRIES)?;
        }
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY,
            sxdp_ifindex: interface,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        Ok(Self { fd, address })
    }

    /// Waits until the queue is free, at most ten seconds; false where it is not free even then.
    pub(super) fn wait(&self) -> bool {
        match retry(LIMIT, || sys::bind_xdp(self.fd.as_fd(), &self.address)) {
            Ok(()) => true,
            // No such queue or interface any more: nobody has it.
            Err(error) => error.raw_os_error() != Some(libc::EBUSY),
        }
    }
}

/// Calls `bind` until it answers something else than `EBUSY`, at most for `limit`; gives its last answer.
pub(super) fn retry(limit: Duration, mut bind: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match bind() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            answer => return answer,
        }
    }
}
