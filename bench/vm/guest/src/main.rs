//! Checks of what may only be tried in a guest (see `bench::vm`): CPUs go off line, cpusets shrink. To add one: a function that returns
//! `anyhow::Result<()>`, and a line in [`CHECKS`], or in [`isolation::CHECKS`] where it takes a CPU that the kernel leaves alone.
//!
//! Each check runs in a process of its own, so that one that crashes or hangs costs its own result only. What it changes it puts back:
//! the next one runs in the same guest.

mod cpuset;
mod host;
mod hotplug;
mod isolation;
mod lsm;
mod pinned;
mod rseq;
mod sys;
mod until;

use anyhow::{Context, Result, bail, ensure};
use std::env;
use std::fmt;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;
use until::until;

type Check = fn() -> Result<()>;

/// Every check by its name, in the order they run in.
const CHECKS: &[(&str, Check)] = &[
    ("cpus_are_online", hotplug::cpus_are_online),
    ("rseq_is_registered_by_static_glibc", rseq::registered_by_glibc),
    ("membarrier_rseq_wants_registration", rseq::membarrier_wants_registration),
    ("offline_cpu_is_refused", hotplug::offline_cpu_is_refused),
    ("pinned_thread_leaves_an_offline_cpu", hotplug::pinned_thread_leaves),
    ("an_unplug_is_noticed_by_thread_and_watch", hotplug::an_unplug_is_noticed),
    ("cpu_outside_the_cpuset_is_refused", cpuset::cpu_outside_is_refused),
    ("pinned_thread_leaves_a_shrinking_cpuset", cpuset::pinned_thread_leaves_and_returns),
    ("items_on_an_offline_cpu_are_drained", hotplug::stranded_items_are_drained),
    ("items_on_a_cpu_outside_the_cpuset_are_drained", cpuset::stranded_items_are_drained),
    ("a_cpuset_of_one_cpu_takes_the_memory_of_one", cpuset::memory_is_that_of_one_cpu),
    ("bpf_lsm_is_active", lsm::bpf_is_active),
    ("deadline_servers_are_counted_after_check_and_restore", host::deadline_servers_are_counted),
    ("prepare_then_restore_leaves_every_setting_as_it_was", host::prepare_then_restore),
    ("a_partition_in_use_is_left_by_restore", host::partition_in_use_is_left),
];

/// How long a check may take.
const LIMIT: Duration = Duration::from_secs(20);

const USAGE: &str = "usage: guest [--list] [--isolated] [CHECK...] | guest --quieten: lists or runs the checks named, or all of a group";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let mut words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--here", name] => {
            println!("RESULT {name} {}", here(name)?);
            return Ok(());
        }
        ["--helper", ref helper @ ..] => return isolation::help(helper),
        ["--quieten"] => {
            only_in_a_guest()?;
            return isolation::quieten();
        }
        _ => {}
    }
    let mut option = |name: &str| {
        let before = words.len();
        words.retain(|word| *word != name);
        words.len() < before
    };
    let (list, isolated) = (option("--list"), option("--isolated"));
    if words.iter().any(|word| word.starts_with('-')) {
        bail!(USAGE);
    }
    if words.is_empty() {
        let group = if isolated { isolation::CHECKS } else { CHECKS };
        words = group.iter().map(|(name, _)| *name).collect();
    }
    if list {
        words.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    only_in_a_guest()?;
    for name in words {
        find(name)?;
        in_a_process(name)?;
    }
    Ok(())
}

/// What a check returns to say that the guest lacks what it needs.
#[derive(Debug)]
pub(crate) struct Lacks(pub(crate) String);

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lacks {}

/// The checks would take CPUs from whoever else uses the machine.
fn only_in_a_guest() -> Result<()> {
    let command_line = fs::read_to_string("/proc/cmdline").context("cannot read /proc/cmdline")?;
    let ours = command_line.split_whitespace().any(|word| word == "isoplane.guest=1");
    ensure!(ours, "this is no guest: run \"cargo test -p bench --test vm\", which boots one");
    Ok(())
}

fn find(name: &str) -> Result<Check> {
    let found = CHECKS
        .iter()
        .chain(isolation::CHECKS)
        .chain(isolation::WITH_OSNOISE)
        .find(|(known, _)| *known == name);
    Ok(found.with_context(|| format!("no check \"{name}\": \"guest --list\" names them"))?.1)
}

/// Runs a check in this process: what it found, as `bench::vm::Outcome` reads it.
fn here(name: &str) -> Result<String> {
    only_in_a_guest()?;
    Ok(match find(name)?() {
        Ok(()) => "ok".to_owned(),
        Err(error) => {
            let verdict = if error.is::<Lacks>() { "skipped" } else { "failed" };
            // The result is one line.
            format!("{verdict}: {}", format!("{error:#}").replace('\n', "; "))
        }
    })
}

/// Runs a check in a child, and speaks for one that could not.
fn in_a_process(name: &str) -> Result<()> {
    let mut child = Command::new("/proc/self/exe")
        .args(["--here", name])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start another process")?;
    let mut ended = None;
    until(LIMIT, || {
        ended = child.try_wait()?;
        Ok(ended.is_some())
    })?;
    let why = match ended {
        Some(status) if status.success() => return Ok(()),
        Some(status) => format!("ended by {status}; what it said is on the console"),
        None => {
            child.kill()?;
            child.wait()?;
            format!("not done after {LIMIT:?}")
        }
    };
    println!("RESULT {name} failed: {why}");
    Ok(())
}
