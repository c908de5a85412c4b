//! PCI functions: which there are, what holds them back, and how they are given to `vfio-pci` and back.
//!
//! [`sysfs`] reads what the kernel shows, below a root folder that tests replace; [`group`] says whether an IOMMU group can be used, [`traffic`]
//! whether the kernel uses the interface; [`bind`] changes drivers, and [`state`] remembers what was before. [`errors`] has the words for all that
//! can go wrong, also for what is opened later.

pub(crate) mod address;
pub(crate) mod bind;
pub(crate) mod errors;
pub(crate) mod group;
mod holders;
pub mod host;
pub(crate) mod ids;
#[cfg(test)]
pub(crate) mod machine;
pub(crate) mod state;
pub(crate) mod sysfs;
#[cfg(test)]
mod tests;
mod traffic;
