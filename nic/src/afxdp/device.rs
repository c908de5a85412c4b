//! What the sockets of one port have in common: the interface and what we changed on it.
//!
//! The last socket takes it along. All of it is undone by closing descriptors, which a crash and kill -9 do too; only the
//! number of channels, changed on request, must be put back by hand.
#![forbid(unsafe_code)]

use super::abi::Channels;
use super::interface::Interface;
use super::program::Program;
use super::release;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

/// An interface with our program on it.
pub(super) struct Device {
    /// The attachment; the program leaves the interface when it is closed.
    pub(super) _link: OwnedFd,
    pub(super) program: Program,
    /// Closed, it ends promiscuous mode.
    pub(super) _promiscuous: Option<OwnedFd>,
    /// Put back when program and sockets are gone.
    pub(super) _channels: Option<ChannelsBefore>,
    pub(super) interface: Arc<Interface>,
    /// The longest packet that may be sent, without VLAN tags.
    pub(super) max_packet_len: AtomicUsize,
}

/// The number of channels as we found it.
pub(super) struct ChannelsBefore {
    pub(super) interface: Arc<Interface>,
    pub(super) before: Channels,
}

/// Calls `restore` until the kernel has let go of the closed sockets: until then it refuses to take their queues away, with
/// `EINVAL` or `EBUSY`. Any other answer is final.
fn restore_when_released(limit: Duration, mut restore: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match restore() {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBUSY))
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            answer => return answer,
        }
    }
}

impl Drop for ChannelsBefore {
    fn drop(&mut self) {
        let restored = restore_when_released(release::LIMIT, || self.interface.restore_channels(self.before));
        if let Err(error) = restored {
            let name = self.interface.name().unwrap_or_else(|_| "the interface".into());
            let Channels { combined, rx, tx, .. } = self.before;
            tracing::warn!(
                "could not put the channels of {name} back to combined {combined} rx {rx} tx {tx}: {error}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_put_back_when_the_kernel_has_let_go_and_not_waited_for_in_vain() {
        let restore = |limit_ms, refusals: usize, code| {
            let mut calls = 0;
            let result = restore_when_released(Duration::from_millis(limit_ms), || {
                calls += 1;
                if calls <= refusals { Err(io::Error::from_raw_os_error(code)) } else { Ok(()) }
            });
            (result.is_ok(), calls)
        };
        assert_eq!(restore(60_000, 3, libc::EINVAL), (true, 4));
        assert_eq!(restore(60_000, 3, libc::EBUSY), (true, 4));
        // The interface is gone, the privilege is gone: time changes nothing.
        assert_eq!(restore(60_000, 3, libc::ENODEV), (false, 1));
        assert_eq!(restore(60_000, 3, libc::EPERM), (false, 1));
        assert!(!restore(20, usize::MAX, libc::EINVAL).0);
    }
}
