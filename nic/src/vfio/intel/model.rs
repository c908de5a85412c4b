//! For tests: the device's side of descriptor rings, and a PCI function with registers of software.
#![forbid(unsafe_code)]

use super::DESCRIPTOR_BYTES;
use super::format::{DEXT, EOP};
use crate::vfio::dma::DmaSpace;
use crate::vfio::function::{PciFunction, PciId};
use crate::vfio::model::{ModelIommu, ModelMsix};
use crate::vfio::registers::{RegisterSpace, Registers};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Registers that keep what is written to them.
pub(crate) struct PlainRegisters(Vec<AtomicU32>);

impl PlainRegisters {
    /// So many bytes of them, all 0.
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self((0..bytes / 4).map(|_| AtomicU32::new(0)).collect()))
    }
}

impl RegisterSpace for PlainRegisters {
    fn length(&self) -> usize {
        self.0.len() * 4
    }
    fn read8(&self, offset: usize) -> u8 {
        (self.read32(offset & !3) >> (offset % 4 * 8)) as u8
    }
    fn read16(&self, offset: usize) -> u16 {
        (self.read32(offset & !3) >> (offset % 4 * 8)) as u16
    }
    fn read32(&self, offset: usize) -> u32 {
        self.0.get(offset / 4).map_or(u32::MAX, |register| register.load(Ordering::Acquire))
    }
    fn write8(&self, _offset: usize, _value: u8) {}
    fn write16(&self, _offset: usize, _value: u16) {}
    fn write32(&self, offset: usize, value: u32) {
        if let Some(register) = self.0.get(offset / 4) {
            register.store(value, Ordering::Release);
        }
    }
}

/// A PCI function with these registers as BAR 0.
pub(crate) struct ModelFunction {
    id: PciId,
    registers: Registers,
    dma: Arc<DmaSpace>,
    master: Arc<AtomicBool>,
    msix: Option<ModelMsix>,
}

impl ModelFunction {
    /// It may access memory from the start.
    pub(crate) fn new(device: u16, registers: Registers, dma: Arc<DmaSpace>) -> Arc<Self> {
        Self::with_msix(device, registers, dma, None)
    }

    /// The same with these MSI-X vectors.
    pub(crate) fn with_msix(
        device: u16,
        registers: Registers,
        dma: Arc<DmaSpace>,
        msix: Option<ModelMsix>,
    ) -> Arc<Self> {
        let id = PciId { vendor: 0x8086, device };
        Arc::new(Self { id, registers, dma, master: Arc::new(AtomicBool::new(true)), msix })
    }

    /// Whether it may access memory.
    pub(crate) fn master(&self) -> &Arc<AtomicBool> {
        &self.master
    }
}

impl PciFunction for ModelFunction {
    fn id(&self) -> PciId {
        self.id
    }
    fn read_config(&self, _offset: u16, _bytes: u8) -> u32 {
        0
    }
    fn write_config(&self, _offset: u16, _bytes: u8, _value: u32) {}
    fn bar(&self, index: u8) -> io::Result<Registers> {
        if index == 0 { Ok(Arc::clone(&self.registers)) } else { Err(io::ErrorKind::NotFound.into()) }
    }
    fn reset(&self) -> io::Result<bool> {
        Ok(true)
    }
    fn set_bus_master(&self, on: bool) {
        self.master.store(on, Ordering::Release);
    }
    fn dma(&self) -> &Arc<DmaSpace> {
        &self.dma
    }
    fn msix_vectors(&self) -> u16 {
        if self.msix.is_some() { 10 } else { 0 }
    }
    fn enable_msix(&self, count: u16) -> io::Result<Vec<OwnedFd>> {
        self.msix.as_ref().ok_or(io::ErrorKind::Unsupported)?.enable(count)
    }
    fn is_going(&self) -> bool {
        false
    }
}

/// One ring, as a device keeps it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ModelRing {
    /// Its address.
    pub(crate) base: u64,
    /// Descriptors.
    pub(crate) size: u32,
    /// The next one to be used.
    pub(crate) head: u32,
}

