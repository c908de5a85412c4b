//! What the kernel expects of those who use VFIO and iommufd.
//!
//! Sources: [`linux/vfio.h`](https://github.com/torvalds/linux/blob/master/include/uapi/linux/vfio.h),
//! [`linux/iommufd.h`](https://github.com/torvalds/linux/blob/master/include/uapi/linux/iommufd.h).
#![allow(unsafe_code)]

/// A structure that is passed to the kernel and may be filled by it.
///
/// # Safety
/// `repr(C)`; every bit pattern is a value; no padding between or behind the fields; the first field is a u32 for the structure's size; where another field
/// is an address, the kernel only reads there, or pins the memory.
pub(super) unsafe trait Argument: Copy {}

/// The number of an ioctl: `_IO(';', number)`. VFIO and iommufd share the letter.
const fn io(number: u32) -> u32 {
    (b';' as u32) << 8 | number
}

// The container, /dev/vfio/vfio.

/// Always answers [`API_VERSION`].
pub(super) const GET_API_VERSION: u32 = io(100);
pub(super) const API_VERSION: i32 = 0;
/// The argument is one of the kinds of IOMMU.
pub(super) const CHECK_EXTENSION: u32 = io(101);
pub(super) const SET_IOMMU: u32 = io(102);
/// Kind of IOMMU: type 1, version 2.
pub(super) const TYPE1V2_IOMMU: u32 = 3;
/// Kind of IOMMU: none.
pub(super) const NOIOMMU_IOMMU: u32 = 8;
/// [`IommuInfo`].
pub(super) const IOMMU_GET_INFO: u32 = io(112);
/// [`DmaMap`].
pub(super) const IOMMU_MAP_DMA: u32 = io(113);
/// [`DmaUnmap`].
pub(super) const IOMMU_UNMAP_DMA: u32 = io(114);

/// `struct vfio_iommu_type1_info`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct IommuInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) page_sizes: u64,
    pub(super) cap_offset: u32,
    /// Behind the kernel's structure, where its size is a multiple of eight.
    pub(super) pad: u32,
}

/// `VFIO_IOMMU_INFO_CAPS`.
pub(super) const IOMMU_INFO_CAPS: u32 = 1 << 1;
/// `VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`: u32 count, u32 reserved, pairs of u64 (start, last).
pub(super) const IOMMU_CAP_IOVA_RANGE: u16 = 1;

/// `struct vfio_iommu_type1_dma_map`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct DmaMap {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) vaddr: u64,
    pub(super) iova: u64,
    pub(super) size: u64,
}

/// `VFIO_DMA_MAP_FLAG_READ` and `_WRITE`, as the device sees it.
pub(super) const DMA_MAP_READ_WRITE: u32 = 3;

/// `struct vfio_iommu_type1_dma_unmap`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct DmaUnmap {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) iova: u64,
    pub(super) size: u64,
}

// A group, /dev/vfio/N.

/// [`GroupStatus`].
pub(super) const GROUP_GET_STATUS: u32 = io(103);
/// The argument is the address of the container's descriptor.
pub(super) const GROUP_SET_CONTAINER: u32 = io(104);
/// The argument is the address of the device's name; the answer is a descriptor.
pub(super) const GROUP_GET_DEVICE_FD: u32 = io(106);

/// `struct vfio_group_status`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct GroupStatus {
    pub(super) argsz: u32,
    pub(super) flags: u32,
}

/// `VFIO_GROUP_FLAGS_VIABLE`: all devices of the group are bound to VFIO, or to nothing.
pub(super) const GROUP_VIABLE: u32 = 1 << 0;
/// `VFIO_GROUP_FLAGS_CONTAINER_SET`.
pub(super) const GROUP_CONTAINER_SET: u32 = 1 << 1;

// A device.

/// [`DeviceInfo`].
pub(super) const DEVICE_GET_INFO: u32 = io(107);
/// [`RegionInfo`].
pub(super) const DEVICE_GET_REGION_INFO: u32 = io(108);
/// [`IrqInfo`].
pub(super) const DEVICE_GET_IRQ_INFO: u32 = io(109);
/// [`IrqSet`], and what follows it.
pub(super) const DEVICE_SET_IRQS: u32 = io(110);
pub(super) const DEVICE_RESET: u32 = io(111);
/// [`BindIommufd`].
pub(super) const DEVICE_BIND_IOMMUFD: u32 = io(118);
/// [`AttachIommufd`].
pub(super) const DEVICE_ATTACH_IOMMUFD_PT: u32 = io(119);

