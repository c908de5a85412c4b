//! Keeping the kernel away from worker CPUs.
//!
//! For now it answers one question: what has this kernel been told to keep off a CPU? The strict mode that
//! signals every kernel entry stands on it.
#![forbid(unsafe_code)]

pub mod host;

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

    /// What a worker on `cpu` will suffer from, in words; `None` where the kernel keeps away from it.
    pub fn shortcoming(&self, cpu: usize) -> Option<String> {
        match (self.isolated.contains(cpu), self.nohz_full.contains(cpu)) {
            (true, true) => None,
            (isolated, _) => Some(format!(
                "CPU {cpu} is {}: expect gaps in the loop; boot with \"isolcpus=managed_irq,domain,{cpu} nohz_full={cpu}\" to shorten them",
                if isolated {
                    "isolated but keeps its timer tick"
                } else {
                    "shared with other tasks and keeps its timer tick"
                }
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
    }
}
