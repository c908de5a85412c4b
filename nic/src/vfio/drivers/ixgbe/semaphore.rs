//! What driver and firmware, and the drivers of both ports of a chip, use in turns (10.5.4 of the 82599's data sheet, 10.5.4 of the X540's).
//!
//! SW_FW_SYNC has a bit for each resource and side; the register itself is guarded by two semaphores. All are held for microseconds; whoever keeps one for
//! as long as the data sheet says has died, and loses it.
#![forbid(unsafe_code)]

use super::device::Device;
use super::registers::*;
use crate::vfio::nic::NicError;
use std::time::Duration;

/// From the software's bit of a resource to the firmware's.
const FIRMWARE_SHIFT: u32 = 5;
/// Between two looks at SW_FW_SYNC, and how many until the holder counts as dead: a second.
const RESOURCE_APART: Duration = Duration::from_millis(5);
const RESOURCE_TRIES: u32 = 200;
/// The same for the semaphores that guard it: 100 ms.
const GUARD_APART: Duration = Duration::from_micros(50);
const GUARD_TRIES: u32 = 2000;
/// How long the other port's driver may have SMBI: as long as it may wait for SWESMBI, 3 s, and 10 ms.
const SMBI_LIMIT: Duration = Duration::from_millis(3010);
const SMBI_TRIES: u32 = 60_200;

/// A resource that is ours until this is dropped.
pub(super) struct Held<'a> {
    device: &'a Device,
    resource: u32,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // If the guard is not to be had, the firmware's own time-out ends it.
        if lock(self.device).is_ok() {
            self.device.update(SW_FW_SYNC, self.resource, 0);
            unlock(self.device);
        }
    }
}

/// Takes a resource (`SW_FW_SYNC_...`).
pub(super) fn acquire(device: &Device, resource: u32) -> Result<Held<'_>, NicError> {
    let others = resource | resource << FIRMWARE_SHIFT;
    let tries = if device.is_in_hurry() { 1 } else { RESOURCE_TRIES };
    for left in (0..tries).rev() {
        lock(device)?;
        let sync = device.read(SW_FW_SYNC);
        let is_free = sync & others == 0;
        if is_free || left == 0 && !device.is_in_hurry() {
            device.write(SW_FW_SYNC, sync | resource);
            unlock(device);
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
    let taken = |value: u32| value & SWSM_SMBI == 0;
    let since = device.clock.now();
    if device.wait(SWSM, SMBI_TRIES, GUARD_APART, taken) {
        device.smbi_kept.set(None);
    } else {
        if device.is_gone() {
            return Err(device.failure("gives no semaphore"));
        }
        // Who does not wait that long comes again until it has been as long.
        let since = device.smbi_kept.get().unwrap_or(since);
        device.smbi_kept.set(Some(since));
        if device.clock.now().saturating_duration_since(since) < SMBI_LIMIT {
            return Err(device.failure("is being used by the other port's driver (SWSM.SMBI)"));
        }
        // Left behind by a driver that was killed.
        device.smbi_kept.set(None);
        device.update(SWSM, SWSM_SMBI, 0);
        if !device.wait(SWSM, 1, GUARD_APART, taken) {
            return Err(device.failure("gives no semaphore to this driver (SWSM.SMBI)"));
        }
    }
    let granted = if device.chip.regsmp {
        device.wait(SW_FW_SYNC, GUARD_TRIES, GUARD_APART, |value| value & SW_FW_SYNC_REGSMP == 0)
    } else {
        (0..if device.is_in_hurry() { 40 } else { GUARD_TRIES }).any(|_| {
            device.update(SWSM, 0, SWSM_SWESMBI);
            device.wait(SWSM, 1, GUARD_APART, |value| value & SWSM_SWESMBI != 0) || {
                device.sleep(GUARD_APART);
                false
            }
        })
    };
    if granted {
        return Ok(());
    }
    unlock(device);
    Err(device.failure("gives no semaphore: its firmware keeps it"))
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
