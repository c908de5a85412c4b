//! membarrier(2): stopping the critical sections of other CPUs.
//!
//! `PRIVATE_EXPEDITED_RSEQ` interrupts a CPU that runs a thread of this process, and sends that thread out of the section it may be in. It costs some
//! 10 us and puts an interrupt on that CPU: nothing to do to an isolated one (see `isolated.rs`).
#![allow(unsafe_code)]

use std::io;

// include/uapi/linux/membarrier.h
const PRIVATE_EXPEDITED_RSEQ: i32 = 1 << 7;
const REGISTER_PRIVATE_EXPEDITED_RSEQ: i32 = 1 << 8;
const FLAG_CPU: u32 = 1;

fn membarrier(command: i32, flags: u32, cpu: u32) -> io::Result<()> {
    // SAFETY: takes three numbers and touches no memory.
    match unsafe { libc::syscall(libc::SYS_membarrier, command, flags, cpu) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tells the kernel that this process will want it; needed once, and quick after that.
pub(crate) fn register() -> io::Result<()> {
    membarrier(REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0)
}

/// Stops the critical sections that run on one CPU, or on all where `cpu` is `None`.
pub(crate) fn stop_sections(cpu: Option<u32>) -> io::Result<()> {
    let (flags, cpu) = cpu.map_or((0, 0), |cpu| (FLAG_CPU, cpu));
    membarrier(PRIVATE_EXPEDITED_RSEQ, flags, cpu).or_else(|error| match error.raw_os_error() {
        // A fork's child has not registered.
        Some(libc::EPERM) => register().and_then(|()| membarrier(PRIVATE_EXPEDITED_RSEQ, flags, cpu)),
        _ => Err(error),
    })
}
