//! What the kernel's command line asked for in `lsm=`: programs at the hooks of the BPF security module can veto what others do to a
//! thread, and the kernels of most machines run without it.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use std::fs;

/// The module is among those that decide.
pub(crate) fn bpf_is_active() -> Result<()> {
    let path = "/sys/kernel/security/lsm";
    let active = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    ensure!(active.trim().split(',').any(|module| module == "bpf"), "no bpf among {active}");
    Ok(())
}
