//! The PHY's bus (MDIC), which the firmware and the drivers of the chip's other ports use too, in turns (4.7).
//!
//! SW_FW_SYNC has a bit for each resource and side; that register is guarded by two semaphores. All are held for microseconds; who keeps one for as long as
//! [`LIMIT`] has died, and is passed over.
#![forbid(unsafe_code)]

use super::registers::*;
use super::setup::gone;
use crate::vfio::intel::poll::{Ended, until};
use crate::vfio::nic::NicError;
use crate::vfio::registers::Registers;
use std::thread;
use std::time::{Duration, Instant};

/// What the other port's driver may wait for the firmware, 3 s, and 10 ms. A model's dead are buried sooner.
pub(super) const LIMIT: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 3010 });
/// Between two looks at SW_FW_SYNC.
const APART: Duration = Duration::from_millis(1);
/// From the software's bit of a resource to the firmware's.
const FIRMWARE_SHIFT: u32 = 16;

/// The PHY, until this is dropped.
pub(super) struct Phy<'a> {
    registers: &'a Registers,
    resource: u32,
}

/// How long to wait, and whether whoever has it then is passed over; else he is left alone.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    pub(super) wait: Duration,
    pub(super) insist: bool,
}

/// Takes the PHY.
pub(super) fn acquire(registers: &Registers, patience: Patience) -> Result<Phy<'_>, NicError> {
    let resource = match registers.read32(STATUS) >> STATUS_LAN_ID_SHIFT & 0b11 {
        0 => 1 << 1,
        1 => 1 << 2,
        2 => 1 << 5,
        _ => 1 << 6,
    };
    let start = Instant::now();
    loop {
        let late = start.elapsed() >= patience.wait;
        guard(registers, patience)?;
        let sync = registers.read32(SW_FW_SYNC);
        let is_free = sync & (resource | resource << FIRMWARE_SHIFT) == 0;
        if is_free || late && patience.insist {
            registers.write32(SW_FW_SYNC, sync | resource);
            unguard(registers);
            return Ok(Phy { registers, resource });
        }
        unguard(registers);
        if late {
            return Err(busy());
        }
        thread::sleep(APART);
    }
}

fn busy() -> NicError {
    NicError::Device("its PHY is being used by its firmware, or by another port's driver".into())
}

/// Takes both semaphores.
fn guard(registers: &Registers, patience: Patience) -> Result<(), NicError> {
    // Reading it as 0 takes it.
    match until(&**registers, SWSM, patience.wait, |swsm| swsm & SWSM_SMBI == 0) {
        Err(Ended::Gone) => return Err(gone()),
        Err(Ended::Late(_)) if !patience.insist => return Err(busy()),
        Ok(_) | Err(Ended::Late(_)) => {}
    }
    let ask = || registers.write32(SWSM, SWSM_SMBI | SWSM_SWESMBI);
    ask();
    let granted = until(&**registers, SWSM, patience.wait, |swsm| {
        let granted = swsm & SWSM_SWESMBI != 0;
        if !granted {
            ask();
        }
        granted
    });
    match granted {
        Err(Ended::Gone) => Err(gone()),
        Err(Ended::Late(_)) if !patience.insist => {
            unguard(registers);
            Err(busy())
        }
        Ok(_) | Err(Ended::Late(_)) => Ok(()),
    }
}

fn unguard(registers: &Registers) {
    registers.write32(SWSM, 0);
}

impl Drop for Phy<'_> {
    fn drop(&mut self) {
        if guard(self.registers, Patience { wait: APART, insist: true }).is_ok() {
            let sync = self.registers.read32(SW_FW_SYNC);
            self.registers.write32(SW_FW_SYNC, sync & !self.resource);
            unguard(self.registers);
        }
    }
}
