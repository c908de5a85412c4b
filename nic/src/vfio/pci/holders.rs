//! Which processes have a file open, as far as `/proc` lets us see: to name who uses a device.
#![forbid(unsafe_code)]

use super::sysfs::Sysfs;
use std::fmt;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its number.
    pub(crate) pid: u32,
    /// Its name.
    pub(crate) name: Option<String>,
}

impl Holder {
    /// The process of this number.
    pub(crate) fn of(sysfs: &Sysfs, pid: u32) -> Self {
        Self { pid, name: sysfs.word(&format!("/proc/{pid}/comm")) }
    }

    /// Whether it has ended, or is about to.
    pub(crate) fn is_ending(&self, sysfs: &Sysfs) -> bool {
        /// Of `include/linux/sched.h`: the process gives back what it has.
        const PF_EXITING: u64 = 4;
        let Some(stat) = sysfs.word(&format!("/proc/{}/stat", self.pid)) else { return true };
        // Behind the name, which may hold anything: state, five numbers, flags (proc_pid_stat(5)).
        let mut fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).into_iter().flatten();
        let state = fields.next();
        let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
        matches!(state, Some("Z" | "X")) || flags.is_some_and(|flags| flags & PF_EXITING != 0)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        self.name.iter().try_for_each(|name| write!(f, " ({name})"))
    }
}

/// Those that have `path` open. What another user's processes have, only root sees.
pub(crate) fn of_file(sysfs: &Sysfs, path: &str) -> Vec<Holder> {
    let pids = sysfs.names("/proc").into_iter().filter_map(|name| name.parse::<u32>().ok());
    let has = |pid: &u32| {
        let folder = format!("/proc/{pid}/fd");
        let descriptors = sysfs.names(&folder);
        descriptors.iter().any(|descriptor| {
            let target = std::fs::read_link(sysfs.path(&format!("{folder}/{descriptor}")));
            target.is_ok_and(|target| target.to_str() == Some(path))
        })
    };
    let mut pids: Vec<u32> = pids.filter(has).collect();
    pids.sort_unstable();
    pids.into_iter().map(|pid| Holder::of(sysfs, pid)).collect()
}
