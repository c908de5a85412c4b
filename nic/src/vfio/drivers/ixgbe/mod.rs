//! Intel's 10 Gb/s controllers: 82599, X540, X550.
//!
//! Never run on silicon, and no emulator has them: what the data sheets say is written down twice, as this driver and as a model of the device
//! that its tests run on (`model`).
//!
//! In the words of the data sheet the chip runs without DCB and without virtualisation: up to 16 receive queues by RSS, as many for transmit,
//! one packet buffer for each direction, no flow control, no header split, no receive-side coalescing. All interrupts but the link's are masked.

mod chip;
mod device;
mod filters;
mod link;
mod mdio;
#[cfg(test)]
mod model;
mod nic;
mod open;
mod receive;
mod registers;
mod reset;
mod rss;
mod semaphore;
mod setup;
mod statistics;
#[cfg(test)]
mod tests;
mod transmit;

use super::super::nic::NicDriver;

/// The line in the table of drivers.
pub(in crate::vfio) static DRIVER: NicDriver = NicDriver {
    name: "ixgbe",
    devices: &chip::KNOWN,
    max_queues: statistics::QUEUE_COUNTERS as u16,
    ring_sizes: (64, 4096, 8),
    max_mtu: receive::MAX_PACKET_LEN - 14 - 8,
    registers_bytes: 128 << 10,
    options: &[],
    open: open::open,
};
