//! The one thing about QEMU's process that the standard library cannot say.
#![allow(unsafe_code)]

use nix::sys::{prctl, signal::Signal};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};

/// Has the kernel kill the process that `command` starts when the thread that starts it ends, however it ends.
pub(super) fn die_with_us(command: &mut Command) {
    let us = process::id();
    let prepare = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // We may have ended before the line above: then nobody sends the signal.
        if nix::unistd::getppid().as_raw().cast_unsigned() == us {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::Interrupted))
        }
    };
    // SAFETY: between fork and exec the closure makes two system calls and no allocation, and takes no lock: an error of
    // either is a plain number.
    unsafe { command.pre_exec(prepare) };
}
