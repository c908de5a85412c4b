//! `vfio:` ports: a whole PCI NIC, driven from user space behind an IOMMU.
//!
//! From the bottom: a device's [`registers`], the memory it reaches ([`dma`]) and the rest of a PCI [`function`] are behind small traits, so that a driver
//! runs on VFIO and on a model alike. A driver is a folder in [`drivers`] and a line in the [`table`].

pub(crate) mod dma;
mod drivers;
pub(crate) mod function;
pub(crate) mod gate;
pub(crate) mod intel;
pub(crate) mod iova;
#[cfg(test)]
pub(crate) mod model;
pub(crate) mod nic;
pub(crate) mod registers;
mod table;
