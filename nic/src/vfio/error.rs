//! Why VFIO does not give a device that is bound: one line each, with the way out. What goes wrong before is [`PciError`]'s.
#![forbid(unsafe_code)]

use super::pci::errors::PciError;
use std::io;
use thiserror::Error;

/// Without the port's name, which stands before it.
#[derive(Debug, Error)]
pub(super) enum VfioError {
    #[error(transparent)]
    Pci(#[from] PciError),
    #[error("there is no {path}: run \"modprobe vfio-pci\" as root; in a container, pass it /dev/vfio")]
    NoVfio { path: String },
    #[error(
        "{path} is not viable: the kernel's drivers hold another device of its IOMMU group, which could reach our memory: \"isoplane nics\" shows which"
    )]
    NotViable { path: String },
    #[error("the device is open already, by {path}: it can be one port only")]
    DeviceBusy { path: String },
    #[error(
        "this kernel has no iommufd for devices ({missing} is missing; CONFIG_IOMMUFD, CONFIG_VFIO_DEVICE_CDEV): pass iommu=group"
    )]
    NoIommufd { missing: String },
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
}

impl VfioError {
    /// The system refused what the words say.
    pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    /// Why a file of VFIO's own cannot be opened.
    pub(super) fn open(path: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Self::NoVfio { path: path.into() },
            Some(libc::EACCES | libc::EPERM) => PciError::NoPermission { path: path.into() }.into(),
            _ => PciError::Open { what: format!("open {path}"), source }.into(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_the_way_out_in_one_line() {
        let mapped = |code| map_error(io::Error::from_raw_os_error(code), 16 << 20).to_string();
        let opened = |code| VfioError::open("/dev/vfio/vfio")(io::Error::from_raw_os_error(code)).to_string();
        for (text, words) in [
            (mapped(libc::ENOMEM), "16384 KiB more"),
            (mapped(libc::ENOMEM), "ulimit -l"),
            (mapped(libc::ENOSPC), "dma_entry_limit"),
            (opened(libc::ENOENT), "modprobe vfio-pci"),
            (opened(libc::EACCES), "run as root"),
            (
                PciError::of_set_iommu(io::Error::from_raw_os_error(libc::EPERM)).to_string(),
                "allow_unsafe_interrupts",
            ),
            (
                PciError::of_set_iommu(io::Error::from_raw_os_error(libc::ENODEV)).to_string(),
                "vfio_iommu_type1",
            ),
        ] {
            assert!(text.contains(words) && !text.contains('\n'), "{text}");
        }
        assert_eq!(
            map_error(io::Error::from_raw_os_error(libc::EINVAL), 1).raw_os_error(),
            Some(libc::EINVAL)
        );
    }
}
