//! Numbers and layouts of VIRTIO 1.2 that a network device and its driver agree on. Sections are those of the OASIS specification (1.3 has the
//! same ones); all fields are little-endian.
#![forbid(unsafe_code)]

/// PCI vendor of all virtio devices (4.1.2).
pub(super) const VENDOR: u16 = 0x1AF4;
/// A network device without a legacy interface: 0x1040 + device type 1 (4.1.2).
pub(super) const DEVICE_MODERN: u16 = 0x1041;
/// A network device with one (4.1.2.1), which mostly has the modern one too.
pub(super) const DEVICE_TRANSITIONAL: u16 = 0x1000;

/// PCI configuration space.
pub(super) mod pci {
    /// Status register; bit 4 says that there are capabilities.
    pub(in super::super) const STATUS: u16 = 0x06;
    pub(in super::super) const STATUS_CAPABILITIES: u32 = 1 << 4;
    /// Where the list of capabilities starts.
    pub(in super::super) const CAPABILITIES: u16 = 0x34;
    /// A capability of the vendor's own.
    pub(in super::super) const VENDOR_SPECIFIC: u32 = 0x09;
}

/// `struct virtio_pci_cap` (4.1.4): offsets of its fields, and what `cfg_type` says.
pub(super) mod cap {
    pub(in super::super) const CFG_TYPE: u16 = 3;
    pub(in super::super) const BAR: u16 = 4;
    pub(in super::super) const OFFSET: u16 = 8;
    pub(in super::super) const BYTES: u16 = 12;
    /// `struct virtio_pci_notify_cap` (4.1.4.4).
    pub(in super::super) const NOTIFY_OFF_MULTIPLIER: u16 = 16;

    pub(in super::super) const COMMON_CFG: u32 = 1;
    pub(in super::super) const NOTIFY_CFG: u32 = 2;
    pub(in super::super) const ISR_CFG: u32 = 3;
    pub(in super::super) const DEVICE_CFG: u32 = 4;
}

/// `struct virtio_pci_common_cfg` (4.1.4.3).
pub(super) mod common {
    pub(in super::super) const DEVICE_FEATURE_SELECT: usize = 0;
    pub(in super::super) const DEVICE_FEATURE: usize = 4;
    pub(in super::super) const DRIVER_FEATURE_SELECT: usize = 8;
    pub(in super::super) const DRIVER_FEATURE: usize = 12;
    pub(in super::super) const CONFIG_MSIX_VECTOR: usize = 16;
    pub(in super::super) const NUM_QUEUES: usize = 18;
    pub(in super::super) const DEVICE_STATUS: usize = 20;
    pub(in super::super) const CONFIG_GENERATION: usize = 21;
    pub(in super::super) const QUEUE_SELECT: usize = 22;
    pub(in super::super) const QUEUE_SIZE: usize = 24;
    pub(in super::super) const QUEUE_MSIX_VECTOR: usize = 26;
    pub(in super::super) const QUEUE_ENABLE: usize = 28;
    pub(in super::super) const QUEUE_NOTIFY_OFF: usize = 30;
    pub(in super::super) const QUEUE_DESC: usize = 32;
    pub(in super::super) const QUEUE_DRIVER: usize = 40;
    pub(in super::super) const QUEUE_DEVICE: usize = 48;
    /// Its length up to here: what every device has.
    pub(in super::super) const BYTES: usize = 56;
    /// No MSI-X vector: no interrupt ever (4.1.5.1.2).
    pub(in super::super) const NO_VECTOR: u16 = 0xFFFF;
}

/// Device status bits (2.1).
pub(super) mod status {
    pub(in super::super) const ACKNOWLEDGE: u8 = 1;
    pub(in super::super) const DRIVER: u8 = 2;
    pub(in super::super) const DRIVER_OK: u8 = 4;
    pub(in super::super) const FEATURES_OK: u8 = 8;
    pub(in super::super) const DEVICE_NEEDS_RESET: u8 = 64;
    pub(in super::super) const FAILED: u8 = 128;
    /// What a register of a device that is gone reads as. No device sets all of these together.
    pub(in super::super) const GONE: u8 = 0xFF;
}

/// Feature bits: of network devices (5.1.3) and reserved ones (6).
pub(super) mod feature {
    pub(in super::super) const CSUM: u64 = 1 << 0;
    pub(in super::super) const GUEST_CSUM: u64 = 1 << 1;
    pub(in super::super) const MTU: u64 = 1 << 3;
    pub(in super::super) const MAC: u64 = 1 << 5;
    pub(in super::super) const MRG_RXBUF: u64 = 1 << 15;
    pub(in super::super) const STATUS: u64 = 1 << 16;
    pub(in super::super) const CTRL_VQ: u64 = 1 << 17;
    pub(in super::super) const CTRL_RX: u64 = 1 << 18;
    pub(in super::super) const CTRL_VLAN: u64 = 1 << 19;
    pub(in super::super) const MQ: u64 = 1 << 22;
    pub(in super::super) const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub(in super::super) const EVENT_IDX: u64 = 1 << 29;
    pub(in super::super) const VERSION_1: u64 = 1 << 32;
    pub(in super::super) const ACCESS_PLATFORM: u64 = 1 << 33;
    pub(in super::super) const RING_PACKED: u64 = 1 << 34;
    pub(in super::super) const ORDER_PLATFORM: u64 = 1 << 36;
    pub(in super::super) const RSS: u64 = 1 << 60;
    pub(in super::super) const SPEED_DUPLEX: u64 = 1 << 63;
}

