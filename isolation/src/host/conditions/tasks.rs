//! Who else is on a worker's CPU, and whether a worker may be there.
#![forbid(unsafe_code)]

use super::super::{Finding, Host, Unread, mask};
use super::boot::{isolated_cpus, partitioned_cpus};
use percpu::CpuList;
use percpu::topology::Unusable;

/// `PF_KTHREAD` of include/linux/sched.h, in the flags of `/proc/PID/stat`.
const PF_KTHREAD: u64 = 0x0020_0000;
/// How many are named.
const NAMED: usize = 3;

/// Whether `/proc` shows all the machine's processes, and not only a container's: the kernel's own are there.
pub(super) fn whole_machine(host: &Host) -> bool {
    host.word("/proc/2/comm").is_ok_and(|name| name == "kthreadd")
}

pub(super) fn usable(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let topology = host.topology()?;
    let why: Vec<Unusable> = cpus.iter().filter_map(|cpu| topology.why_unusable(cpu)).collect();
    Ok(match why.first() {
        None => Finding::ok(format!("on line, and this process may run on {}", mask::words(cpus))),
        Some(Unusable::OutsideCpuset { cpu, .. })
            if partitioned_cpus(host).is_ok_and(|cpus| cpus.contains(*cpu)) =>
        {
            let finding = Finding::costs(format!(
                "the worker: CPU {cpu} is in an isolated partition, and this process outside of it"
            ));
            match host.mounted("cgroup2")?.map(|root| format!("{root}/isoplane/cgroup.procs")) {
                Some(processes) if host.has(&processes) => finding.command(format!("echo $$ > {processes}")),
                _ => finding,
            }
        }
        Some(why) => {
            let text = why.to_string();
            // The words of the error end with the way out.
            let (problem, way_out) = text.split_once(": ").unwrap_or((&text, ""));
            let finding = Finding::costs(format!("the worker: {problem}"));
            match why {
                Unusable::OutsideMask { cpuset, .. } => {
                    finding.command(format!("taskset -c {cpuset} PROGRAM"))
                }
                Unusable::Outside { cpu, .. } => finding.command(format!("taskset -c {cpu} PROGRAM")),
                Unusable::Offline { cpu, .. } => {
                    finding.command(format!("echo 1 > /sys/devices/system/cpu/cpu{cpu}/online"))
                }
                Unusable::OutsideCpuset { .. } | Unusable::Missing { .. } => finding.command(way_out),
            }
        }
    })
}

/// A thread of a program.
struct Task {
    number: u64,
    name: String,
    last_cpu: usize,
    allowed: CpuList,
}

impl Task {
    /// `None` for the kernel's own threads, for one that has ended, and for one that tells nothing.
    fn read(host: &Host, process: u64, number: u64) -> Option<Self> {
        let folder = format!("/proc/{process}/task/{number}");
        let stat = host.text(&format!("{folder}/stat")).ok()?;
        // The name is in parentheses, and may hold any character, parentheses too.
        let (before, after) = stat.rsplit_once(')')?;
        let name = before.split_once('(')?.1.to_owned();
        // From the third field on, by proc_pid_stat(5): flags is the 9th, processor the 39th.
        let fields: Vec<&str> = after.split_whitespace().collect();
        let flags: u64 = fields.get(6)?.parse().ok()?;
        let last_cpu = fields.get(36)?.parse().ok()?;
        if flags & PF_KTHREAD != 0 {
            return None;
        }
        let status = host.text(&format!("{folder}/status")).ok()?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        Some(Self { number, name, last_cpu, allowed: allowed.trim().parse().ok()? })
    }
}

pub(super) fn others(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let own: Option<u64> = host.own_status("Pid").ok().and_then(|pid| pid.parse().ok());
    let (mut bound, mut there, mut seen) = (Vec::new(), 0, 0);
    for process in host.numbers("/proc")?.into_iter().filter(|process| Some(*process) != own) {
        for number in host.numbers(&format!("/proc/{process}/task")).unwrap_or_default() {
            let Some(task) = Task::read(host, process, number) else { continue };
            seen += 1;
            let only_here = !task.allowed.is_empty() && task.allowed.iter().all(|cpu| cpus.contains(cpu));
            if only_here {
                bound.push(task);
            } else if cpus.contains(task.last_cpu) {
                there += 1;
            }
        }
    }
    let here = mask::words(cpus);
    if let Some(first) = bound.first() {
        let names: Vec<String> =
            bound.iter().take(NAMED).map(|task| format!("{} {}", task.number, task.name)).collect();
        let more = if bound.len() > NAMED { ", ..." } else { "" };
        let words =
            format!("time slices: {} bound to {here} alone ({}{more})", count(bound.len()), names.join(", "));
        let rest = mask::without(&host.topology()?.online, cpus);
        return Ok(Finding::costs(words).command(format!("taskset -cp {rest} {}", first.number)));
    }
    if !whole_machine(host) {
        return Ok(Finding::unknown("this process sees only the processes of its container"));
    }
    if there == 0 || mask::without(cpus, &isolated_cpus(host)?).is_empty() {
        return Ok(Finding::ok(format!("of {seen} threads none is bound to {here}")));
    }
    // What keeps the scheduler from moving them here is another condition, and told there.
    Ok(Finding::costs(format!("time slices: {} of {seen} last ran on {here}; see isolated", count(there))))
}

fn count(threads: usize) -> String {
    format!("{threads} thread{}", if threads == 1 { "" } else { "s" })
}
