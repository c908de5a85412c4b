//! Restartable sequences as the kernel defines them: `include/uapi/linux/rseq.h`, and what of it is documented.
//!
//! User space reads `cpu_id` and `mm_cid`, and writes `rseq_cs`. Nothing else here is anybody's business: Linux 6.19 broke programs
//! that made more of `cpu_id_start` than it promises.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, AtomicU64};

/// The thread is not registered.
pub(crate) const CPU_ID_UNINITIALIZED: u32 = u32::MAX;

/// `struct rseq`: one a thread, written by the kernel whenever it returns to that thread.
#[derive(Debug)]
#[repr(C, align(32))]
pub(crate) struct Area {
    cpu_id_start: AtomicU32,
    /// The CPU the thread runs on.
    pub(crate) cpu_id: AtomicU32,
    /// The address of the [`CriticalSection`] the thread is in, or of one that it has left.
    pub(crate) rseq_cs: AtomicU64,
    flags: AtomicU32,
    node_id: AtomicU32,
    /// The thread's concurrency id: a number below the CPUs the process can use, of no other thread that runs now.
    pub(crate) mm_cid: AtomicU32,
    _reserved: AtomicU32,
}

impl Area {
    /// As the kernel wants it before it is registered.
    pub(crate) const fn new() -> Self {
        Self {
            cpu_id_start: AtomicU32::new(0),
            cpu_id: AtomicU32::new(CPU_ID_UNINITIALIZED),
            rseq_cs: AtomicU64::new(0),
            flags: AtomicU32::new(0),
            node_id: AtomicU32::new(0),
            mm_cid: AtomicU32::new(CPU_ID_UNINITIALIZED),
            _reserved: AtomicU32::new(0),
        }
    }
}

/// Bytes of the area as they were when rseq began, which is what an area of our own is registered with: all fields in use are in it.
pub(crate) const AREA_BYTES: u32 = 32;
pub(crate) const CPU_ID_OFFSET: u32 = 4;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) const RSEQ_CS_OFFSET: u32 = 8;
pub(crate) const MM_CID_OFFSET: u32 = 24;
/// The kernel fills `mm_cid` where `AT_RSEQ_FEATURE_SIZE` is at least this.
pub(crate) const MM_CID_END: u64 = 28;

/// `struct rseq_cs`: where a critical section begins, how long it is, and where to go when it was interrupted.
#[derive(Debug)]
#[repr(C, align(32))]
pub struct CriticalSection {
    /// 0.
    pub version: u32,
    /// 0.
    pub flags: u32,
    /// The address of its first instruction.
    pub start_ip: u64,
    /// From there to behind the instruction that commits, in bytes.
    pub post_commit_offset: u64,
    /// Where the kernel sends a thread that was interrupted inside.
    pub abort_ip: u64,
}

/// `RSEQ_FLAG_UNREGISTER`.
pub(crate) const FLAG_UNREGISTER: i32 = 1;
/// Stands before every abort address, so that nobody can make the kernel jump to anything else (x86's value).
pub(crate) const SIGNATURE: u32 = 0x5305_3053;
/// `AT_RSEQ_FEATURE_SIZE` of `include/uapi/linux/auxvec.h`.
pub(crate) const AT_RSEQ_FEATURE_SIZE: u64 = 27;

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    #[test]
    fn offsets_are_the_kernels() {
        assert_eq!(size_of::<Area>(), AREA_BYTES as usize);
        assert_eq!(offset_of!(Area, cpu_id), CPU_ID_OFFSET as usize);
        assert_eq!(offset_of!(Area, rseq_cs), RSEQ_CS_OFFSET as usize);
        assert_eq!(offset_of!(Area, mm_cid), MM_CID_OFFSET as usize);
        assert_eq!(size_of::<CriticalSection>(), 32);
    }
}
