//! The PHY's registers, by MSCA and MSRWD (8.2.3.22.11 and 12): IEEE 802.3 Clause 45, an address cycle and then the data.
#![forbid(unsafe_code)]

use super::device::Device;
use super::registers::*;
use std::time::Duration;

/// Between two looks at MSCA, and how many: a millisecond, of which a command takes a tenth.
const APART: Duration = Duration::from_micros(10);
const TRIES: u32 = 100;

/// A register of a PHY.
#[derive(Clone, Copy, Debug)]
pub(super) struct PhyRegister {
    /// The PHY's address, below 32.
    pub(super) phy: u32,
    /// The MMD, below 32.
    pub(super) mmd: u32,
    /// The register.
    pub(super) register: u16,
}

impl PhyRegister {
    fn command(self, device: &Device, operation: u32) -> Option<()> {
        let place = u32::from(self.register) | self.mmd << MSCA_DEVICE_SHIFT | self.phy << MSCA_PHY_SHIFT;
        device.write(MSCA, place | operation | MSCA_MDICMD);
        device.wait(MSCA, TRIES, APART, |value| value & MSCA_MDICMD == 0).then_some(())
    }

    /// Its value; `None` where the MAC does not complete the command.
    pub(super) fn read(self, device: &Device) -> Option<u16> {
        self.command(device, 0)?;
        self.command(device, MSCA_READ)?;
        Some((device.read(MSRWD) >> 16) as u16)
    }

    /// Writes it.
    pub(super) fn write(self, device: &Device, value: u16) -> Option<()> {
        device.write(MSRWD, value.into());
        self.command(device, 0)?;
        self.command(device, MSCA_WRITE)
    }
}
