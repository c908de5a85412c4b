//! Prepare and restore on a machine of files, interrupted at every step.
#![forbid(unsafe_code)]

use super::super::prepare::interrupted;
use super::super::{HostError, Options, STAGES, StateFile, Undone, Verdict, check, plan, prepare, restore};
use super::machine::Machine;
use percpu::CpuList;

/// Settings that disturb, of each stage that files can play.
const NOISY: &[(&str, &str, &str)] = &[
    ("default_irq_affinity", "/proc/irq/default_smp_affinity", "ffffffff,ffffffff\n"),
    ("irq", "/proc/irq/24/smp_affinity", "f\n"),
    ("irq", "/proc/irq/25/smp_affinity", "4\n"),
    ("workqueues", "/sys/devices/virtual/workqueue/cpumask", "f\n"),
    ("stat_interval", "/proc/sys/vm/stat_interval", "1\n"),
    ("softlockup_watchdog", "/proc/sys/kernel/watchdog_cpumask", "0-3\n"),
    ("compaction", "/proc/sys/vm/compact_unevictable_allowed", "1\n"),
    ("timer_migration", "/proc/sys/kernel/timer_migration", "0\n"),
    ("ksm", "/sys/kernel/mm/ksm/run", "1\n"),
    ("numa_balancing", "/proc/sys/kernel/numa_balancing", "1\n"),
    ("rt_throttling", "/proc/sys/kernel/sched_rt_runtime_us", "950000\n"),
    ("fair_server", "/sys/kernel/debug/sched/fair_server/cpu2/runtime", "50000000\n"),
    ("fair_server", "/sys/kernel/debug/sched/fair_server/cpu3/runtime", "50000000\n"),
    ("cpuidle", "/sys/devices/system/cpu/cpu2/power/pm_qos_resume_latency_us", "0\n"),
    ("cpuidle", "/sys/devices/system/cpu/cpu3/power/pm_qos_resume_latency_us", "100\n"),
];

const OPTIONS: Options = Options { rt: true, partition: false };

fn noisy() -> Machine {
    let machine = Machine::quiet();
    for (_, path, text) in NOISY {
        machine.set(path, text);
    }
    machine
}

fn cpus() -> CpuList {
    "2-3".parse().unwrap()
}

/// A state file in a folder of its own.
struct State(tempfile::TempDir);

impl State {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> StateFile {
        StateFile::at(self.0.path().join("state.json"))
    }

    fn is_gone(&self) -> bool {
        std::fs::read_dir(self.0.path()).unwrap().count() == 0
    }
}

#[test]
fn what_prepare_changes_is_ok_afterwards_and_as_before_after_restore() {
    let (machine, state) = (noisy(), State::new());
    let (host, before) = (machine.host(), machine.files());
    let planned = plan(&host, &cpus(), OPTIONS).unwrap();
    assert_eq!(planned.notes, []);
    assert_eq!(machine.files(), before, "a plan changes nothing");
    let outcome = prepare(&host, planned, &state.file()).unwrap();
    let changed: Vec<(String, String)> =
        outcome.changes.iter().map(|change| (change.stage.clone(), change.what())).collect();
    let expected: Vec<(String, String)> =
        NOISY.iter().map(|(stage, path, _)| ((*stage).to_owned(), (*path).to_owned())).collect();
    assert_eq!(changed, expected);
    // The kernel would show where interrupts go now.
    let report = check(&host, &cpus());
    assert_eq!(report.count(Verdict::Costs), 0, "{}", report.table(100, false));
    assert_eq!(std::fs::read_to_string(machine.path("/proc/irq/24/smp_affinity")).unwrap(), "3");
    assert_eq!(
        std::fs::read_to_string(machine.path("/proc/irq/25/smp_affinity")).unwrap(),
        "3",
        "one that could only go to a worker's CPU goes to all others"
    );

    let restored = restore(&host, &state.file(), false).unwrap();
    assert!(restored.changes.iter().all(|(_, undone)| *undone == Undone::Back), "{restored:?}");
    assert_eq!(machine.files(), before);
    assert!(state.is_gone());
    assert!(restore(&host, &state.file(), false).unwrap().changes.is_empty());
}

#[test]
fn an_end_at_any_step_is_undone() {
    let steps = plan(&noisy().host(), &cpus(), OPTIONS).unwrap().changes.len();
    for step in 0..=steps {
        let (machine, state) = (noisy(), State::new());
        let (host, before) = (machine.host(), machine.files());
        interrupted(&host, plan(&host, &cpus(), OPTIONS).unwrap(), &state.file(), step);
        let restored = restore(&host, &state.file(), false).unwrap();
        assert_eq!(restored.left().count(), 0, "step {step}: {restored:?}");
        let back = restored.changes.iter().filter(|(_, undone)| *undone == Undone::Back).count();
        assert_eq!(back, step);
        assert_eq!(machine.files(), before, "step {step}");
        assert!(state.is_gone());
    }
}

#[test]
fn every_stage_is_tried_here_or_by_a_kernel() {
    // The one is a word in brackets, the other a folder that fills itself: the tests in the guest have them.
    let elsewhere = ["transparent_hugepages", "partition"];
    for stage in STAGES {
        let here = NOISY.iter().any(|(name, _, _)| *name == stage.name);
        assert!(here != elsewhere.contains(&stage.name), "{}", stage.name);
    }
}

