//! The table of device drivers: the one line that adds one.
#![forbid(unsafe_code)]

use super::drivers::virtio_net;
use super::function::PciId;
use super::nic::{KnownDevice, NicDriver};

/// All of them.
pub(super) static NIC_DRIVERS: &[&NicDriver] = &[&virtio_net::DRIVER];

/// The driver for a device among these, and what it calls it.
pub(super) fn find_in(
    drivers: &[&'static NicDriver],
    id: PciId,
) -> Option<(&'static NicDriver, &'static KnownDevice)> {
    drivers.iter().find_map(|driver| {
        let known =
            driver.devices.iter().find(|known| (known.vendor, known.device) == (id.vendor, id.device))?;
        Some((*driver, known))
    })
}
