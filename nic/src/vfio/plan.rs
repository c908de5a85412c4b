//! A `vfio:` port that is planned: what sysfs says of the device, and the options. Nothing is opened or changed.
#![forbid(unsafe_code)]

use super::nic::NicDriver;
use super::open;
use super::options::{IommuChoice, Options};
use super::pci::address::PciAddress;
use super::pci::bind::{self, Wishes};
use super::pci::errors::PciError;
use super::pci::ids;
use super::pci::sysfs::Sysfs;
use crate::ethernet::ETHERNET_HEADER;
use crate::port::{OpenContext, OpenPort, PortError, PortPlan};
use crate::spec::PortSpec;

/// A port to be opened.
pub(super) struct VfioPlan {
    pub(super) spec: PortSpec,
    pub(super) driver: &'static NicDriver,
    pub(super) options: Options,
    pub(super) binding: bind::Plan,
}

/// Checks a specification against the devices of this machine.
pub(super) fn check(spec: &PortSpec) -> Result<Box<dyn PortPlan>, PortError> {
    Ok(Box::new(plan(spec)?))
}

/// The same, as what it is.
pub(super) fn plan(spec: &PortSpec) -> Result<VfioPlan, PortError> {
    let refused = |error: PciError| error.of_port(spec);
    let address: PciAddress = spec.target().parse().map_err(|error| refused(PciError::Address(error)))?;
    let device = Sysfs::default().find(address).map_err(refused)?;
    device.check_ethernet().map_err(refused)?;
    let (driver, _) = ids::driver(&device).map_err(refused)?;
    let options = Options::read(spec, driver)?;
    device.check_registers(driver.name, driver.registers_bytes).map_err(refused)?;
    let wishes = Wishes { take: options.take, no_iommu: options.iommu == IommuChoice::Off };
    let binding = bind::check(&device, wishes).map_err(refused)?;
    Ok(VfioPlan { spec: spec.clone(), driver, options, binding })
}

impl PortPlan for VfioPlan {
    fn rx_queues(&self) -> usize {
        self.options.queues.into()
    }

    fn max_tx_queues(&self) -> usize {
        self.driver.max_queues.into()
    }

    fn tx_queues_follow(&self) -> bool {
        false
    }

    fn frames(&self, tx_queues: usize) -> usize {
        self.options.frames(tx_queues)
    }

    fn max_packet_len(&self) -> Option<usize> {
        Some(self.options.mtu + ETHERNET_HEADER)
    }

    fn open(self: Box<Self>, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
        open::open(*self, context)
    }
}
