//! What every port is: a control handle, receive queues and transmit queues.
//!
//! The life of a port: a [`PortSpec`](crate::PortSpec) is *checked* into a [`PortPlan`], which knows what it needs but has opened
//! nothing; when all plans of a configuration are there, each is *opened*. The queues go to the workers, the [`Port`] stays with the
//! control core. A port is closed by dropping its queues and then the `Port`.
//!
//! A queue never makes a system call by itself. What needs one it announces by [`RxQueue::needs_doorbell`]; whoever runs the
//! queue then rings its [`Doorbell`], on the spot or from another thread.
#![forbid(unsafe_code)]

use crate::counters::QueueCounters;
use crate::memory::{Batch, Pool, PoolError};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use thiserror::Error;

/// The number of a port in a configuration, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("\"{text}\" is no Ethernet address: write six pairs of hex digits, 02:00:00:00:00:01");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

/// Why a port cannot be had. The text is one line and says the way out.
#[derive(Debug, Error)]
pub enum PortError {
    /// The specification is wrong: nothing was opened, and the same words will fail again.
    #[error("{port}: {problem}")]
    Specification {
        /// The specification as it was given.
        port: String,
        /// What is wrong with it, and what to write.
        problem: String,
    },
    /// The system refused: a missing interface, a missing privilege, a device in use.
    #[error("{port}: {problem}")]
    Open {
        /// The specification as it was given.
        port: String,
        /// What went wrong, and what to do.
        problem: String,
    },
    /// The port's frames could not be had.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// Whether packets can pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Up; `None` where the speed is unknown or has no meaning.
    Up {
        /// Megabits a second.
        speed_mbps: Option<u32>,
    },
    /// Down, and may come back.
    Down,
    /// The device has vanished for good; why, in words.
    Gone(String),
}

/// Needs that a checked specification has, before anything is opened.
pub trait PortPlan: Send {
    /// How many receive queues it will have.
    fn rx_queues(&self) -> usize;

    /// How many transmit queues it can have at most.
    fn max_tx_queues(&self) -> usize;

    /// Whether it has more of them with more of its option `queues`.
    fn tx_queues_follow(&self) -> bool {
        true
    }

    /// The frames that its rings keep while it is open, given this many transmit queues.
    fn frames(&self, tx_queues: usize) -> usize;

    /// The smallest frames it can work with, in bytes.
    fn min_frame_size(&self) -> usize {
        2048
    }

    /// The longest packet it will send, in bytes, as [`Port::max_packet_len`] says it later; `None` where that is known only then.
    fn max_packet_len(&self) -> Option<usize> {
        None
    }

    /// The file it will write, as an absolute path without links; no other port can have it.
    fn output_file(&self) -> Option<PathBuf> {
        None
    }

    /// Opens it.
    fn open(self: Box<Self>, context: &OpenContext<'_>) -> Result<OpenPort, PortError>;
}

/// What a plan gets to open its port.
pub struct OpenContext<'a> {
    /// The frames to use.
    pub pool: &'a Pool,
    /// The number of the port, to be written into received packets.
    pub id: PortId,
    /// How many transmit queues are wanted, from 0 to the plan's most.
    pub tx_queues: usize,
    /// Whether to receive packets for other stations too.
    pub promiscuous: bool,
}

/// An open port, its queues still to be given to workers.
pub struct OpenPort {
    /// The control handle.
    pub port: Box<dyn Port>,
    /// The receive queues.
    pub rx: Vec<Box<dyn RxQueue>>,
    /// The transmit queues, as many as were wanted.
    pub tx: Vec<Box<dyn TxQueue>>,
}

/// The control handle of a port: all that is not moving packets. Used by the control core alone, so it may make system
/// calls; it must not block.
pub trait Port: Send {
    /// The specification it was opened by, without its options: `afxdp:eth0`.
    fn name(&self) -> &str;

