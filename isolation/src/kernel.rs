//! What this kernel has been told to keep off which CPUs.
#![forbid(unsafe_code)]

use percpu::CpuList;
use std::fs;

/// What the kernel's command line and cpusets keep off which CPUs.
#[derive(Clone, Debug, Default)]
pub struct KernelIsolation {
    /// CPUs out of the scheduler's load balancing (`isolcpus=` or an isolated cpuset partition).
    pub isolated: CpuList,
    /// CPUs whose timer tick stops when one task runs (`nohz_full=`).
    pub nohz_full: CpuList,
}

impl KernelIsolation {
    /// Reads `/sys/devices/system/cpu/{isolated,nohz_full}`; a file that is missing or says `(null)`
    /// means that the kernel offers none.
    pub fn read() -> Self {
        let list = |name: &str| {
            fs::read_to_string(format!("/sys/devices/system/cpu/{name}"))
                .ok()
                .and_then(|text| text.parse().ok())
                .unwrap_or_default()
        };
        Self { isolated: list("isolated"), nohz_full: list("nohz_full") }
    }

    /// What to boot with, so that the kernel keeps away from these CPUs.
    pub fn boot_words(cpus: impl std::fmt::Display) -> String {
        format!("nohz_full={cpus} rcu_nocbs={cpus} isolcpus=managed_irq,domain,{cpus}")
    }

    /// What a worker on `cpu` will suffer from, in words; `None` where the kernel keeps away from it.
    pub fn shortcoming(&self, cpu: usize) -> Option<String> {
        match (self.isolated.contains(cpu), self.nohz_full.contains(cpu)) {
            (true, true) => None,
            (isolated, tickless) => Some(format!(
                "CPU {cpu} is {}: expect gaps in the loop; boot with \"{}\" to shorten them",
                match (isolated, tickless) {
                    (true, _) => "isolated but keeps its timer tick",
                    (false, true) => "tickless but shared with other tasks",
                    (false, false) => "shared with other tasks and keeps its timer tick",
                },
                Self::boot_words(cpu)
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_quiet_only_with_both() {
        let list = |text: &str| text.parse().unwrap();
        let kernel = KernelIsolation { isolated: list("1-2"), nohz_full: list("2") };
        assert!(kernel.shortcoming(0).unwrap().contains("shared with other tasks"));
        assert!(kernel.shortcoming(1).unwrap().contains("isolated but"));
        assert_eq!(kernel.shortcoming(2), None);
        let shared = KernelIsolation { nohz_full: list("0"), ..kernel };
        assert!(shared.shortcoming(0).unwrap().contains("tickless but shared"));
    }
}
