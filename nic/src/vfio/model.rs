//! For tests: an IOMMU of software, behind which a model of a device reads and writes the memory that it was given, and nothing else; and its interrupts.
#![allow(unsafe_code)]

use super::dma::{DmaSpace, Iommu};
use super::sys;
use std::fs::File;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Mappings {
    /// IOVA, address, length.
    mapped: Vec<(u64, usize, usize)>,
    faults: u64,
}

/// The mappings of a model's memory; clones are the same.
#[derive(Clone, Default)]
pub(crate) struct ModelIommu(Arc<Mutex<Mappings>>);

impl ModelIommu {
    /// An IOMMU, and a space behind it.
    pub(crate) fn new() -> (Self, Arc<DmaSpace>) {
        let iommu = Self::default();
        let space = DmaSpace::new(Box::new(iommu.clone()));
        (iommu, space)
    }

    /// Accesses that found nothing mapped.
    pub(crate) fn faults(&self) -> u64 {
        self.0.lock().unwrap().faults
    }

    /// Mappings that are there now.
    pub(crate) fn mappings(&self) -> usize {
        self.0.lock().unwrap().mapped.len()
    }

    fn find(&self, iova: u64, length: usize) -> Option<*mut u8> {
        let mut mappings = self.0.lock().unwrap();
        let found = mappings.mapped.iter().find_map(|(start, address, mapped)| {
            let offset = iova.checked_sub(*start)?;
            let end = offset.checked_add(length as u64)?;
            (end <= *mapped as u64).then(|| (*address + offset as usize) as *mut u8)
        });
        mappings.faults += u64::from(found.is_none());
        found
    }

    /// The device reads; false, and a fault is counted, where it must not.
    pub(crate) fn read(&self, iova: u64, into: &mut [u8]) -> bool {
        let Some(from) = self.find(iova, into.len()) else { return false };
        for (offset, byte) in into.iter_mut().enumerate() {
            // SAFETY: inside a mapping of memory that its owner unmaps here before it goes.
            *byte = unsafe { from.add(offset).read_volatile() };
        }
        true
    }

    /// The device writes; false, and a fault is counted, where it must not.
    pub(crate) fn write(&self, iova: u64, bytes: &[u8]) -> bool {
        let Some(to) = self.find(iova, bytes.len()) else { return false };
        for (offset, byte) in bytes.iter().enumerate() {
            // SAFETY: as in `read`.
            unsafe { to.add(offset).write_volatile(*byte) };
        }
        true
    }
}

impl Iommu for ModelIommu {
    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        // With a hole, as real ones have for interrupts.
        vec![0..=0xFEDF_FFFF, 0xFEF0_0000..=(1 << 39) - 1]
    }

    fn map(&self, iova: u64, address: NonNull<u8>, length: usize) -> io::Result<()> {
        self.0.lock().unwrap().mapped.push((iova, address.as_ptr() as usize, length));
        Ok(())
    }

    fn unmap(&self, iova: u64, length: usize) -> io::Result<()> {
        let mut mappings = self.0.lock().unwrap();
        let before = mappings.mapped.len();
        mappings.mapped.retain(|(start, _, mapped)| (*start, *mapped) != (iova, length));
        if mappings.mapped.len() < before { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

/// A function's MSI-X vectors: what a model sends is counted where a driver was told. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct ModelMsix(Arc<Mutex<Vec<File>>>);

impl ModelMsix {
    /// As a [`PciFunction`](super::function::PciFunction) does it.
    pub(crate) fn enable(&self, count: u16) -> io::Result<Vec<OwnedFd>> {
        let events: Vec<OwnedFd> = (0..count).map(|_| sys::eventfd()).collect::<io::Result<_>>()?;
        let copies = events.iter().map(|event| event.try_clone().map(File::from));
        *self.0.lock().unwrap() = copies.collect::<io::Result<_>>()?;
        Ok(events)
    }

    /// Sends the message of a vector.
    pub(crate) fn send(&self, vector: usize) {
        let mut vectors = self.0.lock().unwrap();
        let event = vectors.get_mut(vector).expect("a vector that is enabled");
        event.write_all(&1_u64.to_ne_bytes()).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Pool, PoolConfig};

    #[test]
    fn a_device_reaches_what_is_mapped_and_nothing_else() {
        let (iommu, space) = ModelIommu::new();
        let pool = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
        let frames = space.map_pool(&pool).unwrap();
        assert!(Arc::ptr_eq(&frames, &space.map_pool(&pool).unwrap()), "mapped once for all ports");
        let ring = space.allocate(100).unwrap();
        assert_eq!((ring.length(), iommu.mappings()), (4096, 2));

        ring.write32(8, 0x0403_0201);
        let mut bytes = [0; 4];
        assert!(iommu.read(ring.iova() + 8, &mut bytes));
        assert_eq!(bytes, [1, 2, 3, 4]);
        assert!(iommu.write(ring.iova() + 4088, &[9; 8]));
        assert_eq!((ring.read64(4088), ring.read8(4095)), (0x0909_0909_0909_0909, 9));

        let frame = pool.allocate_frame().unwrap();
        assert!(iommu.write(frames.iova(&frame) + 128, b"packet"));
        assert_eq!(frame.into_packet(128, 6).unwrap().data(), b"packet");

        assert!(!iommu.write(0, &[0]) && !iommu.write(ring.iova() + 4095, &[0; 2]) && iommu.faults() == 2);
        drop((ring, frames));
        assert_eq!((iommu.mappings(), pool.audit().held), (0, 0));
    }
}
