//! Without an IOMMU a device reads and writes physical addresses, and nothing keeps it from those that are not ours: only by `iommu=off`.
//!
//! We learn physical addresses from `/proc/self/pagemap` (Documentation/admin-guide/mm/pagemap.rst), which shows them to CAP_SYS_ADMIN alone. They have to stay
//! as they are: the kernel moves pages of 4 KiB about, also locked ones, but not hugepages that are in use. And what is mapped as one piece
//! must be one piece there.
#![forbid(unsafe_code)]

use super::dma::Iommu;
use super::iova::PAGE;
use crate::memory::PageSize;
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

/// Of an entry: the page is there; the lower 55 bits are its number.
const PRESENT: u64 = 1 << 63;
const NUMBER: u64 = (1 << 55) - 1;
const HUGE: usize = PageSize::Huge2M.bytes();

/// Nothing between devices and memory.
pub(super) struct NoIommu;

impl Iommu for NoIommu {
    /// None that we could choose.
    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        Vec::new()
    }

    fn map(&self, _iova: u64, _address: NonNull<u8>, _length: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// An error, so that the address is not taken for one to be given again.
    fn unmap(&self, _iova: u64, _length: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn fixed_iova(&self, address: NonNull<u8>, length: usize) -> io::Result<Option<u64>> {
        let start = address.as_ptr() as u64;
        let pagemap = File::open("/proc/self/pagemap")?;
        physical(start, length, |page| {
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, page * 8)?;
            Ok(u64::from_ne_bytes(entry))
        })
        .map(Some)
    }

    fn translates(&self) -> bool {
        false
    }

    fn ring_pages(&self) -> PageSize {
        PageSize::Huge2M
    }
}

/// The physical address of memory that is one piece there; `entry` reads the entry of a page.
fn physical(start: u64, length: usize, entry: impl Fn(u64) -> io::Result<u64>) -> io::Result<u64> {
    let refuse = |words: &str| Err(io::Error::other(words.to_owned()));
    if !start.is_multiple_of(HUGE as u64) || !length.is_multiple_of(HUGE) {
        return refuse(
            "without an IOMMU only hugepages can be used, for the kernel moves others about: reserve some (\"echo 64 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages\" as root), and pass --pages 2M",
        );
    }
    let mut first = None;
    // Of a hugepage, the pages are one piece.
    for offset in (0..length as u64).step_by(HUGE) {
        let entry = entry((start + offset) / PAGE)?;
        let number = entry & NUMBER;
        if entry & PRESENT == 0 || number == 0 {
            return refuse("the kernel does not tell physical addresses: run as root");
        }
        let at = number * PAGE;
        let base = *first.get_or_insert(at);
        if at != base + offset {
            return refuse(
                "without an IOMMU packet memory has to be one piece of physical memory, and its hugepages are not next to each other: pass --pages 1G, with a page of 1 GiB reserved on the kernel's command line (hugepagesz=1G hugepages=1), or ask for fewer frames (1024 of 2 KiB fit one page of 2 MiB)",
            );
        }
    }
    first.map_or_else(|| refuse("no memory to map"), Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hugepages_in_one_piece_have_a_physical_address() {
        let start = 0x7000_0000_0000 / PAGE;
        let at = |start: u64, length, entry: &dyn Fn(u64) -> u64| {
            physical(start * PAGE, length, |page| Ok(entry(page))).map_err(|error| error.to_string())
        };
        let in_row = |page: u64| PRESENT | (page - start + 0x20_0000);
        assert_eq!(at(start, 4 * HUGE, &in_row), Ok(0x20_0000 * PAGE));
        let error = at(start, 4 * HUGE, &|page| PRESENT | ((page - start) * 3 + 512)).unwrap_err();
        assert!(error.contains("--pages 1G"), "{error}");
        // Not privileged: the number is 0. Not there.
        for wrong in [PRESENT, 5] {
            assert!(at(start, HUGE, &|_| wrong).unwrap_err().contains("run as root"));
        }
        for (start, length) in [(start, HUGE + 4096), (start + 1, HUGE)] {
            assert!(at(start, length, &in_row).unwrap_err().contains("hugepages"), "{start}");
        }
    }
}
