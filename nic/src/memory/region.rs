//! A stretch of memory made of the largest pages to be had, at a place in the [window](super::window).
//!
//! It is a memfd: it can be handed to another process, and nothing of it is left behind when the last user goes, however
//! it goes. Hugepages save TLB misses; where there are none we go on with 4 KiB pages, and say so.
#![allow(unsafe_code)]

use crate::sys;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::str::FromStr;
use std::{fs, io};
use thiserror::Error;

/// The size of the pages behind a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB, the base page.
    Base,
    /// 2 MiB hugepages.
    Huge2M,
    /// 1 GiB hugepages.
    Huge1G,
}

impl PageSize {
    /// Bytes of one page.
    pub const fn bytes(self) -> usize {
        match self {
            PageSize::Base => 4 << 10,
            PageSize::Huge2M => 2 << 20,
            PageSize::Huge1G => 1 << 30,
        }
    }

    /// The name people use for it.
    pub const fn name(self) -> &'static str {
        match self {
            PageSize::Base => "4K",
            PageSize::Huge2M => "2M",
            PageSize::Huge1G => "1G",
        }
    }

    pub(crate) fn memfd_flags(self) -> libc::c_uint {
        match self {
            PageSize::Base => 0,
            PageSize::Huge2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
            PageSize::Huge1G => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
        }
    }
}

/// Which pages the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageChoice {
    /// 2 MiB pages where enough are free, else 4 KiB pages with a warning.
    #[default]
    Auto,
    /// Exactly these, or an error.
    Exactly(PageSize),
}

impl FromStr for PageChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "auto" => PageChoice::Auto,
            "4K" | "4k" => PageChoice::Exactly(PageSize::Base),
            "2M" | "2m" => PageChoice::Exactly(PageSize::Huge2M),
            "1G" | "1g" => PageChoice::Exactly(PageSize::Huge1G),
            _ => return Err(format!("\"{text}\" is no page size: choose auto, 4K, 2M or 1G")),
        })
    }
}

/// Why a region could not be had.
#[derive(Debug, Error)]
pub enum RegionError {
    /// Not enough free hugepages of the size asked for.
    #[error("fewer than {pages} free hugepages of {size}: run \"echo {pages} > /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages\" as root, or choose --pages 4K", kib = .page.bytes() >> 10, size = .page.name())]
    NoHugepages {
        /// How many pages were needed.
        pages: usize,
        /// Of what size.
        page: PageSize,
    },
    /// The kernel has none of this size, or something else refuses them.
    #[error("cannot get {pages} hugepages of {size} ({source}): choose --pages 4K", size = .page.name())]
    HugepagesRefused {
        /// How many pages were needed.
        pages: usize,
        /// Of what size.
        page: PageSize,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Not enough memory at all.
    #[error("cannot get {bytes} bytes of packet memory: ask for fewer frames ({source})")]
    NoMemory {
        /// How much was asked for.
        bytes: usize,
        /// What the kernel answered.
        source: io::Error,
    },
    /// No address space.
    #[error(
        "cannot reserve {bytes} bytes of address space: raise the limit with \"ulimit -v unlimited\" ({source})"
    )]
    NoAddressSpace {
        /// How much was asked for.
        bytes: usize,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Mapped, populated, zeroed memory, shared by every port of a process.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    length: usize,
    page: PageSize,
    /// Not lent out: who can write to it writes under our references.
    _file: OwnedFd,
}

// SAFETY: a Region is only an address range and a descriptor; it offers no access to the bytes, and whoever
// turns the address into one (the pool) argues for the exclusiveness of each frame.
unsafe impl Send for Region {}
// SAFETY: as above; all methods only read the fields.
unsafe impl Sync for Region {}

impl Region {
    /// Allocates at least `bytes` bytes, rounded up to whole pages.
    ///
    /// # Safety
    /// `place` is the start of a pool's part of the window, and no other region is there.
    pub(crate) unsafe fn allocate(
        place: NonNull<u8>,
        bytes: usize,
        choice: PageChoice,
    ) -> Result<Self, RegionError> {
        // SAFETY: the caller's promise, for this and for the one below; a failed attempt leaves nothing mapped.
        let of = |page| unsafe { Self::of(place, bytes, page) };
        match choice {
            PageChoice::Exactly(page) => of(page),
            PageChoice::Auto => of(PageSize::Huge2M).or_else(|error| {
                if bytes >= PageSize::Huge2M.bytes() {
                    tracing::warn!("packet memory is on 4K pages, which costs TLB misses: {error}");
                }
                of(PageSize::Base)
            }),
        }
    }

    /// # Safety
    /// As for [`allocate`](Self::allocate).
    unsafe fn of(base: NonNull<u8>, bytes: usize, page: PageSize) -> Result<Self, RegionError> {
        let length = bytes.max(1).checked_next_multiple_of(page.bytes()).unwrap_or(usize::MAX & !0xFFFF_FFFF);
        let map = || {
            // tmpfs hands out pages until the machine has none: the out-of-memory killer would answer, not fallocate.
            if page == PageSize::Base && available_bytes().is_some_and(|available| length > available) {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            let file = sys::memfd_create(c"isoplane-packets", page.memfd_flags())?;
            sys::allocate_file(file.as_fd(), length)?;
            // SAFETY: the caller's promise that this part of the window is free.
            unsafe { sys::map_reserved(base, length, file.as_fd()) }?;
            Ok(Self { base, length, page, _file: file })
        };
        map().map_err(|source| refused(length, page, source))
    }

    /// The first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes, a multiple of the page size.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The pages it is made of.
    pub fn page(&self) -> PageSize {
        self.page
    }
}

/// Why `length` bytes could not be had.
fn refused(length: usize, page: PageSize, source: io::Error) -> RegionError {
    let pages = length / page.bytes();
    match (page, source.raw_os_error()) {
        (PageSize::Base, _) => RegionError::NoMemory { bytes: length, source },
        // fallocate(2) and mmap(2) where the pages are not there.
        (_, Some(libc::ENOSPC | libc::ENOMEM)) => RegionError::NoHugepages { pages, page },
        _ => RegionError::HugepagesRefused { pages, page, source },
    }
}

/// `MemAvailable` of `/proc/meminfo`.
fn available_bytes() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<usize>().ok()? << 10)
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: base and length are those of map_reserved; the owner (a pool) drops its region only when every
        // frame is back, so no packet refers to it.
        unsafe { sys::unmap_reserved(self.base, self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_want_of_pages_is_called_so() {
        let words = |page, code| {
            let error = refused(8 << 20, page, io::Error::from_raw_os_error(code));
            error.to_string()
        };
        for code in [libc::ENOSPC, libc::ENOMEM] {
            assert!(words(PageSize::Huge2M, code).contains("fewer than 4 free hugepages of 2M"));
        }
        for code in [libc::EPERM, libc::ENOSYS, libc::EMFILE, libc::EINVAL] {
            let text = words(PageSize::Huge2M, code);
            let answer = io::Error::from_raw_os_error(code).to_string();
            assert!(text.contains("cannot get 4 hugepages of 2M") && text.contains(&answer), "{text}");
            assert!(text.contains("--pages 4K") && !text.contains('\n'), "{text}");
        }
        assert!(words(PageSize::Base, libc::ENOMEM).contains("cannot get 8388608 bytes"));
    }
}
