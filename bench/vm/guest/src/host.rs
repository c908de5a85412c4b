//! Preparing a host and putting it back, with what the machine that this project is built on lacks: a deadline server in an open
//! debugfs, a cpuset controller in cgroup v2, and settings that nobody else uses.
#![forbid(unsafe_code)]

use crate::until::until;
use anyhow::{Context, Result, ensure};
use isolation::host::{self, Host, Options, StateFile, Undone, Verdict};
use percpu::CpuList;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

/// The CPU that is prepared.
const CPU: usize = 1;
const DEBUGFS: &str = "/sys/kernel/debug";
const OTHER_STATE: &str = "/tmp/prepared.json";
const CGROUP: &str = "/sys/fs/cgroup/isoplane";

/// What is compared. Prepare may change the first ones; the kernel changes the last ones with them.
const SETTINGS: &[&str] = &[
    "/proc/irq/default_smp_affinity",
    "/sys/devices/virtual/workqueue/cpumask",
    "/sys/devices/virtual/workqueue/cpumask_requested",
    "/sys/devices/system/cpu/cpu1/power/pm_qos_resume_latency_us",
    "/sys/kernel/debug/sched/fair_server/cpu0/runtime",
    "/sys/kernel/debug/sched/fair_server/cpu1/runtime",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/mm/ksm/run",
    "/proc/sys/kernel/timer_migration",
    "/proc/sys/kernel/watchdog_cpumask",
    "/proc/sys/kernel/numa_balancing",
    "/proc/sys/kernel/sched_rt_runtime_us",
    "/proc/sys/vm/stat_interval",
    "/proc/sys/vm/compact_unevictable_allowed",
    "/proc/sys/vm/min_free_kbytes",
    SUBTREE_CONTROL,
    "/sys/fs/cgroup/cpuset.cpus.effective",
    "/sys/fs/cgroup/cpuset.cpus.isolated",
];

type Settings = BTreeMap<String, Option<String>>;

fn settings() -> Settings {
    let irqs = fs::read_dir("/proc/irq").into_iter().flatten().flatten();
    let irqs = irqs.map(|irq| format!("{}/smp_affinity", irq.path().display()));
    let paths = SETTINGS.iter().map(|path| (*path).to_owned()).chain(irqs);
    paths.map(|path| (path.clone(), fs::read_to_string(path).ok())).collect()
}

fn same(before: &Settings) -> Result<()> {
    let now = settings();
    for (path, old) in before {
        ensure!(now.get(path) == Some(old), "{path}: {old:?} before, {:?} now", now.get(path));
    }
    Ok(())
}

/// Which controllers the children of the root cgroup have.
const SUBTREE_CONTROL: &str = "/sys/fs/cgroup/cgroup.subtree_control";

/// A guest with debugfs, whose settings disturb, and without the cpuset controller; all as before when this is dropped.
struct Noisy {
    old: Vec<(&'static str, String)>,
    mounted: bool,
}

impl Noisy {
    fn make() -> Result<Self> {
        let mut noisy = Self { old: Vec::new(), mounted: false };
        if fs::read_to_string(SUBTREE_CONTROL)?.contains("cpuset") {
            noisy.old.push((SUBTREE_CONTROL, "+cpuset".to_owned()));
            fs::write(SUBTREE_CONTROL, "-cpuset").context("cannot switch the cpuset controller off")?;
        }
        if !Path::new(DEBUGFS).join("sched").exists() {
            busybox(&["mount", "-t", "debugfs", "none", DEBUGFS])?;
            noisy.mounted = true;
        }
        for (path, text) in
            [("/sys/kernel/mm/transparent_hugepage/enabled", "always"), ("/sys/kernel/mm/ksm/run", "1")]
        {
            let old = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
            let chosen = old.split_once('[').and_then(|(_, rest)| Some(rest.split_once(']')?.0));
            noisy.old.push((path, chosen.unwrap_or(old.trim()).to_owned()));
            fs::write(path, text).with_context(|| format!("cannot write to {path}"))?;
        }
        Ok(noisy)
    }
}

impl Drop for Noisy {
    fn drop(&mut self) {
        // Of a check that failed.
        for file in [StateFile::default(), StateFile::at(OTHER_STATE)] {
            let _ = host::restore(&Host::default(), &file, true);
        }
        for (path, old) in &self.old {
            let _ = fs::write(path, old);
        }
        if self.mounted {
            let _ = busybox(&["umount", DEBUGFS]);
        }
    }
}

fn busybox(arguments: &[&str]) -> Result<()> {
    let status = Command::new("/bin/busybox").args(arguments).status()?;
    ensure!(status.success(), "{arguments:?}: {status}");
    Ok(())
}

/// A process in the partition, until this is dropped.
struct Member(Child);

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn verdict(host: &Host, name: &str) -> Result<Verdict> {
    let report = host::check(host, &cpus());
    let found = report.findings.iter().find(|(condition, _)| condition.name == name);
    Ok(found.with_context(|| format!("no condition {name}"))?.1.verdict)
}

fn cpus() -> CpuList {
    CpuList::from_iter([CPU])
}

const OPTIONS: Options = Options { rt: true, partition: true };

/// Prepares, and sees that it took effect; each stage's condition is in order then.
fn prepare(host: &Host, file: &StateFile) -> Result<()> {
    let plan = host::plan(host, &cpus(), OPTIONS)?;
    let outcome = host::prepare(host, plan, file)?;
    for stage in
        ["irq", "workqueues", "transparent_hugepages", "ksm", "rt_throttling", "fair_server", "partition"]
    {
        let changed = outcome.changes.iter().any(|change| change.stage == stage);
        ensure!(changed, "{stage} changed nothing; refused was {:?}", outcome.notes);
    }
    for name in ["isolated", "workqueues", "transparent_hugepages", "ksm", "fair_server"] {
        let now = verdict(host, name)?;
        ensure!(now == Verdict::Ok, "{name} is {now:?} after prepare");
    }
    let partition = fs::read_to_string(format!("{CGROUP}/cpuset.cpus.partition"))?;
    ensure!(partition == "isolated\n", "the partition is {partition:?}");
    Ok(())
}

/// What the kernel counts as promised to its deadline servers, in each scheduling domain.
fn promised() -> Result<Vec<String>> {
    let path = format!("{DEBUGFS}/sched/debug");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.lines().filter(|line| line.contains("dl_bw->total_bw")).map(str::to_owned).collect())
}

