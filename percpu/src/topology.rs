//! What CPUs this machine has and which of them this process may use.
//!
//! A container or a cpuset shows only a part of the machine: the affinity mask is what counts, and who finds a CPU
//! outside it wants to know which bound that is, for each has another way out: the machine, the CPU's being off line,
//! the cpuset, or only the mask that somebody gave this process.
#![forbid(unsafe_code)]

use crate::{CpuList, sys};
use std::{fs, io, thread};
use thiserror::Error;

/// The CPUs of this machine as one process sees them.
#[derive(Clone, Debug)]
pub struct Topology {
    /// CPUs the machine could have, plugged in or not.
    pub possible: CpuList,
    /// CPUs that run now.
    pub online: CpuList,
    /// CPUs that the cpuset lets this process run on, were its mask wider; `None` where that cannot be found out.
    pub cpuset: Option<CpuList>,
    /// CPUs the calling thread may run on: its affinity mask, which the cpuset bounds.
    pub allowed: CpuList,
}

/// The bound that keeps a process from a CPU, and the way out.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Unusable {
    /// The machine has none of that number.
    #[error("CPU {cpu} does not exist: this machine has {possible}")]
    Missing {
        /// The CPU asked for.
        cpu: usize,
        /// What there could be.
        possible: CpuList,
    },
    /// It is switched off.
    #[error(
        "CPU {cpu} is offline: run \"echo 1 > /sys/devices/system/cpu/cpu{cpu}/online\" or choose from {allowed}"
    )]
    Offline {
        /// The CPU asked for.
        cpu: usize,
        /// What can be used now.
        allowed: CpuList,
    },
    /// The cpuset has it, but whoever started this process gave it a narrower mask.
    #[error(
        "CPU {cpu} is outside the affinity mask this process was given ({allowed}), not outside its cpuset ({cpuset}): choose from {allowed}, or start it with \"taskset -c {cpuset}\" (by systemd: CPUAffinity=)"
    )]
    OutsideMask {
        /// The CPU asked for.
        cpu: usize,
        /// The mask.
        allowed: CpuList,
        /// What the cpuset would allow.
        cpuset: CpuList,
    },
    /// The cpuset does not have it: no mask can help.
    #[error(
        "CPU {cpu} is outside the cpuset of this process ({cpuset}): choose from {allowed}, or add it to cpuset.cpus of the cgroup in /proc/self/cpuset (by docker: --cpuset-cpus)"
    )]
    OutsideCpuset {
        /// The CPU asked for.
        cpu: usize,
        /// What the cpuset has.
        cpuset: CpuList,
        /// What can be used now.
        allowed: CpuList,
    },
    /// One of these two; a sandbox forbids to try which.
    #[error(
        "CPU {cpu} is outside this process's affinity mask or cpuset ({allowed}): choose from it, or start with \"taskset -c {cpu}\" or in a wider cpuset"
    )]
    Outside {
        /// The CPU asked for.
        cpu: usize,
        /// What can be used now.
        allowed: CpuList,
    },
}

impl Topology {
    /// Reads `/sys/devices/system/cpu` and the calling thread's affinity mask, and finds out the cpuset.
    pub fn read() -> io::Result<Self> {
        let allowed = sys::get_affinity()?;
        let online = sysfs("online");
        // Where the mask has every CPU, the cpuset cannot be narrower.
        let cpuset = if online.as_ref() == Some(&allowed) { Some(allowed.clone()) } else { probe_cpuset() };
        // Some sandboxes hide these: what we may run on is then all we know.
        let (possible, online) = (sysfs("possible"), online.unwrap_or_else(|| allowed.clone()));
        Ok(Self { possible: possible.unwrap_or_else(|| allowed.clone()), online, cpuset, allowed })
    }

    /// Why the calling process cannot use `cpu`; `None` where it can.
    pub fn why_unusable(&self, cpu: usize) -> Option<Unusable> {
        let allowed = self.allowed.clone();
        if allowed.contains(cpu) {
            return None;
        }
        Some(if !self.possible.contains(cpu) {
            Unusable::Missing { cpu, possible: self.possible.clone() }
        } else if !self.online.contains(cpu) {
            Unusable::Offline { cpu, allowed }
        } else {
            match self.cpuset.clone() {
                Some(cpuset) if cpuset.contains(cpu) => Unusable::OutsideMask { cpu, allowed, cpuset },
                Some(cpuset) => Unusable::OutsideCpuset { cpu, cpuset, allowed },
                None => Unusable::Outside { cpu, allowed },
            }
        })
    }
}

