//! A model of the device, by the data sheet: registers that answer as they should, rings that are read and written through an IOMMU, and no patience.
//!
//! What a driver must not do (write a reserved bit, enable things in another order, use memory that is not mapped) is a *violation*: the model
//! goes on, and the test ends red. Things that take time in silicon take a number of looks here, and the time passes in the test's clock.
#![forbid(unsafe_code)]

mod clock;
mod control;
mod harness;
pub(super) mod hostile;
mod map;
mod parse;
mod queues;
mod receive;
mod toeplitz;
mod transmit;

pub(super) use clock::VirtualClock;
pub(super) use harness::Trouble;
pub(super) use receive::Fate;

use crate::vfio::dma::DmaSpace;
use crate::vfio::function::{PciFunction, PciId};
use crate::vfio::model::{ModelIommu, ModelMsix};
use crate::vfio::registers::{RegisterSpace, Registers};
use control::Control;
use map::{Access, MAP};
use queues::{RxContext, TxContext};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What a chip is, as its own data sheet has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) device: u16,
    /// 10GBASE-T, with firmware that looks after it.
    copper: bool,
    /// AUTOC after a reset.
    autoc: u32,
    rx_buffer_kib: u32,
    reta_words: usize,
    pause: Duration,
}

impl Kind {
    pub(super) const N82599: Self = Self {
        device: 0x10FB,
        copper: false,
        // 1 Gb/s: another driver's leftover in the EEPROM.
        autoc: 0xC09C_0004,
        rx_buffer_kib: 512,
        reta_words: 32,
        pause: Duration::from_millis(10),
    };
    pub(super) const XAUI: Self = Self { device: 0x10FC, autoc: 0xC09C_2004, ..Self::N82599 };
    pub(super) const X540: Self = Self {
        device: 0x1528,
        copper: true,
        rx_buffer_kib: 384,
        pause: Duration::from_millis(100),
        ..Self::N82599
    };
    pub(super) const X550: Self = Self { device: 0x1563, reta_words: 128, ..Self::X540 };
    pub(super) const ALL: [Self; 4] = [Self::N82599, Self::XAUI, Self::X540, Self::X550];
}

/// What a packet that was sent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) queue: usize,
    pub(super) bytes: Vec<u8>,
}

/// All of the device's state.
struct Inner {
    kind: Kind,
    values: Vec<u32>,
    iommu: ModelIommu,
    clock: Arc<VirtualClock>,
    bus_master: bool,
    msix: Option<ModelMsix>,
    unplugged: bool,
    control: Control,
    rx: Vec<RxContext>,
    tx: Vec<TxContext>,
    sent: Vec<Sent>,
    violations: Vec<String>,
    /// For each register that was written, how often: what tests ask for.
    writes: BTreeMap<&'static str, u64>,
}

impl Inner {
    fn violation(&mut self, text: impl Into<String>) {
        let text = text.into();
        // A mistake made again and again is told of once.
        if !self.violations.contains(&text) {
            self.violations.push(text);
        }
    }

    fn get(&self, name: &str, index: usize) -> u32 {
        self.values[MAP.place(name, index) / 4]
    }

    fn set(&mut self, name: &str, index: usize, value: u32) {
        let place = MAP.place(name, index) / 4;
        self.values[place] = value;
    }

    fn count(&mut self, name: &str, index: usize) {
        self.set(name, index, self.get(name, index).saturating_add(1));
    }

