//! Operations that are run in a child under ptrace, and the critical sections they go through.
#![allow(unsafe_code, clippy::unwrap_used)]

use iced_x86::{Decoder, DecoderOptions};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use percpu::Topology;
use percpu::rseq::{CriticalSection, critical_sections};
use std::sync::OnceLock;

/// Reads eight bytes of the child at an address.
pub(crate) type Peek<'a> = dyn Fn(usize) -> u64 + 'a;

/// An operation to be interrupted.
pub(crate) struct Case<'a> {
    /// Runs it in the child; true where it did all that it should.
    pub(crate) operation: &'a dyn Fn() -> bool,
    /// The structure's memory on the CPU that the child starts on, as far as anybody looks at it.
    pub(crate) state: &'a dyn Fn(&Peek<'_>) -> Vec<u64>,
    /// What that is behind the commit, given what it was before the operation.
    pub(crate) committed: &'a dyn Fn(&[u64]) -> Vec<u64>,
}

/// The CPUs there are, asked for before this thread is pinned to the first.
pub(crate) fn cpus() -> &'static [usize] {
    static CPUS: OnceLock<Vec<usize>> = OnceLock::new();
    CPUS.get_or_init(|| Topology::read().unwrap().cpuset.unwrap().iter().collect())
}

/// The slot of the CPU that [`on_first_cpu`] pins to, of a structure that goes by CPU number.
pub(crate) fn first_index(slots: usize) -> usize {
    let cpu = cpus()[0];
    assert!(cpu < slots, "CPU {cpu} of {slots}");
    cpu
}

pub(crate) fn move_to(pid: Pid, cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    sched_setaffinity(pid, &set).unwrap();
}

pub(crate) extern "C" fn ignore(_: i32) {}

/// Forks a child that stops itself and then runs the operation.
pub(crate) fn child(case: &Case<'_>) -> Pid {
    // SAFETY: the child calls nothing but the operation, which neither allocates nor locks, and system calls.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Stopped(child, Signal::SIGSTOP));
            ptrace::setoptions(child, ptrace::Options::PTRACE_O_EXITKILL).unwrap();
            child
        }
        ForkResult::Child => {
            let done = ptrace::traceme().is_ok() && raise(Signal::SIGSTOP).is_ok() && (case.operation)();
            // SAFETY: ends the child at once, as it must: the test harness's threads are not in it.
            unsafe { libc::_exit(if done { 0 } else { 1 }) }
        }
    }
}

pub(crate) fn peek(pid: Pid, address: usize) -> u64 {
    ptrace::read(pid, address as ptrace::AddressType).unwrap().cast_unsigned()
}

/// A breakpoint in a child; gives back the byte that was there.
pub(crate) fn set_breakpoint(pid: Pid, address: u64) -> u8 {
    let word = peek(pid, address as usize);
    ptrace::write(pid, address as ptrace::AddressType, (word & !0xFF | 0xCC).cast_signed()).unwrap();
    word as u8
}

pub(crate) fn clear_breakpoint(pid: Pid, address: u64, byte: u8) {
    let word = peek(pid, address as usize);
    ptrace::write(pid, address as ptrace::AddressType, (word & !0xFF | u64::from(byte)).cast_signed())
        .unwrap();
}

/// Goes on until a breakpoint (whose address comes back, and the child stands on it) or the end (its exit status).
pub(crate) fn go_on(pid: Pid, signal: Option<Signal>) -> Result<u64, i32> {
    let mut signal = signal;
    loop {
        ptrace::cont(pid, signal).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                let mut registers = ptrace::getregs(pid).unwrap();
                registers.rip -= 1;
                ptrace::setregs(pid, registers).unwrap();
                return Ok(registers.rip);
            }
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(_, status) => return Err(status),
            other => panic!("the child ended by {other:?}"),
        }
    }
}

pub(crate) fn kill(pid: Pid) {
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    let _ = waitpid(pid, None);
}

/// The addresses of a section's instructions. Read from our own memory, which is a child's too.
pub(crate) fn instructions(section: &CriticalSection) -> Vec<u64> {
    // SAFETY: program text of the length that the descriptor gives.
    let code = unsafe {
        std::slice::from_raw_parts(section.start_ip as *const u8, section.post_commit_offset as usize)
    };
    let addresses: Vec<u64> = Decoder::with_ip(64, code, section.start_ip, DecoderOptions::NONE)
        .iter()
        .map(|instruction| instruction.ip())
        .collect();
    assert!(addresses.len() >= 3, "{section:?}");
    addresses
}

/// The sections that an operation goes through.
pub(crate) fn sections_of(case: &Case<'_>) -> Vec<&'static CriticalSection> {
    let pid = child(case);
    let starts: Vec<_> =
        critical_sections().iter().map(|section| (section, set_breakpoint(pid, section.start_ip))).collect();
    let mut found = Vec::new();
    while let Ok(stopped_at) = go_on(pid, None) {
        let Some((section, byte)) = starts.iter().find(|(section, _)| section.start_ip == stopped_at) else {
            continue;
        };
        clear_breakpoint(pid, stopped_at, *byte);
        found.push(*section);
    }
    found
}