/// A packet that a device has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
    /// How many descriptors.
    pub(crate) segments: usize,
    /// PAYLEN of the first.
    pub(crate) payload_len: u64,
    /// POPTS of the first.
    pub(crate) options: u64,
    /// The context before it, if one has come.
    pub(crate) context: Option<[u64; 2]>,
}

impl ModelRing {
    /// A ring of a queue.
    pub(crate) fn new((base, bytes): (u64, usize)) -> Self {
        Self { base, size: (bytes / DESCRIPTOR_BYTES) as u32, head: 0 }
    }

    /// Descriptors that the driver has given.
    pub(crate) fn given(&self, tail: u32) -> u32 {
        if tail >= self.size { 0 } else { (tail + self.size - self.head) % self.size }
    }

    fn read(&self, iommu: &ModelIommu, index: u32) -> Option<[u64; 2]> {
        let mut bytes = [0; DESCRIPTOR_BYTES];
        let iova = self.base + u64::from(index) * DESCRIPTOR_BYTES as u64;
        iommu
            .read(iova, &mut bytes)
            .then(|| [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))))
    }

    /// Writes a descriptor's two words.
    pub(crate) fn write(&self, iommu: &ModelIommu, index: u32, words: [u64; 2]) -> bool {
        let iova = self.base + u64::from(index) * DESCRIPTOR_BYTES as u64;
        // The word with DD last.
        iommu.write(iova, &words[0].to_le_bytes()) && iommu.write(iova + 8, &words[1].to_le_bytes())
    }

    /// Receives a packet into buffers of `buffer_bytes`; `flags` are added to the last descriptor's second word. False where there are too few buffers.
    pub(crate) fn receive(
        &mut self,
        iommu: &ModelIommu,
        tail: u32,
        bytes: &[u8],
        buffer_bytes: usize,
        flags: u64,
    ) -> bool {
        let parts: Vec<&[u8]> = bytes.chunks(buffer_bytes.max(1)).collect();
        if (self.given(tail) as usize) < parts.len() {
            return false;
        }
        for (at, part) in parts.iter().enumerate() {
            let Some([address, word]) = self.read(iommu, self.head) else { return false };
            assert_eq!(word, 0, "a buffer was given without its descriptor cleared");
            assert!(iommu.write(address, part), "the driver gave a buffer that is not mapped");
            let end = if at + 1 == parts.len() { 0b10 | flags } else { 0 };
            self.write(iommu, self.head, [0, 1 | end | (part.len() as u64) << 32]);
            self.head = (self.head + 1) % self.size;
        }
        true
    }

    /// Sends up to `most` whole packets that the driver has given by advanced descriptors, and reports where it wants that.
    pub(crate) fn send(
        &mut self,
        iommu: &ModelIommu,
        tail: u32,
        most: usize,
        context: &mut Option<[u64; 2]>,
    ) -> Vec<Sent> {
        let mut sent = Vec::new();
        let mut packet: Option<Sent> = None;
        while self.given(tail) > 0 && sent.len() < most {
            let Some([address, word]) = self.read(iommu, self.head) else { break };
            assert_ne!(word & DEXT, 0, "an advanced descriptor says so");
            assert_eq!(word & 1 << 32, 0, "a descriptor that is new is not done");
            let index = self.head;
            self.head = (self.head + 1) % self.size;
            if word >> 20 & 15 == 2 {
                assert!(packet.is_none(), "a context inside a packet");
                *context = Some([address, word]);
                continue;
            }
            let mut bytes = vec![0; (word & 0xFFFF) as usize];
            assert!(!bytes.is_empty() && iommu.read(address, &mut bytes), "a buffer that can be sent");
            let part = packet.get_or_insert_with(|| Sent {
                bytes: Vec::new(),
                segments: 0,
                payload_len: word >> 46,
                options: word >> 40 & 3,
                context: *context,
            });
            part.bytes.extend(bytes);
            part.segments += 1;
            if word & 1 << 27 != 0 {
                self.write(iommu, index, [address, word | 1 << 32]);
            }
            if word & EOP != 0 {
                sent.extend(packet.take());
            }
        }
        sent
    }
}
