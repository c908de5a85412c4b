//! What can go wrong with a guest, each in one line and, where the guest was at fault, the lines of its console that matter.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Why a guest gave no report.
#[derive(Debug, Error)]
pub enum VmError {
    /// `bench/vm/fetch.sh` has not run, or was interrupted.
    #[error("no QEMU in {}: run bench/vm/fetch.sh", .0.display())]
    NotFetched(PathBuf),
    /// `bench/vm/fetch.sh rt` has not run, or there is none for this machine.
    #[error("no kernel with PREEMPT_RT in {}: run \"bench/vm/fetch.sh rt\"", .0.display())]
    NoRealTimeKernel(PathBuf),
    /// `bench/vm/fetch.sh zerocopy` has not run, or there is none for this machine.
    #[error("no kernel with zero-copy in {}: run \"bench/vm/fetch.sh zerocopy\"", .0.display())]
    NoZeroCopyKernel(PathBuf),
    /// A program could not be built.
    #[error("cannot build {program} for the guest: {why}")]
    Build {
        /// The name of the binary.
        program: String,
        /// What cargo said last.
        why: String,
    },
    /// What a program is linked to could not be found.
    #[error("cannot tell the libraries of {}: {why}", program.display())]
    Libraries {
        /// The program.
        program: PathBuf,
        /// What ldd said.
        why: String,
    },
    /// A number or name that QEMU, the kernel or the initramfs would not take.
    #[error("a guest cannot have {0}")]
    Invalid(String),
    /// A file of the host could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// `read`, `write`, `start`.
        action: &'static str,
        /// The file in question.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The guest's kernel panicked.
    #[error("guest {guest}: {reason}\n{console}")]
    Panicked {
        /// The name it was given.
        guest: String,
        /// The kernel's own line.
        reason: String,
        /// What the console says of it, and where all of it is.
        console: String,
    },
    /// The guest was not done in time, and has been killed.
    #[error("guest {guest}: not done after {limit:?}, killed\n{console}")]
    TimedOut {
        /// The name it was given.
        guest: String,
        /// The time it was given.
        limit: Duration,
        /// What the console says of it, and where all of it is.
        console: String,
    },
    /// The guest had not booted in time, and has been killed.
    #[error("guest {guest}: not booted after {limit:?}, killed\n{console}")]
    NotBooted {
        /// The name it was given.
        guest: String,
        /// The time that it was given for it.
        limit: Duration,
        /// What the console says of it, and where all of it is.
        console: String,
    },
    /// QEMU ended, but not because the guest was done.
    #[error("guest {guest}: ended ({status}) before its commands were done\n{console}")]
    Ended {
        /// The name it was given.
        guest: String,
        /// QEMU's exit status.
        status: String,
        /// What the console says of it, and where all of it is.
        console: String,
    },
    /// A command in the guest failed.
    #[error("guest {guest}: \"{command}\" ended with status {status}{}\n{console}",
        if *status == 127 { ": not in the guest, or one of its libraries is not" } else { "" })]
    Command {
        /// The name it was given.
        guest: String,
        /// The line of shell.
        command: String,
        /// Its exit status, 128 + n where signal n killed it.
        status: u32,
        /// What the console says of it, and where all of it is.
        console: String,
    },
}

/// Makes an error of the kernel's about a file one of ours.
pub(super) fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VmError {
    let path = path.to_owned();
    move |source| VmError::File { action, path, source }
}