    fn read(&mut self, offset: usize) -> u32 {
        self.clock.advance(Duration::from_micros(1));
        if self.unplugged {
            return u32::MAX;
        }
        let Some((row, index)) = MAP.at(offset).filter(|(row, _)| self.has(row.name)) else {
            self.violation(format!("read of {offset:#07x}, where there is no register"));
            return u32::MAX;
        };
        if !self.is_answering(row.name) {
            self.violation(format!("read of {} while the device is being reset", row.name));
        }
        match row.access {
            Access::Wo => 0,
            Access::Rc => {
                let value = self.get(row.name, index);
                self.set(row.name, index, 0);
                value
            }
            Access::Rw | Access::Ro => self.read_special(row.name, index),
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        self.clock.advance(Duration::from_micros(1));
        if self.unplugged {
            return;
        }
        let Some((row, index)) = MAP.at(offset).filter(|(row, _)| self.has(row.name)) else {
            return self.violation(format!("write to {offset:#07x}, where there is no register"));
        };
        *self.writes.entry(row.name).or_default() += 1;
        if matches!(row.access, Access::Ro | Access::Rc) {
            return self.violation(format!("write to {}, which can only be read", row.name));
        }
        let old = self.get(row.name, index);
        // DMAIDONE is a state, and what is written there is of no account.
        let state = if row.name == "RDRXCTL" { 1 << 3 } else { 0 };
        let changed = (value ^ old) & !(row.bits | state);
        if changed != 0 {
            self.violation(format!("{}: reserved bits {changed:#010x} were changed", row.name));
        }
        let value = value & row.bits | old & !row.bits;
        self.check_time(row.name);
        if row.name == "EIMC" {
            self.set("EIMS", 0, self.get("EIMS", 0) & !value);
        }
        if row.access != Access::Wo {
            self.write_special(row.name, index, old, value);
        }
    }

    /// Whether this chip has a register.
    fn has(&self, name: &str) -> bool {
        match name {
            "ERETA" => self.kind.reta_words > 32,
            "AUTOC" | "AUTOC2" => !self.kind.copper,
            _ => true,
        }
    }

    /// Reads memory; a fault is a violation.
    fn fetch<const N: usize>(&mut self, what: &str, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        if !self.iommu.read(address, &mut bytes) {
            self.violation(format!("{what}: an address that is not mapped"));
            return None;
        }
        Some(bytes)
    }

    fn store(&mut self, what: &str, address: u64, bytes: &[u8]) -> bool {
        let mapped = self.iommu.write(address, bytes);
        if !mapped {
            self.violation(format!("{what}: an address that is not mapped"));
        }
        mapped
    }
}

/// The device; clones are the same one.
#[derive(Clone)]
pub(super) struct Model {
    inner: Arc<Mutex<Inner>>,
    iommu: ModelIommu,
    space: Arc<DmaSpace>,
    pub(super) clock: Arc<VirtualClock>,
    kind: Kind,
}

impl Model {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

impl RegisterSpace for Model {
    fn length(&self) -> usize {
        128 << 10
    }

    fn read8(&self, offset: usize) -> u8 {
        self.lock().violation(format!("a read of 8 bits at {offset:#07x}"));
        u8::MAX
    }

    fn read16(&self, offset: usize) -> u16 {
        self.lock().violation(format!("a read of 16 bits at {offset:#07x}"));
        u16::MAX
    }

    fn read32(&self, offset: usize) -> u32 {
        self.lock().read(offset)
    }

    fn write8(&self, offset: usize, _: u8) {
        self.lock().violation(format!("a write of 8 bits at {offset:#07x}"));
    }

    fn write16(&self, offset: usize, _: u16) {
        self.lock().violation(format!("a write of 16 bits at {offset:#07x}"));
    }

    fn write32(&self, offset: usize, value: u32) {
        self.lock().write(offset, value);
    }
}

impl PciFunction for Model {
    fn id(&self) -> PciId {
        PciId { vendor: 0x8086, device: self.kind.device }
    }

    fn read_config(&self, _: u16, _: u8) -> u32 {
        u32::MAX
    }

    fn write_config(&self, _: u16, _: u8, _: u32) {}

    fn bar(&self, index: u8) -> io::Result<Registers> {
        if index == 0 { Ok(Arc::new(self.clone())) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn reset(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn set_bus_master(&self, on: bool) {
        let mut inner = self.lock();
        inner.bus_master = on;
        if on {
            inner.transmit_all();
        }
    }

    fn dma(&self) -> &Arc<DmaSpace> {
        &self.space
    }

    fn msix_vectors(&self) -> u16 {
        64
    }

    fn enable_msix(&self, count: u16) -> io::Result<Vec<OwnedFd>> {
        self.lock().msix.as_ref().ok_or(io::ErrorKind::Unsupported)?.enable(count)
    }

    fn is_going(&self) -> bool {
        false
    }
}
