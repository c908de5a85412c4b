//! The registers of a BAR, mapped into the process.
//!
//! Where the kernel lets only parts of it be mapped (it keeps the MSI-X table to itself, or the BAR is smaller than a page), the rest is
//! reached by pread(2) and pwrite(2): slower, and a system call, so nothing that a worker writes should be there.
#![allow(unsafe_code)]

mod sys;

use self::sys::Mapping;
use super::abi::{self, RegionInfo};
use super::device::DeviceFile;
use super::registers::RegisterSpace;
use super::sys::{Number, read_at, write_at};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

/// A mapped part of a BAR.
struct Area {
    /// Offsets in the BAR.
    offsets: Range<usize>,
    mapping: Mapping,
}

/// A BAR.
pub(super) struct Bar {
    /// The largest of the mapped parts; nearly always it is the whole BAR.
    main: Option<Area>,
    others: Vec<Area>,
    length: usize,
    /// Where it starts in the device's descriptor.
    offset: u64,
    /// Closed when the mappings are gone: they keep the device open as well.
    device: Arc<DeviceFile>,
}

impl Bar {
    /// Maps what can be mapped of a region.
    pub(super) fn map(device: &Arc<DeviceFile>, info: &RegionInfo, bytes: &[u8]) -> io::Result<Self> {
        let length = usize::try_from(info.size).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        if info.flags & abi::REGION_READ_WRITE != abi::REGION_READ_WRITE || length == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        let mut bar =
            Self { main: None, others: Vec::new(), length, offset: info.offset, device: Arc::clone(device) };
        for offsets in areas(info, bytes, length) {
            let at = info.offset + offsets.start as u64;
            let mapping = Mapping::new(device.fd.as_fd(), offsets.len(), at)?;
            bar.others.push(Area { offsets, mapping });
        }
        let largest = (0..bar.others.len()).max_by_key(|index| bar.others[*index].offsets.len());
        bar.main = largest.map(|index| bar.others.swap_remove(index));
        Ok(bar)
    }

    /// Lets go of the device: from now on the registers read ones. False where the kernel refused, and the device stays open.
    pub(super) fn detach(&self) -> bool {
        self.main.iter().chain(&self.others).all(|area| area.mapping.detach())
    }

    /// The part in which a register is mapped, and its address; `None` where it is not mapped, or not wholly.
    #[inline(always)]
    fn place<T>(&self, offset: usize) -> Option<(&Area, *mut T)> {
        let inside = |area: &&Area| {
            offset.checked_add(size_of::<T>()).is_some_and(|end| end <= area.offsets.end)
                && offset >= area.offsets.start
                && offset.is_multiple_of(size_of::<T>())
        };
        let area =
            self.main.as_ref().filter(inside).or_else(|| self.others.iter().find(|area| inside(area)))?;
        // SAFETY: inside the mapping, as was just checked.
        let address = unsafe { area.mapping.base().as_ptr().add(offset - area.offsets.start) };
        Some((area, address.cast()))
    }

    /// Where a register that is not mapped is in the device's descriptor; `None` outside the BAR.
    #[cold]
    fn unmapped<T>(&self, offset: usize) -> Option<u64> {
        let last = offset.checked_add(size_of::<T>())?;
        (last <= self.length && offset.is_multiple_of(size_of::<T>())).then(|| self.offset + offset as u64)
    }

    #[inline(always)]
    fn read<T: Number>(&self, offset: usize, ones: T) -> T {
        match self.place::<T>(offset) {
            Some((area, place)) => {
                // SAFETY: `place` gives an aligned address inside a mapping that lives as long as self; any bits are a number.
                let value = unsafe { place.read_volatile() };
                if area.mapping.is_lost() {
                    // What stands there now may have been written by us.
                    self.device.set_lost();
                    return ones;
                }
                value
            }
            None => {
                let at = self.unmapped::<T>(offset);
                at.and_then(|at| read_at(self.device.fd.as_fd(), at)).unwrap_or(ones)
            }
        }
    }

    #[inline(always)]
    fn write<T: Number>(&self, offset: usize, value: T) {
        match self.place::<T>(offset) {
            // SAFETY: as for the read; the mapping is writable.
            Some((_, place)) => unsafe { place.write_volatile(value) },
            None => {
                if let Some(at) = self.unmapped::<T>(offset) {
                    write_at(self.device.fd.as_fd(), at, value);
                }
            }
        }
    }
}

impl RegisterSpace for Bar {
    fn length(&self) -> usize {
        self.length
    }

    fn read8(&self, offset: usize) -> u8 {
        self.read(offset, u8::MAX)
    }

    fn read16(&self, offset: usize) -> u16 {
        u16::from_le(self.read(offset, u16::MAX))
    }

    fn read32(&self, offset: usize) -> u32 {
        u32::from_le(self.read(offset, u32::MAX))
    }

    fn write8(&self, offset: usize, value: u8) {
        self.write(offset, value);
    }

    fn write16(&self, offset: usize, value: u16) {
        self.write(offset, value.to_le());
    }

    fn write32(&self, offset: usize, value: u32) {
        self.write(offset, value.to_le());
    }
}

fn page() -> usize {
    super::iova::PAGE as usize
}

