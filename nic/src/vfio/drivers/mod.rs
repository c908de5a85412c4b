//! The drivers, a folder each.

pub(super) mod ixgbe;
