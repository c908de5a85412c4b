//! The link: the PHY behind MDIC, and what STATUS says of it.
//!
//! The PHY is not reset with the MAC and mostly has a link when a driver comes. Where it has none, because the driver before has switched it off or because
//! the whole function was reset, negotiation is begun anew.
#![forbid(unsafe_code)]

use super::registers::*;
use crate::vfio::intel::mdic::{self, PhyError};
use crate::vfio::intel::poll;
use std::time::Duration;

/// How long the firmware may keep the bus.
const OWNERSHIP: Duration = Duration::from_millis(10);

/// PHY status (IEEE 802.3, 22.2.4.2).
const STATUS_REGISTER: u32 = 1;
const STATUS_LINK: u16 = 1 << 2;
/// Advertisement (28.2.4.1).
const ADVERTISEMENT: u32 = 4;
const ADVERTISE_PAUSE: u16 = 3 << 10;

/// Runs `body` while the bus is ours: the firmware uses it too (10.2.2, EXTCNF_CTRL). A firmware that never lets go does not keep us out.
fn owning<T>(chip: &Chip, body: impl FnOnce() -> T) -> T {
    chip.modify(EXTCNF_CTRL, 0, extcnf_ctrl::MDIO_SW_OWNERSHIP);
    let ours = poll::until(&*chip.0, EXTCNF_CTRL, OWNERSHIP, |value| {
        let ours = value & extcnf_ctrl::MDIO_SW_OWNERSHIP != 0;
        if !ours {
            // Asked for again at each look: the bit sticks only while nobody else has one.
            chip.write(EXTCNF_CTRL, value | extcnf_ctrl::MDIO_SW_OWNERSHIP);
        }
        ours
    });
    let result = body();
    if ours.is_ok() {
        chip.modify(EXTCNF_CTRL, extcnf_ctrl::MDIO_SW_OWNERSHIP, 0);
    }
    result
}

/// Sees to it that there is a link or that one is being negotiated.
pub(super) fn bring_up(chip: &Chip) -> Result<(), PhyError> {
    // The MAC takes speed and duplex from the PHY. No flow control: a port that is too slow drops, and says so.
    let off = ctrl::GIO_MASTER_DISABLE | ctrl::FRCSPD | ctrl::FRCDPLX | ctrl::RFCE | ctrl::TFCE | ctrl::VME;
    chip.modify(CTRL, off, ctrl::SLU);
    let registers = &*chip.0;
    owning(chip, || {
        let control = mdic::read(registers, mdic::CONTROL)?;
        // The bit for the link remembers that it was down: the second look is the present.
        mdic::read(registers, STATUS_REGISTER)?;
        let link = mdic::read(registers, STATUS_REGISTER)? & STATUS_LINK != 0;
        if link && control & (mdic::POWER_DOWN | mdic::AUTONEGOTIATION) == mdic::AUTONEGOTIATION {
            return Ok(());
        }
        let advertised = mdic::read(registers, ADVERTISEMENT)?;
        mdic::write(registers, ADVERTISEMENT, advertised & !ADVERTISE_PAUSE)?;
        mdic::restart_autonegotiation(registers)
    })
}
