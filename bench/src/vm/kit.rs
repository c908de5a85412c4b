//! What `bench/vm/fetch.sh` put into `target/vm`.
#![forbid(unsafe_code)]

use super::{VmError, module};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// QEMU, a kernel and busybox, unpacked and not installed.
#[derive(Clone, Debug)]
pub struct Kit {
    /// `target/vm`.
    folder: PathBuf,
}

/// The workspace's folder.
pub(super) fn workspace() -> &'static Path {
    let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
    bench.parent().unwrap_or(bench)
}

/// cargo's target folder, by the same rule as in fetch.sh.
pub(super) fn target() -> PathBuf {
    // A relative CARGO_TARGET_DIR is relative to where cargo was started, the workspace.
    workspace().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

impl Kit {
    /// Finds what was fetched, or says how to fetch it.
    pub fn find() -> Result<Self, VmError> {
        let folder = target().join("vm");
        // Written last.
        if !folder.join("fetched").exists() {
            return Err(VmError::NotFetched(folder));
        }
        Ok(Self { folder })
    }

    /// The root folder that the packages were unpacked to: the kernel's modules are below it.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// A module of the kernel's, as it was packed (busybox's insmod unpacks it); `None` where the kernel has it built in, or not at all.
    pub fn module(&self, name: &str) -> Option<PathBuf> {
        module::find(&self.root(), name)
    }

    /// The kernel.
    pub(super) fn kernel(&self) -> PathBuf {
        self.root().join("vmlinuz")
    }

    /// The kernel with PREEMPT_RT that `bench/vm/fetch.sh rt` fetches: for [`Guest::kernel`](super::Guest::kernel).
    pub fn real_time_kernel(&self) -> Result<PathBuf, VmError> {
        let folder = self.folder.join("rt");
        // Written last.
        if !folder.join("fetched").exists() {
            return Err(VmError::NoRealTimeKernel(folder));
        }
        Ok(folder.join("vmlinuz"))
    }

    /// The kernel that `bench/vm/fetch.sh zerocopy` fetches, in which QEMU's igb and virtio-net have AF_XDP zero-copy: for
    /// [`Guest::kernel`](super::Guest::kernel). The modules of both are there too.
    pub fn zero_copy_kernel(&self) -> Result<PathBuf, VmError> {
        let folder = self.folder.join("zerocopy");
        // Written last.
        if !folder.join("fetched").exists() {
            return Err(VmError::NoZeroCopyKernel(folder));
        }
        Ok(folder.join("vmlinuz"))
    }

    /// busybox, a static program; where it is depends on the distribution.
    pub(super) fn busybox(&self) -> PathBuf {
        let merged = self.root().join("usr/bin/busybox");
        if merged.exists() { merged } else { self.root().join("bin/busybox") }
    }

    /// Where the logs of the guest of this name go.
    pub fn logs(&self, guest: &str) -> PathBuf {
        self.folder.join("guests").join(guest)
    }

    /// QEMU, told where its libraries and its firmware are. What the machine already had was not fetched.
    pub(super) fn qemu(&self) -> Command {
        let root = self.root();
        let mut command = Command::new(root.join("usr/bin/qemu-system-x86_64"));
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        let libraries = libraries.map(|folder| root.join(folder).to_string_lossy().into_owned());
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(data)).arg("-L").arg(Path::new("/").join(data));
        }
        command
    }
}
