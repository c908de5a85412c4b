//! The way to a device by its IOMMU group: `/dev/vfio/N`, and the container `/dev/vfio/vfio` that groups share.
//!
//! One container for all ports of the process, so that packet memory is mapped once and every device reaches it.
#![forbid(unsafe_code)]

use super::abi::{self, DmaMap, DmaUnmap, GroupStatus, IommuInfo};
use super::dma::{DmaSpace, Iommu};
use super::error::{VfioError, map_error};
use super::membership::{Groups, Membership, lock};
use super::noiommu::NoIommu;
use super::pci::bind::Binding;
use super::pci::errors::PciError;
use super::pci::group;
use super::sys;
use super::way::Opened;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, Weak};

/// A container, and its open groups.
struct Container {
    file: File,
    groups: Groups,
}

type Shared = Mutex<Option<(Weak<Container>, Weak<DmaSpace>)>>;

/// The process's container, as long as a port has it open.
static SHARED: Shared = Mutex::new(None);
/// The one for devices without an IOMMU: the kernel lets none be for both.
static SHARED_NO_IOMMU: Shared = Mutex::new(None);

/// Opens a device that is bound to vfio-pci.
pub(super) fn open(binding: Binding) -> Result<Opened, VfioError> {
    let device = binding.device().clone();
    let address = device.address().to_string();
    let (path, no_iommu) = (binding.group_path()?, binding.is_no_iommu());
    let number = device.group().ok_or(PciError::NoIommu { address: device.address() })?;
    // Held to the end: two ports that open at once share the container.
    let mut shared = lock(if no_iommu { &SHARED_NO_IOMMU } else { &SHARED });
    let known = shared.as_ref().and_then(|(container, dma)| Some((container.upgrade()?, dma.upgrade()?)));
    // One whose last group was closed has lost its IOMMU, and what was mapped.
    let known = known.filter(|(container, _)| !container.groups.is_empty());
    let (container, dma) = match known {
        Some((container, dma)) => (container, Some(dma)),
        None => (Arc::new(Container::open()?), None),
    };
    let group = container.groups.get(number, || {
        let file = binding.open_group()?;
        check_viable(&file, &binding, &path)?;
        container.add(&file, no_iommu, dma.is_none())?;
        Ok::<_, VfioError>(Some(file))
    })?;
    let membership = Membership::new(group, binding);
    let Some(file) = &membership.group.file else { return Err(VfioError::DeviceBusy { path }) };
    let name = CString::new(address).map_err(|error| VfioError::system("a device's name")(error.into()))?;
    let fd = sys::device_fd(file.as_fd(), &name).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => VfioError::DeviceBusy { path: path.clone() },
        _ => VfioError::system("the kernel does not give the device (VFIO_GROUP_GET_DEVICE_FD)")(error),
    })?;
    let dma = match dma {
        Some(dma) => {
            dma.narrow();
            dma
        }
        None if no_iommu => DmaSpace::new(Box::new(NoIommu)),
        None => DmaSpace::new(Box::new(Type1(Arc::clone(&container)))),
    };
    *shared = Some((Arc::downgrade(&container), Arc::downgrade(&dma)));
    let words = if no_iommu { "no IOMMU".to_owned() } else { format!("IOMMU group {number}") };
    Ok(Opened { device: fd, membership, dma, words })
}

/// It was viable when the device was bound; somebody may have bound another of the group since.
fn check_viable(file: &File, binding: &Binding, path: &str) -> Result<(), VfioError> {
    let mut status = GroupStatus::default();
    sys::call(file.as_fd(), abi::GROUP_GET_STATUS, &mut status)
        .map_err(VfioError::system("cannot ask about the IOMMU group (VFIO_GROUP_GET_STATUS)"))?;
    if status.flags & abi::GROUP_VIABLE == 0 {
        if let Some(group) = group::Group::of(binding.device()) {
            group.check(binding.device())?;
        }
        return Err(VfioError::NotViable { path: path.to_owned() });
    }
    if status.flags & abi::GROUP_CONTAINER_SET != 0 {
        return Err(binding.busy(path).into());
    }
    Ok(())
}