/// `struct virtio_net_config` (5.1.4).
pub(super) mod config {
    pub(in super::super) const MAC: usize = 0;
    pub(in super::super) const STATUS: usize = 6;
    pub(in super::super) const MAX_VIRTQUEUE_PAIRS: usize = 8;
    pub(in super::super) const MTU: usize = 10;
    pub(in super::super) const SPEED: usize = 12;
    pub(in super::super) const RSS_MAX_KEY_SIZE: usize = 17;
    pub(in super::super) const RSS_MAX_INDIRECTION_TABLE_LENGTH: usize = 18;
    pub(in super::super) const SUPPORTED_HASH_TYPES: usize = 20;
    /// Of `STATUS`.
    pub(in super::super) const LINK_UP: u16 = 1;
    /// Of `SPEED`: not known.
    pub(in super::super) const SPEED_UNKNOWN: u32 = 0x7FFF_FFFF;
}

/// `struct virtio_net_hdr` (5.1.6), which stands before each packet.
pub(super) mod header {
    /// Its length; with VERSION_1 it always has `num_buffers`.
    pub(in super::super) const BYTES: usize = 12;
    pub(in super::super) const FLAGS: usize = 0;
    pub(in super::super) const CSUM_START: usize = 6;
    pub(in super::super) const CSUM_OFFSET: usize = 8;
    pub(in super::super) const NUM_BUFFERS: usize = 10;
    /// The device is to compute the checksum from `csum_start` on, and to store it `csum_offset` behind.
    pub(in super::super) const NEEDS_CSUM: u8 = 1;
    /// The device has found the checksum right.
    pub(in super::super) const DATA_VALID: u8 = 2;
}

/// Commands of the control virtqueue (5.1.6.5): class and command.
pub(super) mod ctrl {
    pub(in super::super) const OK: u8 = 0;
    pub(in super::super) const RX_PROMISC: [u8; 2] = [0, 0];
    pub(in super::super) const RX_ALLMULTI: [u8; 2] = [0, 1];
    pub(in super::super) const MAC_TABLE_SET: [u8; 2] = [1, 0];
    pub(in super::super) const MAC_ADDR_SET: [u8; 2] = [1, 1];
    pub(in super::super) const VLAN_ADD: [u8; 2] = [2, 0];
    pub(in super::super) const MQ_VQ_PAIRS_SET: [u8; 2] = [4, 0];
    pub(in super::super) const MQ_RSS_CONFIG: [u8; 2] = [4, 1];
}

/// What is hashed (5.1.6.4.3.1): addresses alone, and with the ports of TCP.
pub(super) mod hash {
    pub(in super::super) const IPV4: u32 = 1 << 0;
    pub(in super::super) const TCPV4: u32 = 1 << 1;
    pub(in super::super) const IPV6: u32 = 1 << 3;
    pub(in super::super) const TCPV6: u32 = 1 << 4;
}

/// Split virtqueues (2.7).
pub(super) mod split {
    /// `struct virtq_desc` (2.7.5): address, then length, flags and the next one's number.
    pub(in super::super) const DESC_BYTES: usize = 16;
    pub(in super::super) const DESC_REST: usize = 8;
    pub(in super::super) const F_NEXT: u16 = 1;
    pub(in super::super) const F_WRITE: u16 = 2;
    /// `struct virtq_avail` (2.7.6) and `struct virtq_used` (2.7.8): flags, index, ring, and the other side's event index behind it.
    pub(in super::super) const FLAGS: usize = 0;
    pub(in super::super) const IDX: usize = 2;
    pub(in super::super) const RING: usize = 4;
    pub(in super::super) const AVAIL_F_NO_INTERRUPT: u16 = 1;
    pub(in super::super) const USED_F_NO_NOTIFY: u16 = 1;
    /// `struct virtq_used_elem`: number of the first descriptor, bytes written.
    pub(in super::super) const USED_ELEM_BYTES: usize = 8;
    pub(in super::super) const USED_ELEM_LEN: usize = 4;
}

/// Packed virtqueues (2.8).
pub(super) mod packed {
    /// `struct pvirtq_desc` (2.8.13): address; then length, buffer id and flags, which are read and written as one word.
    pub(in super::super) const DESC_BYTES: usize = 16;
    pub(in super::super) const DESC_REST: usize = 8;
    pub(in super::super) const F_NEXT: u16 = 1;
    pub(in super::super) const F_WRITE: u16 = 2;
    pub(in super::super) const F_AVAIL: u16 = 1 << 7;
    pub(in super::super) const F_USED: u16 = 1 << 15;
    /// `struct pvirtq_event_suppress` (2.8.14): place and wrap counter, flags.
    pub(in super::super) const EVENT_PLACE: usize = 0;
    pub(in super::super) const EVENT_FLAGS: usize = 2;
    pub(in super::super) const EVENT_DISABLE: u16 = 1;
    pub(in super::super) const EVENT_DESC: u16 = 2;
    pub(in super::super) const EVENT_FLAGS_MASK: u16 = 3;
}
