//! Where there are no handlers, which is on every CPU but x86-64: nothing can be signalled, and isolation is refused in words.
#![allow(unsafe_code)]

use super::shared::Shared;
use std::io;

/// Marks a perf event as one of ours.
pub(super) const TAG: u64 = 0x4953_4f4c;

pub(super) fn install() -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "isolated threads are signalled on x86-64 only"))
}

/// # Safety
/// None is needed here.
pub(super) unsafe fn set_current(_: Option<&Shared>) {}

/// Nothing may make system calls while they are trapped.
pub(super) fn allowed_range() -> (u64, u64) {
    (0, 0)
}