/// Linux 6.12 loses this count when `sched_rt_runtime_us` is read, and then keeps its deadline servers: so a check does not read it.
pub(crate) fn deadline_servers_are_counted() -> Result<()> {
    let _noisy = Noisy::make()?;
    let (host, file) = (Host::default(), StateFile::at(OTHER_STATE));
    let before = promised()?;
    ensure!(before.iter().any(|line| !line.ends_with(" 0")), "nothing to lose: {before:?}");
    verdict(&host, "rt_throttling")?;
    ensure!(promised()? == before, "{before:?} before a check, {:?} after it", promised()?);
    let outcome = host::prepare(&host, host::plan(&host, &cpus(), Options::default())?, &file)?;
    let stopped = outcome.changes.iter().any(|change| change.stage == "fair_server");
    ensure!(stopped, "the server runs: {:?}", outcome.notes);
    ensure!(host::restore(&host, &file, false)?.left().count() == 0, "not restored");
    ensure!(promised()? == before, "{before:?} before prepare, {:?} after restore", promised()?);
    Ok(())
}

/// Every setting is the old one again, byte by byte.
pub(crate) fn prepare_then_restore() -> Result<()> {
    let _noisy = Noisy::make()?;
    let (host, file) = (Host::default(), StateFile::default());
    for name in ["fair_server", "isolated", "transparent_hugepages", "ksm"] {
        let now = verdict(&host, name)?;
        ensure!(now == Verdict::Costs, "{name} is {now:?} before prepare");
    }
    let before = settings();
    prepare(&host, &file)?;
    ensure!(settings() != before, "prepare changed nothing");
    let refused =
        host::plan(&host, &cpus(), Options::default()).and_then(|plan| host::prepare(&host, plan, &file));
    let refused = refused.err().context("prepared twice")?.to_string();
    ensure!(refused.contains("\"isoplane restore\" first"), "{refused}");

    let restored = host::restore(&host, &file, false)?;
    ensure!(restored.left().count() == 0, "left: {:?}", restored.left().collect::<Vec<_>>());
    same(&before)?;
    ensure!(!Path::new("/run/isoplane").exists(), "the state file's folder is left");
    ensure!(host::restore(&host, &file, false)?.changes.is_empty(), "restored twice");
    same(&before)
}

/// A partition with a process in it stays, and is named; it goes when the process has gone. One that a crash left empty goes too.
pub(crate) fn partition_in_use_is_left() -> Result<()> {
    let _noisy = Noisy::make()?;
    let (host, file) = (Host::default(), StateFile::at(OTHER_STATE));
    let before = settings();
    prepare(&host, &file)?;
    let state = fs::read(file.path())?;
    let member = Member(Command::new("/bin/busybox").args(["sleep", "1000"]).spawn()?);
    fs::write(format!("{CGROUP}/cgroup.procs"), member.0.id().to_string())?;

    let restored = host::restore(&host, &file, false)?;
    let left: Vec<_> = restored.left().map(|(_, undone)| undone).collect();
    let [Undone::Refused { why }, Undone::Foreign { found }] = left[..] else {
        anyhow::bail!("left: {left:?}");
    };
    ensure!(why.starts_with("1 process is in it"), "{why}");
    ensure!(found.contains(CGROUP), "{found}");
    drop(member);
    // The kernel takes a moment to see the cgroup empty.
    let gone = until(Duration::from_secs(5), || Ok(host::restore(&host, &file, false)?.left().count() == 0))?;
    ensure!(gone, "the empty partition stays");
    same(&before)?;

    // As a crash leaves it between making the cgroup and filling it.
    fs::write(SUBTREE_CONTROL, "+cpuset")?;
    fs::create_dir(CGROUP)?;
    fs::write(file.path(), state)?;
    let restored = host::restore(&host, &file, false)?;
    ensure!(restored.left().count() == 0, "left: {:?}", restored.left().collect::<Vec<_>>());
    same(&before)
}