#[test]
fn what_somebody_else_changed_stays_and_is_kept_in_mind() {
    let (machine, state) = (noisy(), State::new());
    let (host, before) = (machine.host(), machine.files());
    prepare(&host, plan(&host, &cpus(), OPTIONS).unwrap(), &state.file()).unwrap();
    machine.set("/proc/sys/vm/stat_interval", "77\n");
    machine.remove("/proc/irq/24/smp_affinity");
    let restored = restore(&host, &state.file(), false).unwrap();
    let left: Vec<_> = restored.left().map(|(change, undone)| (change.what(), undone.clone())).collect();
    assert_eq!(left, [("/proc/sys/vm/stat_interval".to_owned(), Undone::Foreign { found: "77".into() })]);
    assert!(restored.changes.iter().any(|(_, undone)| *undone == Undone::Gone));

    let again = restore(&host, &state.file(), false).unwrap();
    assert_eq!((again.changes.len(), again.left().count()), (1, 1));
    let refused = prepare(&host, plan(&host, &cpus(), OPTIONS).unwrap(), &state.file()).unwrap_err();
    assert!(refused.to_string().contains("CPUs 2-3 are prepared already"), "{refused}");
    let forced = restore(&host, &state.file(), true).unwrap();
    assert_eq!(forced.changes[0].1, Undone::Back);
    assert!(state.is_gone());
    machine.set("/proc/irq/24/smp_affinity", "f\n");
    assert_eq!(machine.files(), before);
}

#[test]
fn a_value_that_the_kernel_does_not_show_again_is_named() {
    let (machine, state) = (noisy(), State::new());
    let host = machine.host();
    prepare(&host, plan(&host, &cpus(), OPTIONS).unwrap(), &state.file()).unwrap();
    // What is written is shown by another file, which a folder of files does not follow.
    machine.set("/sys/devices/virtual/workqueue/cpumask_requested", "3\n");
    let text = std::fs::read_to_string(state.file().path()).unwrap();
    let shown = "\"shown_by\": \"/sys/devices/virtual/workqueue/cpumask";
    assert!(text.contains(shown), "{text}");
    std::fs::write(state.file().path(), text.replace(&format!("{shown}\""), &format!("{shown}_requested\"")))
        .unwrap();
    let restored = restore(&host, &state.file(), false).unwrap();
    let left: Vec<_> = restored.left().map(|(change, undone)| (change.what(), undone.clone())).collect();
    let why = r#"the kernel shows "3", and not "f""#.to_owned();
    assert_eq!(left, [("/sys/devices/virtual/workqueue/cpumask".to_owned(), Undone::Refused { why })]);
}

#[test]
fn the_next_boot_forgets_what_was_changed() {
    let (machine, state) = (noisy(), State::new());
    let host = machine.host();
    prepare(&host, plan(&host, &cpus(), OPTIONS).unwrap(), &state.file()).unwrap();
    machine.set("/proc/sys/kernel/random/boot_id", "77aa\n");
    let now = machine.files();
    assert!(restore(&host, &state.file(), false).unwrap().rebooted);
    assert!(state.is_gone());
    assert_eq!(machine.files(), now);
}

#[test]
fn a_file_that_is_no_state_is_refused_and_kept() {
    let (machine, state) = (noisy(), State::new());
    let before = machine.files();
    let path = state.file().path().to_owned();
    let change = |path: &str| {
        format!(
            r#"{{"version":1,"boot_id":"6b5d","cpus":"2","changes":[{{"stage":"x","kind":"value","path":"{path}","old":"1","new":"2"}}]}}"#
        )
    };
    for (text, words) in [
        (String::new(), "EOF"),
        ("{".into(), "EOF"),
        ("[]".into(), "invalid"),
        (change("/etc/passwd"), "no setting of the kernel's"),
        (change("/sys/../etc/passwd"), "no setting of the kernel's"),
        (change("/proc/sys/vm/x").replace("\"version\":1", "\"version\":9"), "its version is 9"),
    ] {
        std::fs::write(&path, &text).unwrap();
        let error = restore(&machine.host(), &state.file(), false).unwrap_err().to_string();
        assert!(error.contains(words) && error.lines().count() == 1, "{text}: {error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    assert_eq!(machine.files(), before);
}

#[test]
fn without_root_nothing_is_tried() {
    let (machine, state) = (noisy(), State::new());
    machine.set("/proc/self/status", "Pid:\t1\nUid:\t0\t1000\t0\t0\nCapEff:\t0\nCpus_allowed_list:\t0-3\n");
    let (host, before) = (machine.host(), machine.files());
    let planned = plan(&host, &cpus(), OPTIONS).unwrap();
    let refused = prepare(&host, planned, &state.file());
    assert!(matches!(refused, Err(HostError::NotRoot { .. })), "{refused:?}");
    assert!(matches!(restore(&host, &state.file(), false), Err(HostError::NotRoot { .. })));
    assert_eq!(machine.files(), before);
    assert!(state.is_gone());
}

#[test]
fn cpus_that_cannot_be_had_are_refused() {
    let machine = noisy();
    let refused = |cpus: &str| match plan(&machine.host(), &cpus.parse().unwrap(), OPTIONS) {
        Err(error) if error.is_usage() => error.to_string(),
        other => panic!("{cpus}: {other:?}"),
    };
    assert!(refused("").contains("names no CPU"));
    assert!(refused("9").contains("does not exist"));
    assert!(refused("0-3").contains("leave one out"));
    machine.set("/proc/self/status", "Uid:\t0\t0\t0\t0\nCpus_allowed_list:\t0\n");
    assert!(refused("1").contains("affinity mask"));
    // The kernel keeps isolated ones out of every mask.
    assert!(plan(&machine.host(), &cpus(), OPTIONS).is_ok());
    machine.set("/sys/devices/system/cpu/online", "0-2\n");
    assert!(refused("3").contains("offline"));
}
