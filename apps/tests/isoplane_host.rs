//! `isoplane prepare` and `restore` on the machine the tests run on: whatever happens in between, every setting is afterwards what it was
//! before, byte by byte. The settings are listed here anew, more of them than prepare changes.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{rounds, run_within, wait_within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use percpu::Topology;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Folders of settings, with how deep they go; of files in them those that no kernel changes by itself.
const SETTINGS: &[&str] = &[
    "/proc/irq/default_smp_affinity",
    "/proc/irq/*/smp_affinity",
    "/sys/devices/virtual/workqueue/*",
    "/sys/devices/virtual/workqueue/*/cpumask",
    "/sys/devices/system/cpu/*/power/pm_qos_resume_latency_us",
    "/sys/kernel/mm/transparent_hugepage/*",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/defrag",
    "/sys/kernel/mm/ksm/run",
    "/sys/kernel/debug/sched/fair_server/*/runtime",
    "/proc/sys/kernel/timer_migration",
    "/proc/sys/kernel/watchdog*",
    "/proc/sys/kernel/*watchdog",
    "/proc/sys/kernel/numa_balancing",
    "/proc/sys/kernel/sched_*",
    "/proc/sys/vm/stat_interval",
    "/proc/sys/vm/compact*",
    "/proc/sys/vm/min_free_kbytes",
    "/sys/fs/cgroup/cgroup.subtree_control",
    "/sys/fs/cgroup/cpuset.cpus.isolated",
];

/// The files whose paths a pattern fits: `*` stands for any part of a name.
fn files(pattern: &str) -> Vec<PathBuf> {
    let fits = |name: &str, pattern: &str| match pattern.split_once('*') {
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
        None => name == pattern,
    };
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').skip(1) {
        let within = |folder: &PathBuf| {
            let names = fs::read_dir(folder).into_iter().flatten().flatten();
            names.filter(|entry| fits(&entry.file_name().to_string_lossy(), part)).map(|entry| entry.path())
        };
        found = found.iter().flat_map(|folder| within(folder).collect::<Vec<_>>()).collect();
    }
    found.retain(|path| path.is_file());
    found
}

type Settings = BTreeMap<PathBuf, String>;

fn settings() -> Settings {
    let paths = SETTINGS.iter().flat_map(|pattern| files(pattern));
    paths.filter_map(|path| Some((path.clone(), fs::read_to_string(path).ok()?))).collect()
}

/// The settings that differ, as a message shows them.
fn changes(before: &Settings, after: &Settings) -> Vec<String> {
    let paths = before.keys().chain(after.keys()).collect::<std::collections::BTreeSet<_>>();
    let differ = paths.into_iter().filter(|path| before.get(*path) != after.get(*path));
    differ
        .map(|path| format!("{}: {:?} -> {:?}", path.display(), before.get(path), after.get(path)))
        .collect()
}

/// The host as it was, which it is again when this is dropped, even by a failed test.
struct Before {
    settings: Settings,
    folder: tempfile::TempDir,
    cpu: String,
    /// Tests of other processes wait, and of this one.
    _lock: (File, MutexGuard<'static, ()>),
}

impl Before {
    /// `None`, and the reason said, where the test cannot run.
    fn take(test: &str) -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        if !geteuid().is_root() {
            eprintln!("SKIPPED {test}: needs root to change settings of the kernel");
            return None;
        }
        let Some(cpu) = Topology::read().unwrap().allowed.iter().nth(1) else {
            eprintln!("SKIPPED {test}: needs a second CPU");
            return None;
        };
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let all = File::open("/run").unwrap();
        all.lock().unwrap();
        let folder = tempfile::tempdir().unwrap();
        Some(Self { settings: settings(), folder, cpu: cpu.to_string(), _lock: (all, alone) })
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("prepared.json")
    }

    fn isoplane(&self, command: &str, options: &[&str]) -> Command {
        let mut isoplane = isoplane(&[command]);
        isoplane.arg("--state").arg(self.state()).args(options);
        isoplane
    }

