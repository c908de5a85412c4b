//! From whatever state to the one after a reset (4.2.1, 4.6.3), in two steps with a pause between: [`begin`] and [`finish`].
#![forbid(unsafe_code)]

use super::device::Device;
use super::registers::*;
use super::{link, semaphore};
use crate::port::MacAddress;
use crate::vfio::nic::NicError;
use std::time::Duration;

/// Queues of either kind that the chips have.
const ALL_QUEUES: usize = 128;
/// Queues that this driver can have left running: receive queues 64 and above have registers elsewhere, and stay as they are after power-on.
const OUR_QUEUES: usize = 64;

/// Between two looks at STATUS, and how many: 80 ms, as long as a request may be under way.
const MASTER_APART: Duration = Duration::from_micros(100);
const MASTER_TRIES: u32 = 800;
/// Double reset: the least time between the two, and what clearing the buffers takes (5.2.5.3.2).
const BETWEEN_RESETS: Duration = Duration::from_millis(1);
const BUFFERS_CLEAR: Duration = Duration::from_micros(20);
/// After the pause the reset has long been over; EEPROM and DMA unit may take a while more.
const DONE_APART: Duration = Duration::from_micros(500);
const DONE_TRIES: u32 = 100;

/// Masks all interrupts and forgets those that wait (4.6.3.1).
fn mask_interrupts(device: &Device) {
    device.write(EIMC, !(1 << 31));
    device.write(EIMC_EX, u32::MAX);
    device.write(EIMC_EX + 4, u32::MAX);
    device.read(EICR);
}

/// Ends what the device does, waits for requests of its that are under way, and resets it. Then it needs [`Chip::reset_pause`](super::chip::Chip::reset_pause).
pub(super) fn begin(device: &Device) -> Result<(), NicError> {
    if device.is_gone() {
        return Err(device.failure(""));
    }
    device.update(RXCTRL, RXCTRL_RXEN, 0);
    mask_interrupts(device);
    for queue in 0..ALL_QUEUES {
        device.write(TXDCTL(queue), TXDCTL_SWFLSH);
    }
    for queue in 0..OUR_QUEUES {
        device.update(RXDCTL(queue), DCTL_ENABLE, 0);
    }
    device.flush();
    // 5.2.5.3.2: master disable.
    device.update(CTRL, 0, CTRL_MASTER_DISABLE);
    let quiet = device.wait(STATUS, MASTER_TRIES, MASTER_APART, |status| status & STATUS_MASTER_ENABLE == 0);
    if !quiet {
        if device.is_gone() {
            return Err(device.failure(""));
        }
        flush_data_path(device);
        reset(device)?;
        device.sleep(BETWEEN_RESETS);
    }
    reset(device)
}

/// Empties the transmit path, for requests that do not end (the same section; receive is off already).
fn flush_data_path(device: &Device) {
    device.update(HLREG0, 0, HLREG0_LPBK);
    device.flush();
    device.sleep(BETWEEN_RESETS);
    device.update(GCR_EXT, 0, GCR_EXT_BUFFERS_CLEAR);
    device.flush();
    device.sleep(BUFFERS_CLEAR);
    device.update(GCR_EXT, GCR_EXT_BUFFERS_CLEAR, 0);
    device.update(HLREG0, HLREG0_LPBK, 0);
}

fn reset(device: &Device) -> Result<(), NicError> {
    // A link reset would take the link from a management controller that uses it.
    let with_link = !link::is_copper(device) && device.read(LINKS) & LINKS_UP == 0;
    let bits = if with_link { CTRL_RST | CTRL_LRST } else { CTRL_RST };
    // The PHY of the X540 and X550 must not be in use meanwhile.
    let held = if link::is_copper(device) {
        Some(semaphore::acquire(device, semaphore::phy(device))?)
    } else {
        None
    };
    device.update(CTRL, 0, bits);
    // It answers nothing sensible for a microsecond.
    device.sleep(Duration::from_micros(10));
    let over = device.wait(CTRL, DONE_TRIES, DONE_APART, |ctrl| ctrl & (CTRL_RST | CTRL_LRST) == 0);
    drop(held);
    if over { Ok(()) } else { Err(device.failure("does not come out of a reset (CTRL.RST)")) }
}

/// Sees that the device is up again, and reads its address.
pub(super) fn finish(device: &Device) -> Result<MacAddress, NicError> {
    if !device.wait(EEC, DONE_TRIES, DONE_APART, |eec| eec & EEC_ARD != 0) {
        return Err(device.failure("has not read its EEPROM after a reset (EEC.ARD)"));
    }
    if !device.wait(RDRXCTL, DONE_TRIES, DONE_APART, |control| control & RDRXCTL_DMAIDONE != 0) {
        return Err(device.failure("has not set up its DMA unit after a reset (RDRXCTL.DMAIDONE)"));
    }
    mask_interrupts(device);
    device.update(CTRL_EXT, 0, CTRL_EXT_DRV_LOAD);
    let (low, high) = (device.read(RAL(0)).to_le_bytes(), device.read(RAH(0)));
    let [e, f, ..] = high.to_le_bytes();
    let mac = [low[0], low[1], low[2], low[3], e, f];
    let usable = high & RAH_AV != 0 && high != u32::MAX && mac[0] & 1 == 0 && mac != [0; 6];
    if usable { Ok(MacAddress(mac)) } else { Err(device.failure("has no Ethernet address in its EEPROM")) }
}
