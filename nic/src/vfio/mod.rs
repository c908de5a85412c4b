//! `vfio:` ports: a whole PCI NIC, driven from user space behind an IOMMU.
//!
//! From the bottom: a device's [`registers`], the memory it reaches ([`dma`]) and the rest of a PCI [`function`] are behind small traits, so that a driver
//! runs on VFIO and on a model alike. A driver is a folder in [`drivers`] and a line in the [`table`].

mod abi;
mod affinity;
mod bar;
pub(crate) mod checksum;
mod container;
mod device;
pub(crate) mod dma;
mod drivers;
mod error;
mod fault;
pub(crate) mod function;
pub(crate) mod gate;
#[cfg(test)]
mod hardware;
#[cfg(test)]
pub(crate) mod instructions;
pub(crate) mod intel;
pub(crate) mod interrupt;
mod iommufd;
pub(crate) mod iova;
mod membership;
#[cfg(test)]
pub(crate) mod model;
pub(crate) mod nic;
mod noiommu;
mod open;
mod options;
pub(crate) mod pci;
mod plan;
mod port;
pub(crate) mod registers;
mod sys;
mod table;
mod taken;
pub(crate) mod usual;
mod way;

#[doc(hidden)]
pub use fault::open_aimed_outside;

use crate::drivers::Driver;

/// This driver's line in the table of drivers.
pub(crate) const DRIVER: Driver = Driver {
    name: "vfio",
    summary: "a whole PCI NIC, driven from user space behind an IOMMU",
    forms: &[(
        "vfio:ADDRESS?queues=1&rx_ring=1024&tx_ring=1024&mtu=1500&checksum=off&vlans=10,20&iommu=auto&take=no",
        "the NIC at a PCI address (0000:03:00.0), with so many receive queues and those VLANs, or all; taken from the kernel while the program runs",
    )],
    check: plan::check,
};