    fn prepare(&self) -> Command {
        self.isoplane("prepare", &["--rt", "--cpus", &self.cpu])
    }

    fn changed(&self) -> Vec<String> {
        changes(&self.settings, &settings())
    }

    #[track_caller]
    fn restore(&self) {
        let output = run_within(&mut self.isoplane("restore", &[]), LIMIT);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert_eq!(self.changed(), [] as [String; 0], "{}", said(&output));
        assert_eq!(fs::read_dir(self.folder.path()).unwrap().count(), 0, "a file was left");
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        let _ = self.isoplane("restore", &["--force"]).output();
        let now = settings();
        for (path, old) in self.settings.iter().filter(|(path, old)| now.get(*path) != Some(*old)) {
            let chosen = old.split_once('[').and_then(|(_, rest)| Some(rest.split_once(']')?.0));
            let _ = fs::write(path, chosen.unwrap_or(old));
        }
    }
}

fn isoplane(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isoplane"));
    command.args(args).stdin(Stdio::null()).env_remove("ISOPLANE_LOG");
    command
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn namespace_prepare_then_restore_leaves_every_setting_as_it_was() {
    let Some(before) = Before::take("namespace_prepare_then_restore_leaves_every_setting_as_it_was") else {
        return;
    };
    let dry = run_within(&mut before.isoplane("prepare", &["--dry-run", "--cpus", &before.cpu]), LIMIT);
    assert!(dry.status.success() && said(&dry).contains("-> "), "{}", said(&dry));
    assert_eq!(before.changed(), [] as [String; 0], "a dry run changes nothing");

    let prepared = run_within(&mut before.prepare(), LIMIT);
    assert!(prepared.status.success(), "{}", said(&prepared));
    let changed = before.changed();
    // What it says that it changed is what has changed.
    let told = said(&prepared).lines().filter(|line| line.contains(" -> ")).count();
    assert!(told >= 5, "{}", said(&prepared));
    assert!(changed.len() >= told, "{told} told: {changed:#?}");
    for line in said(&prepared).lines().filter(|line| line.contains(" -> ")) {
        let path = line.trim().split_once(": ").unwrap().0;
        assert!(
            changed.iter().any(|change| change.starts_with(&format!("{path}: "))),
            "{line}: {changed:#?}"
        );
    }

    let twice = run_within(&mut before.prepare(), LIMIT);
    assert_eq!(twice.status.code(), Some(1), "{}", said(&twice));
    assert!(said(&twice).contains("isoplane restore --state"), "{}", said(&twice));
    assert_eq!(said(&twice).lines().count(), 1, "{}", said(&twice));
    assert_eq!(before.changed(), changed, "a refused prepare changes nothing");

    before.restore();
    before.restore();
}

#[test]
fn namespace_prepare_and_restore_killed_at_any_moment_then_restore_leaves_every_setting_as_it_was() {
    let test =
        "namespace_prepare_and_restore_killed_at_any_moment_then_restore_leaves_every_setting_as_it_was";
    let Some(before) = Before::take(test) else { return };
    // How long there is between the state file and the end.
    let start = Instant::now();
    let mut child = quiet(before.prepare()).spawn().unwrap();
    let appeared = within(LIMIT, || before.state().exists());
    let began = start.elapsed();
    assert!(wait_within(&mut child, LIMIT).unwrap().success() && appeared);
    let (whole, all) = (start.elapsed(), before.changed().len());
    before.restore();

    let rounds = rounds(24, 300);
    let (mut in_the_middle, mut restores) = (0, 0);
    for round in 0..rounds {
        // From the moment where the state file appears, or from the start; after a time that grows with the rounds.
        let share = |time: Duration| time.mul_f64(round as f64 / rounds as f64);
        let mut child = quiet(before.prepare()).spawn().unwrap();
        if round % 3 == 0 {
            spin(share(whole));
        } else {
            within(LIMIT, || before.state().exists());
            spin(share(whole - began));
        }
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        let changed = before.changed().len();
        in_the_middle += usize::from(0 < changed && changed < all);
        assert!(changed == 0 || before.state().exists(), "changed, and nothing to restore from");
        if round % 2 == 1 {
            let mut child = quiet(before.isoplane("restore", &[])).spawn().unwrap();
            spin(share(whole));
            kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
            child.wait().unwrap();
            let left = before.changed().len();
            restores += usize::from(0 < left && left < changed);
        }
        before.restore();
    }
    println!("{rounds} rounds: {in_the_middle} prepares were killed in the middle, {restores} restores");
    assert!(in_the_middle > 0, "no round met the middle of {all} changes");
}

#[test]
fn namespace_of_many_prepares_and_restores_at_once_one_at_a_time_works() {
    let test = "namespace_of_many_prepares_and_restores_at_once_one_at_a_time_works";
    let Some(before) = Before::take(test) else { return };
    let wait = |mut child: std::process::Child| wait_within(&mut child, LIMIT).unwrap().code();
    for _ in 0..rounds(5, 50) {
        let prepares: Vec<_> = (0..4).map(|_| quiet(before.prepare()).spawn().unwrap()).collect();
        let mut statuses: Vec<_> = prepares.into_iter().map(wait).collect();
        statuses.sort();
        assert_eq!(statuses, [Some(0), Some(1), Some(1), Some(1)], "one prepares, the others are told");
        let restores: Vec<_> =
            (0..4).map(|_| quiet(before.isoplane("restore", &[])).spawn().unwrap()).collect();
        assert!(restores.into_iter().map(wait).all(|status| status == Some(0)));
        before.restore();
    }
}

fn quiet(mut command: Command) -> Command {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Asks again and again, without a pause, for at most this long.
fn within(limit: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
    }
    true
}

/// A moment shorter than a sleep can be told.
fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn namespace_what_somebody_else_changed_is_left_alone_until_forced() {
    let test = "namespace_what_somebody_else_changed_is_left_alone_until_forced";
    let Some(before) = Before::take(test) else { return };
    let path = Path::new("/proc/sys/vm/stat_interval");
    assert!(run_within(&mut before.prepare(), LIMIT).status.success());
    fs::write(path, "77").unwrap();

    for _ in 0..2 {
        let restored = run_within(&mut before.isoplane("restore", &[]), LIMIT);
        assert_eq!(restored.status.code(), Some(1), "{}", said(&restored));
        assert!(said(&restored).contains("/proc/sys/vm/stat_interval: somebody else"), "{}", said(&restored));
        assert!(said(&restored).contains("restore --force --state"), "{}", said(&restored));
        let changed = before.changed();
        assert!(changed.len() == 1 && changed[0].contains("77"), "{changed:#?}");
    }

    let forced = run_within(&mut before.isoplane("restore", &["--force"]), LIMIT);
    assert!(forced.status.success(), "{}", said(&forced));
    before.restore();
}

#[test]
fn namespace_where_the_kernel_takes_no_change_prepare_says_so_and_leaves_no_state() {
    let test = "namespace_where_the_kernel_takes_no_change_prepare_says_so_and_leaves_no_state";
    let Some(before) = Before::take(test) else { return };
    // As in a container: in a mount namespace of their own these are read-only.
    let script = "mount -o remount,bind,ro /proc && mount -o remount,bind,ro /sys && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_isoplane"), "prepare"]);
    command.args(["--cpus", &before.cpu, "--state"]).arg(before.state()).stdin(Stdio::null());
    let output = run_within(&mut command, LIMIT);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("nothing could be changed"), "{}", said(&output));
    assert!(said(&output).contains("stat_interval: Read-only file system"), "{}", said(&output));
    assert_eq!(before.changed(), [] as [String; 0]);
    assert!(!before.state().exists());
}
