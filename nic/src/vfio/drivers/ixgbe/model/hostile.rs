//! A device that answers what it likes, now and then.
#![forbid(unsafe_code)]

use super::Model;
use crate::vfio::dma::DmaSpace;
use crate::vfio::function::{PciFunction, PciId};
use crate::vfio::registers::{RegisterSpace, Registers};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A model whose registers lie.
#[derive(Clone)]
pub(in crate::vfio::drivers::ixgbe) struct Liar {
    model: Model,
    random: Arc<Mutex<u64>>,
    /// Of 256 reads.
    lies: Arc<AtomicU64>,
    reads: Arc<AtomicU64>,
}

impl Liar {
    pub(in crate::vfio::drivers::ixgbe) fn new(model: &Model, seed: u64, lies: u8) -> Self {
        Self {
            model: model.clone(),
            random: Arc::new(Mutex::new(seed | 1)),
            lies: Arc::new(AtomicU64::new(lies.into())),
            reads: Arc::default(),
        }
    }

    /// How many of 256 reads are lies from now on.
    pub(in crate::vfio::drivers::ixgbe) fn lie(&self, lies: u8) {
        self.lies.store(lies.into(), Ordering::Relaxed);
    }

    /// Reads so far.
    pub(in crate::vfio::drivers::ixgbe) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// xorshift64: only that it differs each time matters.
    fn next(&self) -> u64 {
        let mut random = self.random.lock().unwrap();
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        *random
    }
}

impl RegisterSpace for Liar {
    fn length(&self) -> usize {
        self.model.length()
    }

    fn read8(&self, offset: usize) -> u8 {
        self.model.read8(offset)
    }

    fn read16(&self, offset: usize) -> u16 {
        self.model.read16(offset)
    }

    fn read32(&self, offset: usize) -> u32 {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let truth = self.model.read32(offset);
        let random = self.next();
        if random % 256 >= self.lies.load(Ordering::Relaxed) {
            return truth;
        }
        self.model.clock.advance(Duration::from_micros(1));
        match random >> 8 & 3 {
            0 => u32::MAX,
            1 => 0,
            2 => truth ^ 1 << (random >> 16 & 31),
            _ => (random >> 32) as u32,
        }
    }

    fn write8(&self, offset: usize, value: u8) {
        self.model.write8(offset, value);
    }

    fn write16(&self, offset: usize, value: u16) {
        self.model.write16(offset, value);
    }

    fn write32(&self, offset: usize, value: u32) {
        self.model.write32(offset, value);
    }
}

impl PciFunction for Liar {
    fn id(&self) -> PciId {
        self.model.id()
    }

    fn read_config(&self, offset: u16, bytes: u8) -> u32 {
        self.model.read_config(offset, bytes)
    }

    fn write_config(&self, offset: u16, bytes: u8, value: u32) {
        self.model.write_config(offset, bytes, value);
    }

    fn bar(&self, index: u8) -> io::Result<Registers> {
        if index == 0 { Ok(Arc::new(self.clone())) } else { self.model.bar(index) }
    }

    fn reset(&self) -> io::Result<bool> {
        self.model.reset()
    }

    fn set_bus_master(&self, on: bool) {
        self.model.set_bus_master(on);
    }

    fn dma(&self) -> &Arc<DmaSpace> {
        self.model.dma()
    }

    fn msix_vectors(&self) -> u16 {
        self.model.msix_vectors()
    }

    fn enable_msix(&self, count: u16) -> io::Result<Vec<OwnedFd>> {
        self.model.enable_msix(count)
    }

    fn is_going(&self) -> bool {
        self.model.is_going()
    }
}
