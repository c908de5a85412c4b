//! What the sockets of one port have in common: the interface and what we changed on it.
//!
//! The last socket takes it along. All of it is undone by closing descriptors, which a crash and kill -9 do too; only the
//! number of channels, changed on request, must be put back by hand.
#![forbid(unsafe_code)]

use super::abi::Channels;
use super::interface::Interface;
use super::program::Program;
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

/// How long the kernel may take to let go of closed sockets: until then it refuses to take their queues away.
const RESTORE_LIMIT: Duration = Duration::from_secs(1);

impl Drop for ChannelsBefore {
    fn drop(&mut self) {
        let deadline = Instant::now() + RESTORE_LIMIT;
        let restored = loop {
            let restored = self.interface.restore_channels(self.before);
            if restored.is_ok() || Instant::now() >= deadline {
                break restored;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        if let Err(error) = restored {
            let name = self.interface.name().unwrap_or_else(|_| "the interface".into());
            let Channels { combined, rx, tx, .. } = self.before;
            tracing::warn!(
                "could not put the channels of {name} back to combined {combined} rx {rx} tx {tx}: {error}"
            );
        }
    }
}
