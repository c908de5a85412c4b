//! What the kernel expects, where `libc` does not have it: ethtool structures, newer AF_XDP options.
//!
//! Sources: [`linux/bpf.h`](https://github.com/torvalds/linux/blob/master/include/uapi/linux/bpf.h),
//! [`linux/if_xdp.h`](https://github.com/torvalds/linux/blob/master/include/uapi/linux/if_xdp.h),
//! [`linux/if_link.h`](https://github.com/torvalds/linux/blob/master/include/uapi/linux/if_link.h),
//! [`linux/ethtool.h`](https://github.com/torvalds/linux/blob/master/include/uapi/linux/ethtool.h).
#![allow(unsafe_code)]

/// A structure that may hold any bytes, has no padding, and so can be passed to the kernel and filled by it.
///
/// # Safety
/// Every bit pattern is a value of the type; there is no padding between or behind the fields.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for i32 {}
// SAFETY: integers.
unsafe impl Plain for u64 {}
// SAFETY: u64, u32, u32: 16 bytes, no padding.
unsafe impl Plain for libc::xdp_desc {}
// SAFETY: sixteen u64.
unsafe impl Plain for libc::xdp_mmap_offsets {}
// SAFETY: two u64, four u32: 32 bytes, no padding.
unsafe impl Plain for libc::xdp_umem_reg {}
// SAFETY: six u64.
unsafe impl Plain for libc::xdp_statistics {}
// SAFETY: one u32.
unsafe impl Plain for libc::xdp_options {}
// SAFETY: i32, two u16, eight bytes: 16 bytes, no padding.
unsafe impl Plain for libc::packet_mreq {}

/// `setsockopt`: how many descriptors one wake-up may send in copy mode (Linux 6.17).
pub(crate) const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// The kernel puts received data at least this far into a frame (`XDP_PACKET_HEADROOM`).
pub(crate) const XDP_PACKET_HEADROOM: usize = 256;

/// `XDP_FLAGS_SKB_MODE`: generic XDP, behind the driver.
pub(crate) const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`: native XDP, in the driver.
pub(crate) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// The program copes with packets in several buffers.
pub(crate) const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// `ETHTOOL_GDRVINFO`.
pub(crate) const ETHTOOL_GDRVINFO: u32 = 0x03;
/// `ETHTOOL_GSET`: speed, the old and short way.
pub(crate) const ETHTOOL_GSET: u32 = 0x01;
/// `ETHTOOL_STXCSUM`.
pub(crate) const ETHTOOL_STXCSUM: u32 = 0x17;
/// `ETHTOOL_GSTRINGS`.
pub(crate) const ETHTOOL_GSTRINGS: u32 = 0x1b;
/// `ETHTOOL_GSTATS`.
pub(crate) const ETHTOOL_GSTATS: u32 = 0x1d;
/// `ETHTOOL_GCHANNELS`.
pub(crate) const ETHTOOL_GCHANNELS: u32 = 0x3c;
/// `ETHTOOL_SCHANNELS`.
pub(crate) const ETHTOOL_SCHANNELS: u32 = 0x3d;

/// `struct ethtool_drvinfo`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct DriverInfo {
    pub(crate) command: u32,
    pub(crate) driver: [u8; 32],
    pub(crate) version: [u8; 32],
    pub(crate) firmware: [u8; 32],
    pub(crate) bus: [u8; 32],
    pub(crate) rom: [u8; 32],
    pub(crate) reserved: [u8; 12],
    pub(crate) private_flags: u32,
    pub(crate) statistics: u32,
    pub(crate) tests: u32,
    pub(crate) eeprom_length: u32,
    pub(crate) register_length: u32,
}

// SAFETY: u32 and byte arrays whose lengths are multiples of four: no padding.
unsafe impl Plain for DriverInfo {}

/// `struct ethtool_channels`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Channels {
    pub(crate) command: u32,
    pub(crate) max_rx: u32,
    pub(crate) max_tx: u32,
    pub(crate) max_other: u32,
    pub(crate) max_combined: u32,
    pub(crate) rx: u32,
    pub(crate) tx: u32,
    pub(crate) other: u32,
    pub(crate) combined: u32,
}

// SAFETY: nine u32.
unsafe impl Plain for Channels {}

/// `struct ethtool_value`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct EthtoolValue {
    pub(crate) command: u32,
    pub(crate) data: u32,
}

// SAFETY: two u32.
unsafe impl Plain for EthtoolValue {}

/// `struct ethtool_cmd`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct EthtoolSettings {
    pub(crate) command: u32,
    pub(crate) supported: u32,
    pub(crate) advertising: u32,
    pub(crate) speed: u16,
    pub(crate) duplex_port: [u8; 2],
    pub(crate) more: [u8; 4],
    pub(crate) max_packets: [u32; 2],
    pub(crate) speed_high: u16,
    pub(crate) mdix: [u8; 2],
    pub(crate) rest: [u32; 3],
}

// SAFETY: 44 bytes; each field sits at a multiple of its own alignment, and the sum is a multiple of four.
unsafe impl Plain for EthtoolSettings {}

const _: () = assert!(size_of::<EthtoolSettings>() == 44);
const _: () = assert!(size_of::<DriverInfo>() == 196);
