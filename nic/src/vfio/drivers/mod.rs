//! The drivers, a folder each.
pub(crate) mod e1000e;
