//! A network namespace without a name.
#![forbid(unsafe_code)]

use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::thread;

/// Makes one, calls `inside` in it, and returns what that gave with the descriptor that holds the namespace.
///
/// It all happens in a thread of its own: the caller never leaves its namespace, so there is no way back to fail.
pub(super) fn create<T: Send>(inside: impl FnOnce() -> T + Send) -> io::Result<(OwnedFd, T)> {
    thread::scope(|scope| {
        let run = || -> io::Result<(OwnedFd, T)> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let namespace = File::open("/proc/thread-self/ns/net")?;
            Ok((namespace.into(), inside()))
        };
        let thread = thread::Builder::new().name("namespace".into()).spawn_scoped(scope, run)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
