//! What tests do to the device, and ask of it.
#![forbid(unsafe_code)]

use super::control::Control;
use super::map::MAP;
use super::{Fate, Inner, Kind, Model, Sent, VirtualClock};
use crate::vfio::model::{ModelIommu, ModelMsix};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

impl Model {
    /// A chip that was just powered on, with a cable.
    pub(in crate::vfio::drivers::ixgbe) fn new(kind: Kind) -> Self {
        let (iommu, space) = ModelIommu::new();
        let clock = Arc::new(VirtualClock::default());
        let mut inner = Inner {
            kind,
            values: vec![0; (128 << 10) / 4],
            iommu: iommu.clone(),
            clock: Arc::clone(&clock),
            bus_master: false,
            msix: Some(ModelMsix::default()),
            unplugged: false,
            control: Control::new(),
            rx: Vec::new(),
            tx: Vec::new(),
            sent: Vec::new(),
            violations: Vec::new(),
            writes: BTreeMap::new(),
        };
        inner.reset_registers(true);
        Self { inner: Arc::new(Mutex::new(inner)), iommu, space, clock, kind }
    }

    /// A packet comes in over the wire, without its frame check sequence.
    pub(in crate::vfio::drivers::ixgbe) fn wire(&self, packet: &[u8]) -> Fate {
        self.lock().wire(packet)
    }

    /// Takes what was sent.
    pub(in crate::vfio::drivers::ixgbe) fn take_sent(&self) -> Vec<Sent> {
        std::mem::take(&mut self.lock().sent)
    }

    /// Takes what was done wrong.
    pub(in crate::vfio::drivers::ixgbe) fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().violations)
    }

    /// Nothing was done wrong, and no semaphore is kept.
    #[track_caller]
    pub(in crate::vfio::drivers::ixgbe) fn assert_good(&self) {
        let inner = self.lock();
        assert_eq!(inner.violations, [] as [String; 0]);
        let kept = (inner.get("SWSM", 0), inner.get("SW_FW_SYNC", 0));
        assert_eq!(kept, (0, 0), "a semaphore was kept");
    }

    /// All that it can reach is unmapped.
    #[track_caller]
    pub(in crate::vfio::drivers::ixgbe) fn assert_closed(&self) {
        self.assert_good();
        assert!(!self.lock().bus_master, "it can still reach memory");
        assert_eq!((self.iommu.mappings(), self.iommu.faults()), (0, 0));
    }

    /// Whether it is a bus master.
    pub(in crate::vfio::drivers::ixgbe) fn reaches_memory(&self) -> bool {
        self.lock().bus_master
    }

    /// A register's value, without a look that counts.
    pub(in crate::vfio::drivers::ixgbe) fn peek(&self, name: &str, index: usize) -> u32 {
        self.lock().get(name, index)
    }

    /// Gives a register a value that it has by itself.
    pub(in crate::vfio::drivers::ixgbe) fn poke(&self, name: &str, index: usize, value: u32) {
        self.lock().set(name, index, value);
    }

    /// How often a register of this name was written.
    pub(in crate::vfio::drivers::ixgbe) fn writes(&self, name: &str) -> u64 {
        self.lock().writes.get(name).copied().unwrap_or(0)
    }

    /// Stops a transmit queue.
    pub(in crate::vfio::drivers::ixgbe) fn hang(&self, queue: usize) {
        self.lock().tx[queue].hung = true;
    }

    /// Goes on with it.
    pub(in crate::vfio::drivers::ixgbe) fn resume(&self, queue: usize) {
        let mut inner = self.lock();
        inner.tx[queue].hung = false;
        inner.transmit(queue);
    }

    /// Queues that another driver has left running, with rings where nothing is mapped any more.
    pub(in crate::vfio::drivers::ixgbe) fn left_running(&self) {
        let mut inner = self.lock();
        for (name, index, value) in [
            ("RXCTRL", 0, 1),
            ("RDBAL", 5, 0x8000_0000),
            ("RDLEN", 5, 4096),
            ("RXDCTL", 5, 1 << 25),
            ("SWSM", 0, 1),
        ] {
            inner.set(name, index, value);
        }
        inner.rx[5].enabled = true;
    }

    /// Takes it out.
    pub(in crate::vfio::drivers::ixgbe) fn unplug(&self) {
        self.lock().unplugged = true;
    }

    /// Plugs a cable in or takes it out; with the speed bits of LINKS.
    pub(in crate::vfio::drivers::ixgbe) fn cable(&self, there: bool, speed: u32) {
        let mut inner = self.lock();
        (inner.control.cable, inner.control.speed) = (there, speed);
        inner.cause(1 << 20);
        if there {
            inner.transmit_all();
        }
    }

    /// It has no MSI-X.
    pub(in crate::vfio::drivers::ixgbe) fn without_msix(self) -> Self {
        self.lock().msix = None;
        self
    }

    /// What the device or its firmware is bad at.
    pub(in crate::vfio::drivers::ixgbe) fn trouble(&self, trouble: Trouble) {
        let control = &mut self.lock().control;
        match trouble {
            Trouble::MasterStuck => control.master_stuck = true,
            Trouble::Dead => control.dead = true,
            Trouble::NoAddress => control.no_address = true,
            Trouble::FirmwareHas(resources, looks) => control.firmware = (resources, looks),
            Trouble::FirmwareGuards(looks) => control.swesmbi_busy = looks,
            Trouble::SmbiGoesWith(register) => control.smbi_goes_with = Some(register),
        }
    }

    /// Resets, and flushes of the data path, so far.
    pub(in crate::vfio::drivers::ixgbe) fn resets(&self) -> (u32, u32) {
        let inner = self.lock();
        (inner.control.resets, inner.control.flushes)
    }

    /// A PHY register.
    pub(in crate::vfio::drivers::ixgbe) fn phy(&self, mmd: u8, register: u16) -> u16 {
        self.lock().control.phy[&(mmd, register)]
    }

    /// Writes past the driver, as the driver would.
    pub(in crate::vfio::drivers::ixgbe) fn write(&self, name: &str, index: usize, value: u32) {
        let mut inner = self.lock();
        let place = MAP.place(name, index);
        inner.write(place, value);
    }

    /// Reads past the driver.
    pub(in crate::vfio::drivers::ixgbe) fn read(&self, name: &str, index: usize) -> u32 {
        let mut inner = self.lock();
        let place = MAP.place(name, index);
        inner.read(place)
    }

    /// The memory behind it.
    pub(in crate::vfio::drivers::ixgbe) fn iommu(&self) -> &ModelIommu {
        &self.iommu
    }
}

/// See [`Model::trouble`].
#[derive(Clone, Copy, Debug)]
pub(in crate::vfio::drivers::ixgbe) enum Trouble {
    /// PCIe requests never end.
    MasterStuck,
    /// It does not come out of a reset.
    Dead,
    /// Its EEPROM has no Ethernet address.
    NoAddress,
    /// The firmware has these resources for so many looks.
    FirmwareHas(u32, u32),
    /// The firmware keeps SWESMBI for so many looks.
    FirmwareGuards(u32),
    /// The other port's driver takes SMBI when this register is next written under a resource, and keeps it.
    SmbiGoesWith(&'static str),
}