/// Which parts of a region may be mapped. Parts that leave it, overlap or do not start at a page are left out.
fn areas(info: &RegionInfo, bytes: &[u8], length: usize) -> Vec<Range<usize>> {
    if info.flags & abi::REGION_MMAP == 0 {
        return Vec::new();
    }
    let sparse = (info.flags & abi::REGION_CAPS != 0)
        .then(|| abi::capabilities(bytes, info.cap_offset).find(|(id, _)| *id == abi::REGION_CAP_SPARSE_MMAP))
        .flatten();
    // One whole range, not its numbers.
    #[allow(clippy::single_range_in_vec_init)]
    let Some((_, content)) = sparse else { return vec![0..length] };
    let mut areas: Vec<Range<usize>> = Vec::new();
    for (offset, size) in abi::pairs(content) {
        let (Ok(start), Some(end)) = (usize::try_from(offset), offset.checked_add(size)) else { continue };
        let end = usize::try_from(end).unwrap_or(usize::MAX);
        let free = areas.iter().all(|area| end <= area.start || start >= area.end);
        if start < end && end <= length && start.is_multiple_of(page()) && free {
            areas.push(start..end);
        }
    }
    areas
}

// Ranges are meant, not their numbers.
#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use crate::sys::{allocate_file, memfd_create};

    fn info(size: u64, flags: u32) -> RegionInfo {
        RegionInfo { size, flags, ..RegionInfo::default() }
    }

    fn sparse(parts: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; 32];
        for word in [1 << 16 | u32::from(abi::REGION_CAP_SPARSE_MMAP), 0, parts.len() as u32, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        for (offset, size) in parts {
            bytes.extend(offset.to_ne_bytes());
            bytes.extend(size.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn only_what_the_kernel_allows_is_mapped() {
        let capable = abi::REGION_READ_WRITE | abi::REGION_MMAP | abi::REGION_CAPS;
        let with = |parts: &[(u64, u64)]| {
            let info = RegionInfo { cap_offset: 32, ..info(0x4000, capable) };
            areas(&info, &sparse(parts), 0x4000)
        };
        assert_eq!(with(&[(0, 0x1000), (0x2000, 0x2000)]), [0..0x1000, 0x2000..0x4000]);
        assert_eq!(with(&[]), []);
        // Outside, not at a page, overlapping, overflowing, empty.
        let wrong =
            [(0, 0x2000), (0x1000, 0x1000), (0x3000, 0x2000), (0x2800, 0x800), (u64::MAX, 2), (0x2000, 0)];
        assert_eq!(with(&wrong), [0..0x2000]);
        assert_eq!(areas(&info(0x800, abi::REGION_MMAP), &[], 0x800), [0..0x800]);
        assert_eq!(areas(&info(0x800, abi::REGION_READ_WRITE), &[], 0x800), []);
    }

    #[test]
    fn registers_are_where_they_should_be_mapped_or_not() {
        // A file is as good as a device: it can be mapped, read and written.
        let file = memfd_create(c"bar", 0).unwrap();
        allocate_file(file.as_fd(), 0x8000).unwrap();
        let device = Arc::new(DeviceFile::new(file, Box::new(())));
        let flags = abi::REGION_READ_WRITE | abi::REGION_MMAP | abi::REGION_CAPS;
        let info = RegionInfo { offset: 0x4000, cap_offset: 32, ..info(0x3000, flags) };
        let bar = Bar::map(&device, &info, &sparse(&[(0x1000, 0x1000)])).unwrap();
        assert!(bar.place::<u32>(0x1FFC).is_some() && bar.place::<u32>(0xFFC).is_none());
        for offset in [0, 0xFFC, 0x1000, 0x1FFC, 0x2000, 0x2FFC] {
            bar.write32(offset, 0xA1B2_0000 + offset as u32);
            bar.write8(offset + 3, 0xC3);
            assert_eq!(bar.read32(offset), 0xC3B2_0000 + offset as u32, "{offset:#x}");
            assert_eq!(bar.read16(offset + 2), 0xC3B2);
            let in_file = read_at::<u32>(device.fd.as_fd(), 0x4000 + offset as u64);
            assert_eq!(in_file, Some(bar.read32(offset)));
        }
        let other = Bar::map(&device, &info, &sparse(&[(0x1000, 0x1000)])).unwrap();
        assert!(other.detach());
        other.write32(0x1008, 7);
        assert_eq!((other.read32(0x1008), bar.read32(0x1008)), (u32::MAX, 0));
        // Outside, and across its edges.
        for offset in [0x3000, 0x2FFE, usize::MAX, usize::MAX - 3, 1] {
            bar.write32(offset, 0);
            assert_eq!(bar.read32(offset), u32::MAX, "{offset:#x}");
        }
        assert_eq!(bar.read32(0x2FFC), 0xC3B2_2FFC);
        assert_eq!(read_at::<u32>(device.fd.as_fd(), 0x7000), Some(0));
        assert!(device.is_lost(), "the first read of what was detached says so");
        let device = Arc::new(DeviceFile::new(device.fd.try_clone().unwrap(), Box::new(())));
        let bar = Bar::map(&device, &info, &sparse(&[(0x1000, 0x1000)])).unwrap();
        assert!(!device.is_lost());
        let missing = RegionInfo { size: 0, ..info };
        assert!(Bar::map(&device, &missing, &[]).is_err());
        // The kernel takes the mapping away.
        nix::unistd::ftruncate(&device.fd, 0x4000).unwrap();
        bar.write32(0x1000, 5);
        assert_eq!((bar.read32(0x1000), bar.read16(0x1002), device.is_lost()), (u32::MAX, u16::MAX, true));
    }
}
