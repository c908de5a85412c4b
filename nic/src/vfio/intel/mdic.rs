//! The PHY's registers, by way of MDIC (82574 datasheet 10.2.2.7, 82576 datasheet 8.2.4).
#![forbid(unsafe_code)]

use super::poll::{Ended, until};
use crate::vfio::registers::RegisterSpace;
use std::time::Duration;

/// Its place.
pub(crate) const MDIC: usize = 0x0020;
const REGADD_SHIFT: u32 = 16;
const PHYADD_SHIFT: u32 = 21;
const OP_WRITE: u32 = 0b01 << 26;
const OP_READ: u32 = 0b10 << 26;
const READY: u32 = 1 << 28;
const ERROR: u32 = 1 << 30;
/// An access takes 64 bits of a clock of 2.5 MHz; more where the PHY wakes up.
const LIMIT: Duration = Duration::from_millis(10);

/// The internal PHY's address.
const PHY: u32 = 1;

/// PHY register 0, control (IEEE 802.3 22.2.4.1).
pub(crate) const CONTROL: u32 = 0;
/// Control: negotiate.
pub(crate) const AUTONEGOTIATION: u16 = 1 << 12;
/// Control: switched off.
pub(crate) const POWER_DOWN: u16 = 1 << 11;
/// Control: negotiate anew.
pub(crate) const RESTART: u16 = 1 << 9;

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PhyError {
    /// The device is gone, or late.
    Ended(Ended),
    /// The PHY did not answer.
    Refused,
}

fn access(registers: &dyn RegisterSpace, command: u32) -> Result<u16, PhyError> {
    registers.write32(MDIC, command);
    let value = until(registers, MDIC, LIMIT, |value| value & READY != 0).map_err(PhyError::Ended)?;
    if value & ERROR != 0 { Err(PhyError::Refused) } else { Ok(value as u16) }
}

/// Reads a register of the internal PHY.
pub(crate) fn read(registers: &dyn RegisterSpace, register: u32) -> Result<u16, PhyError> {
    access(registers, OP_READ | PHY << PHYADD_SHIFT | register << REGADD_SHIFT)
}

/// Writes one.
pub(crate) fn write(registers: &dyn RegisterSpace, register: u32, value: u16) -> Result<(), PhyError> {
    access(registers, OP_WRITE | PHY << PHYADD_SHIFT | register << REGADD_SHIFT | u32::from(value))?;
    Ok(())
}

/// Has the PHY, if it is switched off, switched on, and negotiate a link.
pub(crate) fn restart_autonegotiation(registers: &dyn RegisterSpace) -> Result<(), PhyError> {
    let control = read(registers, CONTROL)?;
    write(registers, CONTROL, control & !POWER_DOWN | AUTONEGOTIATION | RESTART)
}
