//! What CPUs this machine has and which of them this process may use.
//!
//! A container or a cpuset shows only a part of the machine: the affinity mask is what counts,
//! and sysfs says why a CPU outside it is outside.
#![forbid(unsafe_code)]

use crate::{CpuList, sys};
use std::{fs, io};

/// The CPUs of this machine as one process sees them.
#[derive(Clone, Debug)]
pub struct Topology {
    /// CPUs the machine could have, plugged in or not.
    pub possible: CpuList,
    /// CPUs that run now.
    pub online: CpuList,
    /// CPUs the calling thread may run on: its affinity mask, which the cpuset bounds.
    pub allowed: CpuList,
}

impl Topology {
    /// Reads `/sys/devices/system/cpu` and the calling thread's affinity mask.
    pub fn read() -> io::Result<Self> {
        let allowed = sys::get_affinity()?;
        // Some sandboxes hide sysfs: what we may run on is then all we know.
        let list = |name: &str| match fs::read_to_string(format!("/sys/devices/system/cpu/{name}")) {
            Ok(text) => text.parse().unwrap_or_else(|_| allowed.clone()),
            Err(_) => allowed.clone(),
        };
        Ok(Self { possible: list("possible"), online: list("online"), allowed: allowed.clone() })
    }

    /// Why the calling process cannot use `cpu`, in words; `None` where it can.
    pub fn why_unusable(&self, cpu: usize) -> Option<String> {
        if self.allowed.contains(cpu) {
            return None;
        }
        Some(if !self.possible.contains(cpu) {
            format!("CPU {cpu} does not exist: this machine has {}", self.possible)
        } else if !self.online.contains(cpu) {
            format!(
                "CPU {cpu} is offline: run \"echo 1 > /sys/devices/system/cpu/cpu{cpu}/online\" or choose from {}",
                self.allowed
            )
        } else {
            format!(
                "CPU {cpu} is outside this process's affinity mask or cpuset ({}): choose from it, or start with \"taskset -c {cpu}\" or in a wider cpuset",
                self.allowed
            )
        })
    }
}

/// The CPUs that at least one thread of this process can run on now: on line, and in its affinity mask.
pub(crate) fn reachable() -> io::Result<CpuList> {
    let mut cpus = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        // A thread may end while the list is read.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        if let Some(Ok(allowed)) = list.map(|list| list.trim().parse::<CpuList>()) {
            cpus.extend(allowed.iter());
        }
    }
    let online = Topology::read()?.online;
    Ok(cpus.into_iter().filter(|cpu| online.contains(*cpu)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_may_run_somewhere_that_is_online() {
        let topology = Topology::read().unwrap();
        assert!(!topology.allowed.is_empty());
        assert!(topology.allowed.iter().all(|cpu| topology.online.contains(cpu)));
    }

    #[test]
    fn each_kind_of_unusable_cpu_has_its_own_words() {
        let list = |text: &str| text.parse().unwrap();
        let topology = Topology { possible: list("0-3"), online: list("0-2"), allowed: list("0-1") };
        assert_eq!(topology.why_unusable(1), None);
        assert!(topology.why_unusable(2).unwrap().contains("affinity mask"));
        assert!(topology.why_unusable(3).unwrap().contains("offline"));
        assert!(topology.why_unusable(4).unwrap().contains("does not exist"));
    }
}
