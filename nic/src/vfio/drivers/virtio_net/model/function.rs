//! The model as the PCI function that the driver is handed: configuration space, and registers.
#![forbid(unsafe_code)]

use super::{BAR_BYTES, COMMON, CONFIG, ISR, MULTIPLIER, Model, NOTIFY};
use crate::vfio::dma::DmaSpace;
use crate::vfio::function::{PciFunction, PciId};
use crate::vfio::registers::{RegisterSpace, Registers};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Vendor capabilities for the model's structures, among others; all in BAR 4.
pub(super) fn configuration_space() -> Vec<u8> {
    let mut pci = vec![0; 256];
    pci[0..4].copy_from_slice(&[0xF4, 0x1A, 0x41, 0x10]);
    pci[6] = 0x10;
    pci[0x34] = 0x40;
    // MSI-X, which is not of the vendor's.
    pci[0x40..0x42].copy_from_slice(&[0x11, 0x50]);
    let structures = [
        (1, COMMON, 64),
        (3, ISR, 4),
        (4, CONFIG, 24),
        (2, NOTIFY, 0x1000),
        // Access by configuration space, which nobody needs.
        (5, 0, 0),
    ];
    for (number, (kind, offset, bytes)) in structures.into_iter().enumerate() {
        let at = 0x50 + 0x18 * number;
        let next = if number + 1 < structures.len() { at + 0x18 } else { 0 };
        pci[at..at + 5].copy_from_slice(&[9, next as u8, if kind == 2 { 20 } else { 16 }, kind, 4]);
        pci[at + 8..at + 12].copy_from_slice(&(offset as u32).to_le_bytes());
        pci[at + 12..at + 16].copy_from_slice(&(bytes as u32).to_le_bytes());
        if kind == 2 {
            pci[at + 16..at + 20].copy_from_slice(&(MULTIPLIER as u32).to_le_bytes());
        }
    }
    pci
}

impl RegisterSpace for Model {
    fn length(&self) -> usize {
        BAR_BYTES
    }

    fn read8(&self, offset: usize) -> u8 {
        self.lock().read(offset, 1) as u8
    }

    fn read16(&self, offset: usize) -> u16 {
        self.lock().read(offset, 2) as u16
    }

    fn read32(&self, offset: usize) -> u32 {
        self.lock().read(offset, 4)
    }

    fn write8(&self, offset: usize, value: u8) {
        self.lock().write(offset, value.into());
    }

    fn write16(&self, offset: usize, value: u16) {
        self.lock().write(offset, value.into());
    }

    fn write32(&self, offset: usize, value: u32) {
        self.lock().write(offset, value);
    }
}

impl PciFunction for Model {
    fn id(&self) -> PciId {
        PciId { vendor: 0x1AF4, device: 0x1041 }
    }

    fn read_config(&self, offset: u16, bytes: u8) -> u32 {
        let inner = self.lock();
        let (from, bytes) = (usize::from(offset), usize::from(bytes));
        let mut word = [0; 4];
        match inner.pci.get(from..from + bytes).filter(|_| !inner.gone) {
            Some(found) => word[..bytes].copy_from_slice(found),
            None => word[..bytes].fill(0xFF),
        }
        u32::from_le_bytes(word)
    }

    fn write_config(&self, _offset: u16, _bytes: u8, _value: u32) {}

    fn bar(&self, index: u8) -> io::Result<Registers> {
        if index == 4 { Ok(Arc::new(self.clone())) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn reset(&self) -> io::Result<bool> {
        self.lock().reset();
        Ok(true)
    }

    fn set_bus_master(&self, on: bool) {
        self.lock().bus_master = on;
    }

    fn dma(&self) -> &Arc<DmaSpace> {
        &self.space
    }

    fn msix_vectors(&self) -> u16 {
        3
    }

    fn enable_msix(&self, count: u16) -> io::Result<Vec<OwnedFd>> {
        self.lock().msix.enable(count)
    }

    fn is_going(&self) -> bool {
        self.lock().gone
    }
}
