//! The link: set up (4.6.4), and its state.
#![forbid(unsafe_code)]

use super::chip::Media;
use super::device::Device;
use super::mdio::PhyRegister;
use super::registers::*;
use super::semaphore;
use crate::port::LinkState;
use crate::vfio::nic::NicError;

/// MMD 1, PMA/PMD: register 2 is the high half of the PHY's identifier (802.3, 45.2.1.3).
const PMA_PMD: u32 = 1;
const PHY_IDENTIFIER: u16 = 2;
/// MMD 30, vendor specific: bit 11 of register 0 is the low power mode of these chips' PHY (X540's data sheet, 3.6.3).
const VENDOR_SPECIFIC_1: u32 = 30;
const GLOBAL_CONTROL: u16 = 0;
const LOW_POWER: u16 = 1 << 11;

/// True where a PHY of the chip's own negotiates.
pub(super) fn is_copper(device: &Device) -> bool {
    device.chip.media == Media::Copper
}

/// Has the link come up; nobody waits for it.
pub(super) fn set_up(device: &Device) -> Result<(), NicError> {
    match device.chip.media {
        Media::Copper => wake_phy(device),
        media => restart(device, media),
    }
}

/// 82599: the mode is the EEPROM's, but for SFP+ modules, which are run at 10 Gb/s.
fn restart(device: &Device, media: Media) -> Result<(), NicError> {
    if media == Media::Sfi {
        let pins = device.read(ESDP);
        // Linux leaves it off when an interface is set down.
        if pins & ESDP_SDP3_IODIR != 0 && pins & ESDP_SDP3_DATA != 0 {
            device.write(ESDP, pins & !ESDP_SDP3_DATA);
        }
    }
    let held = semaphore::acquire(device, SW_FW_SYNC_MAC_CSR)?;
    let serial = if media == Media::Sfi { (AUTOC2_10G_PMA_PMD_SERIAL, AUTOC2_10G_SFI) } else { (0, 0) };
    device.update(AUTOC2, AUTOC2_LINK_DISABLE | serial.0, serial.1);
    let mode = if media == Media::Sfi { (AUTOC_LMS, AUTOC_LMS_10G_SERIAL) } else { (0, 0) };
    device.update(AUTOC, mode.0, mode.1 | AUTOC_RESTART_AN);
    drop(held);
    Ok(())
}

/// X540, X550: firmware and PHY do all of it, if the PHY is awake. Linux puts it to sleep with its interface.
fn wake_phy(device: &Device) -> Result<(), NicError> {
    let held = semaphore::acquire(device, semaphore::phy(device))?;
    let at = |phy, mmd, register| PhyRegister { phy, mmd, register };
    let mut addresses = 0..32;
    let found = addresses.find(|phy| {
        let identifier = at(*phy, PMA_PMD, PHY_IDENTIFIER).read(device);
        identifier.is_some_and(|high| high != 0 && high != u16::MAX)
    });
    let control = found.map(|phy| at(phy, VENDOR_SPECIFIC_1, GLOBAL_CONTROL));
    let woken = control.and_then(|control| {
        let value = control.read(device)?;
        if value & LOW_POWER != 0 { control.write(device, value & !LOW_POWER) } else { Some(()) }
    });
    drop(held);
    woken.ok_or_else(|| device.failure("does not let its PHY be reached (MSCA)"))
}

/// Whether packets can pass.
pub(super) fn state(device: &Device) -> LinkState {
    // The first read ends what the register has kept of a link that was lost.
    device.read(LINKS);
    let links = device.read(LINKS);
    if links == u32::MAX || device.function.is_going() {
        return LinkState::Gone("the device answers no more: it was unplugged, or has no power".into());
    }
    if links & LINKS_UP == 0 {
        return LinkState::Down;
    }
    let non_standard = device.chip.non_standard_speeds && links & LINKS_NON_STANDARD != 0;
    let speed_mbps = match (links & LINKS_SPEED, non_standard) {
        (LINKS_10G, false) => Some(10_000),
        (LINKS_10G, true) => Some(2_500),
        (LINKS_1G, _) => Some(1_000),
        (LINKS_100M, false) => Some(100),
        (LINKS_100M, true) => Some(5_000),
        _ => None,
    };
    LinkState::Up { speed_mbps }
}
