//! IOMMU groups: what the IOMMU cannot tell apart. Only a whole group can be given to user space, so what else is in it matters.
//!
//! A group is *viable* when each of its devices has no driver, or one that does no DMA of its own: VFIO's, `pci-stub`, that of a PCI
//! bridge (`driver_managed_dma` in the kernel's drivers; Documentation/driver-api/vfio.rst, "Groups, Devices, and IOMMUs").
#![forbid(unsafe_code)]

use super::errors::PciError;
use super::sysfs::{self, PciDevice, Sysfs};

/// Drivers beside those of VFIO that leave a group viable.
const HARMLESS: &[&str] = &["pci-stub", "pcieport"];

/// A device of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its name on its bus.
    pub(crate) name: String,
    /// What has it.
    pub(crate) driver: Option<String>,
    /// A bridge from PCI to PCI.
    is_bridge: bool,
    /// The same in words.
    words: String,
}

/// A device's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Its number.
    pub(crate) number: u32,
    /// All in it, the device itself too.
    pub(crate) members: Vec<Member>,
}

/// Whether a driver is one of VFIO's: `vfio-pci`, and those for devices that can be moved while they run, such as `mlx5_vfio_pci`.
pub(crate) fn is_vfio(driver: &str) -> bool {
    driver.starts_with("vfio") || driver.ends_with("vfio_pci") || driver.ends_with("vfio-pci")
}

impl Member {
    fn read(sysfs: &Sysfs, folder: &str, name: String) -> Self {
        let class = sysfs.word(&format!("{folder}/{name}/class")).and_then(|word| sysfs::hexadecimal(&word));
        let class = class.and_then(|class| u32::try_from(class).ok());
        let words = match name.parse() {
            Ok(address) => sysfs.device(address).describe(),
            Err(_) => name.clone(),
        };
        Self {
            driver: sysfs.link(&format!("{folder}/{name}/driver")),
            is_bridge: class.is_some_and(sysfs::is_bridge),
            name,
            words,
        }
    }

    /// Whether the group cannot be used because of it.
    pub(crate) fn holds_back(&self) -> bool {
        let harmless = |driver: &str| is_vfio(driver) || HARMLESS.contains(&driver);
        !self.is_bridge && self.driver.as_deref().is_some_and(|driver| !harmless(driver))
    }

    /// What it is, and what to type so that it holds back no more.
    pub(crate) fn advice(&self) -> String {
        let driver = self.driver.as_deref().unwrap_or("DRIVER");
        format!("{}: run \"echo {} > /sys/bus/pci/drivers/{driver}/unbind\" as root", self.words, self.name)
    }
}

impl Group {
    /// The group of a device; `None` where it has none, and so is behind no IOMMU.
    pub(crate) fn of(device: &PciDevice) -> Option<Self> {
        let number = device.group()?;
        let folder = device.file("iommu_group/devices");
        let names = device.sysfs().names(&folder);
        let members = names.into_iter().map(|name| Member::read(device.sysfs(), &folder, name)).collect();
        Some(Self { number, members })
    }

    /// Those that hold it back, besides `device` itself, which is to be taken from its driver.
    pub(crate) fn held_back_by(&self, device: &PciDevice) -> Vec<Member> {
        let own = device.address().to_string();
        self.members.iter().filter(|member| member.name != own && member.holds_back()).cloned().collect()
    }

    /// An error where others hold it back.
    pub(crate) fn check(&self, device: &PciDevice) -> Result<(), PciError> {
        let held_back_by = self.held_back_by(device);
        if held_back_by.is_empty() {
            return Ok(());
        }
        Err(PciError::GroupNotViable { address: device.address(), group: self.number, held_back_by })
    }
}