/// `struct vfio_device_info`, as it was before it had capabilities.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct DeviceInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) regions: u32,
    pub(super) irqs: u32,
}

/// `VFIO_DEVICE_FLAGS_RESET`: it can be reset by itself.
pub(super) const DEVICE_FLAGS_RESET: u32 = 1 << 0;
/// `VFIO_DEVICE_FLAGS_PCI`.
pub(super) const DEVICE_FLAGS_PCI: u32 = 1 << 1;

/// `struct vfio_region_info`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct RegionInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) cap_offset: u32,
    /// Bytes.
    pub(super) size: u64,
    /// Where the region starts in the device's descriptor.
    pub(super) offset: u64,
}

/// `VFIO_REGION_INFO_FLAG_READ` and `_WRITE`.
pub(super) const REGION_READ_WRITE: u32 = 3;
/// `VFIO_REGION_INFO_FLAG_MMAP`.
pub(super) const REGION_MMAP: u32 = 1 << 2;
/// `VFIO_REGION_INFO_FLAG_CAPS`.
pub(super) const REGION_CAPS: u32 = 1 << 3;
/// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`: u32 count, u32 reserved, pairs of u64 (offset, size).
pub(super) const REGION_CAP_SPARSE_MMAP: u16 = 1;

/// `VFIO_PCI_BAR0_REGION_INDEX`; the others follow.
pub(super) const BAR0_REGION: u32 = 0;
/// BARs of a function.
pub(super) const BARS: u8 = 6;
/// `VFIO_PCI_CONFIG_REGION_INDEX`.
pub(super) const CONFIG_REGION: u32 = 7;

/// `struct vfio_irq_info`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct IrqInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) count: u32,
}

/// `VFIO_PCI_MSIX_IRQ_INDEX`.
pub(super) const MSIX_IRQ: u32 = 2;
/// `VFIO_PCI_ERR_IRQ_INDEX`: the device reported an error that could not be corrected (AER).
pub(super) const ERROR_IRQ: u32 = 3;
/// `VFIO_PCI_REQ_IRQ_INDEX`: the kernel wants the device back.
pub(super) const REQUEST_IRQ: u32 = 4;

/// `struct vfio_irq_set` without its data.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct IrqSet {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) start: u32,
    pub(super) count: u32,
}

/// `VFIO_IRQ_SET_DATA_NONE` and `VFIO_IRQ_SET_ACTION_TRIGGER`: with a count of 0, no interrupts any more.
pub(super) const IRQ_TRIGGER_NONE: u32 = 1 << 0 | 1 << 5;
/// `VFIO_IRQ_SET_DATA_EVENTFD` and `VFIO_IRQ_SET_ACTION_TRIGGER`.
pub(super) const IRQ_TRIGGER_EVENTFD: u32 = 1 << 2 | 1 << 5;

/// `struct vfio_device_bind_iommufd`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct BindIommufd {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) iommufd: i32,
    pub(super) out_devid: u32,
}

/// `struct vfio_device_attach_iommufd_pt`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct AttachIommufd {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) pt_id: u32,
}

// iommufd, /dev/iommu.

/// [`IoasAlloc`].
pub(super) const IOAS_ALLOC: u32 = io(0x81);
/// [`IoasIovaRanges`].
pub(super) const IOAS_IOVA_RANGES: u32 = io(0x84);
/// [`IoasMap`].
pub(super) const IOAS_MAP: u32 = io(0x85);
/// [`IoasUnmap`].
pub(super) const IOAS_UNMAP: u32 = io(0x86);

/// `struct iommu_ioas_alloc`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct IoasAlloc {
    pub(super) size: u32,
    pub(super) flags: u32,
    pub(super) out_ioas_id: u32,
}

/// `struct iommu_ioas_iova_ranges`; the kernel writes where `allowed_iovas` points, so it is not an [`Argument`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct IoasIovaRanges {
    pub(super) size: u32,
    pub(super) ioas_id: u32,
    pub(super) num_iovas: u32,
    pub(super) reserved: u32,
    /// Address of as many pairs of u64 (start, last).
    pub(super) allowed_iovas: u64,
    pub(super) out_iova_alignment: u64,
}

/// `struct iommu_ioas_map`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct IoasMap {
    pub(super) size: u32,
    pub(super) flags: u32,
    pub(super) ioas_id: u32,
    pub(super) reserved: u32,
    pub(super) user_va: u64,
    pub(super) length: u64,
    pub(super) iova: u64,
}