    /// The driver's name: `afxdp`.
    fn driver(&self) -> &'static str;

    /// How it really runs, in a few words: `zero-copy, native XDP, 2 queues`.
    fn mode(&self) -> String;

    /// Its own Ethernet address.
    fn mac(&self) -> MacAddress;

    /// The longest packet it sends, in bytes, with the Ethernet header and without the frame check sequence.
    fn max_packet_len(&self) -> usize;

    /// Whether packets can pass now.
    fn link(&mut self) -> LinkState;

    /// Descriptors that are readable when [`link`](Self::link) has news, which takes what made them so. The control core, which asks about every 100 ms,
    /// then asks at once.
    fn events(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// The control core is on this CPU from now on: whatever interrupts the port has of its own come there, or no more.
    fn deliver_interrupts(&mut self, _cpu: usize) {}

    /// Brings the counters up to date that the kernel or the device keeps; called about once a second, and a last
    /// time when the workers have stopped.
    fn refresh(&mut self) {}

    /// What the port was to leave behind and could not: packets in a file. Asked at the end, when its queues have gone.
    fn lost_output(&self) -> Option<PortGone> {
        None
    }

    /// The same for the drop counters alone, where that costs no more than a system call for each queue; called about a thousand
    /// times a second while somebody looks for what lost packets.
    fn refresh_drops(&mut self) {}

    /// Numbers of this driver alone, for the report: name and value.
    fn extra_counters(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

/// A receive queue. One thread runs it.
pub trait RxQueue: Send {
    /// Adds the packets that have come in to `batch`, as many as it has room for. Never waits.
    fn receive(&mut self, batch: &mut Batch);

    /// True where the queue stands still until its doorbell is rung. Asked once a loop turn.
    #[inline]
    fn needs_doorbell(&mut self) -> bool {
        false
    }

    /// The doorbell, the same one for the queue's whole life; `None` where it never needs one.
    fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        None
    }

    /// A descriptor that is readable while packets are there, for workers that sleep; `None` where the kernel does not know of them.
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// True once no packet will ever come again (the end of a file).
    fn is_finished(&self) -> bool {
        false
    }

    /// Its counters.
    fn counters(&self) -> &Arc<QueueCounters>;
}

/// A transmit queue. One thread runs it.
pub trait TxQueue: Send {
    /// Takes packets from the front of `batch`, as many as there is room for; what it leaves there is still the
    /// caller's. A packet that can never be sent is taken, freed and counted by its reason. Never waits.
    fn transmit(&mut self, batch: &mut Batch);

    /// True where what was taken stands still until the doorbell is rung. Asked once a loop turn and when the queue is full.
    #[inline]
    fn needs_doorbell(&mut self) -> bool {
        false
    }

    /// True where packets wait for the next turn's, to have the doorbell rung for all of them.
    fn is_gathering(&self) -> bool {
        false
    }

    /// The doorbell, the same one for the queue's whole life; `None` where it never needs one.
    fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        None
    }

    /// Its counters.
    fn counters(&self) -> &Arc<QueueCounters>;
}

/// The system call that a queue needs to go on. May be rung from any thread, also while another runs the queue.
pub trait Doorbell: Send + Sync {
    /// Makes the call. An error is final: the port is gone.
    fn ring(&self) -> Result<(), PortGone>;
}

/// A port has stopped working for good.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{port} has stopped: {reason}")]
pub struct PortGone {
    /// The port's name.
    pub port: String,
    /// Why, in words.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ethernet_addresses_are_read_and_written() {
        let mac: MacAddress = "02:00:5e:00:00:ff".parse().unwrap();
        assert_eq!((mac.0[5], mac.to_string().as_str()), (255, "02:00:5e:00:00:ff"));
        for wrong in ["", "02:00:5e:00:00", "02:00:5e:00:00:ff:01", "2:0:5e:0:0:ff", "02:00:5e:00:00:fg"] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }
}
