//! What the kernel is told when it boots: which CPUs are left alone by its tick, its RCU callbacks and its load balancer.
#![forbid(unsafe_code)]

use super::super::finding::BootWord;
use super::super::tree::garbled;
use super::super::{Finding, Host, Mend, Unread, mask};
use percpu::CpuList;

const NOHZ_FULL: &str = "/sys/devices/system/cpu/nohz_full";
const ISOLATED: &str = "/sys/devices/system/cpu/isolated";

/// The CPUs whose tick stops; `None` where the kernel cannot do it.
pub(crate) fn tickless(host: &Host) -> Result<Option<CpuList>, Unread> {
    match host.list(NOHZ_FULL) {
        // The folder is there, and this file only where the kernel has what it is about.
        Err(error) if error.is_missing() && host.has("/sys/devices/system/cpu/online") => Ok(None),
        other => other.map(Some),
    }
}

pub(super) fn nohz_full(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let tick = "the timer tick: 100 to 1000 interrupts a second, several µs each";
    let Some(tickless) = tickless(host)? else {
        let kernel = Mend::Command("a kernel with CONFIG_NO_HZ_FULL=y".into());
        return Ok(Finding::costs(format!("{tick}; this kernel cannot stop it"))
            .mend(kernel)
            .boot(BootWord::NohzFull));
    };
    let ticking = mask::without(cpus, &tickless);
    Ok(if ticking.is_empty() {
        Finding::ok(format!("the tick stops on {}", mask::words(cpus)))
    } else {
        Finding::costs(format!("{tick} on {}", mask::words(&ticking))).boot(BootWord::NohzFull)
    })
}

pub(super) fn rcu_nocbs(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let offloaded = match offloaded(host)? {
        Offloaded::All => return Ok(Finding::ok("every CPU's callbacks run elsewhere")),
        // A tickless CPU's callbacks are always offloaded.
        Offloaded::Some(cpus) => mask::either(&cpus, &tickless(host)?.unwrap_or_default()),
    };
    let left = mask::without(cpus, &offloaded);
    Ok(if left.is_empty() {
        Finding::ok("callbacks run elsewhere")
    } else {
        let words = format!("softirqs for RCU callbacks on {}", mask::words(&left));
        Finding::costs(words).boot(BootWord::RcuNocbs)
    })
}

/// What `rcu_nocbs=` says.
enum Offloaded {
    All,
    Some(CpuList),
}

fn offloaded(host: &Host) -> Result<Offloaded, Unread> {
    let mut cpus = CpuList::default();
    for word in host.command_line()? {
        match word.strip_prefix("rcu_nocbs=") {
            Some("all") => return Ok(Offloaded::All),
            Some(list) => cpus = list.parse().map_err(|_| garbled("/proc/cmdline", &word))?,
            // The word alone leaves the choice to a later moment.
            None => (),
        }
    }
    Ok(Offloaded::Some(cpus))
}

/// Whether `isolcpus=` keeps managed interrupts away.
pub(crate) fn isolates_managed_irqs(host: &Host) -> Result<bool, Unread> {
    let words = host.command_line()?;
    let mut flags =
        words.iter().filter_map(|word| word.strip_prefix("isolcpus=")).flat_map(|list| list.split(','));
    Ok(flags.any(|flag| flag == "managed_irq"))
}

/// What this kernel was told when it booted, which the next boot is not to lose.
#[derive(Clone, Debug, Default)]
pub(crate) struct Booted {
    pub(crate) isolated: CpuList,
    pub(crate) managed_irq: bool,
    pub(crate) tickless: CpuList,
    pub(crate) offloaded: CpuList,
}

impl Booted {
    /// What cannot be read is taken for nothing: the condition that it belongs to says so.
    pub(crate) fn read(host: &Host) -> Self {
        Self {
            isolated: host.list(ISOLATED).unwrap_or_default(),
            managed_irq: isolates_managed_irqs(host).unwrap_or(false),
            tickless: tickless(host).ok().flatten().unwrap_or_default(),
            offloaded: match offloaded(host) {
                Ok(Offloaded::Some(cpus)) => cpus,
                _ => CpuList::default(),
            },
        }
    }
}

/// The CPUs that the scheduler balances no load to: by the command line, or by an isolated cpuset.
pub(crate) fn isolated_cpus(host: &Host) -> Result<CpuList, Unread> {
    Ok(mask::either(&host.list(ISOLATED)?, &partitioned_cpus(host)?))
}

/// Those of isolated cpusets alone.
pub(crate) fn partitioned_cpus(host: &Host) -> Result<CpuList, Unread> {
    let Some(root) = host.mounted("cgroup2")? else { return Ok(CpuList::default()) };
    match host.list(&format!("{root}/cpuset.cpus.isolated")) {
        // Before Linux 6.7, in a container, or where cgroup v1 has the controller.
        Err(error) if error.is_missing() => Ok(CpuList::default()),
        other => other,
    }
}

pub(super) fn isolated(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let open = mask::without(cpus, &isolated_cpus(host)?);
    if open.is_empty() {
        return Ok(Finding::ok("the scheduler moves no task there by itself"));
    }
    let words =
        format!("time slices: the scheduler may move any task to {}, for milliseconds", mask::words(&open));
    Ok(Finding::costs(words).boot(BootWord::IsolateDomain))
}
