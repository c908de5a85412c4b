//! What `bpf(2)` takes: the parts in use of `union bpf_attr` and `struct bpf_insn`,
//! [`linux/bpf.h`](https://github.com/torvalds/linux/blob/master/include/uapi/linux/bpf.h).
#![forbid(unsafe_code)]

/// `bpf_cmd`.
pub(super) const BPF_MAP_CREATE: libc::c_int = 0;
pub(super) const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
pub(super) const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
pub(super) const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
pub(super) const BPF_PROG_LOAD: libc::c_int = 5;
pub(super) const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
pub(super) const BPF_LINK_CREATE: libc::c_int = 28;

/// `bpf_map_type`: those whose entries have one value, of the size the map was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapType {
    /// A hash table.
    Hash = 1,
    /// Keys are indices, `u32`; every entry exists from the beginning.
    Array = 2,
    /// AF_XDP sockets by queue number.
    XskMap = 17,
}

/// `bpf_prog_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProgramType {
    /// On a traffic control hook.
    SchedCls = 3,
    /// On what an interface receives.
    Xdp = 6,
    /// On a hook of the kernel's security framework.
    Lsm = 29,
}

/// `bpf_attach_type` of [`attach_interface`](super::attach_interface): what an interface receives, before the stack; Linux 6.6.
pub const BPF_TCX_INGRESS: u32 = 46;
/// `bpf_attach_type` of [`attach_interface`](super::attach_interface): XDP.
pub const BPF_XDP: u32 = 37;
/// `bpf_attach_type` of [`ProgramSpec`](super::ProgramSpec): an LSM hook whose verdict counts.
pub const BPF_LSM_MAC: u32 = 27;

/// `BPF_MAP_CREATE`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct MapCreate {
    pub(super) map_type: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) map_flags: u32,
    pub(super) inner_map_fd: u32,
    pub(super) numa_node: u32,
    pub(super) map_name: [u8; 16],
}

/// `BPF_MAP_LOOKUP_ELEM`, `..._UPDATE_ELEM` and `..._DELETE_ELEM`; key and value are addresses.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct MapElement {
    pub(super) map_fd: u32,
    pub(super) padding: u32,
    pub(super) key: u64,
    pub(super) value: u64,
    pub(super) flags: u64,
}

/// `BPF_PROG_LOAD`; instructions, licence and log are addresses.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct ProgLoad {
    pub(super) prog_type: u32,
    pub(super) insn_cnt: u32,
    pub(super) insns: u64,
    pub(super) license: u64,
    pub(super) log_level: u32,
    pub(super) log_size: u32,
    pub(super) log_buf: u64,
    pub(super) kern_version: u32,
    pub(super) prog_flags: u32,
    pub(super) prog_name: [u8; 16],
    pub(super) prog_ifindex: u32,
    pub(super) expected_attach_type: u32,
    pub(super) prog_btf_fd: u32,
    pub(super) func_info_rec_size: u32,
    pub(super) func_info: u64,
    pub(super) func_info_cnt: u32,
    pub(super) line_info_rec_size: u32,
    pub(super) line_info: u64,
    pub(super) line_info_cnt: u32,
    pub(super) attach_btf_id: u32,
}

/// `BPF_LINK_CREATE`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct LinkCreate {
    pub(super) prog_fd: u32,
    pub(super) target_ifindex: u32,
    pub(super) attach_type: u32,
    pub(super) flags: u32,
}

/// `BPF_RAW_TRACEPOINT_OPEN`; the name is an address, and 0 for programs that know their hook.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct RawTracepointOpen {
    pub(super) name: u64,
    pub(super) prog_fd: u32,
    pub(super) padding: u32,
}

/// `struct bpf_insn`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// The operation.
    pub code: u8,
    /// Destination register in the low four bits, source in the high four.
    pub registers: u8,
    /// Of an address in bytes, or of a jump in instructions.
    pub offset: i16,
    /// A constant.
    pub immediate: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8);
const _: () = assert!(size_of::<MapCreate>() == 44);
const _: () = assert!(size_of::<MapElement>() == 32);
const _: () = assert!(std::mem::offset_of!(ProgLoad, attach_btf_id) == 108);
const _: () = assert!(size_of::<ProgLoad>() == 112);
const _: () = assert!(size_of::<LinkCreate>() == 16);
