//! By which of the kernel's interfaces a device is opened: iommufd where the kernel has it, else the IOMMU group, and without an IOMMU only where the user says
//! so.
#![forbid(unsafe_code)]

use super::dma::DmaSpace;
use super::error::VfioError;
use super::membership::Membership;
use super::options::IommuChoice;
use super::pci::bind::Binding;
use super::{container, iommufd};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// iommufd's file.
pub(super) const DEV_IOMMU: &str = "/dev/iommu";

/// An open device.
pub(super) struct Opened {
    /// To be closed first.
    pub(super) device: OwnedFd,
    pub(super) membership: Membership,
    /// The memory that it can reach.
    pub(super) dma: Arc<DmaSpace>,
    /// For the port's mode: `IOMMU group 7`.
    pub(super) words: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Iommufd,
    Group,
}

/// `cdev`: the device has a file of its own. `iommu`: there is `/dev/iommu`.
fn choose(choice: IommuChoice, cdev: bool, iommu: bool) -> Result<Way, VfioError> {
    match choice {
        IommuChoice::Auto if cdev && iommu => Ok(Way::Iommufd),
        IommuChoice::Auto | IommuChoice::Group | IommuChoice::Off => Ok(Way::Group),
        IommuChoice::Iommufd if !iommu => Err(VfioError::NoIommufd { missing: DEV_IOMMU.into() }),
        IommuChoice::Iommufd if !cdev => Err(VfioError::NoIommufd { missing: "/dev/vfio/devices".into() }),
        IommuChoice::Iommufd => Ok(Way::Iommufd),
    }
}

/// Opens a device that is bound to vfio-pci.
pub(super) fn open(binding: Binding, choice: IommuChoice) -> Result<Opened, VfioError> {
    match choose(choice, binding.cdev_path().is_some(), Path::new(DEV_IOMMU).exists())? {
        Way::Iommufd => iommufd::open(binding),
        Way::Group => container::open(binding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iommufd_is_taken_where_all_of_it_is_there() {
        let choose = |choice, cdev, iommu| choose(choice, cdev, iommu).map_err(|error| error.to_string());
        assert_eq!(choose(IommuChoice::Auto, true, true), Ok(Way::Iommufd));
        for (cdev, iommu) in [(false, false), (true, false), (false, true)] {
            assert_eq!(choose(IommuChoice::Auto, cdev, iommu), Ok(Way::Group));
            let error = choose(IommuChoice::Iommufd, cdev, iommu).unwrap_err();
            let missing = if iommu { "/dev/vfio/devices" } else { "/dev/iommu" };
            assert!(error.contains(missing) && error.contains("iommu=group"), "{error}");
        }
        assert_eq!(choose(IommuChoice::Group, true, true), Ok(Way::Group));
        assert_eq!(choose(IommuChoice::Off, true, true), Ok(Way::Group));
    }
}
