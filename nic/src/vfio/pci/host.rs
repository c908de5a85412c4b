//! What commands tell of this machine's NICs, and how they put back what a run that was killed has left.
#![forbid(unsafe_code)]

use super::bind::{self, PutBack, RestoredDevice, Wishes};
use super::group::{Group, Member};
use super::sysfs::{PciDevice, Sysfs};
use super::{ids, traffic};
use serde::Serialize;

/// An Ethernet function on PCI.
#[derive(Clone, Debug, Serialize)]
pub struct Device {
    /// `0000:03:00.0`.
    pub address: String,
    /// Vendor and device, `8086:10c9`; `None` where they cannot be read.
    pub id: Option<String>,
    /// What it is called, where anybody knows.
    pub name: Option<String>,
    /// The driver of the kernel's that has it.
    pub driver: Option<String>,
    /// The interfaces that this driver has made of it.
    pub interfaces: Vec<Interface>,
    /// Its IOMMU group; `None` where it is behind no IOMMU.
    pub iommu_group: Option<u32>,
    /// Whether all others in its group can be left as they are.
    pub group_viable: Option<bool>,
    /// What keeps the group back: each device, and what to type.
    pub held_back_by: Vec<String>,
    /// The driver of ours for it.
    pub isoplane_driver: Option<&'static str>,
    /// The port's specification to use it by now: `vfio:` where we have a driver, else `afxdp:` where it has an interface.
    pub specification: Option<String>,
    /// What keeps it from being a `vfio:` port now, and what to type.
    pub problem: Option<String>,
}

/// An interface.
#[derive(Clone, Debug, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is set up.
    pub up: bool,
    /// What the kernel uses it for; `None` where it does not.
    pub used: Option<String>,
}

/// What [`restore`] did with one device.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Which device, and what became of it, in one line.
    pub line: String,
    /// Whether nothing is left to be done.
    pub is_done: bool,
}

/// The Ethernet functions of this machine, by their addresses. Needs no privilege.
pub fn devices() -> Vec<Device> {
    Sysfs::default().ethernet().iter().map(describe).collect()
}

/// Puts back each device that a dead process has left on `vfio-pci`; those of living ones are left alone, and are told as not done. Empty where no
/// device was left.
pub fn restore() -> Vec<Restored> {
    bind::restore(&Sysfs::default()).into_iter().map(tell).collect()
}

pub(super) fn describe(device: &PciDevice) -> Device {
    let sysfs = device.sysfs();
    let interfaces: Vec<Interface> = device
        .interfaces()
        .into_iter()
        .map(|interface| Interface {
            up: traffic::is_up(sysfs, &interface),
            used: traffic::why_used(sysfs, &interface),
            name: interface.name,
        })
        .collect();
    let group = Group::of(device).filter(|_| !device.is_no_iommu_group());
    let held_back_by = group.as_ref().map(|group| group.held_back_by(device));
    let ours = ids::driver(device).ok().map(|(driver, _)| driver);
    let specification = match (ours, interfaces.first()) {
        (Some(_), _) => Some(format!("vfio:{}", device.address())),
        (None, Some(interface)) => Some(format!("afxdp:{}", interface.name)),
        (None, None) => None,
    };
    let registers =
        |driver: &crate::vfio::nic::NicDriver| device.check_registers(driver.name, driver.registers_bytes);
    let problem = match ours {
        None => ids::driver(device).err(),
        Some(driver) => registers(driver).err().or_else(|| bind::check(device, Wishes::default()).err()),
    };
    Device {
        address: device.address().to_string(),
        id: device.id().ok().map(|id| format!("{:04x}:{:04x}", id.vendor, id.device)),
        name: ids::name(device),
        driver: device.driver(),
        iommu_group: group.as_ref().map(|group| group.number),
        group_viable: held_back_by.as_ref().map(Vec::is_empty),
        held_back_by: held_back_by.iter().flatten().map(Member::advice).collect(),
        isoplane_driver: ours.map(|driver| driver.name),
        interfaces,
        specification,
        problem: problem.map(|problem| problem.to_string()),
    }
}

pub(super) fn tell(restored: RestoredDevice) -> Restored {
    let RestoredDevice { address, driver, outcome } = restored;
    let is_done = outcome.is_ok();
    let line = match (outcome, driver) {
        (Ok(PutBack::Back), Some(driver)) => format!("{address}: back on its driver {driver}"),
        (Ok(PutBack::Back), None) => format!("{address}: without a driver, as before"),
        (Ok(PutBack::Foreign(driver)), _) => {
            format!("{address}: left alone: somebody else has given it to the driver {driver} since")
        }
        (Ok(PutBack::Gone), _) => format!("{address}: gone: the device is no longer there"),
        (Err(error), _) => format!("{address}: not restored: {error}"),
    };
    Restored { line, is_done }
}
