//! The link: the PHY behind MDIC, and what STATUS says of it.
//!
//! The PHY is not reset with the MAC and mostly has a link when a driver comes. Where it has none, because the driver before has switched it off or because
//! the whole function was reset, negotiation is begun anew.
#![forbid(unsafe_code)]

use super::registers::*;
use crate::port::LinkState;
use crate::vfio::intel::poll;
use std::time::Duration;

/// Which PHY on the bus.
const ADDRESS: u32 = 1;
/// An access takes 64 µs by the standard.
const ACCESS: Duration = Duration::from_millis(10);

/// PHY Control (IEEE 802.3, 22.2.4.1).
const BMCR: u32 = 0;
const BMCR_RESTART_NEGOTIATION: u16 = 1 << 9;
const BMCR_POWER_DOWN: u16 = 1 << 11;
const BMCR_NEGOTIATION: u16 = 1 << 12;
/// PHY Status (22.2.4.2).
const BMSR: u32 = 1;
const BMSR_LINK: u16 = 1 << 2;
/// Advertisement (28.2.4.1).
const ANAR: u32 = 4;
const ANAR_PAUSE: u16 = 3 << 10;

/// Reads a register of the PHY; `None` where it does not answer.
fn read(chip: &Chip, register: u32) -> Option<u16> {
    let command = register << mdic::REGADD_SHIFT | ADDRESS << mdic::PHYADD_SHIFT | mdic::OP_READ;
    access(chip, command).map(|value| (value & mdic::DATA_MASK) as u16)
}

/// Writes one.
fn write(chip: &Chip, register: u32, value: u16) -> Option<()> {
    let command = register << mdic::REGADD_SHIFT | ADDRESS << mdic::PHYADD_SHIFT | mdic::OP_WRITE;
    access(chip, command | u32::from(value)).map(|_| ())
}

fn access(chip: &Chip, command: u32) -> Option<u32> {
    chip.write(MDIC, command);
    let value = poll::until_bits(&*chip.0, MDIC, mdic::READY, true, ACCESS).ok()?;
    (value & mdic::ERROR == 0).then_some(value)
}

/// Runs `body` while the bus is ours: the firmware uses it too (10.2.2, EXTCNF_CTRL). A firmware that never lets go does not keep us out.
fn owning<T>(chip: &Chip, body: impl FnOnce() -> T) -> T {
    chip.modify(EXTCNF_CTRL, 0, extcnf_ctrl::MDIO_SW_OWNERSHIP);
    let ours = poll::until(&*chip.0, EXTCNF_CTRL, ACCESS, |value| {
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

/// Sees to it that there is a link or that one is being negotiated; false where the PHY does not answer.
pub(super) fn bring_up(chip: &Chip) -> bool {
    // The MAC takes speed and duplex from the PHY. No flow control: a port that is too slow drops, and says so.
    let off = ctrl::GIO_MASTER_DISABLE | ctrl::FRCSPD | ctrl::FRCDPLX | ctrl::RFCE | ctrl::TFCE | ctrl::VME;
    chip.modify(CTRL, off, ctrl::SLU);
    owning(chip, || {
        let control = read(chip, BMCR)?;
        // The bit for the link remembers that it was down: the second look is the present.
        let _ = read(chip, BMSR)?;
        let link = read(chip, BMSR)? & BMSR_LINK != 0;
        let wanted = control & !(BMCR_POWER_DOWN | BMCR_RESTART_NEGOTIATION) | BMCR_NEGOTIATION;
        if link && wanted == control {
            return Some(());
        }
        let advertised = read(chip, ANAR)?;
        write(chip, ANAR, advertised & !ANAR_PAUSE)?;
        write(chip, BMCR, wanted | BMCR_RESTART_NEGOTIATION)
    })
    .is_some()
}

/// What STATUS, as read, says of the link.
pub(super) fn link(status: u32) -> LinkState {
    if status == GONE {
        return LinkState::Gone("all registers read as ones".into());
    }
    if status & status::LU == 0 {
        return LinkState::Down;
    }
    let speed_mbps = match status >> status::SPEED_SHIFT & 3 {
        0 => 10,
        1 => 100,
        _ => 1000,
    };
    LinkState::Up { speed_mbps: Some(speed_mbps) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_is_as_status_says() {
        let up = |speed_mbps| LinkState::Up { speed_mbps: Some(speed_mbps) };
        let speeds = [(0x03, 10), (0x43, 100), (0x83, 1000), (0xC3, 1000), (0x8_0083, 1000)];
        for (status, speed) in speeds {
            assert_eq!(link(status), up(speed), "{status:#x}");
        }
        assert_eq!(link(0x81), LinkState::Down);
        assert!(matches!(link(GONE), LinkState::Gone(_)));
    }
}
