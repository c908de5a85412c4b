//! A cgroup v2 cpuset that somebody else shrinks: what the machine that this project is built on has no controller for.
#![forbid(unsafe_code)]

use crate::pinned::Watched;
use anyhow::{Context, Result, bail, ensure};
use percpu::{CpuList, PinError, Topology, pin_on_cpu};
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

/// The CPU that the cpuset loses.
const CPU: usize = 1;

/// The root of the hierarchy, where init mounted it.
const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup with this process in it, which is gone when this is dropped.
struct Cpuset(PathBuf);

impl Cpuset {
    fn enter(cpus: &str) -> Result<Self> {
        write(&Path::new(ROOT).join("cgroup.subtree_control"), "+cpuset")?;
        let folder = Path::new(ROOT).join(format!("check-{}", process::id()));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let cpuset = Self(folder);
        cpuset.set(cpus)?;
        write(&cpuset.0.join("cgroup.procs"), &process::id().to_string())?;
        Ok(cpuset)
    }

    /// Changes its CPUs, as an administrator would.
    fn set(&self, cpus: &str) -> Result<()> {
        write(&self.0.join("cpuset.cpus"), cpus)
    }
}

impl Drop for Cpuset {
    fn drop(&mut self) {
        // Where it stays, the process's end empties it, and no later check uses it.
        let _ = write(&Path::new(ROOT).join("cgroup.procs"), &process::id().to_string());
        let _ = fs::remove_dir(&self.0);
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
}

/// Pinning to a CPU outside the cpuset is refused in words that say so, and works once the cpuset has it.
pub(crate) fn cpu_outside_is_refused() -> Result<()> {
    let cpuset = Cpuset::enter("0")?;
    match pin_on_cpu(CPU) {
        Err(PinError::Unusable(why)) => {
            let expected = format!("CPU {CPU} is outside this process's affinity mask or cpuset (0)");
            ensure!(why.starts_with(&expected), "not \"{expected}...\" but \"{why}\"");
        }
        other => bail!("not refused as outside the cpuset: {other:?}"),
    }
    cpuset.set("0-1")?;
    let pinned = pin_on_cpu(CPU).context("the cpuset has the CPU again")?;
    ensure!(Topology::read()?.allowed == CpuList::from_iter([CPU]), "pinned, and the mask is another");
    drop(pinned);
    Ok(())
}

/// A thread whose only CPU leaves its cpuset runs on, on another; unlike after hotplug its own mask comes back with the CPU.
pub(crate) fn pinned_thread_leaves_and_returns() -> Result<()> {
    let cpuset = Cpuset::enter("0-1")?;
    let thread = Watched::pin_on(CPU)?;
    cpuset.set("0")?;
    thread.comes_to(&CpuList::from_iter([0]))?;
    cpuset.set("0-1")?;
    thread.comes_to(&CpuList::from_iter([CPU]))
}
