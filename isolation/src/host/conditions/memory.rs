//! What moves, merges or splits memory under a worker: page faults, and flushes of the TLB by interrupts.
#![forbid(unsafe_code)]

use super::super::{Finding, Host, Unread, values};
use percpu::CpuList;

/// Number of `CAP_IPC_LOCK`.
const CAP_IPC_LOCK: u32 = 14;

/// Absent from a kernel that was built without it.
fn absent(error: &Unread, host: &Host) -> bool {
    error.is_missing() && host.has("/proc/sys/kernel/osrelease")
}

pub(super) fn stat_interval(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    let seconds: u32 = host.number(values::STAT_INTERVAL)?;
    Ok(if seconds >= values::STAT_INTERVAL_S {
        Finding::ok(format!("memory statistics are folded every {seconds} s"))
    } else {
        Finding::costs(format!("a work item every {seconds} s that folds memory statistics")).prepare()
    })
}

pub(super) fn transparent_hugepages(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    Ok(match host.chosen(values::THP) {
        Ok(choice) if choice == "always" => {
            Finding::costs("page faults that take as long as clearing 2 MiB, and splits that flush the TLB")
                .prepare()
        }
        Ok(choice) if ["madvise", "never"].contains(&choice.as_str()) => Finding::ok(choice),
        Ok(choice) => Finding::unknown(format!("{} says {choice:?}", values::THP)),
        Err(error) if absent(&error, host) => Finding::ok("this kernel has none"),
        Err(error) => return Err(error),
    })
}

pub(super) fn khugepaged(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    Ok(match host.chosen(values::THP) {
        Ok(choice) if choice == "always" => {
            Finding::costs("khugepaged collapses any memory: it flushes the TLB of every CPU that uses it")
                .prepare()
        }
        Ok(choice) if choice == "madvise" => Finding::ok("only memory that asked for it is collapsed"),
        Ok(choice) if choice == "never" => Finding::ok("off"),
        Ok(choice) => Finding::unknown(format!("{} says {choice:?}", values::THP)),
        Err(error) if absent(&error, host) => Finding::ok("this kernel has none"),
        Err(error) => return Err(error),
    })
}

pub(super) fn ksm(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    Ok(match host.number::<u8>(values::KSM) {
        Ok(1) => Finding::costs("page faults in memory that asked to be merged, and the CPU time of ksmd")
            .prepare(),
        Ok(_) => Finding::ok("off"),
        Err(error) if absent(&error, host) => Finding::ok("this kernel has none"),
        Err(error) => return Err(error),
    })
}

pub(super) fn numa_balancing(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    Ok(match host.number::<u8>(values::NUMA_BALANCING) {
        Ok(0) => Finding::ok("off"),
        Ok(_) => Finding::costs("page faults on purpose, by which the kernel sees who uses memory").prepare(),
        Err(error) if absent(&error, host) => Finding::ok("this kernel has none"),
        Err(error) => return Err(error),
    })
}

pub(super) fn compaction(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    Ok(match host.number::<u8>(values::COMPACT_UNEVICTABLE) {
        Ok(0) => Finding::ok("locked memory stays where it is"),
        Ok(_) => Finding::costs("page faults: compaction moves memory, be it locked").prepare(),
        Err(error) if absent(&error, host) => Finding::ok("this kernel has none"),
        Err(error) => return Err(error),
    })
}

/// Whether workers may lock all their memory.
pub(super) fn lock(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    if host.has_capability(CAP_IPC_LOCK)? {
        return Ok(Finding::ok("CAP_IPC_LOCK"));
    }
    let limits = host.text("/proc/self/limits")?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    Ok(match limit.and_then(|limit| limit.split_whitespace().next()) {
        Some("unlimited") => Finding::ok("unlimited"),
        Some(bytes) if bytes.parse::<u64>().is_ok() => Finding::costs(format!(
            "page faults: this process may lock {bytes} bytes only, and strict workers are refused"
        ))
        .command("ulimit -l unlimited  (by systemd: LimitMEMLOCK=infinity)"),
        _ => Finding::unknown("/proc/self/limits names no limit of locked memory"),
    })
}
