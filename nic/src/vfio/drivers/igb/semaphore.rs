//! The PHY's bus (MDIC), which the firmware and the drivers of the chip's other ports use too, in turns (4.7).
//!
//! SW_FW_SYNC has a bit for each resource and side; that register is guarded by two semaphores. All are held for microseconds; who keeps one for as long as
//! [`LIMIT`] has died, and is passed over.
#![forbid(unsafe_code)]

use super::registers::*;
use super::setup::gone;
use crate::vfio::intel::kept::Kept;
use crate::vfio::intel::poll::{Ended, until};
use crate::vfio::nic::NicError;
use crate::vfio::registers::Registers;
use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

/// What the other port's driver may wait for the firmware, 3 s, and 10 ms. A model's dead are buried sooner.
pub(super) const LIMIT: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 3010 });
/// Between two looks at SW_FW_SYNC.
const APART: Duration = Duration::from_millis(1);
/// From the software's bit of a resource to the firmware's.
const FIRMWARE_SHIFT: u32 = 16;

/// The way to the PHY, and what is known of who else uses it.
pub(super) struct PhyAccess {
    registers: Registers,
    /// Somebody else has SWSM.SMBI, SWSM.SWESMBI, or the PHY.
    smbi: Kept,
    swesmbi: Kept,
    phy: Kept,
    /// The resource that is still ours, since SW_FW_SYNC was not to be had when it was to be given back.
    left: Cell<u32>,
}

/// The PHY, until this is dropped.
pub(super) struct Phy<'a> {
    access: &'a PhyAccess,
    resource: u32,
}

/// How long to wait, and whether who has been seen to keep it for [`LIMIT`] by then is passed over.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    wait: Duration,
    insist: bool,
}

impl Patience {
    /// Of who opens a port: as long as it may take.
    pub(super) const LONG: Self = Self { wait: LIMIT, insist: true };
    /// Of the control thread, which comes again about a second later.
    pub(super) const SHORT: Self = Self { wait: APART, insist: true };
    /// Of who gives back: who may be alive has his time, and it can be done later.
    const GENTLE: Self = Self { wait: Duration::from_millis(20), insist: false };

    /// Whether nobody alive can have what was seen kept from `start` to now.
    fn outlives(self, kept: &Kept, start: Instant) -> bool {
        kept.seen(start, Instant::now()) >= LIMIT && self.insist
    }
}

impl PhyAccess {
    pub(super) fn new(registers: &Registers) -> Self {
        let registers = Registers::clone(registers);
        Self {
            registers,
            smbi: Kept::default(),
            swesmbi: Kept::default(),
            phy: Kept::default(),
            left: Cell::new(0),
        }
    }

    /// Takes the PHY.
    pub(super) fn acquire(&self, patience: Patience) -> Result<Phy<'_>, NicError> {
        let registers = &self.registers;
        let resource = match registers.read32(STATUS) >> STATUS_LAN_ID_SHIFT & 0b11 {
            0 => 1 << 1,
            1 => 1 << 2,
            2 => 1 << 5,
            _ => 1 << 6,
        };
        let others = (resource | resource << FIRMWARE_SHIFT) & !self.left.get();
        let mut first = None;
        loop {
            self.guard(patience)?;
            let sync = registers.read32(SW_FW_SYNC);
            let start = *first.get_or_insert_with(Instant::now);
            let is_free = sync & others == 0;
            let late = start.elapsed() >= patience.wait;
            if is_free || late && patience.outlives(&self.phy, start) {
                registers.write32(SW_FW_SYNC, sync | resource);
                self.unguard();
                self.phy.forget();
                self.left.set(self.left.get() & !resource);
                return Ok(Phy { access: self, resource });
            }
            self.unguard();
            if late {
                return Err(busy());
            }
            thread::sleep(APART);
        }
    }

    /// Gives back what nobody here holds any more.
    pub(super) fn give_back(&self, patience: Patience) {
        if self.left.get() != 0 && self.guard(patience).is_ok() {
            let sync = self.registers.read32(SW_FW_SYNC);
            self.registers.write32(SW_FW_SYNC, sync & !self.left.take());
            self.unguard();
        }
    }

    /// Takes both semaphores.
    fn guard(&self, patience: Patience) -> Result<(), NicError> {
        let registers = &self.registers;
        let start = Instant::now();
        // Reading it as 0 takes it.
        match until(&**registers, SWSM, patience.wait, |swsm| swsm & SWSM_SMBI == 0) {
            Err(Ended::Gone) => return Err(gone()),
            Err(Ended::Late(_)) if !patience.outlives(&self.smbi, start) => return Err(busy()),
            Ok(_) | Err(Ended::Late(_)) => self.smbi.forget(),
        }
        let start = Instant::now();
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
            Err(Ended::Gone) => return Err(gone()),
            Err(Ended::Late(_)) if !patience.outlives(&self.swesmbi, start) => {
                self.unguard();
                return Err(busy());
            }
            Ok(_) | Err(Ended::Late(_)) => self.swesmbi.forget(),
        }
        Ok(())
    }

    fn unguard(&self) {
        self.registers.write32(SWSM, 0);
    }
}

fn busy() -> NicError {
    NicError::Device("its PHY is being used by its firmware, or by another port's driver".into())
}

impl Drop for Phy<'_> {
    fn drop(&mut self) {
        self.access.left.set(self.access.left.get() | self.resource);
        self.access.give_back(Patience::GENTLE);
    }
}

impl Drop for PhyAccess {
    fn drop(&mut self) {
        // The last chance.
        self.give_back(Patience { insist: true, ..Patience::GENTLE });
    }
}
