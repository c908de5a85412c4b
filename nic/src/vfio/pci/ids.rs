//! What a device is called: by the driver of ours that knows it, else by the machine's list of PCI ids, where there is one.
#![forbid(unsafe_code)]

use super::errors::PciError;
use super::sysfs::{PciDevice, Sysfs};
use crate::vfio::function::PciId;
use crate::vfio::nic::{KnownDevice, NicDriver};
use crate::vfio::table;
use std::fs::File;
use std::io::{BufRead, BufReader};

/// Where distributions put the list (pci.ids of pciutils).
const LISTS: &[&str] = &["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids", "/var/lib/pciutils/pci.ids"];

/// What a device is called, where anybody knows.
pub(crate) fn name(device: &PciDevice) -> Option<String> {
    let id = device.id().ok()?;
    match table::find(id) {
        Some((_, known)) => Some(known.name.to_owned()),
        None => listed(device.sysfs(), id),
    }
}

/// The driver of ours for it; an error that says which devices are known where there is none.
pub(crate) fn driver(device: &PciDevice) -> Result<(&'static NicDriver, &'static KnownDevice), PciError> {
    let id = device.id()?;
    table::find(id).ok_or_else(|| {
        let names = |driver: &NicDriver| {
            let mut names: Vec<&str> = driver.devices.iter().map(|known| known.name).collect();
            names.dedup();
            format!("{} ({})", names.join(", "), driver.name)
        };
        PciError::UnknownDevice {
            address: device.address(),
            id,
            name: listed(device.sysfs(), id),
            known: table::NIC_DRIVERS.iter().map(|driver| names(driver)).collect(),
        }
    })
}

/// The name in the machine's list.
pub(crate) fn listed(sysfs: &Sysfs, id: PciId) -> Option<String> {
    let file = LISTS.iter().find_map(|path| File::open(sysfs.path(path)).ok())?;
    find(BufReader::new(file), id)
}

/// In the text of such a list: `8086  Intel Corporation`, and below it with a tab `10c9  82576 Gigabit Network Connection`.
fn find(list: impl BufRead, id: PciId) -> Option<String> {
    let (vendor, device) = (format!("{:04x}  ", id.vendor), format!("\t{:04x}  ", id.device));
    let mut within = false;
    // Not all names of vendors are UTF-8.
    for line in list.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        match line.strip_prefix(device.as_str()) {
            _ if line.starts_with(vendor.as_str()) => within = true,
            // The next vendor.
            _ if within && line.starts_with(|first: char| !"\t#".contains(first)) => return None,
            Some(name) if within => return Some(name.trim().to_owned()),
            _ => {}
        }
    }
    None
}
