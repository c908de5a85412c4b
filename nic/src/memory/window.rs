//! The address window of all pools.
//!
//! A frame's handle is its place: handle × 2 KiB from the start of one stretch of reserved address space. So a packet reaches its bytes
//! by a shift and an addition, without a table of pools to look up for each packet. The stretch is 8 TiB of addresses with no memory
//! behind them; each pool maps its region into its 512 GiB of it. Pools of larger frames leave handles out.
#![allow(unsafe_code)]

use super::frame::POOL_SHIFT;
use super::region::{PageSize, RegionError};
use crate::sys;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

/// Bytes from one handle to the next, as a power of two.
pub(crate) const STRIDE_SHIFT: u32 = 11;
const LENGTH: usize = 1 << (32 + STRIDE_SHIFT);

static BASE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// Reserves the window if it is not yet, and gives the start of a pool's part. Called under the registry's lock.
pub(crate) fn reserve(pool: u32) -> Result<NonNull<u8>, RegionError> {
    if BASE.load(Ordering::Relaxed).is_null() {
        // The largest page's alignment, which the kernel does not promise by itself.
        let bytes = LENGTH + PageSize::Huge1G.bytes();
        let start = sys::reserve(bytes).map_err(|source| RegionError::NoAddressSpace { bytes, source })?;
        let offset = start.as_ptr().align_offset(PageSize::Huge1G.bytes());
        // SAFETY: fewer than 1 GiB are skipped, of the 1 GiB that was added for it.
        BASE.store(unsafe { start.add(offset) }.as_ptr(), Ordering::Relaxed);
    }
    let start = address(pool << POOL_SHIFT);
    NonNull::new(start)
        .ok_or(RegionError::NoAddressSpace { bytes: LENGTH, source: std::io::ErrorKind::OutOfMemory.into() })
}

/// The address of a frame's first byte.
///
/// Any handle gives an address inside the window; that of a live frame gives one inside its pool's region.
#[inline(always)]
pub(crate) fn address(handle: u32) -> *mut u8 {
    BASE.load(Ordering::Relaxed).wrapping_add((handle as usize) << STRIDE_SHIFT)
}
