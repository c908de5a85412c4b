//! Packet memory and ports.
//!
//! A *port* is anything packets come from and go to: a NIC's queues through AF_XDP, a capture file, an in-memory
//! generator. All ports work on frames of one [`memory::Pool`], so that moving a packet from one port to another never
//! copies it. Nothing here knows what an application does with a packet.
//!
//! Adding a driver is one folder and one line in [`drivers::DRIVERS`].

#[cfg(not(loom))]
mod afxdp;
#[cfg(not(loom))]
mod checksum;
#[cfg(not(loom))]
pub mod counters;
#[cfg(not(loom))]
pub mod drivers;
#[cfg(not(loom))]
mod ethernet;
#[cfg(not(loom))]
mod mem;
#[cfg(not(loom))]
pub mod memory;
#[cfg(not(loom))]
mod netlink;
#[cfg(not(loom))]
pub mod pcap;
#[cfg(not(loom))]
pub mod port;
pub mod ring;
#[cfg(not(loom))]
pub mod spec;
#[cfg(not(loom))]
mod sys;
#[cfg(not(loom))]
mod tap;
#[cfg(not(loom))]
pub mod traffic;
#[cfg(not(loom))]
mod veth;
// Of what device drivers may use, not all is used by each.
#[cfg(not(loom))]
#[allow(dead_code)]
mod vfio;

#[cfg(not(loom))]
#[doc(hidden)]
pub use vfio::open_aimed_outside as open_vfio_aimed_outside;

#[cfg(not(loom))]
pub use {
    counters::{Counter, DropReason, QueueCounters},
    memory::{Batch, Packet, Pool, PoolConfig},
    port::{
        Doorbell, LinkState, MacAddress, OpenContext, OpenPort, Port, PortError, PortId, PortPlan, RxQueue,
        TxQueue,
    },
    spec::PortSpec,
    vfio::pci::host as pci,
};
