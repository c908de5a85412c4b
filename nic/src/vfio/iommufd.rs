//! The way to a device by iommufd: `/dev/vfio/devices/vfioN` and `/dev/iommu` (Linux 6.6). No distribution that we know builds its kernels with it so far.
//!
//! One address space (IOAS) for all ports of the process.
#![forbid(unsafe_code)]

use super::abi::{self, AttachIommufd, BindIommufd, IoasAlloc, IoasMap, IoasUnmap};
use super::dma::{DmaSpace, Iommu};
use super::error::{VfioError, map_error};
use super::membership::{Groups, Membership, lock};
use super::pci::bind::Binding;
use super::pci::errors::PciError;
use super::sys;
use super::way::{DEV_IOMMU, Opened};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, Weak};

/// `/dev/iommu` with an address space, and the groups of its devices.
struct AddressSpace {
    file: File,
    ioas_id: u32,
    groups: Groups,
}

/// The process's address space, as long as a port has it open.
static SHARED: Mutex<Option<(Weak<AddressSpace>, Weak<DmaSpace>)>> = Mutex::new(None);

/// Opens a device that is bound to vfio-pci.
pub(super) fn open(binding: Binding) -> Result<Opened, VfioError> {
    let path = binding.cdev_path().unwrap_or_default();
    let missing = || VfioError::NoIommufd { missing: "/dev/vfio/devices".into() };
    let device: OwnedFd = binding.open_cdev()?.ok_or_else(missing)?.into();
    let number = binding.device().group().ok_or(PciError::NoIommu { address: binding.device().address() })?;
    // Held to the end: two ports that open at once share the address space.
    let mut shared = lock(&SHARED);
    let known = shared.as_ref().and_then(|(space, dma)| Some((space.upgrade()?, dma.upgrade()?)));
    let (space, dma) = match known {
        Some((space, dma)) => (space, Some(dma)),
        None => (Arc::new(AddressSpace::open()?), None),
    };
    let mut bind = BindIommufd { iommufd: space.file.as_raw_fd(), ..BindIommufd::default() };
    sys::call(device.as_fd(), abi::DEVICE_BIND_IOMMUFD, &mut bind).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::EBUSY) => binding.busy(&path).into(),
            _ => VfioError::system("the kernel does not give the device (VFIO_DEVICE_BIND_IOMMUFD)")(error),
        }
    })?;
    let mut attach = AttachIommufd { pt_id: space.ioas_id, ..AttachIommufd::default() };
    sys::call(device.as_fd(), abi::DEVICE_ATTACH_IOMMUFD_PT, &mut attach)
        .map_err(PciError::of_attach_iommufd)?;
    let group = space.groups.get(number, || Ok::<_, VfioError>(None))?;
    let membership = Membership::new(group, binding);
    // Which addresses there are is known when a device is attached.
    let dma = match dma {
        Some(dma) => {
            dma.narrow();
            dma
        }
        None => DmaSpace::new(Box::new(Ioas(Arc::clone(&space)))),
    };
    *shared = Some((Arc::downgrade(&space), Arc::downgrade(&dma)));
    Ok(Opened { device, membership, dma, words: format!("iommufd, IOMMU group {number}") })
}

impl AddressSpace {
    fn open() -> Result<Self, VfioError> {
        let file = OpenOptions::new().read(true).write(true).open(DEV_IOMMU);
        let file = file.map_err(VfioError::open(DEV_IOMMU))?;
        let mut alloc = IoasAlloc::default();
        sys::call(file.as_fd(), abi::IOAS_ALLOC, &mut alloc)
            .map_err(VfioError::system("iommufd gives no address space (IOMMU_IOAS_ALLOC)"))?;
        Ok(Self { file, ioas_id: alloc.out_ioas_id, groups: Groups::default() })
    }
}

/// The IOMMUs behind an address space.
struct Ioas(Arc<AddressSpace>);

impl Iommu for Ioas {
    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        let ranges = sys::iova_ranges(self.0.file.as_fd(), self.0.ioas_id).unwrap_or_default();
        ranges.into_iter().map(|(start, last)| start..=last).collect()
    }

    fn map(&self, iova: u64, address: NonNull<u8>, length: usize) -> io::Result<()> {
        let mut map = IoasMap {
            flags: abi::IOAS_MAP_FIXED_READ_WRITE,
            ioas_id: self.0.ioas_id,
            user_va: address.as_ptr() as u64,
            length: length as u64,
            iova,
            ..IoasMap::default()
        };
        let mapped = sys::call(self.0.file.as_fd(), abi::IOAS_MAP, &mut map);
        mapped.map(|_| ()).map_err(|error| map_error(error, length))
    }

    fn unmap(&self, iova: u64, length: usize) -> io::Result<()> {
        let mut unmap =
            IoasUnmap { ioas_id: self.0.ioas_id, iova, length: length as u64, ..IoasUnmap::default() };
        sys::call(self.0.file.as_fd(), abi::IOAS_UNMAP, &mut unmap).map(|_| ())
    }
}
