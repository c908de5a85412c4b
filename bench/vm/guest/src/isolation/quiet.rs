//! What the kernel would still do on a CPU that its command line keeps free, and can be told not to.
#![forbid(unsafe_code)]

use super::CPU;
use anyhow::{Context, Result, anyhow};
use percpu::CpuList;
use std::fs;
use std::path::Path;

/// The CPUs that the command line keeps free.
fn tickless() -> Result<CpuList> {
    let list = fs::read_to_string("/sys/devices/system/cpu/nohz_full")?;
    list.parse().map_err(|_| anyhow!("no CPU is tickless ({}): boot with nohz_full=1", list.trim()))
}

/// What is written where. What a kernel does not have does not disturb either.
fn knobs() -> Result<Vec<(String, &'static str)>> {
    let knob = |path: &str, value| (path.to_owned(), value);
    let mut knobs = vec![
        knob("/sys/devices/virtual/workqueue/cpumask", "1"),
        // Seconds until the next: none in this guest's life.
        knob("/proc/sys/vm/stat_interval", "3600"),
        knob("/proc/sys/kernel/watchdog", "0"),
        knob("/sys/kernel/mm/transparent_hugepage/enabled", "never"),
        knob("/sys/kernel/mm/transparent_hugepage/khugepaged/defrag", "0"),
        knob("/proc/sys/vm/compaction_proactiveness", "0"),
        // In a guest that is interpreted, a task may well be late.
        knob("/proc/sys/kernel/hung_task_timeout_secs", "0"),
    ];
    // The deadline server of ordinary tasks brings the tick back once a second.
    let server = |cpu| (format!("/sys/kernel/debug/sched/fair_server/cpu{cpu}/runtime"), "0");
    knobs.extend(tickless()?.iter().map(server));
    let folders = fs::read_dir("/proc/irq").into_iter().flatten().flatten();
    let steered = folders.map(|folder| folder.path().join("smp_affinity")).filter(|path| path.exists());
    // The console's interrupt is one of these: what a check complains of must not interrupt the next.
    knobs.extend(steered.map(|path| (path.to_string_lossy().into_owned(), "1")));
    Ok(knobs)
}

/// Keeps all that can be kept from the tickless CPUs.
pub(crate) fn quieten() -> Result<()> {
    for (path, value) in knobs()? {
        if Path::new(&path).exists() {
            let written = fs::write(&path, value);
            // The timer's and the cascade's interrupts stay where they are.
            if !path.starts_with("/proc/irq") {
                written.with_context(|| format!("cannot write {value} to {path}"))?;
            }
        }
    }
    Ok(())
}

/// Interrupts of the isolated CPU since the boot, of every kind, as the kernel counts them.
pub(crate) fn interrupts() -> Result<u64> {
    let text = fs::read_to_string("/proc/interrupts")?;
    let column = text.lines().next().unwrap_or_default().split_whitespace();
    let column = column.into_iter().position(|head| head == format!("CPU{CPU}")).context("no such CPU")?;
    let counts = text.lines().skip(1).filter_map(|line| {
        let (_, counts) = line.split_once(':')?;
        counts.split_whitespace().nth(column)?.parse::<u64>().ok()
    });
    // A row of one number only (ERR, MIS) is of no CPU.
    Ok(counts.sum())
}
