//! The table of device drivers: the one line that adds one.
#![forbid(unsafe_code)]

use super::drivers;
use super::function::PciId;
use super::nic::{KnownDevice, NicDriver};

/// All of them.
#[rustfmt::skip]
pub(in crate::vfio) static NIC_DRIVERS: &[&NicDriver] = &[
    &drivers::e1000e::DRIVER,
    &drivers::igb::DRIVER,
    &drivers::ixgbe::DRIVER,
    &drivers::virtio_net::DRIVER,
];

/// The driver for a device, and what it calls it.
pub(in crate::vfio) fn find(id: PciId) -> Option<(&'static NicDriver, &'static KnownDevice)> {
    NIC_DRIVERS.iter().find_map(|driver| {
        let known =
            driver.devices.iter().find(|known| (known.vendor, known.device) == (id.vendor, id.device))?;
        Some((*driver, known))
    })
}
