//! What driver and firmware, and the drivers of both ports of a chip, use in turns (10.5.4 of the 82599's data sheet, 10.5.4 of the X540's).
//!
//! SW_FW_SYNC has a bit for each resource and side; the register itself is guarded by two semaphores. All are held for microseconds; whoever keeps one for
//! as long as the data sheet says has died, and loses it.
#![forbid(unsafe_code)]

use super::device::Device;
use super::registers::*;
use crate::vfio::intel::kept::Kept;
use crate::vfio::nic::NicError;
use std::time::Duration;

/// From the software's bit of a resource to the firmware's.
const FIRMWARE_SHIFT: u32 = 5;
/// Between two looks at SW_FW_SYNC, and how many until the holder counts as dead: a second.
const RESOURCE_APART: Duration = Duration::from_millis(5);
const RESOURCE_TRIES: u32 = 200;
/// Between two looks at the semaphores that guard it, and how long the firmware is asked for SWESMBI.
const GUARD_APART: Duration = Duration::from_micros(50);
const SWESMBI_LIMIT: Duration = Duration::from_millis(100);
/// How long REGSMP may be kept, and SMBI by the other port's driver: as long as it may wait for the other of them, and 10 ms.
const REGSMP_LIMIT: Duration = Duration::from_secs(3);
const SMBI_LIMIT: Duration = Duration::from_millis(3010);

/// A resource that is ours until this is dropped.
pub(super) struct Held<'a> {
    device: &'a Device,
    resource: u32,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.device.left.set(self.device.left.get() | self.resource);
        give_back(self.device);
    }
}

/// Gives back what nobody here holds any more. A reset does not, and while the guards are not to be had it stays ours: it is tried again.
pub(super) fn give_back(device: &Device) {
    if device.left.get() != 0 && lock(device).is_ok() {
        device.update(SW_FW_SYNC, device.left.take(), 0);
        unlock(device);
    }
}

/// Takes a resource (`SW_FW_SYNC_...`).
pub(super) fn acquire(device: &Device, resource: u32) -> Result<Held<'_>, NicError> {
    let others = (resource | resource << FIRMWARE_SHIFT) & !device.left.get();
    let tries = if device.is_in_hurry() { 1 } else { RESOURCE_TRIES };
    for left in (0..tries).rev() {
        lock(device)?;
        let sync = device.read(SW_FW_SYNC);
        let is_free = sync & others == 0;
        if is_free || left == 0 && !device.is_in_hurry() {
            device.write(SW_FW_SYNC, sync | resource);
            unlock(device);
            device.left.set(device.left.get() & !resource);
            return Ok(Held { device, resource });
        }
        unlock(device);
        if left > 0 {
            device.sleep(RESOURCE_APART);
        }
    }
    Err(device.failure("shares its PHY or its link with firmware that does not let go (SW_FW_SYNC)"))
}

/// Takes both semaphores that guard SW_FW_SYNC.
fn lock(device: &Device) -> Result<(), NicError> {
    take(device, (SWSM, SWSM_SMBI), SMBI_LIMIT, &device.smbi, "by the other port's driver (SWSM.SMBI)")?;
    if device.chip.regsmp {
        let regsmp = (SW_FW_SYNC, SW_FW_SYNC_REGSMP);
        let taken = take(device, regsmp, REGSMP_LIMIT, &device.regsmp, "by its firmware (SW_FW_SYNC.REGSMP)");
        if taken.is_err() {
            // And not REGSMP: that is whose it is.
            device.update(SWSM, SWSM_SMBI, 0);
            device.flush();
        }
        return taken;
    }
    let ask = || device.update(SWSM, 0, SWSM_SWESMBI);
    ask();
    let granted = device.wait_for(SWSM, SWESMBI_LIMIT, GUARD_APART, |value| {
        let granted = value & SWSM_SWESMBI != 0;
        if !granted {
            ask();
        }
        granted
    });
    if granted {
        return Ok(());
    }
    unlock(device);
    Err(device.failure("gives no semaphore: its firmware keeps it"))
}

/// Takes a semaphore by reading it as 0; from whoever has kept it for longer than he may, too.
fn take(
    device: &Device,
    (register, bit): (usize, u32),
    limit: Duration,
    kept: &Kept,
    user: &str,
) -> Result<(), NicError> {
    let start = device.clock.now();
    if !device.wait_for(register, limit, GUARD_APART, |value| value & bit == 0) {
        if device.is_gone() {
            return Err(device.failure("gives no semaphore"));
        }
        // Who does not wait that long comes again until it has been as long.
        if kept.seen(start, device.clock.now()) < limit {
            return Err(device.failure(&format!("is being used {user}")));
        }
        // Left behind by a driver that was killed.
        kept.forget();
        device.update(register, bit, 0);
        if !device.wait(register, 1, GUARD_APART, |value| value & bit == 0) {
            return Err(device.failure(&format!("gives no semaphore to this driver: it is kept {user}")));
        }
    }
    kept.forget();
    Ok(())
}

fn unlock(device: &Device) {
    if device.chip.regsmp {
        device.update(SW_FW_SYNC, SW_FW_SYNC_REGSMP, 0);
        device.update(SWSM, SWSM_SMBI, 0);
    } else {
        device.update(SWSM, SWSM_SMBI | SWSM_SWESMBI, 0);
    }
    device.flush();
}

/// The resource that is a port's PHY.
pub(super) fn phy(device: &Device) -> u32 {
    if device.read(STATUS) & STATUS_LAN_ID == 0 { SW_FW_SYNC_PHY0 } else { SW_FW_SYNC_PHY1 }
}
