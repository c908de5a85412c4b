//! The stages of prepare, each with what it would change. To add one: a function here, and a line in [`STAGES`].
#![forbid(unsafe_code)]

use super::super::irq::{Irq, Movable, smp_affinity};
use super::super::tree::{chosen, in_words};
use super::super::{Host, Unread, mask, values};
use super::change::{Change, Kind};
use super::{Note, partition};
use percpu::CpuList;

/// What prepare does only where it is asked to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Real-time tasks are not throttled: one that does not end takes its CPU for good.
    pub rt: bool,
    /// The CPUs become an isolated partition of cgroup v2: only what is put into that cgroup runs there.
    pub partition: bool,
}

/// What the host is prepared for.
pub(super) struct Target<'a> {
    pub(super) cpus: &'a CpuList,
    /// The CPUs on line that are left for all else.
    pub(super) housekeeping: &'a CpuList,
    pub(super) tickless: Option<&'a CpuList>,
    pub(super) options: Options,
}

impl Target<'_> {
    /// These CPUs without the workers'; where nothing is left, all of the housekeeping ones.
    fn away(&self, from: &CpuList) -> CpuList {
        let rest = mask::both(from, self.housekeeping);
        if rest.is_empty() { self.housekeeping.clone() } else { rest }
    }
}

/// What a stage found: values to change, and what it cannot change.
#[derive(Default)]
struct Found {
    changes: Vec<Change>,
    notes: Vec<(String, String)>,
}

impl Found {
    fn note(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { changes: Vec::new(), notes: vec![(what.into(), why.into())] }
    }
}

/// One kind of setting. It checks what is to be changed; each [`Change`] can be applied and undone.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// Its name: that of the condition which it mends, where there is one.
    pub name: &'static str,
    find: fn(&Host, &Target<'_>, &'static str) -> Result<Found, Unread>,
}

impl Stage {
    pub(super) fn check(
        &self,
        host: &Host,
        target: &Target<'_>,
        changes: &mut Vec<Change>,
        notes: &mut Vec<Note>,
    ) {
        let found = match (self.find)(host, target, self.name) {
            Ok(found) => found,
            // A kernel without the setting needs no change of it.
            Err(Unread::Missing { .. }) => return,
            Err(error) => Found::note(self.name, error.to_string()),
        };
        changes.extend(found.changes);
        let note = |(what, why)| Note { stage: self.name.to_owned(), what, why };
        notes.extend(found.notes.into_iter().map(note));
    }
}

/// Every stage, in the order of their changes. Undoing goes the other way.
pub const STAGES: &[Stage] = &[
    Stage { name: "default_irq_affinity", find: default_irq_affinity },
    Stage { name: "irq", find: irqs },
    Stage { name: "workqueues", find: workqueues },
    Stage { name: "stat_interval", find: stat_interval },
    Stage { name: "softlockup_watchdog", find: watchdog },
    Stage { name: "compaction", find: |host, _, stage| plain(host, stage, values::COMPACT_UNEVICTABLE, "0") },
    Stage { name: "timer_migration", find: timer_migration },
    Stage { name: "transparent_hugepages", find: transparent_hugepages },
    Stage { name: "ksm", find: ksm },
    Stage { name: "numa_balancing", find: |host, _, stage| plain(host, stage, values::NUMA_BALANCING, "0") },
    // Before the next one: with it, Linux 6.12 does not refuse that one for bandwidth that it has miscounted.
    Stage { name: "rt_throttling", find: rt_throttling },
    Stage { name: "fair_server", find: fair_server },
    Stage { name: "cpuidle", find: cpuidle },
    Stage { name: "partition", find: isolated_partition },
];

/// A value that is to be `new`.
fn plain(host: &Host, stage: &str, path: &str, new: &str) -> Result<Found, Unread> {
    let old = host.text(path)?;
    let is_wanted = old.trim() == new || chosen(&old) == Some(new);
    let changes = if is_wanted { vec![] } else { vec![Change::value(stage, path, None, old, new.into())] };
    Ok(Found { changes, notes: Vec::new() })
}

/// A mask that is to be without the workers' CPUs.
fn masked(host: &Host, target: &Target<'_>, stage: &str, path: &str) -> Result<Option<Change>, Unread> {
    let before = host.mask(path)?;
    if mask::both(&before, target.cpus).is_empty() {
        return Ok(None);
    }
    let new = mask::format(&target.away(&before));
    Ok(Some(Change::value(stage, path, None, host.text(path)?, new)))
}

fn default_irq_affinity(host: &Host, target: &Target<'_>, stage: &'static str) -> Result<Found, Unread> {
    let change = masked(host, target, stage, values::DEFAULT_IRQ_AFFINITY)?;
    Ok(Found { changes: change.into_iter().collect(), notes: Vec::new() })
}

