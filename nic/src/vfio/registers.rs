//! The registers of a device, as its driver sees them.
//!
//! Behind it is a BAR that is mapped, or a model. Either way a place outside answers as hardware does: reads give all ones, writes go
//! nowhere; and so do all places of a device that has been unplugged.
#![forbid(unsafe_code)]

use std::sync::Arc;

/// A stretch of registers. Little-endian, each access in one piece, never merged, never left out, and in the order of the program.
pub(crate) trait RegisterSpace: Send + Sync {
    /// Its length in bytes.
    fn length(&self) -> usize;
    /// Reads 8 bits at `offset`.
    fn read8(&self, offset: usize) -> u8;
    /// Reads 16 bits at `offset`, a multiple of 2.
    fn read16(&self, offset: usize) -> u16;
    /// Reads 32 bits at `offset`, a multiple of 4.
    fn read32(&self, offset: usize) -> u32;
    /// Writes 8 bits.
    fn write8(&self, offset: usize, value: u8);
    /// Writes 16 bits at a multiple of 2.
    fn write16(&self, offset: usize, value: u16);
    /// Writes 32 bits at a multiple of 4.
    fn write32(&self, offset: usize, value: u32);
}

/// Registers that several parts of a driver share; they stay mapped as long as one of them lives.
pub(crate) type Registers = Arc<dyn RegisterSpace>;

/// One register that a queue writes: its tail, its notification.
pub(crate) struct TailRegister {
    space: Registers,
    offset: usize,
}

impl TailRegister {
    /// The 32-bit (or, for [`write16`](Self::write16), 16-bit) register at `offset`.
    pub(crate) fn new(space: Registers, offset: usize) -> Self {
        Self { space, offset }
    }

    /// Writes it, behind everything that was written to memory before ([`super::dma::publish`]).
    #[inline]
    pub(crate) fn write32(&self, value: u32) {
        super::dma::publish();
        self.space.write32(self.offset, value);
    }

    /// The same for 16 bits.
    #[inline]
    pub(crate) fn write16(&self, value: u16) {
        super::dma::publish();
        self.space.write16(self.offset, value);
    }

    /// Reads it back.
    pub(crate) fn read32(&self) -> u32 {
        self.space.read32(self.offset)
    }
}
