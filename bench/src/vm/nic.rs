//! A guest's network interfaces: QEMU's model of a NIC, and what its wire leads to.
#![forbid(unsafe_code)]

use super::VmError;
use super::error::cannot;
use super::tap::Tap;
use super::wire::End;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// What the wire of a NIC leads to.
#[derive(Clone, Debug)]
enum Backend {
    /// The test: each datagram is a frame.
    Socket,
    /// A TAP interface of the host, in a network namespace, with so many queues.
    Tap { namespace: String, interface: String, queues: usize },
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
    pub(super) inherited: Vec<OwnedFd>,
    pub(super) end: End,
}

/// The address of the NIC that was added as number `index`.
pub(super) fn mac(index: usize) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, index as u8 + 1]
}

impl Nic {
    pub(super) fn on_socket(model: &str) -> Self {
        Self { model: model.to_owned(), backend: Backend::Socket }
    }

    pub(super) fn on_tap(model: &str, namespace: &str, interface: &str, queues: usize) -> Self {
        let (namespace, interface) = (namespace.to_owned(), interface.to_owned());
        Self { model: model.to_owned(), backend: Backend::Tap { namespace, interface, queues } }
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
                (netdev, vec![theirs], End::new(ours.into(), address))
            }
            Backend::Tap { namespace, interface, queues } => {
                let tap = Tap::open(namespace, interface, *queues)?;
                let numbers: Vec<String> = tap.queues.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
                // One is not several.
                let key = if numbers.len() > 1 { "fds" } else { "fd" };
                let netdev = format!("tap,id=n{index},{key}={},vhost=off", numbers.join(":"));
                (netdev, tap.queues, End::new(tap.socket, address))
            }
        };
        let arguments = vec!["-netdev".to_owned(), netdev, "-device".to_owned(), device];
        Ok(Plugged { arguments, inherited, end })
    }
}
