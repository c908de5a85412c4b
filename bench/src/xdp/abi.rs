//! What `percpu::bpf` does not have: test runs, and verdicts, of `include/uapi/linux/bpf.h`.
#![forbid(unsafe_code)]

pub(crate) const BPF_PROG_TEST_RUN: u32 = 10;
pub(crate) const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

pub(crate) const XDP_DROP: i32 = 1;
/// Let the next program decide, or the kernel's stack.
pub(crate) const TCX_NEXT: i32 = -1;
pub(crate) const TCX_DROP: i32 = 2;

/// `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[derive(Default)]
#[repr(C)]
pub(crate) struct TestRun {
    pub(crate) prog_fd: u32,
    pub(crate) retval: u32,
    pub(crate) data_size_in: u32,
    pub(crate) data_size_out: u32,
    pub(crate) data_in: u64,
    pub(crate) data_out: u64,
    pub(crate) repeat: u32,
    pub(crate) duration: u32,
    pub(crate) ctx_size_in: u32,
    pub(crate) ctx_size_out: u32,
    pub(crate) ctx_in: u64,
    pub(crate) ctx_out: u64,
    pub(crate) flags: u32,
    pub(crate) cpu: u32,
    pub(crate) batch_size: u32,
    pub(crate) _pad: u32,
}

const _: () = assert!(size_of::<TestRun>() == 80);
