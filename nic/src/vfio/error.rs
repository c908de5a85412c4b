//! Why VFIO does not give a device: one line each, with the way out.
#![forbid(unsafe_code)]

use super::nic::NicError;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Without the port's name, which stands before it.
#[derive(Debug, Error)]
pub(super) enum VfioError {
    #[error(
        "{device} is in no IOMMU group: switch the IOMMU on, in the firmware (VT-d, AMD-Vi, SMMU) and on Intel also by intel_iommu=on on the kernel's command line; where there is none, iommu=noiommu goes without its protection"
    )]
    NoIommu { device: String },
    #[error("there is no {}: run \"modprobe vfio-pci\" as root; in a container, pass it /dev/vfio", path.display())]
    NoVfio { path: PathBuf },
    #[error("there is no {}: bind {device} to vfio-pci", path.display())]
    NotBound { path: PathBuf, device: String },
    #[error("no access to {}: run as root, or \"chown $USER {}\" as root", path.display(), path.display())]
    NoAccess { path: PathBuf },
    #[error("{} is in use: end the process that has it open (\"fuser -v {}\" names it)", path.display(), path.display())]
    InUse { path: PathBuf },
    #[error(
        "IOMMU group {group} is not viable: the kernel's drivers hold other devices of it, which could reach our memory: {others}: unbind each of them, by \"echo ADDRESS > /sys/bus/pci/devices/ADDRESS/driver/unbind\" as root, or put the NIC into another slot"
    )]
    NotViable { group: u32, others: String },
    #[error("the kernel has no IOMMU interface of type 1: run \"modprobe vfio_iommu_type1\" as root")]
    NoType1,
    #[error(
        "the IOMMU does not remap interrupts, by which a device could disturb the host, so the kernel refuses it: switch interrupt remapping on (firmware; intremap=on), or, where you trust the device, \"echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts\" as root"
    )]
    NoInterruptRemapping,
    #[error(
        "this kernel has no iommufd for devices ({missing} is missing; CONFIG_IOMMUFD, CONFIG_VFIO_DEVICE_CDEV): pass iommu=group"
    )]
    NoIommufd { missing: String },
    #[error(
        "this process has {has} open, and the memory of one process is mapped in one way only: pass the same iommu=... to every port"
    )]
    Mixed { has: &'static str },
    #[error(
        "the kernel does not give devices without an IOMMU: \"modprobe vfio enable_unsafe_noiommu_mode=1\" as root, then bind {device} to vfio-pci anew"
    )]
    NoNoIommu { device: String },
    #[error("{device} is behind an IOMMU: leave iommu=noiommu out")]
    HasIommu { device: String },
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
}

impl VfioError {
    /// The system refused what the words say.
    pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    /// Why a file of /dev cannot be opened; `missing` where it is not there.
    pub(super) fn open(path: &Path, error: io::Error, missing: impl FnOnce() -> Self) -> Self {
        let path = path.to_owned();
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => missing(),
            Some(libc::EACCES | libc::EPERM) => Self::NoAccess { path },
            Some(libc::EBUSY) => Self::InUse { path },
            _ => Self::System { what: "cannot open a file of /dev/vfio", source: error },
        }
    }

    /// What `VFIO_SET_IOMMU` answered.
    pub(super) fn set_iommu(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM) => Self::NoInterruptRemapping,
            Some(libc::ENODEV) => Self::NoType1,
            _ => Self::System { what: "the kernel refuses the IOMMU (VFIO_SET_IOMMU)", source: error },
        }
    }
}

impl From<VfioError> for NicError {
    fn from(error: VfioError) -> Self {
        NicError::Device(error.to_string())
    }
}

/// What to say where memory cannot be mapped for devices.
pub(super) fn map_error(error: io::Error, length: usize) -> io::Error {
    let kib = length.div_ceil(1024);
    match error.raw_os_error() {
        Some(libc::ENOMEM) => io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!(
                "the kernel will not lock {kib} KiB more for devices: run as root, grant CAP_IPC_LOCK, raise \"ulimit -l\", or ask for fewer frames"
            ),
        ),
        Some(libc::ENOSPC) => io::Error::new(
            io::ErrorKind::StorageFull,
            "the kernel maps no more pieces of memory: raise /sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
        ),
        _ => error,
    }
}
