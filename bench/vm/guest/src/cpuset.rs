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
            let (why, expected) =
                (why.to_string(), format!("CPU {CPU} is outside the cpuset of this process (0)"));
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

/// Items on the stack of a CPU that the cpuset has lost are found and can be had again.
pub(crate) fn stranded_items_are_drained() -> Result<()> {
    let cpuset = Cpuset::enter("0-1")?;
    crate::pinned::strand(|| cpuset.set("0"))?;
    cpuset.set("0-1")
}

/// By concurrency id, which a small cpuset makes everything choose by itself, memory is that of the CPUs the cpuset has.
pub(crate) fn memory_is_that_of_one_cpu() -> Result<()> {
    use percpu::{Counters, Indexing, Log, PerCpu, Stack};
    let cpus = Topology::read()?.possible.len();
    // In whole cache line pairs, with headers: 1000 counters, 1000 items, 4096 bytes of log.
    let (counters, items, log) = (8064, 4096, 4224);
    // What there is, for each of the four.
    let bytes = |indexing| {
        [
            Counters::with_indexing(1000, indexing).memory_bytes(),
            Stack::<u32>::new(1000, 1000, indexing).memory_bytes(),
            Log::with_indexing(4096, indexing).memory_bytes(),
            PerCpu::with_indexing(indexing, |_| [0; 128]).iter().len(),
        ]
    };
    // For so many CPUs; all but stacks have one more, for threads without a slot.
    let expected = |cpus: usize| [counters * (cpus + 1), items * cpus, log * (cpus + 1), cpus + 1];
    ensure!(bytes(Indexing::Cpu) == expected(cpus), "{cpus} CPUs: {:?}", bytes(Indexing::Cpu));
    let _cpuset = Cpuset::enter("0")?;
    for indexing in [Indexing::ConcurrencyId, Indexing::Auto] {
        ensure!(bytes(indexing) == expected(1), "one CPU, {indexing:?}: {:?}", bytes(indexing));
    }
    by_cpu_number_the_others_take_address_space_only()?;
    let few = Counters::with_indexing(1000, Indexing::ConcurrencyId);
    std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(|| few.add(7, 1)))));
    ensure!(few.sum(7) == 8, "{} of 8 additions", few.sum(7));
    Ok(())
}

/// A stack with room for 4 MiB a CPU, of which 256 KiB are used on one of them: not much more comes into memory.
fn by_cpu_number_the_others_take_address_space_only() -> Result<()> {
    let items: Vec<u32> = (0..1 << 16).collect();
    let stack = percpu::Stack::<u32>::new(1 << 20, items.len(), percpu::Indexing::Cpu);
    let before = resident_bytes()?;
    // In portions that take no longer than a CPU is had for. One that is interrupted all the same goes to the shared part.
    items.chunks(64).for_each(|portion| stack.push(portion));
    ensure!(stack.stack_len(0) > items.len() / 2, "{} items on CPU 0", stack.stack_len(0));
    let grown = resident_bytes()?.saturating_sub(before);
    ensure!(grown < 1 << 20, "{grown} bytes came into memory for {}", size_of_val(&items[..]));
    ensure!(stack.memory_bytes() > 8 << 20, "{} bytes in all", stack.memory_bytes());
    Ok(())
}

/// `VmRSS` of `proc(5)`.
fn resident_bytes() -> Result<usize> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<usize>()? << 10)
}
