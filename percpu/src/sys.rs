//! Every system call this crate makes, one thin function each.
#![allow(unsafe_code)]

use crate::CpuList;
use crate::rseq::thread::{self, IndexField};
use std::io;
use std::mem;

/// Highest CPU number + 1 the fixed-size mask of `sched_setaffinity(2)` can name.
pub(crate) const CPU_SETSIZE: usize = libc::CPU_SETSIZE as usize;

/// `sched_getaffinity(0)`: the CPUs the calling thread may run on.
pub(crate) fn get_affinity() -> io::Result<CpuList> {
    get_affinity_of(0)
}

/// `sched_getaffinity(tid)`: the CPUs a thread may run on; 0 is the calling one.
pub(crate) fn get_affinity_of(tid: libc::pid_t) -> io::Result<CpuList> {
    // SAFETY: cpu_set_t is plain bits, for which all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is a live cpu_set_t of exactly the size passed; the kernel only writes inside it.
    let result = unsafe { libc::sched_getaffinity(tid, mem::size_of_val(&set), &mut set) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every index is below CPU_SETSIZE, the number of bits in the set.
    Ok((0..CPU_SETSIZE).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// `sched_setaffinity(0)`: binds the calling thread to these CPUs. Numbers that the mask cannot hold are left out.
pub(crate) fn set_affinity(cpus: &CpuList) -> io::Result<()> {
    set_affinity_of(0, cpus)
}

/// `sched_setaffinity(tid)`: binds a thread to these CPUs; 0 is the calling one.
pub(crate) fn set_affinity_of(tid: libc::pid_t, cpus: &CpuList) -> io::Result<()> {
    // SAFETY: as above, all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    for cpu in cpus.iter().filter(|&cpu| cpu < CPU_SETSIZE) {
        // SAFETY: `cpu` is below CPU_SETSIZE, the number of bits in the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the kernel only reads `set`, whose size is the one passed.
    match unsafe { libc::sched_setaffinity(tid, mem::size_of_val(&set), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where the calling thread runs: from its rseq area where it has one, else by `sched_getcpu(3)`. `None` where the kernel does
/// not tell.
#[inline]
pub(crate) fn current_cpu() -> Option<usize> {
    if let Some(cpu) = thread::index(IndexField::Cpu) {
        return Some(cpu as usize);
    }
    // SAFETY: takes nothing and has no effect.
    usize::try_from(unsafe { libc::sched_getcpu() }).ok()
}
