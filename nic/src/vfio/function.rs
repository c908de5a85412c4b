//! A PCI function that is ours, as a driver sees it: behind it is VFIO, or a model.
#![forbid(unsafe_code)]

use super::dma::DmaSpace;
use super::registers::Registers;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Which device it is, by its configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PciId {
    /// Vendor.
    pub(crate) vendor: u16,
    /// Device.
    pub(crate) device: u16,
}

/// One function of a device. Everything here is for the control thread.
pub(crate) trait PciFunction: Send + Sync {
    /// Vendor and device.
    fn id(&self) -> PciId;

    /// Reads 8, 16 or 32 bits (`bytes` is 1, 2 or 4) of the configuration space; all ones where there is nothing.
    fn read_config(&self, offset: u16, bytes: u8) -> u32;

    /// Writes 8, 16 or 32 bits of it.
    fn write_config(&self, offset: u16, bytes: u8, value: u32);

    /// The registers of a BAR, mapped; an error where it is no memory BAR.
    fn bar(&self, index: u8) -> io::Result<Registers>;

    /// Resets the function (FLR, or what the kernel can do instead); false where it cannot be reset this way.
    fn reset(&self) -> io::Result<bool>;

    /// Lets the device access memory, or no longer (the Bus Master bit). When it has returned with `false`, none of its accesses is under way.
    fn set_bus_master(&self, on: bool);

    /// The memory that it can reach.
    fn dma(&self) -> &Arc<DmaSpace>;

    /// How many MSI-X vectors it has; 0 where it has none.
    fn msix_vectors(&self) -> u16;

    /// Enables the first `count` vectors, and gives for each the eventfd that its interrupts are counted in. They come while the function is bus master.
    fn enable_msix(&self, count: u16) -> io::Result<Vec<OwnedFd>>;

    /// True once the kernel has asked for the device (it is being unplugged), or it answers no more.
    fn is_going(&self) -> bool;
}
