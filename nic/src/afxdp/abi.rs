//! What the kernel expects, where `libc` does not have it: BPF commands and instructions, ethtool structures, newer AF_XDP options.
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

/// `bpf_cmd`.
pub(crate) const BPF_MAP_CREATE: libc::c_int = 0;
pub(crate) const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
pub(crate) const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
pub(crate) const BPF_PROG_LOAD: libc::c_int = 5;
pub(crate) const BPF_LINK_CREATE: libc::c_int = 28;

pub(crate) const BPF_MAP_TYPE_XSKMAP: u32 = 17;
pub(crate) const BPF_PROG_TYPE_XDP: u32 = 6;
pub(crate) const BPF_ATTACH_TYPE_XDP: u32 = 37;
/// The program copes with packets in several buffers.
pub(crate) const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// `union bpf_attr` for `BPF_MAP_CREATE`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct MapCreate {
    pub(crate) map_type: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) map_flags: u32,
    pub(crate) inner_map_fd: u32,
    pub(crate) numa_node: u32,
    pub(crate) map_name: [u8; 16],
}

/// `union bpf_attr` for `BPF_MAP_UPDATE_ELEM`; key and value are addresses.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct MapUpdate {
    pub(crate) map_fd: u32,
    pub(crate) padding: u32,
    pub(crate) key: u64,
    pub(crate) value: u64,
    pub(crate) flags: u64,
}

/// `union bpf_attr` for `BPF_PROG_LOAD`; instructions, licence and log are addresses.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct ProgLoad {
    pub(crate) prog_type: u32,
    pub(crate) insn_cnt: u32,
    pub(crate) insns: u64,
    pub(crate) license: u64,
    pub(crate) log_level: u32,
    pub(crate) log_size: u32,
    pub(crate) log_buf: u64,
    pub(crate) kern_version: u32,
    pub(crate) prog_flags: u32,
    pub(crate) prog_name: [u8; 16],
    pub(crate) prog_ifindex: u32,
    pub(crate) expected_attach_type: u32,
}

/// `union bpf_attr` for `BPF_LINK_CREATE`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct LinkCreate {
    pub(crate) prog_fd: u32,
    pub(crate) target_ifindex: u32,
    pub(crate) attach_type: u32,
    pub(crate) flags: u32,
}

/// `struct bpf_insn`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// Destination in the low four bits, source in the high four.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

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
const _: () = assert!(size_of::<Instruction>() == 8);
const _: () = assert!(size_of::<MapUpdate>() == 32);
