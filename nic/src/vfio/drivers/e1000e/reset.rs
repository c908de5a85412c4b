//! Resetting the device, in steps that take no time, so that whoever must not wait can look again later.
//!
//! Its own reset (CTRL.RST) leaves the PCI configuration alone, and after it the device reads its NVM anew. It must have no request under way as a bus master
//! then (10.2.2, CTRL: GIO Master Disable). The receiver is switched off nowhere else: switching it off and on again is known to hang it.
#![forbid(unsafe_code)]

use super::registers::*;
use crate::vfio::intel::poll::{self, Ended};
use crate::vfio::nic::NicError;
use std::thread;
use std::time::Duration;

/// Until no request is under way: completion time-outs of PCI Express are shorter.
const MASTER_DISABLE: Duration = Duration::from_millis(80);
/// Between the last transmission's start and the reset. A model needs none.
const SETTLE: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 10 });
/// Until the firmware lets the PHY's bus go.
const OWNERSHIP: Duration = Duration::from_millis(10);
/// Until the reset has ended and the NVM has been read: it takes a few milliseconds.
const RESET: Duration = Duration::from_millis(500);
/// Then the firmware configures the PHY, and says nothing when it is done.
const PHY_CONFIGURATION: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 25 });

/// Has it stop: no interrupt, no packet, no new request as a bus master.
pub(super) fn quiesce(chip: &Chip) {
    chip.write(IMC, u32::MAX);
    chip.write(RCTL, 0);
    chip.write(TCTL, tctl::PSP);
    // The PHY's bus is to be ours before a reset: the firmware must not be in the middle of an access (10.2.2, EXTCNF_CTRL).
    chip.modify(EXTCNF_CTRL, 0, extcnf_ctrl::MDIO_SW_OWNERSHIP);
    chip.modify(CTRL, 0, ctrl::GIO_MASTER_DISABLE);
    chip.flush();
}

/// Starts the reset of a quiet device.
pub(super) fn start(chip: &Chip) {
    chip.modify(CTRL, 0, ctrl::RST);
}

/// Whether the reset has ended.
pub(super) fn has_ended(chip: &Chip) -> bool {
    let control = chip.read(CTRL);
    control != GONE && control & ctrl::RST == 0 && chip.read(EECD) & eecd::AUTO_RD != 0
}

/// What follows a reset before anything else does: all interrupts masked, none left over.
pub(super) fn mask_interrupts(chip: &Chip) {
    chip.write(IMC, u32::MAX);
    chip.read(ICR);
}

/// All of it, for who may wait.
pub(super) fn reset(chip: &Chip) -> Result<(), NicError> {
    if chip.is_gone() {
        return Err(gone());
    }
    quiesce(chip);
    let registers = &*chip.0;
    match poll::until_bits(registers, STATUS, status::GIO_MASTER_ENABLE, false, MASTER_DISABLE) {
        Err(Ended::Gone) => return Err(gone()),
        // Some request never ends. The reset mends that, too; the data sheet only says that it should be tried without.
        Ok(_) | Err(Ended::Late(_)) => {}
    }
    // A firmware that keeps the bus is no reason to keep out; nor is a device that goes meanwhile, which is seen next.
    let _ = poll::until_bits(registers, EXTCNF_CTRL, extcnf_ctrl::MDIO_SW_OWNERSHIP, true, OWNERSHIP);
    thread::sleep(SETTLE);
    start(chip);
    // The registers must not be read for a microsecond.
    thread::sleep(Duration::from_millis(1));
    poll::until_bits(registers, CTRL, ctrl::RST, false, RESET)
        .and_then(|_| poll::until_bits(registers, EECD, eecd::AUTO_RD, true, RESET))
        .map_err(|ended| match ended {
            Ended::Gone => gone(),
            Ended::Late(value) => NicError::Device(format!(
                "the 82574 does not come out of its reset (register {value:#010x}): power the machine off and on again"
            )),
        })?;
    thread::sleep(PHY_CONFIGURATION);
    mask_interrupts(chip);
    Ok(())
}

fn gone() -> NicError {
    NicError::Device("all registers read as ones: the device is gone, or its slot is without power".into())
}
