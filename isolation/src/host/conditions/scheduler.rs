//! The kernel's own work on a worker's CPU: unbound work items, and what the scheduler keeps for tasks of lesser rank.
#![forbid(unsafe_code)]

use super::super::{Finding, Host, Mend, Unread, mask, values};
use percpu::CpuList;

pub(super) fn workqueues(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let open = mask::both(cpus, &host.mask(values::WORKQUEUE)?);
    Ok(if open.is_empty() {
        Finding::ok("unbound work runs elsewhere")
    } else {
        Finding::costs(format!("work items of the kernel (kworker/u...) on {}", mask::words(&open))).prepare()
    })
}

pub(super) fn rt_throttling(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    // Where cgroup v1 has this file, real-time tasks are throttled by groups still.
    let by_group = |folder| host.has(&format!("/sys/fs/cgroup/{folder}/cpu.rt_runtime_us"));
    let by_group = ["cpu", "cpu,cpuacct"].into_iter().any(by_group);
    match (host.is_older_than(6, 12)?, host.is_older_than(6, 18)?) {
        (false, _) if !by_group => return Ok(Finding::ok("this kernel leaves it to fair_server")),
        // A mere read disturbs every CPU there: seen on 6.12, and no longer on 6.18.
        (false, true) => {
            return Ok(Finding::unknown("to read it rebuilds the scheduler's domains, on this kernel")
                .mend(Mend::Prepare(Some("--rt"))));
        }
        _ => (),
    }
    let runtime_us: i64 = host.number(values::RT_RUNTIME)?;
    let period_us: i64 = host.number("/proc/sys/kernel/sched_rt_period_us")?;
    Ok(if runtime_us < 0 || runtime_us >= period_us {
        Finding::ok("off")
    } else {
        Finding::costs(format!(
            "up to {} ms of every {} ms, of a worker under SCHED_FIFO; others nothing",
            (period_us - runtime_us) / 1000,
            period_us / 1000
        ))
        .mend(Mend::Prepare(Some("--rt")))
    })
}

/// Since Linux 6.12: a deadline server lends other tasks a share of a CPU that real-time tasks keep, and its timer brings back the tick.
pub(super) fn fair_server(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    if !host.has("/sys/kernel/debug/sched") {
        return Ok(match host.is_older_than(6, 12)? {
            true => Finding::ok("this kernel has none"),
            _ if host.mounted("debugfs")?.is_some() => Finding::unknown("only root may look into debugfs"),
            _ => {
                Finding::unknown("debugfs is not mounted").command("mount -t debugfs none /sys/kernel/debug")
            }
        });
    }
    if !host.has("/sys/kernel/debug/sched/fair_server") {
        return Ok(Finding::ok("this kernel has none"));
    }
    let mut serving = Vec::new();
    for cpu in cpus.iter() {
        match host.number::<u64>(&values::fair_server(cpu)) {
            Ok(0) => (),
            Ok(_) => serving.push(cpu),
            // Of a CPU that is off line.
            Err(error) if error.is_missing() => (),
            Err(Unread::Refused { .. }) => {
                return Ok(Finding::unknown(
                    "debugfs is locked: boot without lockdown, or turn secure boot off",
                ));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(if serving.is_empty() {
        Finding::ok("off")
    } else {
        let cpus = mask::words(&serving.into_iter().collect());
        Finding::costs(format!("a timer about once a second on {cpus}, tickless or not")).prepare()
    })
}
