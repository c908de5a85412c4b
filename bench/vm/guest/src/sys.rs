//! The system calls of the checks, one thin function each, and glibc's own words on rseq.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

/// `AT_RSEQ_FEATURE_SIZE` (include/uapi/linux/auxvec.h, Linux 6.3).
const AT_RSEQ_FEATURE_SIZE: libc::c_ulong = 27;
/// `MEMBARRIER_CMD_FLAG_CPU` (include/uapi/linux/membarrier.h).
const MEMBARRIER_CMD_FLAG_CPU: libc::c_uint = 1;
/// Of `struct rseq` in include/uapi/linux/rseq.h: its first size, and where `cpu_id` is.
const RSEQ_SIZE_BYTES: usize = 32;
const CPU_ID_OFFSET: usize = 4;

/// The calling thread's area, from glibc's `__rseq_offset` and `__rseq_size`.
pub(crate) struct GlibcRseq {
    area: *const u8,
    /// 0 where glibc did not register.
    pub(crate) size: u32,
}

/// glibc's area, where this program's glibc knows of rseq (2.35).
#[cfg(target_arch = "x86_64")]
pub(crate) fn glibc_rseq() -> Option<GlibcRseq> {
    let (offset, size): (*const isize, *const u32);
    let thread_pointer: *const u8;
    // SAFETY: reads two words of the global offset table, in which the linker has put the symbols' addresses, or 0 for a weak
    // symbol that nothing defines, and the word at fs:0, which is the thread pointer itself.
    unsafe {
        std::arch::asm!(
            ".weak __rseq_offset",
            ".weak __rseq_size",
            "mov {offset}, qword ptr [rip + __rseq_offset@GOTPCREL]",
            "mov {size}, qword ptr [rip + __rseq_size@GOTPCREL]",
            "mov {thread_pointer}, fs:0",
            offset = out(reg) offset,
            size = out(reg) size,
            thread_pointer = out(reg) thread_pointer,
            options(nostack, readonly, preserves_flags),
        );
    }
    if offset.is_null() || size.is_null() {
        return None;
    }
    // SAFETY: not null, so these are glibc's `const ptrdiff_t` and `const unsigned int`, set before main.
    unsafe { Some(GlibcRseq { area: thread_pointer.wrapping_offset(*offset), size: *size }) }
}

/// The guest is x86-64: elsewhere this program builds, and has nowhere to run.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn glibc_rseq() -> Option<GlibcRseq> {
    None
}

/// The CPU that the calling thread runs on, as the kernel keeps it in the area.
pub(crate) fn rseq_cpu_id(rseq: &GlibcRseq) -> u32 {
    // SAFETY: glibc registered `size` > 0 bytes, at least the 20 of the first struct rseq, here in the static memory of the thread that asked
    // for it; the pointer keeps it from being sent to another. The kernel writes it: hence the volatile read.
    unsafe { ptr::read_volatile(rseq.area.wrapping_add(CPU_ID_OFFSET).cast()) }
}

/// The kernel's size of `struct rseq` without padding; 0 where it says nothing.
pub(crate) fn rseq_feature_size() -> u64 {
    // SAFETY: reads the auxiliary vector; any key is allowed.
    unsafe { libc::getauxval(AT_RSEQ_FEATURE_SIZE) }
}

/// Registers an area of this program's for the calling thread.
pub(crate) fn register_rseq_of_our_own() -> Result<(), Errno> {
    #[repr(C, align(32))]
    struct Area([u8; RSEQ_SIZE_BYTES]);
    /// What precedes every abort handler on x86-64, as glibc has it.
    const RSEQ_SIG: u32 = 0x5305_3053;
    // For good: where the kernel takes it, it writes to it until the thread ends.
    let area = Box::leak(Box::new(Area([0; RSEQ_SIZE_BYTES])));
    // SAFETY: the area has the size passed and is never freed, nor touched again by this program.
    let result = unsafe { libc::syscall(libc::SYS_rseq, ptr::from_mut(area), RSEQ_SIZE_BYTES, 0, RSEQ_SIG) };
    Errno::result(result).map(drop)
}

/// `membarrier(2)` for every CPU this process runs on.
pub(crate) fn membarrier(command: libc::c_int) -> Result<(), Errno> {
    // SAFETY: takes and changes no memory of ours.
    Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }).map(drop)
}

/// `membarrier(2)` for one CPU.
pub(crate) fn membarrier_on_cpu(command: libc::c_int, cpu: usize) -> Result<(), Errno> {
    // SAFETY: takes and changes no memory of ours.
    Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, command, MEMBARRIER_CMD_FLAG_CPU, cpu) })
        .map(drop)
}

/// Makes the calling thread one of SCHED_FIFO.
pub(crate) fn be_real_time(priority: libc::c_int) -> Result<(), Errno> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel only reads the structure.
    Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) }).map(drop)
}

/// A perf event of another thread, which counts nothing and asks the kernel to look after that thread all the same.
pub(crate) fn perf_event_of(tid: libc::pid_t) -> Result<OwnedFd, Errno> {
    /// `PERF_TYPE_SOFTWARE`, `PERF_ATTR_SIZE_VER0`, `PERF_COUNT_SW_DUMMY` of include/uapi/linux/perf_event.h.
    const SOFTWARE: u32 = 1;
    const SIZE_VER0: u32 = 64;
    const DUMMY: u64 = 9;
    #[repr(C)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        rest: [u64; 6],
    }
    let attributes = Attributes { kind: SOFTWARE, size: SIZE_VER0, config: DUMMY, rest: [0; 6] };
    // SAFETY: the kernel reads as many bytes as `size` says, which is the structure's.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, tid, -1, -1, 0) };
    // SAFETY: new, and nobody else's.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// A system call that no library could answer by itself.
pub(crate) fn parent() -> i64 {
    // SAFETY: takes nothing.
    unsafe { libc::syscall(libc::SYS_getppid) }
}

/// Memory of its own, which is there when it is touched and not before.
pub(crate) struct Pages {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: nobody else has the map.
unsafe impl Send for Pages {}

impl Pages {
    pub(crate) const BYTES: usize = 4096;

    /// Maps so many of them.
    pub(crate) fn new(count: usize) -> Result<Self, Errno> {
        let bytes = count * Self::BYTES;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new map, at an address of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { start: start.cast(), bytes })
    }

    /// Writes to a byte of it, and gives that byte's address.
    pub(crate) fn touch(&self, offset: usize) -> u64 {
        let at = self.start.wrapping_add(offset % self.bytes);
        // SAFETY: inside the map, which is writable.
        unsafe { at.write_volatile(1) };
        at as u64
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; no pointer into it is left.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

/// Makes a child that ends at once, and waits for it.
pub(crate) fn fork_and_wait() -> Result<(), Errno> {
    // SAFETY: the child makes one system call, and touches nothing that another thread may have held.
    let child = Errno::result(unsafe { libc::fork() })?;
    if child == 0 {
        // SAFETY: no destructor and no handler runs.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: the status is written.
    Errno::result(unsafe { libc::waitpid(child, &mut status, 0) }).map(drop)
}
