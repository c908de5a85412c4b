//! What the standard library cannot say about QEMU's process.
#![allow(unsafe_code)]

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::{prctl, signal::Signal};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};

/// Has the kernel kill the process that `command` starts when the thread that starts it ends, however it ends. The process keeps
/// these descriptors under their numbers, and lives in this network namespace.
pub(super) fn prepare(command: &mut Command, inherited: Vec<OwnedFd>, namespace: Option<File>) {
    let us = process::id();
    let prepare = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // We may have ended before the line above: then nobody sends the signal.
        if nix::unistd::getppid().as_raw().cast_unsigned() != us {
            return Err(io::Error::from(io::ErrorKind::Interrupted));
        }
        for descriptor in &inherited {
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        if let Some(namespace) = &namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls and no allocation, and takes no lock: an error of any is a
    // plain number.
    unsafe { command.pre_exec(prepare) };
}
