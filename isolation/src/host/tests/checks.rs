//! What a check makes of a machine: one that is quiet, ones with one disturbance each, ones that lie.
#![forbid(unsafe_code)]

use super::super::conditions::CONDITIONS;
use super::super::{HostError, Report, Verdict, check, to_check};
use super::machine::{Machine, QUIET};
use percpu::CpuList;
use proptest::prelude::*;
use std::fs;
use std::path::Path;
use std::process::Command;

fn list(text: &str) -> CpuList {
    text.parse().unwrap()
}

fn report(machine: &Machine) -> Report {
    check(&machine.host(), &list("2-3"))
}

/// The conditions that are not ok.
fn not_ok(report: &Report) -> Vec<(&'static str, Verdict)> {
    let others = report.findings.iter().filter(|(_, finding)| finding.verdict != Verdict::Ok);
    others.map(|(condition, finding)| (condition.name, finding.verdict)).collect()
}

#[test]
fn a_quiet_machine_is_ok() {
    let report = report(&Machine::quiet());
    assert_eq!(not_ok(&report), [], "{}", report.table(100, false));
    assert!(report.is_ok());
    assert_eq!((report.prepare_command(), report.kernel_command_line()), (None, None));
}

#[test]
fn each_disturbance_is_found_and_no_other() {
    use Verdict::{Costs, Unknown};
    let cpu = "/sys/devices/system/cpu";
    /// A file, what it says, what is not ok then, and words that the report has.
    type Row<'a> = (&'a str, &'a str, &'a [(&'a str, Verdict)], &'a str);
    let table: &[Row<'_>] = &[
        (&format!("{cpu}/online"), "0-2", &[("usable", Costs)], "CPU 3 is offline"),
        (
            &format!("{cpu}/cpu2/topology/thread_siblings_list"),
            "0,2",
            &[("smt_sibling", Costs)],
            "cpu0/online",
        ),
        (&format!("{cpu}/isolated"), "2", &[("isolated", Costs)], "isolcpus=domain,2-3"),
        ("/proc/50/task/50/status", "Cpus_allowed_list: 3", &[("tasks", Costs)], "taskset -cp 0-1 50"),
        ("/proc/2/comm", "init", &[("tasks", Unknown), ("irqbalance", Unknown)], "container"),
        ("/proc/50/comm", "irqbalance", &[("irqbalance", Costs)], "systemctl stop irqbalance"),
        (
            &format!("{cpu}/nohz_full"),
            "0-2",
            &[("nohz_full", Costs), ("timer_migration", Costs)],
            "nohz_full=0-3",
        ),
        (
            &format!("{cpu}/nohz_full"),
            "(null)",
            &[("nohz_full", Costs), ("timer_migration", Costs)],
            "CPUs 2-3",
        ),
        ("/proc/cmdline", "rcu_nocbs=1-2:1/2", &[("rcu_nocbs", Unknown)], "not understood"),
        (
            "/proc/sys/kernel/timer_migration",
            "0",
            &[("timer_migration", Costs)],
            "isoplane prepare --cpus 2-3",
        ),
        (
            "/sys/devices/system/clocksource/clocksource0/current_clocksource",
            "hpet",
            &[("clocksource", Costs)],
            "echo tsc >",
        ),
        ("/proc/cpuinfo", "flags : fpu tsc", &[("clocksource_watchdog", Costs)], "tsc=reliable"),
        ("/proc/sys/vm/stat_interval", "1", &[("stat_interval", Costs)], "every 1 s"),
        ("/proc/sys/kernel/watchdog_cpumask", "0-2", &[("softlockup_watchdog", Costs)], "CPU 2"),
        (
            "/sys/devices/system/machinecheck/machinecheck2/check_interval",
            "12c",
            &[("machine_check", Costs)],
            "echo 0",
        ),
        ("/proc/irq/default_smp_affinity", "ffffffff", &[("default_irq_affinity", Costs)], "CPUs 2-3"),
        ("/sys/devices/virtual/workqueue/cpumask", "f", &[("workqueues", Costs)], "kworker"),
        ("/sys/kernel/debug/sched/fair_server/cpu3/runtime", "50000000", &[("fair_server", Costs)], "CPU 3"),
        (
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "[always] madvise never",
            &[("transparent_hugepages", Costs), ("khugepaged", Costs)],
            "2 MiB",
        ),
        ("/sys/kernel/mm/ksm/run", "1", &[("ksm", Costs)], "ksmd"),
        ("/proc/sys/kernel/numa_balancing", "1", &[("numa_balancing", Costs)], "on purpose"),
        ("/proc/sys/vm/compact_unevictable_allowed", "1", &[("compaction", Costs)], "be it locked"),
        (
            &format!("{cpu}/cpu3/power/pm_qos_resume_latency_us"),
            "0",
            &[("cpuidle", Costs)],
            "170 µs to wake from C6",
        ),
        (&format!("{cpu}/cpu2/cpufreq/scaling_governor"), "schedutil", &[("frequency", Costs)], "CPU 2"),
        ("/sys/kernel/security/lockdown", "none [integrity] x", &[("lockdown", Costs)], "debugfs"),
        ("/sys/kernel/btf/vmlinux", "ELF", &[("btf", Unknown)], "is no BTF"),
    ];
    for (path, text, expected, words) in table {
        let machine = Machine::quiet();
        machine.set(path, &format!("{text}\n"));
        let report = report(&machine);
        assert_eq!(not_ok(&report), *expected, "{path}: {text}");
        let told = report.table(1000, false);
        assert!(told.contains(words), "{path}: {text}: {words}\n{told}");
    }
}

#[test]
fn what_a_process_lacks_is_found() {
    let machine = Machine::quiet();
    machine.set(
        "/proc/self/status",
        "Pid:\t100\nUid:\t9\t9\t9\t9\nCapEff:\t0000000000000000\nCpus_allowed_list:\t0-2\n",
    );
    let found = report(&machine);
    let expected =
        [("usable", Verdict::Costs), ("memory_lock", Verdict::Costs), ("perf_events", Verdict::Costs)];
    assert_eq!(not_ok(&found), expected);
    machine.set("/proc/sys/kernel/perf_event_paranoid", "-1\n");
    machine.set("/proc/self/limits", "Max locked memory  unlimited  unlimited  bytes\n");
    assert_eq!(not_ok(&report(&machine)), expected[..1]);
}

#[test]
fn managed_interrupts_are_told_apart_where_the_kernel_tells() {
    let machine = Machine::quiet();
    for irq in [24, 25] {
        machine.set(&format!("/proc/irq/{irq}/effective_affinity_list"), "2\n");
        machine.set(&format!("/proc/irq/{irq}/smp_affinity_list"), "0-2\n");
    }
    machine.set("/sys/kernel/irq/24/actions", "nvme0q3\n");
    let words = |name: &str| {
        let report = report(&machine);
        let (_, finding) = report.findings.iter().find(|(condition, _)| condition.name == name).unwrap();
        (finding.verdict, finding.words.clone())
    };
    assert_eq!(words("managed_irq").0, Verdict::Unknown);
    assert!(words("irq").1.starts_with("2 IRQs (24 nvme0q3, 25)"), "{:?}", words("irq"));

    // By the mode of its file, which tells of the others too.
    machine.read_only("/proc/irq/24/smp_affinity");
    assert!(
        words("managed_irq").1.starts_with("1 IRQ (24 nvme0q3), which only"),
        "{:?}",
        words("managed_irq")
    );
    assert!(words("irq").1.starts_with("1 IRQ (25)"), "{:?}", words("irq"));
    assert_eq!(report(&machine).kernel_command_line(), None, "it has that word already");
    assert!(report(&machine).table(100, false).contains("fewer queues"));
    machine.set("/proc/cmdline", "isolcpus=2-3 nohz_full=2-3\n");
    let boot = report(&machine).kernel_command_line();
    assert_eq!(boot.as_deref(), Some("isolcpus=managed_irq,domain,2-3"), "what was there is not lost");

    // By debugfs.
    machine.set("/sys/kernel/debug/irq/irqs/25", "dstate: 0x0\n            IRQD_AFFINITY_MANAGED\n");
    assert!(words("managed_irq").1.starts_with("2 IRQs (24 nvme0q3, 25)"), "{:?}", words("managed_irq"));
    assert_eq!(words("irq").0, Verdict::Ok);
}

#[test]
fn an_interrupt_that_is_about_to_move_is_gone() {
    let machine = Machine::quiet();
    machine.set("/proc/irq/25/effective_affinity_list", "2\n");
    machine.set("/proc/irq/25/smp_affinity_list", "0-2\n");
    assert_eq!(not_ok(&report(&machine))[0], ("irq", Verdict::Costs));
    machine.set("/proc/irq/25/smp_affinity_list", "0-1\n");
    let report = report(&machine);
    assert_eq!(not_ok(&report), []);
    assert!(report.table(100, false).contains("1 IRQ (25): gone after the next interrupt"));
}

#[test]
fn where_nothing_can_be_read_nothing_is_known() {
    let report = report(&Machine::empty());
    assert_eq!(report.count(Verdict::Unknown), CONDITIONS.len(), "{}", report.table(100, false));
}

/// Of these, another file tells what is needed, or there is no wrong content.
const NOT_ALONE: &[&str] = &[
    "/proc/2/comm",
    "/proc/50/comm",
    "/proc/50/task/50/stat",
    "/proc/50/task/50/status",
    "/proc/irq/24/smp_affinity",
    "/proc/irq/24/smp_affinity_list",
    "/proc/irq/25/smp_affinity",
    "/proc/irq/25/smp_affinity_list",
    "/proc/self/limits",
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/kernel/sched_rt_runtime_us",
    "/proc/sys/kernel/sched_rt_period_us",
    "/proc/sys/kernel/perf_event_paranoid",
    "/sys/devices/system/clocksource/clocksource0/available_clocksource",
    "/sys/devices/system/cpu/cpu2/cpuidle/state1/latency",
    "/sys/devices/system/cpu/cpu2/cpuidle/state1/name",
    "/sys/devices/system/cpu/cpu3/cpuidle/state1/name",
    "/sys/fs/cgroup/cgroup.controllers",
    "/sys/kernel/tracing/events/header_page",
];

/// Any text may be in these.
const FREE_TEXT: &[&str] = &[
    "/proc/cmdline",
    "/proc/cpuinfo",
    "/proc/self/mounts",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "/sys/devices/system/cpu/cpu2/cpufreq/scaling_governor",
];

#[test]
fn a_garbled_file_is_never_taken_for_an_answer() {
    type Garble = (&'static str, fn(&Path));
    let garble: [Garble; 4] = [
        ("nonsense", |path| fs::write(path, "?\n").unwrap()),
        ("no text", |path| fs::write(path, b"\xff\xfe\x00").unwrap()),
        ("a folder", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("a FIFO", |path| {
            fs::remove_file(path).unwrap();
            assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
        }),
    ];
    for (path, _) in QUIET {
        for (how, garble) in &garble {
            if *how == "nonsense" && FREE_TEXT.contains(path) {
                continue;
            }
            let machine = Machine::quiet();
            garble(&machine.path(path));
            let found = not_ok(&report(&machine));
            // A FIFO is empty, and so is a list of no CPU.
            let is_empty = *how == "a FIFO";
            assert!(
                is_empty || found.iter().all(|(_, verdict)| *verdict == Verdict::Unknown),
                "{path} is {how}: {found:?}"
            );
            assert!(
                is_empty || NOT_ALONE.contains(path) || !found.is_empty(),
                "{path} is {how}, and all is ok"
            );
        }
    }
}

#[test]
fn without_a_choice_workers_are_where_the_kernel_isolates() {
    let machine = Machine::quiet();
    let chosen = |machine: &Machine| to_check(&machine.host(), None).unwrap().to_string();
    assert_eq!(chosen(&machine), "2-3");
    machine.set("/sys/devices/system/cpu/isolated", "\n");
    assert_eq!(chosen(&machine), "1-3");
    machine.set("/sys/fs/cgroup/cpuset.cpus.isolated", "3\n");
    assert_eq!(chosen(&machine), "3");
    machine.set("/sys/fs/cgroup/cpuset.cpus.isolated", "\n");
    machine.set("/proc/self/status", "Cpus_allowed_list:\t3\n");
    assert_eq!(chosen(&machine), "3");
    let asked = to_check(&machine.host(), Some(&list("1,9")));
    assert!(matches!(&asked, Err(error @ HostError::Unusable(_)) if error.is_usage()), "{asked:?}");
}

#[test]
fn what_came_with_a_release_is_not_asked_of_older_ones() {
    let machine = Machine::quiet();
    fs::remove_dir_all(machine.path("/sys/kernel/debug")).unwrap();
    for (release, expected) in [
        ("6.12.1", &[("fair_server", Verdict::Unknown)][..]),
        ("7.0-rc1", &[("fair_server", Verdict::Unknown)]),
        ("6.1.0-13-amd64", &[]),
        ("5.10.0", &[("clocksource_watchdog", Verdict::Costs)]),
        (
            "x",
            &[
                ("clocksource_watchdog", Verdict::Unknown),
                ("rt_throttling", Verdict::Unknown),
                ("fair_server", Verdict::Unknown),
            ],
        ),
    ] {
        machine.set("/proc/sys/kernel/osrelease", release);
        assert_eq!(not_ok(&report(&machine)), expected, "{release}");
    }
}

#[test]
fn real_time_throttling_is_read_only_where_it_matters() {
    let machine = Machine::quiet();
    machine.set("/proc/sys/kernel/sched_rt_runtime_us", "950000\n");
    assert_eq!(not_ok(&report(&machine)), [], "a newer kernel leaves it to fair_server");
    machine.set("/sys/fs/cgroup/cpu/cpu.rt_runtime_us", "950000\n");
    assert_eq!(not_ok(&report(&machine)), [("rt_throttling", Verdict::Unknown)]);
    for release in ["6.18.44", "6.1.0"] {
        machine.set("/proc/sys/kernel/osrelease", release);
        assert_eq!(not_ok(&report(&machine)), [("rt_throttling", Verdict::Costs)]);
    }
    let found = report(&machine);
    assert_eq!(not_ok(&found), [("rt_throttling", Verdict::Costs)]);
    let told = found.table(100, false);
    assert!(told.contains("50 ms of every 1000 ms") && told.contains("--cpus 2-3 [--rt]"), "{told}");
    for text in ["1000000\n", "-1\n"] {
        machine.set("/proc/sys/kernel/sched_rt_runtime_us", text);
        assert_eq!(not_ok(&report(&machine)), [], "{text}");
    }
    machine.set("/proc/sys/kernel/sched_rt_runtime_us", "?");
    assert_eq!(not_ok(&report(&machine)), [("rt_throttling", Verdict::Unknown)]);
}

#[test]
fn json_has_every_condition_by_name() {
    let machine = Machine::quiet();
    machine.set("/sys/devices/system/cpu/isolated", "\n");
    let json: serde_json::Value = serde_json::from_str(&report(&machine).json().unwrap()).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!((&json["cpus"], &json["costs"]), (&"2-3".into(), &1.into()));
    assert_eq!(json["kernel_command_line"], "isolcpus=managed_irq,domain,2-3");
    let conditions = json["conditions"].as_array().unwrap();
    let names: Vec<&str> = conditions.iter().map(|condition| condition["name"].as_str().unwrap()).collect();
    assert_eq!(names, CONDITIONS.iter().map(|condition| condition.name).collect::<Vec<_>>());
    assert_eq!(conditions[2]["verdict"], "costs");
    assert_eq!(conditions[2]["mend"][0]["by"], "boot");
}

#[test]
fn the_document_has_every_condition_and_no_other() {
    let document = include_str!("../../../../docs/isolation-host.md");
    let (_, section) = document.split_once("\n## Conditions\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let names: Vec<&str> = rows.map(|(name, _)| name).collect();
    assert_eq!(names, CONDITIONS.iter().map(|condition| condition.name).collect::<Vec<_>>());
}

proptest! {
    /// Whatever files say, a check ends, and its report can be written in a hundred columns.
    #[test]
    fn property_no_file_makes_a_check_fail(
        changes in prop::collection::vec((0..QUIET.len(), prop_oneof![
            Just(None),
            prop::collection::vec(any::<u8>(), 0..64).prop_map(Some),
            "[0-9a-f,\\-\\[\\] x()\n]{0,32}".prop_map(|text| Some(text.into_bytes())),
        ]), 0..12),
        cpus in prop::collection::btree_set(0usize..70, 1..5),
    ) {
        let machine = Machine::quiet();
        for (which, content) in changes {
            let path = QUIET[which].0;
            match content {
                Some(bytes) => machine.set_bytes(path, &bytes),
                None => drop(fs::remove_file(machine.path(path))),
            }
        }
        let cpus: CpuList = cpus.into_iter().collect();
        let report = check(&machine.host(), &cpus);
        prop_assert_eq!(report.findings.len(), CONDITIONS.len());
        prop_assert!(serde_json::from_str::<serde_json::Value>(&report.json().unwrap()).is_ok());
        for line in report.table(100, false).lines() {
            // The last two are to be copied whole.
            let copied = line.starts_with("kernel command line: ") || line.starts_with("until");
            prop_assert!(line.chars().count() <= 100 || copied, "{}", line);
        }
        let _ = to_check(&machine.host(), None);
    }
}
