//! The drivers, a folder each.

pub(super) mod virtio_net;
