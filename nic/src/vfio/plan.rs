//! A `vfio:` port that is planned: what sysfs says of the device, and the options. Nothing is opened or changed.
#![forbid(unsafe_code)]

use super::function::PciId;
use super::nic::{KnownDevice, NicDriver};
use super::open;
use super::options::Options;
use super::table;
use crate::port::{OpenContext, OpenPort, PortError, PortPlan};
use crate::spec::PortSpec;
use std::fs;
use std::path::{Path, PathBuf};

/// An Ethernet header.
pub(super) const ETHERNET_HEADER: usize = 14;
/// The class of Ethernet controllers (PCI Code and ID Assignment 1.2), above the programming interface.
const ETHERNET_CLASS: u32 = 0x0200;

/// A port to be opened.
pub(super) struct VfioPlan {
    pub(super) spec: PortSpec,
    /// `0000:03:00.0`.
    pub(super) address: String,
    pub(super) driver: &'static NicDriver,
    pub(super) device: &'static KnownDevice,
    pub(super) options: Options,
    pub(super) sysfs: PathBuf,
}

/// Checks a specification against the devices of this machine.
pub(super) fn check(spec: &PortSpec) -> Result<Box<dyn PortPlan>, PortError> {
    Ok(Box::new(check_in(spec, Path::new("/sys"), table::NIC_DRIVERS)?))
}

/// The same for other devices and drivers.
fn check_in(spec: &PortSpec, sysfs: &Path, drivers: &[&'static NicDriver]) -> Result<VfioPlan, PortError> {
    let devices = sysfs.join("bus/pci/devices");
    let address = full_address(spec.target()).ok_or_else(|| {
        spec.error("that is no PCI address: write DOMAIN:BUS:DEVICE.FUNCTION as lspci -D does, 0000:03:00.0")
    })?;
    let device = devices.join(&address);
    if !device.exists() {
        let known = ours(&devices, drivers);
        let choice = if known.is_empty() {
            "none is here that a driver knows".into()
        } else {
            format!("choose from {known}")
        };
        return Err(spec.error(format!("there is no PCI device {address}: {choice}")));
    }
    let (Some(id), Some(class)) = (id_of(&device), number(&device, "class")) else {
        return Err(spec.open_error(format!("cannot read {}", device.display())));
    };
    if class >> 8 != ETHERNET_CLASS {
        return Err(spec.error(format!(
            "{address} is no Ethernet controller (its class is {:04x}): \"lspci -D\" shows which device is",
            class >> 8
        )));
    }
    let Some((driver, known)) = table::find_in(drivers, id) else {
        let names: Vec<&str> = drivers.iter().map(|driver| driver.name).collect();
        return Err(spec.error(format!(
            "no driver for {:04x}:{:04x} ({address}), there are {}: use afxdp: with its interface",
            id.vendor,
            id.device,
            names.join(", ")
        )));
    };
    let options = Options::read(spec, driver)?;
    Ok(VfioPlan { spec: spec.clone(), address, driver, device: known, options, sysfs: sysfs.to_owned() })
}

/// The address with its domain, in lower case.
fn full_address(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let text = if text.matches(':').count() == 1 { format!("0000:{text}") } else { text };
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (slot, function) = rest.split_once('.')?;
    let hex = |part: &str, digits: std::ops::RangeInclusive<usize>| {
        let whole = digits.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        whole.then(|| u32::from_str_radix(part, 16).ok()).flatten()
    };
    hex(domain, 4..=8)?;
    hex(bus, 2..=2)?;
    let fits = hex(slot, 2..=2)? < 32 && hex(function, 1..=1)? < 8;
    fits.then_some(text)
}

fn number(device: &Path, file: &str) -> Option<u32> {
    let text = fs::read_to_string(device.join(file)).ok()?;
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

fn id_of(device: &Path) -> Option<PciId> {
    let of = |file| number(device, file).and_then(|number| u16::try_from(number).ok());
    Some(PciId { vendor: of("vendor")?, device: of("device")? })
}

/// The devices that a driver knows, for those who named none.
fn ours(devices: &Path, drivers: &[&'static NicDriver]) -> String {
    let entries = fs::read_dir(devices).into_iter().flatten().flatten();
    let known = entries.filter_map(|entry| {
        let (_, known) = table::find_in(drivers, id_of(&entry.path())?)?;
        Some(format!("{} ({})", entry.file_name().to_string_lossy(), known.name))
    });
    let mut known: Vec<String> = known.collect();
    known.sort();
    known.join(", ")
}

impl PortPlan for VfioPlan {
    fn rx_queues(&self) -> usize {
        self.options.queues.into()
    }

    fn max_tx_queues(&self) -> usize {
        self.driver.max_queues.into()
    }

    fn frames(&self, tx_queues: usize) -> usize {
        usize::from(self.options.queues) * usize::from(self.options.rx_ring)
            + tx_queues * usize::from(self.options.tx_ring)
    }

    fn max_packet_len(&self) -> Option<usize> {
        Some(self.options.mtu + ETHERNET_HEADER)
    }

    fn open(self: Box<Self>, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
        open::open(&self, context)
    }
}

#[cfg(test)]
mod tests;
