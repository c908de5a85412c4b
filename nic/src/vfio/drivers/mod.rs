//! The drivers, a folder each.

pub(super) mod e1000e;
pub(super) mod igb;
pub(super) mod ixgbe;
pub(super) mod virtio_net;
