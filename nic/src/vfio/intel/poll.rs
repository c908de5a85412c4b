//! Waiting for a bit of a register, never longer than said.
#![forbid(unsafe_code)]

use crate::vfio::registers::RegisterSpace;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks: a device needs microseconds to milliseconds for what is waited for at all.
const STEP: Duration = Duration::from_micros(20);

/// Why a wait ended without what it was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The time was up; the register's last value.
    Late(u32),
    /// The register reads all ones: the device is gone.
    Gone,
}

/// Reads the register at `offset` until `wanted` likes its value, and gives that.
pub(crate) fn until(
    registers: &dyn RegisterSpace,
    offset: usize,
    limit: Duration,
    mut wanted: impl FnMut(u32) -> bool,
) -> Result<u32, Ended> {
    let start = Instant::now();
    loop {
        // Before the look, so that a thread that was away for long has looked once more when it gives up.
        let late = start.elapsed() >= limit;
        let value = registers.read32(offset);
        if value == u32::MAX {
            return Err(Ended::Gone);
        }
        if wanted(value) {
            return Ok(value);
        }
        if late {
            return Err(Ended::Late(value));
        }
        thread::sleep(STEP);
    }
}

/// Until the bits of `mask` are all set, or all clear.
pub(crate) fn until_bits(
    registers: &dyn RegisterSpace,
    offset: usize,
    mask: u32,
    set: bool,
    limit: Duration,
) -> Result<u32, Ended> {
    until(registers, offset, limit, |value| value & mask == if set { mask } else { 0 })
}
