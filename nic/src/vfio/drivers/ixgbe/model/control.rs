//! Reset, firmware, PHY, link: what takes time, and what is done in turns.
#![forbid(unsafe_code)]

use super::map::Map;
use super::queues::{RxContext, TxContext};
use super::{Access, Inner};
use std::collections::HashMap;
use std::time::Duration;

const CTRL_RST: u32 = 1 << 26;
const CTRL_LRST: u32 = 1 << 3;
const CTRL_MASTER_DISABLE: u32 = 1 << 2;
const LOW_POWER: u16 = 1 << 11;

/// Its state.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// Looks at CTRL, EEC, RDRXCTL, STATUS, SECRXSTAT until they say that it is done.
    pub(super) reset_looks: u32,
    eeprom_looks: u32,
    dma_looks: u32,
    master_looks: u32,
    security_looks: u32,
    /// Those that have been seen saying so since the reset.
    eeprom_seen: bool,
    dma_seen: bool,
    master_seen: bool,
    security_seen: bool,
    /// Before this nothing may be asked of it.
    quiet_until: Duration,
    last_reset: Option<Duration>,
    /// Resets so far.
    pub(super) resets: u32,
    /// PCIe requests never end; then the path must be flushed, and two resets are needed.
    pub(super) master_stuck: bool,
    flushed: Option<Duration>,
    pub(super) flushes: u32,
    /// Its EEPROM has no Ethernet address.
    pub(super) no_address: bool,
    /// It never comes out of a reset any more.
    pub(super) dead: bool,
    /// Looks at SW_FW_SYNC during which the firmware has these resources.
    pub(super) firmware: (u32, u32),
    /// Who has the guards of SW_FW_SYNC.
    smbi: bool,
    /// With the next write to this register under a resource, the other port's driver takes SMBI, and keeps it.
    pub(super) smbi_goes_with: Option<&'static str>,
    guarded: bool,
    /// Looks at SWSM during which the firmware keeps SWESMBI.
    pub(super) swesmbi_busy: u32,
    mdi_looks: u32,
    mdi_register: u16,
    /// The PHY's registers, by MMD and number.
    pub(super) phy: HashMap<(u8, u16), u16>,
    /// There is somebody at the other end.
    pub(super) cable: bool,
    link_looks: Option<u32>,
    /// Speed bits of LINKS.
    pub(super) speed: u32,
}

impl Control {
    /// With a cable to somebody at 10 Gb/s. The PHY was put to sleep by whoever had it before.
    pub(super) fn new() -> Self {
        let phy = HashMap::from([((1, 2), 0x0154), ((30, 0), LOW_POWER | 0x40)]);
        Self { cable: true, speed: 3 << 28, phy, ..Self::default() }
    }
}

impl Inner {
    /// Registers after a reset; `power_on`: those that a reset does not touch are what they happen to be.
    pub(super) fn reset_registers(&mut self, power_on: bool) {
        for (row, index) in Map::all() {
            let garbage = 0x5A17_0000_u32.wrapping_mul(2 * index as u32 + 1) & row.bits;
            let value = match row.name {
                // 8.2.3.7: not initialised.
                "MTA" | "VFTA" | "RETA" | "ERETA" => {
                    if power_on {
                        garbage
                    } else {
                        continue;
                    }
                }
                // An address that somebody else wanted to receive.
                "RAL" if index == 1 && power_on => u32::from_le_bytes([0x02, 0, 0, 0]),
                "RAH" if index == 1 && power_on => u32::from_le_bytes([0, 9, 0, 0x80]),
                "RAL" | "RAH" if index > 0 => {
                    if power_on {
                        garbage
                    } else {
                        continue;
                    }
                }
                "SWSM" | "SW_FW_SYNC" | "ESDP" if !power_on => continue,
                _ if row.access == Access::Rc && !power_on => continue,
                "RAH" if self.control.no_address => 0,
                "RAL" => u32::from_le_bytes([0x02, 0x15, 0x17, 0xAB]),
                "RAH" => u32::from_le_bytes([0xCD, 0xEF, 0, 0x80]),
                "RXPBSIZE" if index == 0 => self.kind.rx_buffer_kib << 10,
                "AUTOC" => self.kind.autoc,
                // SDP3 is an output, and was left on: the laser is off.
                "ESDP" if !self.kind.copper => 0x808,
                _ => row.reset,
            };
            self.values[row.place(index) / 4] = value;
        }
        self.rx = (0..64).map(|_| RxContext::default()).collect();
        self.tx = (0..128).map(|_| TxContext::default()).collect();
        self.control.link_looks = if self.kind.copper { self.control.link_looks } else { None };
    }