/// `IOMMU_IOAS_MAP_FIXED_IOVA`, `_WRITEABLE`, `_READABLE`.
pub(super) const IOAS_MAP_FIXED_READ_WRITE: u32 = 7;

/// `struct iommu_ioas_unmap`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct IoasUnmap {
    pub(super) size: u32,
    pub(super) ioas_id: u32,
    pub(super) iova: u64,
    pub(super) length: u64,
}

macro_rules! arguments {
    ($($type:ty = $bytes:literal,)+) => {
        $(
            const _: () = assert!(size_of::<$type>() == $bytes);
            // SAFETY: integers, of which the first is the size; `bytes` is the sum of their sizes, so that there is no padding. The addresses in
            // DmaMap and IoasMap are of memory that the kernel pins.
            unsafe impl Argument for $type {}
        )+
    };
}

arguments! {
    IommuInfo = 24,
    DmaMap = 32,
    DmaUnmap = 24,
    GroupStatus = 8,
    DeviceInfo = 16,
    RegionInfo = 32,
    IrqInfo = 16,
    BindIommufd = 16,
    AttachIommufd = 12,
    IoasAlloc = 12,
    IoasMap = 40,
    IoasUnmap = 24,
}
const _: () = assert!(size_of::<IrqSet>() == 20 && size_of::<IoasIovaRanges>() == 32);

/// The capabilities behind an information structure: number and content of each. `info` is all that the kernel wrote, `first` the offset of the
/// first one in it. A chain that leaves the structure or goes in circles ends there.
pub(super) fn capabilities(info: &[u8], first: u32) -> impl Iterator<Item = (u16, &[u8])> {
    // struct vfio_info_cap_header: u16 id, u16 version, u32 next. Each has one at least.
    let (mut next, mut left) = (first, info.len() / 8);
    std::iter::from_fn(move || {
        left = left.checked_sub(1)?;
        let header = info.get(next as usize..).filter(|_| next != 0)?;
        let (id, following) = (header.first_chunk::<2>()?, header.get(4..8)?.first_chunk::<4>()?);
        next = u32::from_ne_bytes(*following);
        Some((u16::from_ne_bytes(*id), &header[8..]))
    })
}

/// The pairs of u64 in a capability that has `u32 count, u32 reserved` before them; as many as there is room for.
pub(super) fn pairs(capability: &[u8]) -> Vec<(u64, u64)> {
    let Some((count, rest)) = capability.split_first_chunk::<4>() else { return Vec::new() };
    let (words, _) = rest.get(4..).unwrap_or_default().as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    let pairs = pairs.iter().map(|pair| (u64::from_ne_bytes(pair[0]), u64::from_ne_bytes(pair[1])));
    pairs.take(u32::from_ne_bytes(*count) as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        assert_eq!((GET_API_VERSION, IOMMU_UNMAP_DMA, IOAS_ALLOC), (0x3B64, 0x3B72, 0x3B81));
        // In C the structure ends with cap_offset, and the compiler pads it to 24.
        assert_eq!(std::mem::offset_of!(IommuInfo, cap_offset), 16);
    }

    #[test]
    fn capabilities_are_found_and_their_pairs_read() {
        let mut info = vec![0_u8; 24];
        for word in [1_u32 << 16 | 7, 32, 1 << 16 | u32::from(IOMMU_CAP_IOVA_RANGE), 0, 2, 0] {
            info.extend(word.to_ne_bytes());
        }
        for word in [0_u64, 0xFEDF_FFFF, 0xFEF0_0000, u64::MAX, 5] {
            info.extend(word.to_ne_bytes());
        }
        let found: Vec<(u16, &[u8])> = capabilities(&info, 24).collect();
        assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [7, IOMMU_CAP_IOVA_RANGE]);
        assert_eq!(pairs(found[1].1), [(0, 0xFEDF_FFFF), (0xFEF0_0000, u64::MAX)]);
        assert_eq!(capabilities(&info, 0).count(), 0);
    }

    proptest! {
        #[test]
        fn property_a_wrong_chain_ends(info in proptest::collection::vec(0_u8..64, 0..80), first in 0_u32..100) {
            let found: Vec<(u16, &[u8])> = capabilities(&info, first).collect();
            prop_assert!(found.len() <= info.len() / 8);
            prop_assert!(found.iter().all(|(_, bytes)| pairs(bytes).len() <= bytes.len() / 16));
        }
    }
}