fn irqs(host: &Host, target: &Target<'_>, stage: &'static str) -> Result<Found, Unread> {
    let mut found = Found::default();
    for irq in Irq::all(host)? {
        let path = smp_affinity(irq.number);
        if irq.movable == Movable::No {
            if !mask::both(&irq.effective, target.cpus).is_empty() {
                let why =
                    format!("only its driver may move it: boot with isolcpus=managed_irq,{}", target.cpus);
                found.notes.push((format!("IRQ {irq}"), why));
            }
            continue;
        }
        match masked(host, target, stage, &path) {
            Ok(change) => found.changes.extend(change),
            Err(error) if error.is_missing() => (),
            Err(error) => found.notes.push((format!("IRQ {irq}"), error.to_string())),
        }
    }
    Ok(found)
}

fn workqueues(host: &Host, target: &Target<'_>, stage: &'static str) -> Result<Found, Unread> {
    // What was asked for is what a write sets: the other file may lack the CPUs of somebody's isolated partition.
    let shown_by = [values::WORKQUEUE_REQUESTED, values::WORKQUEUE].into_iter().find(|path| host.has(path));
    let shown_by = shown_by.unwrap_or(values::WORKQUEUE);
    let Some(mut change) = masked(host, target, stage, shown_by)? else { return Ok(Found::default()) };
    if let Kind::Value { path, shown_by: shown, .. } = &mut change.kind {
        *path = values::WORKQUEUE.to_owned();
        *shown = Some(shown_by.to_owned());
    }
    Ok(Found { changes: vec![change], notes: Vec::new() })
}

fn stat_interval(host: &Host, _: &Target<'_>, stage: &'static str) -> Result<Found, Unread> {
    if host.number::<u32>(values::STAT_INTERVAL)? >= values::STAT_INTERVAL_S {
        return Ok(Found::default());
    }
    plain(host, stage, values::STAT_INTERVAL, &values::STAT_INTERVAL_S.to_string())
}

fn watchdog(host: &Host, target: &Target<'_>, stage: &'static str) -> Result<Found, Unread> {
    let before = host.list(values::WATCHDOG_CPUS)?;
    if mask::both(&before, target.cpus).is_empty() {
        return Ok(Found::default());
    }
    plain(host, stage, values::WATCHDOG_CPUS, &target.away(&before).to_string())
}

fn timer_migration(host: &Host, target: &Target<'_>, stage: &'static str) -> Result<Found, Unread> {
    let wanted = values::timer_migration(target.tickless, target.cpus);
    plain(host, stage, values::TIMER_MIGRATION, &wanted.to_string())
}

fn transparent_hugepages(host: &Host, _: &Target<'_>, stage: &'static str) -> Result<Found, Unread> {
    match host.chosen(values::THP)?.as_str() {
        "always" => plain(host, stage, values::THP, "madvise"),
        _ => Ok(Found::default()),
    }
}

fn ksm(host: &Host, _: &Target<'_>, stage: &'static str) -> Result<Found, Unread> {
    // 2 means that nothing is merged any more, and what was no longer is.
    match host.number::<u8>(values::KSM)? {
        1 => plain(host, stage, values::KSM, "0"),
        _ => Ok(Found::default()),
    }
}

fn rt_throttling(host: &Host, target: &Target<'_>, stage: &'static str) -> Result<Found, Unread> {
    if target.options.rt { plain(host, stage, values::RT_RUNTIME, "-1") } else { Ok(Found::default()) }
}

fn fair_server(host: &Host, target: &Target<'_>, stage: &'static str) -> Result<Found, Unread> {
    if !host.has("/sys/kernel/debug/sched") {
        let why = "debugfs is not mounted: run \"mount -t debugfs none /sys/kernel/debug\" before";
        return Ok(Found::note(values::fair_server(target.cpus.iter().next().unwrap_or(0)), why));
    }
    each_cpu(host, target, stage, values::fair_server, "0")
}

fn cpuidle(host: &Host, target: &Target<'_>, stage: &'static str) -> Result<Found, Unread> {
    each_cpu(host, target, stage, values::resume_latency, "n/a")
}

/// A value that each worker's CPU has of its own.
fn each_cpu(
    host: &Host,
    target: &Target<'_>,
    stage: &str,
    path: fn(usize) -> String,
    new: &str,
) -> Result<Found, Unread> {
    let mut all = Found::default();
    for cpu in target.cpus.iter() {
        match plain(host, stage, &path(cpu), new) {
            Ok(found) => all.changes.extend(found.changes),
            Err(error) if error.is_missing() => (),
            Err(Unread::Refused { source, .. }) => all.notes.push((path(cpu), in_words(&source))),
            Err(error) => all.notes.push((path(cpu), error.to_string())),
        }
    }
    Ok(all)
}

fn isolated_partition(host: &Host, target: &Target<'_>, stage: &'static str) -> Result<Found, Unread> {
    if !target.options.partition {
        return Ok(Found::default());
    }
    Ok(match partition::check(host, target.cpus)? {
        Ok(kinds) => Found {
            changes: kinds.into_iter().map(|kind| Change::of(stage, kind)).collect(),
            notes: Vec::new(),
        },
        Err(why) => Found::note("cgroup v2", why),
    })
}