    /// False while it is being reset, but for what says so and for semaphores.
    pub(super) fn is_answering(&self, name: &str) -> bool {
        self.control.reset_looks == 0 || matches!(name, "CTRL" | "STATUS" | "SWSM" | "SW_FW_SYNC")
    }

    /// Whether a register may be written now.
    pub(super) fn check_time(&mut self, name: &'static str) {
        if matches!(name, "SWSM" | "SW_FW_SYNC") {
            return;
        }
        if name == "CTRL" && self.control.master_stuck {
            return;
        }
        let now = self.clock.passed();
        if self.control.reset_looks > 0 {
            self.violation(format!("write to {name} while the device is being reset"));
        } else if now < self.control.quiet_until {
            self.violation(format!("write to {name} too soon after a reset"));
        } else if self.control.resets > 0 {
            let after_dma =
                matches!(name, "RXPBSIZE" | "RDBAL" | "SRRCTL" | "RXDCTL" | "TDBAL" | "TXDCTL" | "MTQC");
            if after_dma && !self.control.dma_seen && !self.control.dead {
                self.violation(format!("write to {name} before RDRXCTL.DMAIDONE was seen"));
            }
            if matches!(name, "RAL" | "AUTOC") && !self.control.eeprom_seen {
                self.violation(format!("write to {name} before EEC.ARD was seen"));
            }
        }
    }

    fn begin_reset(&mut self, with_link: bool) {
        let now = self.clock.passed();
        let running = self.rx.iter().any(|queue| queue.enabled) || self.tx.iter().any(|queue| queue.enabled);
        if running && self.get("CTRL", 0) & CTRL_MASTER_DISABLE == 0 {
            self.violation("reset without master disable (5.2.5.3.2)");
        } else if !self.control.master_seen && !self.control.master_stuck {
            self.violation("reset before STATUS.PCIe Master Enable was seen clear");
        }
        if self.control.master_stuck && self.control.flushed.is_none() {
            self.violation("reset with requests under way, and the data path was not flushed");
        }
        if with_link && self.kind.copper {
            self.violation("CTRL.LRST takes the PHY from the firmware");
        }
        if self.kind.copper && self.get("SW_FW_SYNC", 0) & 6 == 0 {
            self.violation("reset without the PHY's semaphore");
        }
        let again = self.control.last_reset.is_some_and(|last| now - last < Duration::from_millis(5));
        if again && now - self.control.last_reset.unwrap_or_default() < Duration::from_micros(1) {
            self.violation("a second reset within 1 us");
        }
        self.reset_registers(false);
        let control = &mut self.control;
        (control.eeprom_seen, control.dma_seen, control.security_seen) = (false, false, false);
        if again {
            control.master_stuck = false;
        }
        control.reset_looks = 2;
        (control.eeprom_looks, control.dma_looks) = (3, 4);
        control.master_seen = false;
        control.master_looks = 0;
        control.quiet_until = now + self.kind.pause;
        control.last_reset = Some(now);
        control.resets += 1;
    }

