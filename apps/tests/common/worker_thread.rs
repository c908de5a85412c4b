//! What the kernel says of a worker's thread.
#![allow(dead_code, unsafe_code, unreachable_pub, clippy::unwrap_used)]

use isolation::tracefs::Tracefs;
use nix::sys::signal::Signal;
use perf_event_open_sys::bindings::{PERF_TYPE_TRACEPOINT, perf_event_attr};
use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;

/// The thread of a process's worker 0, once it is there.
pub fn worker_thread(pid: u32) -> Option<i32> {
    thread_named(pid, "worker-0")
}

/// A process's thread of this name, once it is there.
pub fn thread_named(pid: u32, name: &str) -> Option<i32> {
    let task = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.map_while(Result::ok).find(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    })?;
    task.file_name().to_str()?.parse().ok()
}

/// Counts a trace event of one thread. The kernel takes it away with the descriptor.
pub fn count_event(name: &str, tid: i32) -> File {
    let id = Tracefs::open().unwrap().event_id(name).unwrap().expect("every kernel has it");
    let mut attr = perf_event_attr {
        type_: PERF_TYPE_TRACEPOINT,
        size: size_of::<perf_event_attr>() as u32,
        config: id,
        ..Default::default()
    };
    // SAFETY: the attributes are a live structure of the size it says.
    let fd = unsafe { perf_event_open_sys::perf_event_open(&mut attr, tid, -1, -1, 0) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: new from the kernel, and nobody else's.
    unsafe { File::from_raw_fd(fd) }
}

pub fn count(event: &mut File) -> u64 {
    let mut bytes = [0; 8];
    event.read_exact(&mut bytes).unwrap();
    u64::from_ne_bytes(bytes)
}

/// Whether a thread blocks SIGINT, as isolated ones do.
pub fn is_shielded(tid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 << (Signal::SIGINT as u32 - 1) != 0
}
