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
    /// What came is the answer to another access: somebody else uses the bus.
    Foreign,
}

fn access(registers: &dyn RegisterSpace, command: u32) -> Result<u16, PhyError> {
    registers.write32(MDIC, command);
    let value = until(registers, MDIC, LIMIT, |value| value & READY != 0).map_err(PhyError::Ended)?;
    if value & ERROR != 0 {
        return Err(PhyError::Refused);
    }
    let asked = 0x1F << REGADD_SHIFT | 0x1F << PHYADD_SHIFT;
    if value & asked == command & asked { Ok(value as u16) } else { Err(PhyError::Foreign) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::intel::model::PlainRegisters;

    #[test]
    fn only_an_answer_to_what_was_asked_is_taken() {
        let registers = PlainRegisters::new(64);
        // Ready from the start: what was written is read back with it.
        let answer = |command| access(&*registers, command | READY | 0x1234);
        let asked = OP_READ | PHY << PHYADD_SHIFT | 4 << REGADD_SHIFT;
        assert_eq!(answer(asked), Ok(0x1234));
        assert_eq!(answer(asked | ERROR), Err(PhyError::Refused));
        struct Other(u32);
        impl RegisterSpace for Other {
            fn length(&self) -> usize {
                64
            }
            fn read8(&self, _: usize) -> u8 {
                0
            }
            fn read16(&self, _: usize) -> u16 {
                0
            }
            fn read32(&self, _: usize) -> u32 {
                self.0
            }
            fn write8(&self, _: usize, _: u8) {}
            fn write16(&self, _: usize, _: u16) {}
            fn write32(&self, _: usize, _: u32) {}
        }
        for foreign in [asked ^ 1 << REGADD_SHIFT, asked ^ 2 << PHYADD_SHIFT] {
            assert_eq!(access(&Other(foreign | READY), asked), Err(PhyError::Foreign), "{foreign:#x}");
        }
        assert_eq!(access(&Other(u32::MAX), asked), Err(PhyError::Ended(Ended::Gone)));
    }
}
