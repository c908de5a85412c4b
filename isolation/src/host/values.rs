//! Where the values are that both a check reads and `prepare` changes, and what is wanted of them.
#![forbid(unsafe_code)]

use percpu::CpuList;

pub(crate) const DEFAULT_IRQ_AFFINITY: &str = "/proc/irq/default_smp_affinity";
pub(crate) const WORKQUEUE: &str = "/sys/devices/virtual/workqueue/cpumask";
/// What was asked for; the kernel takes isolated partitions off it where it has any.
pub(crate) const WORKQUEUE_REQUESTED: &str = "/sys/devices/virtual/workqueue/cpumask_requested";
pub(crate) const STAT_INTERVAL: &str = "/proc/sys/vm/stat_interval";
pub(crate) const WATCHDOG_CPUS: &str = "/proc/sys/kernel/watchdog_cpumask";
pub(crate) const COMPACT_UNEVICTABLE: &str = "/proc/sys/vm/compact_unevictable_allowed";
pub(crate) const TIMER_MIGRATION: &str = "/proc/sys/kernel/timer_migration";
pub(crate) const NUMA_BALANCING: &str = "/proc/sys/kernel/numa_balancing";
pub(crate) const RT_RUNTIME: &str = "/proc/sys/kernel/sched_rt_runtime_us";
pub(crate) const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
pub(crate) const KSM: &str = "/sys/kernel/mm/ksm/run";

/// The kernel folds its memory statistics so often at most: rare enough for a worker, often enough for who reads them.
pub(crate) const STAT_INTERVAL_S: u32 = 120;

/// Nanoseconds in each period that the deadline server of this CPU may take.
pub(crate) fn fair_server(cpu: usize) -> String {
    format!("/sys/kernel/debug/sched/fair_server/cpu{cpu}/runtime")
}

/// How long this CPU may take to wake, in microseconds: 0 for any time, `n/a` for none.
pub(crate) fn resume_latency(cpu: usize) -> String {
    format!("/sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us")
}

/// What `timer_migration` should be. A tickless CPU gives away the timers that it arms (`get_nohz_timer_target`), which wants
/// 1; a CPU that polls and is not tickless looks busy, and would get those of idle ones, which wants 0.
pub(crate) fn timer_migration(tickless: Option<&CpuList>, cpus: &CpuList) -> u8 {
    u8::from(tickless.is_some_and(|tickless| cpus.iter().all(|cpu| tickless.contains(cpu))))
}
