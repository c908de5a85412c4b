//! A CPU that goes off line under a pinned thread: the kernel moves the thread and forgets its mask, whatever it was promised.
#![forbid(unsafe_code)]

use crate::pinned::Watched;
use anyhow::{Context, Result, bail, ensure};
use percpu::{CpuList, PinError, Topology, pin_on_cpu};
use std::fs;

/// The CPU that the checks take away.
const CPU: usize = 1;

/// A CPU that is off line until this is dropped.
struct Offline(usize);

impl Offline {
    fn take(cpu: usize) -> Result<Self> {
        set_online(cpu, false)?;
        Ok(Self(cpu))
    }

    fn bring_back(self) -> Result<()> {
        set_online(self.0, true)
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        // The next check finds out where this fails.
        let _ = set_online(self.0, true);
    }
}

fn set_online(cpu: usize, online: bool) -> Result<()> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    fs::write(&path, if online { "1" } else { "0" }).with_context(|| format!("cannot write to {path}"))
}

/// The guest has what the other checks need.
pub(crate) fn cpus_are_online() -> Result<()> {
    let topology = Topology::read()?;
    ensure!(topology.online.len() >= 2, "online: {}", topology.online);
    ensure!(topology.allowed == topology.online, "allowed: {}", topology.allowed);
    Ok(())
}

/// Pinning to a CPU that is off line is refused in words that say so, and works once it is back.
pub(crate) fn offline_cpu_is_refused() -> Result<()> {
    let offline = Offline::take(CPU)?;
    match pin_on_cpu(CPU) {
        Err(PinError::Unusable(why)) => {
            let expected = format!("CPU {CPU} is offline: run \"echo 1 > ");
            let why = why.to_string();
            ensure!(why.starts_with(&expected), "not \"{expected}...\" but \"{why}\"");
        }
        other => bail!("not refused as off line: {other:?}"),
    }
    offline.bring_back()?;
    let pinned = pin_on_cpu(CPU).context("the CPU is back")?;
    ensure!(Topology::read()?.allowed == CpuList::from_iter([CPU]), "pinned, and the mask is another");
    drop(pinned);
    Ok(())
}

/// A thread whose only CPU goes away runs on, on another; its mask says so, and does not come back with the CPU.
pub(crate) fn pinned_thread_leaves() -> Result<()> {
    let before = Topology::read()?.allowed;
    let thread = Watched::pin_on(CPU)?;
    let offline = Offline::take(CPU)?;
    let rest: CpuList = before.iter().filter(|cpu| *cpu != CPU).collect();
    thread.comes_to(&rest)?;
    offline.bring_back()?;
    thread.comes_to(&before)
}

/// Items on the stack of a CPU that is off line are found and can be had again.
pub(crate) fn stranded_items_are_drained() -> Result<()> {
    let mut offline = None;
    crate::pinned::strand(|| {
        offline = Some(Offline::take(CPU)?);
        Ok(())
    })?;
    offline.map_or(Ok(()), Offline::bring_back)
}

/// The thread whose CPU goes away is told so by its guard, and another by its watch, with the mask before and after.
pub(crate) fn an_unplug_is_noticed() -> Result<()> {
    let mut offline = None;
    let rest: CpuList = Topology::read()?.allowed.iter().filter(|cpu| *cpu != CPU).collect();
    let found = crate::pinned::notices(CPU, || {
        offline = Some(Offline::take(CPU)?);
        Ok(())
    })?;
    for (who, outsider) in [("the thread", &found.by_thread), ("the watch", &found.by_watch)] {
        ensure!(outsider.mask_before == CpuList::from_iter([CPU]), "{who}: {outsider}");
        ensure!(outsider.mask_now == rest, "{who}: {outsider}");
    }
    let moved_to = found.by_thread.moved_to;
    ensure!(moved_to.is_some_and(|cpu| rest.contains(cpu)), "moved to {moved_to:?}");
    offline.map_or(Ok(()), Offline::bring_back)
}