impl Container {
    fn open() -> Result<Self, VfioError> {
        let path = "/dev/vfio/vfio";
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(VfioError::open(path))?;
        let version = sys::call_number(file.as_fd(), abi::GET_API_VERSION, 0)
            .map_err(VfioError::system("cannot ask for VFIO's version"))?;
        if version != abi::API_VERSION {
            let error = io::Error::other(format!("version {version} is not known"));
            return Err(VfioError::system("cannot use this kernel's VFIO")(error));
        }
        Ok(Self { file, groups: Groups::default() })
    }

    /// Puts a group in; the first one brings the IOMMU.
    fn add(&self, group: &File, no_iommu: bool, first: bool) -> Result<(), VfioError> {
        // With an IOMMU there, the group gets its domain now.
        sys::set_container(group.as_fd(), self.file.as_fd()).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => VfioError::from(PciError::of_set_iommu(error)),
            _ => VfioError::system("cannot put the IOMMU group into a container")(error),
        })?;
        if !first {
            return Ok(());
        }
        let kind = if no_iommu { abi::NOIOMMU_IOMMU } else { abi::TYPE1V2_IOMMU };
        let has = sys::call_number(self.file.as_fd(), abi::CHECK_EXTENSION, kind);
        if !has.is_ok_and(|answer| answer > 0) {
            return Err(PciError::NoIommuDriver.into());
        }
        sys::call_number(self.file.as_fd(), abi::SET_IOMMU, kind).map_err(PciError::of_set_iommu)?;
        Ok(())
    }
}

/// The IOMMU behind a container.
struct Type1(Arc<Container>);

impl Iommu for Type1 {
    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        let info =
            sys::call_with_capabilities(self.0.file.as_fd(), abi::IOMMU_GET_INFO, IommuInfo::default());
        let Ok((info, bytes)) = info else { return Vec::new() };
        iova_ranges(&info, &bytes)
    }

    fn map(&self, iova: u64, address: NonNull<u8>, length: usize) -> io::Result<()> {
        let mut map = DmaMap {
            flags: abi::DMA_MAP_READ_WRITE,
            vaddr: address.as_ptr() as u64,
            iova,
            size: length as u64,
            ..DmaMap::default()
        };
        let mapped = sys::call(self.0.file.as_fd(), abi::IOMMU_MAP_DMA, &mut map);
        mapped.map(|_| ()).map_err(|error| map_error(error, length))
    }

    fn unmap(&self, iova: u64, length: usize) -> io::Result<()> {
        let mut unmap = DmaUnmap { iova, size: length as u64, ..DmaUnmap::default() };
        sys::call(self.0.file.as_fd(), abi::IOMMU_UNMAP_DMA, &mut unmap)?;
        // The kernel says how much it unmapped.
        if unmap.size == length as u64 { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

/// The ranges in what the kernel tells of an IOMMU.
fn iova_ranges(info: &IommuInfo, bytes: &[u8]) -> Vec<RangeInclusive<u64>> {
    let capability = (info.flags & abi::IOMMU_INFO_CAPS != 0)
        .then(|| abi::capabilities(bytes, info.cap_offset).find(|(id, _)| *id == abi::IOMMU_CAP_IOVA_RANGE));
    match capability.flatten() {
        Some((_, bytes)) => abi::pairs(bytes).into_iter().map(|(start, last)| start..=last).collect(),
        // Kernels before 5.4 do not tell: x86 keeps addresses for interrupts there, and some IOMMUs translate 39 bits.
        None => vec![0..=0xFEDF_FFFF, 0xFEF0_0000..=(1 << 39) - 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_capability_or_what_is_always_so() {
        let info = IommuInfo { flags: abi::IOMMU_INFO_CAPS, cap_offset: 24, ..IommuInfo::default() };
        let mut bytes = vec![0; 24];
        for word in [1 << 16 | u32::from(abi::IOMMU_CAP_IOVA_RANGE), 0, 1, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(0x1000_u64.to_ne_bytes());
        bytes.extend(0xFFFF_u64.to_ne_bytes());
        let ranges = iova_ranges(&info, &bytes);
        assert_eq!(
            ranges.iter().map(|range| (*range.start(), *range.end())).collect::<Vec<_>>(),
            [(0x1000, 0xFFFF)]
        );
        for (info, bytes) in [(IommuInfo { flags: 0, ..info }, &bytes[..]), (info, &bytes[..24])] {
            let ranges = iova_ranges(&info, bytes);
            assert!(ranges.len() == 2 && ranges.iter().all(|range| !range.contains(&0xFEE0_0000)));
        }
    }
}
