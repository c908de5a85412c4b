//! A machine for tests: four CPUs, of which nothing disturbs 2 and 3.
#![forbid(unsafe_code)]

use super::super::Host;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub(super) const QUIET: &[(&str, &str)] = &[
    ("/proc/cmdline", "quiet nohz_full=2-3 rcu_nocbs=2-3 isolcpus=managed_irq,domain,2-3\n"),
    (
        "/proc/cpuinfo",
        "processor\t: 0\nphysical id\t: 0\nflags\t\t: fpu constant_tsc nonstop_tsc tsc_adjust\n",
    ),
    ("/proc/2/comm", "kthreadd\n"),
    ("/proc/50/comm", "sshd\n"),
    (
        "/proc/50/task/50/stat",
        "50 (a) b (c) S 1 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 1 1 1 18446744073709551615 1 1 1 1 1 0 0 0 0 0 0 0 17 1 0 0 0 0 0\n",
    ),
    ("/proc/50/task/50/status", "Name:\tsshd\nCpus_allowed:\t3\nCpus_allowed_list:\t0-1\n"),
    (
        "/proc/self/status",
        "Name:\tisoplane\nPid:\t100\nUid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\nCpus_allowed_list:\t0-3\n",
    ),
    (
        "/proc/self/limits",
        "Limit  Soft Limit  Hard Limit  Units\nMax locked memory  8388608  8388608  bytes\n",
    ),
    ("/proc/self/mounts", "sysfs /sys sysfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"),
    ("/proc/irq/24/smp_affinity", "3\n"),
    ("/proc/irq/24/smp_affinity_list", "0-1\n"),
    ("/proc/irq/24/effective_affinity_list", "0\n"),
    ("/proc/irq/25/smp_affinity", "3\n"),
    ("/proc/irq/25/smp_affinity_list", "0-1\n"),
    ("/proc/irq/25/effective_affinity_list", "1\n"),
    ("/proc/irq/default_smp_affinity", "3\n"),
    ("/proc/sys/kernel/osrelease", "6.12.1\n"),
    ("/proc/sys/kernel/random/boot_id", "6b5d\n"),
    ("/proc/sys/kernel/timer_migration", "1\n"),
    ("/proc/sys/kernel/watchdog", "1\n"),
    ("/proc/sys/kernel/watchdog_cpumask", "0-1\n"),
    ("/proc/sys/kernel/nmi_watchdog", "0\n"),
    ("/proc/sys/kernel/numa_balancing", "0\n"),
    ("/proc/sys/kernel/sched_rt_runtime_us", "-1\n"),
    ("/proc/sys/kernel/sched_rt_period_us", "1000000\n"),
    ("/proc/sys/kernel/perf_event_paranoid", "2\n"),
    ("/proc/sys/vm/stat_interval", "120\n"),
    ("/proc/sys/vm/compact_unevictable_allowed", "0\n"),
    ("/sys/devices/system/cpu/possible", "0-3\n"),
    ("/sys/devices/system/cpu/online", "0-3\n"),
    ("/sys/devices/system/cpu/isolated", "2-3\n"),
    ("/sys/devices/system/cpu/nohz_full", "2-3\n"),
    ("/sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "2\n"),
    ("/sys/devices/system/cpu/cpu3/topology/thread_siblings_list", "3\n"),
    ("/sys/devices/system/cpu/cpu2/power/pm_qos_resume_latency_us", "n/a\n"),
    ("/sys/devices/system/cpu/cpu3/power/pm_qos_resume_latency_us", "1\n"),
    ("/sys/devices/system/cpu/cpu2/cpuidle/state1/latency", "170\n"),
    ("/sys/devices/system/cpu/cpu2/cpuidle/state1/name", "C6\n"),
    ("/sys/devices/system/cpu/cpu3/cpuidle/state1/latency", "170\n"),
    ("/sys/devices/system/cpu/cpu3/cpuidle/state1/name", "C6\n"),
    ("/sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "performance\n"),
    ("/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
    ("/sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet \n"),
    ("/sys/devices/system/machinecheck/machinecheck2/check_interval", "0\n"),
    ("/sys/devices/virtual/workqueue/cpumask", "3\n"),
    ("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu\n"),
    ("/sys/fs/cgroup/cpuset.cpus.isolated", "\n"),
    ("/sys/kernel/btf/vmlinux", ""),
    ("/sys/kernel/debug/sched/fair_server/cpu2/runtime", "0\n"),
    ("/sys/kernel/debug/sched/fair_server/cpu3/runtime", "0\n"),
    ("/sys/kernel/mm/ksm/run", "0\n"),
    ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    ("/sys/kernel/security/lockdown", "[none] integrity confidentiality\n"),
    ("/sys/kernel/tracing/events/header_page", "\n"),
];

/// In memory where that can be: a test makes thousands of files.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A machine in a folder of its own.
pub(super) struct Machine(TempDir);

impl Machine {
    pub(super) fn quiet() -> Self {
        let machine = Self::empty();
        for (path, text) in QUIET {
            machine.set(path, text);
        }
        machine.set_bytes("/sys/kernel/btf/vmlinux", &[0x9f, 0xeb, 1, 0]);
        machine
    }

    pub(super) fn empty() -> Self {
        Self(folder())
    }

    pub(super) fn host(&self) -> Host {
        Host::at(self.0.path())
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    pub(super) fn set(&self, path: &str, text: &str) {
        self.set_bytes(path, text.as_bytes());
    }

    pub(super) fn set_bytes(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(super) fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).unwrap();
    }

    pub(super) fn read_only(&self, path: &str) {
        fs::set_permissions(self.path(path), Permissions::from_mode(0o444)).unwrap();
    }

    /// Every file with its bytes.
    pub(super) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn collect(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    collect(&path, files);
                } else {
                    files.insert(path.clone(), fs::read(path).unwrap());
                }
            }
        }
        let mut files = BTreeMap::new();
        collect(self.0.path(), &mut files);
        files
    }
}