    pub(super) fn read_special(&mut self, name: &'static str, index: usize) -> u32 {
        let value = self.get(name, index);
        let control = &mut self.control;
        // One look less; true when it has come.
        let look = |looks: &mut u32| {
            *looks = looks.saturating_sub(1);
            *looks == 0
        };
        match name {
            "CTRL" if control.reset_looks > 0 => {
                if !control.dead {
                    look(&mut control.reset_looks);
                }
                if control.reset_looks > 0 { value | CTRL_RST } else { value }
            }
            "STATUS" => {
                let disabled = self.values[0] & CTRL_MASTER_DISABLE != 0;
                let control = &mut self.control;
                let ended = disabled && !control.master_stuck && look(&mut control.master_looks);
                control.master_seen |= ended;
                if ended { value & !(1 << 19) } else { value }
            }
            "EEC" => {
                control.eeprom_seen |= look(&mut control.eeprom_looks);
                if control.eeprom_seen { value } else { value & !(1 << 9) }
            }
            "RDRXCTL" => {
                control.dma_seen |= look(&mut control.dma_looks);
                if control.dma_seen { value | 1 << 3 } else { value }
            }
            "SECRXSTAT" => {
                let disabled = self.get("SECRXCTRL", 0) & 2 != 0;
                let control = &mut self.control;
                let ready = disabled && look(&mut control.security_looks);
                control.security_seen |= ready;
                value | u32::from(ready)
            }
            "SWSM" => {
                if self.control.swesmbi_busy > 0 {
                    self.control.swesmbi_busy -= 1;
                }
                // Reading takes it.
                self.set("SWSM", 0, value | 1);
                self.control.smbi |= value & 1 == 0;
                value
            }
            "SW_FW_SYNC" => {
                if self.kind.copper && value & 1 << 31 == 0 {
                    self.set("SW_FW_SYNC", 0, value | 1 << 31);
                    self.control.guarded = true;
                }
                let (resources, looks) = &mut self.control.firmware;
                if *looks > 0 {
                    *looks -= 1;
                    return value | *resources << 5;
                }
                value
            }
            "MSCA" => {
                if look(&mut control.mdi_looks) {
                    self.set("MSCA", 0, value & !(1 << 30));
                }
                value
            }
            "LINKS" => self.links(),
            "RXDCTL" => self.rxdctl(index, value),
            "TXDCTL" => self.txdctl(index, value),
            _ => value,
        }
    }

    pub(super) fn write_special(&mut self, name: &'static str, index: usize, old: u32, value: u32) {
        if self.control.smbi_goes_with == Some(name) && self.get("SW_FW_SYNC", 0) & 0x1F != 0 {
            self.control.smbi_goes_with = None;
            self.set("SWSM", 0, 1);
        }
        match name {
            "CTRL" => {
                self.set(name, 0, value & !(CTRL_RST | CTRL_LRST));
                if value & CTRL_MASTER_DISABLE & !old != 0 {
                    self.control.master_looks = 3;
                }
                if value & (CTRL_RST | CTRL_LRST) != 0 {
                    self.begin_reset(value & CTRL_LRST != 0);
                }
            }
            "GCR_EXT" => {
                let now = self.clock.passed();
                if value & 1 << 30 != 0 {
                    if self.get("HLREG0", 0) & 1 << 15 == 0 || self.get("RXCTRL", 0) & 1 != 0 {
                        self.violation("the buffers were cleared without loopback, or with receive on");
                    }
                    self.control.flushed = Some(now);
                    self.control.flushes += 1;
                } else if self.control.flushed.is_some_and(|since| now - since < Duration::from_micros(20)) {
                    self.violation("the buffers were cleared for less than 20 us");
                }
                self.set(name, 0, value);
            }
            "EIMS" => {
                if value & !(1 << 20) != 0 {
                    self.violation("an interrupt is enabled that nobody handles");
                }
                self.set(name, 0, old | value);
                self.interrupt(old);
            }
            "SWSM" => self.write_swsm(old, value),
            "SW_FW_SYNC" => self.write_sync(old, value),
            "MSCA" => self.write_msca(value),
            "AUTOC" => {
                if self.get("SW_FW_SYNC", 0) & 8 == 0 {
                    self.violation("AUTOC was written without SW_FW_SYNC.MAC_CSR");
                }
                self.set(name, 0, value & !(1 << 12));
                if value & 1 << 12 != 0 {
                    self.control.link_looks = Some(3);
                }
            }
            _ => {
                self.set(name, index, value);
                self.write_unit(name, index, old, value);
            }
        }
    }

    /// A cause that is no queue's.
    pub(super) fn cause(&mut self, cause: u32) {
        let before = self.get("EICR", 0);
        let enabled = self.get("EIMS", 0);
        self.set("EICR", 0, before | cause);
        if cause & !before & enabled != 0 {
            self.interrupt(0);
        }
    }

    /// The message of a cause that has become enabled (7.3.4.3: by IVAR_MISC), once until EICR is read.
    fn interrupt(&mut self, enabled_before: u32) {
        let pending = self.get("EICR", 0) & self.get("EIMS", 0) & !enabled_before;
        let allocated = self.get("IVAR_MISC", 0) >> 8;
        if pending == 0 || self.get("GPIE", 0) & 1 << 4 == 0 || allocated & 0x80 == 0 || !self.bus_master {
            return;
        }
        if let Some(msix) = &self.msix {
            msix.send((allocated & 0x3F) as usize);
        }
    }

