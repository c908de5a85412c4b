//! What can disturb a worker, one small check for each. To add one: a function in the file of its kind, a line in [`CONDITIONS`],
//! and a line in `docs/isolation-host.md`, which a test holds to this table.
//!
//! A check reads the host, and changes nothing. What it cannot read it does not guess: it ends with [`Unread`], which is shown as
//! "cannot be known".
#![forbid(unsafe_code)]

mod boot;
mod clocks;
mod interrupts;
mod memory;
mod power;
mod scheduler;
mod tasks;
mod watching;

pub(crate) use boot::{Booted, isolated_cpus, partitioned_cpus, tickless};

use super::{Finding, Host, Unread};
use percpu::CpuList;

/// One thing that can disturb a worker.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    /// What kind it is, for a reader.
    pub kind: &'static str,
    /// Its name, which scripts may go by.
    pub name: &'static str,
    find: Find,
}

impl Condition {
    /// Looks at one host, for workers on these CPUs.
    pub fn check(&self, host: &Host, cpus: &CpuList) -> Finding {
        (self.find)(host, cpus).unwrap_or_else(Finding::from)
    }
}

type Find = fn(&Host, &CpuList) -> Result<Finding, Unread>;

const fn condition(kind: &'static str, name: &'static str, find: Find) -> Condition {
    Condition { kind, name, find }
}

/// Every condition, in the order in which they are shown.
pub const CONDITIONS: &[Condition] = &[
    condition("the CPU", "usable", tasks::usable),
    condition("the CPU", "smt_sibling", power::smt_sibling),
    condition("the CPU", "isolated", boot::isolated),
    condition("the CPU", "tasks", tasks::others),
    condition("timers", "nohz_full", boot::nohz_full),
    condition("timers", "rcu_nocbs", boot::rcu_nocbs),
    condition("timers", "timer_migration", clocks::timer_migration),
    condition("timers", "clocksource", clocks::clocksource),
    condition("timers", "clocksource_watchdog", clocks::watchdog),
    condition("timers", "stat_interval", memory::stat_interval),
    condition("timers", "softlockup_watchdog", clocks::softlockup),
    condition("timers", "nmi_watchdog", clocks::nmi_watchdog),
    condition("timers", "machine_check", clocks::machine_check),
    condition("interrupts", "irq", interrupts::affinity),
    condition("interrupts", "managed_irq", interrupts::managed),
    condition("interrupts", "default_irq_affinity", interrupts::default_affinity),
    condition("interrupts", "irqbalance", interrupts::irqbalance),
    condition("scheduler", "workqueues", scheduler::workqueues),
    condition("scheduler", "rt_throttling", scheduler::rt_throttling),
    condition("scheduler", "fair_server", scheduler::fair_server),
    condition("memory", "transparent_hugepages", memory::transparent_hugepages),
    condition("memory", "khugepaged", memory::khugepaged),
    condition("memory", "ksm", memory::ksm),
    condition("memory", "numa_balancing", memory::numa_balancing),
    condition("memory", "compaction", memory::compaction),
    condition("memory", "memory_lock", memory::lock),
    condition("power", "cpuidle", power::cpuidle),
    condition("power", "frequency", power::frequency),
    condition("watching", "lockdown", watching::lockdown),
    condition("watching", "perf_events", watching::perf_events),
    condition("watching", "tracefs", watching::tracefs),
    condition("watching", "btf", watching::btf),
];