/// A list of `/sys/devices/system/cpu`.
fn sysfs(name: &str) -> Option<CpuList> {
    fs::read_to_string(format!("/sys/devices/system/cpu/{name}")).ok()?.parse().ok()
}

/// One more than the highest number that a CPU of this machine could have, as far as it is known; at least 1.
pub(crate) fn possible_count() -> usize {
    let known = sysfs("possible").unwrap_or_else(usable);
    known.iter().max().unwrap_or(0) + 1
}

/// How many CPUs this process may use; at least 1.
pub(crate) fn usable_count() -> usize {
    usable().len().max(1)
}

/// The CPUs this process may use, whichever thread asks: those of its cpuset. The mask of one thread is no measure, for it may be pinned.
fn usable() -> CpuList {
    let mine = sys::get_affinity().unwrap_or_default();
    if sysfs("online").as_ref() == Some(&mine) {
        return mine;
    }
    let others = probe_cpuset().or_else(|| masks_of_threads().ok()).unwrap_or_default();
    others.iter().chain(mine.iter()).collect()
}

/// The CPUs that at least one thread of this process can run on now: on line, and in its affinity mask.
pub(crate) fn reachable() -> io::Result<CpuList> {
    let masks = masks_of_threads()?;
    Ok(match sysfs("online") {
        Some(online) => masks.iter().filter(|cpu| online.contains(*cpu)).collect(),
        None => masks,
    })
}

fn masks_of_threads() -> io::Result<CpuList> {
    let mut cpus = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        // A thread may end while the list is read.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        if let Some(Ok(allowed)) = list.map(|list| list.trim().parse::<CpuList>()) {
            cpus.extend(allowed.iter());
        }
    }
    Ok(cpus.into_iter().collect())
}

/// Asks the kernel: a thread that wants every CPU gets those of the cpuset that are on line (`sched_setaffinity(2)`). A thread
/// made for it, so that no other's mask is touched. The files of cgroupfs would not tell: they may be hidden, or another
/// namespace's, and their effect differs between cgroup v1 and v2.
fn probe_cpuset() -> Option<CpuList> {
    let probe = || {
        sys::set_affinity(&(0..sys::CPU_SETSIZE).collect()).ok()?;
        sys::get_affinity().ok()
    };
    thread::Builder::new().name("cpuset-probe".into()).spawn(probe).ok()?.join().ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> CpuList {
        text.parse().unwrap()
    }

    #[test]
    fn this_thread_may_run_somewhere_that_is_online() {
        let topology = Topology::read().unwrap();
        assert!(!topology.allowed.is_empty());
        assert!(topology.allowed.iter().all(|cpu| topology.online.contains(cpu)));
        assert!(topology.allowed.iter().all(|cpu| topology.cpuset.as_ref().unwrap().contains(cpu)));
    }

    #[test]
    fn each_bound_has_its_own_words_and_way_out() {
        let mut topology = Topology {
            possible: list("0-4"),
            online: list("0-3"),
            cpuset: Some(list("0-2")),
            allowed: list("0-1"),
        };
        let says = |topology: &Topology, cpu: usize, words: &[&str]| {
            let text = topology.why_unusable(cpu).unwrap().to_string();
            for word in words {
                assert!(text.contains(word), "{word}: {text}");
            }
        };
        assert_eq!(topology.why_unusable(1), None);
        says(&topology, 2, &["outside the affinity mask", "(0-1)", "\"taskset -c 0-2\""]);
        says(&topology, 3, &["outside the cpuset", "(0-2)", "cpuset.cpus"]);
        says(&topology, 4, &["offline", "cpu4/online"]);
        says(&topology, 5, &["does not exist", "0-4"]);
        topology.cpuset = None;
        says(&topology, 2, &["affinity mask or cpuset"]);
    }

    #[test]
    fn a_narrower_mask_is_not_taken_for_a_cpuset() {
        let whole = Topology::read().unwrap();
        let (Some(first), Some(last)) = (whole.allowed.iter().next(), whole.allowed.iter().last()) else {
            panic!("no CPU");
        };
        if first == last {
            eprintln!("SKIPPED a_narrower_mask_is_not_taken_for_a_cpuset: needs a second CPU");
            return;
        }
        let narrow = thread::spawn(move || {
            sys::set_affinity(&CpuList::from_iter([first])).unwrap();
            Topology::read().unwrap()
        });
        let narrow = narrow.join().unwrap();
        assert_eq!(narrow.allowed, CpuList::from_iter([first]));
        assert_eq!(narrow.cpuset, whole.cpuset);
        assert!(matches!(narrow.why_unusable(last), Some(Unusable::OutsideMask { cpu, .. }) if cpu == last));
    }
}