    fn write_swsm(&mut self, old: u32, value: u32) {
        let mut kept = value & old & 1;
        if old & 1 != 0 && value & 1 == 0 {
            self.control.smbi = false;
        }
        if value & 2 != 0 {
            if self.kind.copper {
                self.violation("SWSM.SWESMBI: this chip has REGSMP for it");
            } else if !self.control.smbi {
                self.violation("SWESMBI without SMBI");
            } else if self.control.swesmbi_busy == 0 {
                kept |= 2;
                self.control.guarded = true;
            }
        } else if old & 2 != 0 {
            self.control.guarded = false;
        }
        self.set("SWSM", 0, kept);
    }

    fn write_sync(&mut self, old: u32, value: u32) {
        if !self.control.guarded || !self.control.smbi {
            self.violation("SW_FW_SYNC was written without its guards");
        }
        let firmware = if self.control.firmware.1 > 0 { self.control.firmware.0 } else { 0 };
        if value & !old & firmware != 0 {
            self.violation("a resource was taken that the firmware has");
        }
        if self.kind.copper && value & 1 << 31 == 0 {
            self.control.guarded = false;
        }
        // The firmware's bits are its own.
        self.set("SW_FW_SYNC", 0, value & 0x8000_041F);
    }

    fn write_msca(&mut self, value: u32) {
        if self.get("SW_FW_SYNC", 0) & 6 == 0 {
            self.violation("MSCA was written without the PHY's semaphore");
        }
        if self.get("MSCA", 0) & 1 << 30 != 0 {
            self.violation("MSCA was written while a command runs");
        }
        self.set("MSCA", 0, value);
        if value & 1 << 30 == 0 {
            return;
        }
        self.control.mdi_looks = 2;
        let (register, mmd, phy) = (value as u16, (value >> 16) as u8 & 31, value >> 21 & 31);
        match value >> 26 & 3 {
            0 => self.control.mdi_register = register,
            operation => {
                if register != self.control.mdi_register {
                    self.violation("MSCA: another register than in the address cycle");
                }
                let place = (mmd, register);
                let data = self.get("MSRWD", 0);
                if operation == 1 && phy == PHY {
                    self.control.phy.insert(place, data as u16);
                } else if operation != 1 {
                    let known = self.control.phy.get(&place).copied().unwrap_or(0);
                    let read = if phy == PHY { known } else { u16::MAX };
                    self.set("MSRWD", 0, data & 0xFFFF | u32::from(read) << 16);
                }
            }
        }
    }

    fn links(&mut self) -> u32 {
        let ready = if self.kind.copper {
            self.control.phy.get(&(30, 0)).is_none_or(|control| control & LOW_POWER == 0)
        } else {
            let (autoc, autoc2) = (self.get("AUTOC", 0), self.get("AUTOC2", 0));
            let sfi = autoc >> 13 & 7 == 3 && autoc2 >> 16 & 3 == 2 && self.get("ESDP", 0) & 8 == 0;
            let xaui = autoc >> 13 & 7 == 1;
            let started = match &mut self.control.link_looks {
                Some(looks) => {
                    *looks = looks.saturating_sub(1);
                    *looks == 0
                }
                None => false,
            };
            let mode = if self.kind.device == 0x10FC { xaui } else { sfi };
            started && mode && autoc2 >> 28 & 7 == 0
        };
        if ready && self.control.cable { 1 << 30 | self.control.speed } else { 0 }
    }

    /// Whether packets pass.
    pub(super) fn link_is_up(&mut self) -> bool {
        self.links() != 0
    }

    /// Receive may be enabled now, as far as the security unit goes.
    pub(super) fn security_is_quiet(&self) -> bool {
        self.control.security_seen && self.get("SECRXCTRL", 0) & 2 != 0
    }

    pub(super) fn dma_is_done(&self) -> bool {
        self.control.dma_seen
    }

    pub(super) fn hold_security(&mut self) {
        self.control.security_looks = 2;
        self.control.security_seen = false;
    }
}

/// Where the PHY is on the bus.
const PHY: u32 = 1;
