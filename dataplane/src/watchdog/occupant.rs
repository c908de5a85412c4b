//! Who has a CPU that a worker waits for: the tasks of the machine that want it, by `/proc`.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::thread;
use std::time::Duration;

/// Where several want the CPU, the one that gets it is who runs meanwhile: some ticks.
const WATCHED: Duration = Duration::from_millis(20);

/// A task that can run on a CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Occupant {
    name: String,
    pid: i32,
    tid: i32,
    cpu: usize,
    /// 1 to 99 for real-time policies.
    priority: u32,
    /// `SCHED_...`, by its number.
    policy: u32,
}

impl Occupant {
    /// From `/proc/PID/task/TID/stat`; `None` where it does not want to run.
    fn parse(pid: i32, stat: &str) -> Option<Self> {
        let (tid, rest) = stat.split_once(" (")?;
        // The name may hold anything, parentheses and spaces too.
        let (name, fields) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // The first of these is field 3 of proc_pid_stat(5): 39 is the processor, 40 the priority, 41 the policy.
        let field = |number: usize| fields.get(number - 3);
        if *field(3)? != "R" {
            return None;
        }
        Some(Self {
            name: name.to_owned(),
            pid,
            tid: tid.parse().ok()?,
            cpu: field(39)?.parse().ok()?,
            priority: field(40)?.parse().ok()?,
            policy: field(41)?.parse().ok()?,
        })
    }

    /// The kernel prefers deadlines, then real-time priorities.
    fn rank(&self) -> u32 {
        if self.policy == libc::SCHED_DEADLINE as u32 { 100 } else { self.priority }
    }

    /// Nanoseconds it has run.
    fn ran(&self) -> u64 {
        let path = format!("/proc/{}/task/{}/schedstat", self.pid, self.tid);
        let first = fs::read_to_string(path).ok().and_then(|text| text.split(' ').next()?.parse().ok());
        first.unwrap_or(0)
    }
}

impl fmt::Display for Occupant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A name is the task's own choice: nothing in it may break a line of the log.
        write!(formatter, "{} (process {}, ", self.name.escape_debug(), self.pid)?;
        match self.policy as i32 {
            libc::SCHED_FIFO => write!(formatter, "SCHED_FIFO priority {})", self.priority),
            libc::SCHED_RR => write!(formatter, "SCHED_RR priority {})", self.priority),
            libc::SCHED_DEADLINE => formatter.write_str("SCHED_DEADLINE)"),
            _ => formatter.write_str("no real-time priority)"),
        }
    }
}

/// Who runs on this CPU, other than that thread; `None` where no task is to be seen, as from within a container.
pub(super) fn occupant(cpu: usize, except: i32) -> Option<Occupant> {
    let mut found: Vec<Occupant> = tasks().filter(|task| task.cpu == cpu && task.tid != except).collect();
    let highest = found.iter().map(Occupant::rank).max()?;
    found.retain(|task| task.rank() == highest);
    if found.len() > 1 {
        let before: Vec<u64> = found.iter().map(Occupant::ran).collect();
        thread::sleep(WATCHED);
        let ran = found.iter().zip(before).map(|(task, before)| task.ran().saturating_sub(before));
        let (index, _) = ran.enumerate().max_by_key(|(_, ran)| *ran)?;
        return Some(found.swap_remove(index));
    }
    found.pop()
}

/// All tasks that want to run. One that ends meanwhile is left out.
fn tasks() -> impl Iterator<Item = Occupant> {
    let numbers = |path: String| {
        let entries = fs::read_dir(path).into_iter().flatten().map_while(Result::ok);
        entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
    };
    numbers("/proc".into()).flat_map(move |pid| {
        numbers(format!("/proc/{pid}/task")).filter_map(move |tid| {
            // Not all names are UTF-8.
            let stat = fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
            Occupant::parse(pid, &String::from_utf8_lossy(&stat))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_read_whatever_its_name() {
        let zeros = |count: usize| vec!["0"; count].join(" ");
        let line = |state: &str| format!("12 (a) R b) {state} {} 3 40 1 0 0\n", zeros(35));
        let occupant = Occupant::parse(11, &line("R")).unwrap();
        assert_eq!((occupant.name.as_str(), occupant.pid, occupant.tid), ("a) R b", 11, 12));
        assert_eq!((occupant.cpu, occupant.priority, occupant.policy), (3, 40, 1));
        assert_eq!(occupant.to_string(), "a) R b (process 11, SCHED_FIFO priority 40)");
        assert_eq!(Occupant::parse(11, &line("S")), None);
        for wrong in ["", "1 (", "1 (a) R", "x (a) R 1 2"] {
            assert_eq!(Occupant::parse(1, wrong), None);
        }
    }

    #[test]
    fn this_thread_is_seen_to_run() {
        let tid = nix::unistd::gettid().as_raw();
        let found = tasks().find(|task| task.tid == tid).unwrap();
        assert_eq!(found.pid, std::process::id() as i32);
    }
}
