//! TAP interfaces of the host, each in a network namespace: a NIC's wire that a host's own network stack is the other end of, and the
//! only one by which QEMU's virtio-net has several queues.
#![forbid(unsafe_code)]

use super::VmError;
use super::error::cannot;
use super::sys;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

/// An interface, for as long as somebody has its queues.
pub(super) struct Tap {
    /// The device's side, a descriptor for each queue.
    pub(super) queues: Vec<OwnedFd>,
    /// A socket on the interface.
    pub(super) socket: OwnedFd,
}

impl Tap {
    /// Makes one, and sets it up.
    pub(super) fn open(namespace: &str, interface: &str, queues: usize) -> Result<Self, VmError> {
        let path = Path::new("/run/netns").join(namespace);
        let namespace = File::open(&path).map_err(cannot("open", &path))?;
        // A thread of its own, which lives in there.
        let made = thread::scope(|scope| {
            scope
                .spawn(|| make(&namespace, interface, queues))
                .join()
                .unwrap_or_else(|_| Err((PathBuf::from("a thread"), io::Error::other("it panicked"))))
        });
        made.map_err(|(path, error)| cannot("make a TAP interface by", &path)(error))
    }
}

fn make(namespace: &File, interface: &str, queues: usize) -> Result<Tap, (PathBuf, io::Error)> {
    let at = |what: &str| {
        let what = PathBuf::from(what);
        move |error: io::Error| (what, error)
    };
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| at("setns")(error.into()))?;
    let device = "/dev/net/tun";
    let queues = (0..queues.max(1))
        .map(|_| {
            let file = OpenOptions::new().read(true).write(true).open(device)?;
            sys::attach_tap(&file, interface, queues > 1)?;
            Ok(OwnedFd::from(file))
        })
        .collect::<io::Result<Vec<_>>>()
        .map_err(at(device))?;
    // It is to send nothing by itself.
    for setting in [["addrgenmode", "none"].as_slice(), &["up"]] {
        let mut ip = Command::new("ip");
        let status = ip.args(["link", "set", interface]).args(setting).stdin(Stdio::null()).status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(at("ip link set")(io::Error::other(status.to_string()))),
            Err(error) => return Err(at("ip")(error)),
        }
    }
    let index = if_nametoindex(interface).map_err(|error| at(interface)(error.into()))?;
    let socket = sys::packet_socket(index).map_err(at("a packet socket"))?;
    Ok(Tap { queues, socket })
}
