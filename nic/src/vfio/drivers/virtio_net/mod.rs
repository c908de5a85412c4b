//! `virtio-net`: network devices of hypervisors (and of some SmartNICs), by VIRTIO 1.2 and 1.3, through the modern PCI transport.
//!
//! From the bottom: [`abi`] has the specification's numbers, [`transport`] the device's registers, [`split`] and [`packed`] the two layouts of a virtqueue behind
//! the seam [`ring`]. [`ledger`] keeps the books on what the device has. On these stand the queues ([`rx`], [`tx`], [`control`]); [`features`], [`device`] and
//! [`settings`] set the device up, [`nic`] watches and recovers it.
//!
//! The device is not trusted. What it says of its rings is held against the books: a queue that sees what cannot be uses nothing of it, and stands still until
//! the device was reset.

mod abi;
mod bursts;
mod checksum;
mod control;
mod device;
mod features;
mod ledger;
#[cfg(test)]
mod model;
mod nic;
mod open;
mod packed;
mod ring;
mod rx;
mod settings;
mod split;
#[cfg(test)]
mod tests;
mod transport;
mod trouble;
mod tx;

use crate::vfio::nic::{KnownDevice, NicDriver};
use std::time::Duration;

/// How long a device may take. The one of the tests answers at once or never, and shall not be waited for as long.
const fn patience(milliseconds: u64) -> Duration {
    Duration::from_millis(if cfg!(test) { milliseconds / 50 } else { milliseconds })
}

/// The driver's line in the table.
pub(in crate::vfio) static DRIVER: NicDriver = NicDriver {
    name: "virtio-net",
    devices: &[
        KnownDevice { vendor: abi::VENDOR, device: abi::DEVICE_MODERN, name: "virtio-net" },
        KnownDevice {
            vendor: abi::VENDOR,
            device: abi::DEVICE_TRANSITIONAL,
            name: "virtio-net (transitional)",
        },
    ],
    max_queues: 64,
    ring_sizes: (open::LEAST_RING, 32768, open::LEAST_RING),
    max_mtu: 65535 - 22,
    registers_bytes: 0,
    options: &["ring"],
    open: open::open,
};
