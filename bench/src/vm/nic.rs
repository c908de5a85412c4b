//! A guest's network interfaces: QEMU's model of a NIC, and what its wire leads to.
#![forbid(unsafe_code)]

use super::VmError;
use super::error::cannot;
use super::wire::End;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// What the wire of a NIC leads to.
#[derive(Clone, Debug)]
enum Backend {
    /// The test: each datagram is a frame.
    Socket,
    /// A TAP interface of the host, with so many queues.
    Tap { interface: String, queues: usize },
}

/// A NIC to be plugged in.
#[derive(Clone, Debug)]
pub(super) struct Nic {
    model: String,
    backend: Backend,
}

/// What QEMU is told of a NIC, with what it inherits for it, and the test's end of the wire.
pub(super) struct Plugged {
    pub(super) arguments: Vec<String>,
    pub(super) inherited: Option<OwnedFd>,
    pub(super) end: Option<End>,
}

/// The address of the NIC that was added as number `index`.
pub(super) fn mac(index: usize) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, index as u8 + 1]
}

impl Nic {
    pub(super) fn on_socket(model: &str) -> Self {
        Self { model: model.to_owned(), backend: Backend::Socket }
    }

    pub(super) fn on_tap(model: &str, interface: &str, queues: usize) -> Self {
        let interface = interface.to_owned();
        Self { model: model.to_owned(), backend: Backend::Tap { interface, queues } }
    }

    /// Makes the wire, for one boot.
    pub(super) fn plug(&self, index: usize) -> Result<Plugged, VmError> {
        let address = mac(index);
        let text = address.map(|byte| format!("{byte:02x}")).join(":");
        // It boots from none of them: no option ROM.
        let device = format!("{},netdev=n{index},mac={text},romfile=", self.model);
        let (netdev, inherited, end) = match &self.backend {
            Backend::Socket => {
                let (ours, theirs) =
                    UnixDatagram::pair().map_err(cannot("make a socket for", Path::new("a NIC")))?;
                let theirs = OwnedFd::from(theirs);
                let netdev = format!("dgram,id=n{index},local.type=fd,local.str={}", theirs.as_raw_fd());
                (netdev, Some(theirs), Some(End::new(ours.into(), address)))
            }
            Backend::Tap { interface, queues } => {
                // With one queue, QEMU wants to hear nothing of queues.
                let queues = if *queues > 1 { format!(",queues={queues}") } else { String::new() };
                let netdev =
                    format!("tap,id=n{index},ifname={interface}{queues},script=no,downscript=no,vhost=off");
                (netdev, None, None)
            }
        };
        let arguments = vec!["-netdev".to_owned(), netdev, "-device".to_owned(), device];
        Ok(Plugged { arguments, inherited, end })
    }
}
