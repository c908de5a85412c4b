//! The receiving end: counts generated packets and drops them before the kernel's stack.
//!
//! A program at the traffic-control hook (tcx), not an XDP program: what a veth receives is worked on by the CPU that sends,
//! which is the forwarder's, and native XDP there copies each packet into a page first. That would be charged to the forwarder.
#![forbid(unsafe_code)]

use super::interface::{self, XdpError};
use super::program::{self, Numbers};
use percpu::bpf::{BPF_TCX_INGRESS, ProgramType, attach_interface};
use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

/// Counts and drops what a [`Generator`](super::Generator) sent and whatever it went through left intact; the rest
/// passes to the kernel. It is in place until it is dropped.
#[derive(Debug)]
pub struct Sink {
    numbers: Numbers<2>,
    _link: OwnedFd,
}

/// What a sink has seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Generated packets.
    pub packets: u64,
    /// Other frames, such as the kernel's own neighbour discovery.
    pub other: u64,
}

impl Sink {
    /// Attaches to an interface.
    pub fn attach(interface: &str) -> Result<Self, XdpError> {
        let ifindex = interface::index(interface)?;
        let numbers = Numbers::new().map_err(XdpError::Load)?;
        let instructions =
            program::sink(&numbers).map_err(|error| XdpError::Load(io::Error::other(error)))?;
        let program = program::load(ProgramType::SchedCls, &instructions).map_err(XdpError::Load)?;
        let link = attach_interface(&program, ifindex, BPF_TCX_INGRESS, 0)
            .map_err(|source| XdpError::Attach { interface: interface.to_owned(), source })?;
        Ok(Self { numbers, _link: link })
    }

    /// Reads the counters.
    pub fn received(&self) -> Result<Received, XdpError> {
        let [packets, other] = self
            .numbers
            .read()
            .map_err(|source| XdpError::Read { what: "the sink's counters".into(), source })?;
        Ok(Received { packets, other })
    }

    /// Waits until nothing has come in for `quiet`, or until `limit` has passed, and reads the counters.
    pub fn settle(&self, quiet: Duration, limit: Duration) -> Result<Received, XdpError> {
        let start = Instant::now();
        let (mut last, mut since) = (self.received()?, start);
        while since.elapsed() < quiet && start.elapsed() < limit {
            thread::sleep(Duration::from_millis(5));
            let now = self.received()?;
            if now.packets != last.packets {
                since = Instant::now();
            }
            last = now;
        }
        Ok(last)
    }
}
