//! What Intel's NICs from the 82574 to the X550 have in common: rings of 16-byte descriptors, and the registers that never changed.
//!
//! A driver chooses its descriptors by a type ([`mod@format`]); [`rx`] and [`tx`] are then its queues. They know no register but their own tail.

pub(crate) mod filters;
pub(crate) mod format;
pub(crate) mod gigabit;
pub(crate) mod hang;
pub(crate) mod kept;
pub(crate) mod mdic;
#[cfg(test)]
pub(crate) mod model;
pub(crate) mod poll;
pub(crate) mod ring;
pub(crate) mod rss;
pub(crate) mod rx;
pub(crate) mod statistics;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod tx;

/// Bytes of a descriptor, of whatever format.
pub(crate) const DESCRIPTOR_BYTES: usize = 16;
