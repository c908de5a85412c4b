//! What per-CPU data stands on, in a static program on a stock kernel.
#![forbid(unsafe_code)]

use crate::{Lacks, sys};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use percpu::{Topology, pin_on_cpu};

/// The C library has registered an area for the thread, and the kernel keeps the CPU's number in it.
pub(crate) fn registered_by_glibc() -> Result<()> {
    let area = sys::glibc_rseq().ok_or_else(|| Lacks("the program has a glibc before 2.35".to_owned()))?;
    ensure!(area.size > 0, "glibc registered nothing (__rseq_size is 0)");
    let feature_size = sys::rseq_feature_size();
    ensure!(feature_size >= 20, "the kernel's AT_RSEQ_FEATURE_SIZE is {feature_size}");
    for cpu in Topology::read()?.allowed.iter() {
        let _pinned = pin_on_cpu(cpu)?;
        let found = sys::rseq_cpu_id(&area);
        ensure!(found as usize == cpu, "on CPU {cpu} the area says {found}");
    }
    match sys::register_rseq_of_our_own() {
        Err(Errno::EINVAL) => Ok(()),
        other => bail!("a second area was not refused with EINVAL: {other:?}"),
    }
}

/// The barrier that ends other CPUs' critical sections works after registration, and not before.
pub(crate) fn membarrier_wants_registration() -> Result<()> {
    let fence = || sys::membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ);
    ensure!(fence() == Err(Errno::EPERM), "before registration: {:?}", fence());
    sys::membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ).context("registration")?;
    fence().context("on every CPU")?;
    for cpu in Topology::read()?.online.iter() {
        sys::membarrier_on_cpu(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, cpu)
            .with_context(|| format!("on CPU {cpu} alone"))?;
    }
    Ok(())
}
