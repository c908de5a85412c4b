//! What a user types at `isoplane`, right and wrong: its exit status, and one line with the way out. Nothing here changes the machine.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{error_lines, run_within};
use percpu::Topology;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);
const ISOPLANE: &str = env!("CARGO_BIN_EXE_isoplane");

fn run(command: &mut Command) -> Output {
    run_within(command.stdin(Stdio::null()).env_remove("ISOPLANE_LOG"), LIMIT)
}

fn isoplane(args: &[&str]) -> Output {
    run(Command::new(ISOPLANE).args(args))
}

/// It ends with this status, and one error line that has these words.
#[track_caller]
fn refused(output: &Output, status: i32, words: &[&str]) {
    let lines = error_lines(output);
    assert_eq!((output.status.code(), lines.len()), (Some(status), 1), "{lines:?}");
    assert!(lines[0].starts_with("error: "), "{lines:?}");
    for word in words {
        assert!(lines[0].contains(word), "\"{word}\" is not in: {lines:?}");
    }
}

#[test]
fn wrong_options_are_refused_in_words() {
    let topology = Topology::read().unwrap();
    let all = topology.online.to_string();
    refused(&isoplane(&[]), 2, &["subcommand", "--help"]);
    refused(&isoplane(&["chek"]), 2, &["chek", "did you mean check"]);
    for command in ["check", "prepare"] {
        refused(&isoplane(&[command, "--cpus", "1,x"]), 2, &["\"x\" is no CPU number"]);
        refused(&isoplane(&[command, "--cpus", "60000"]), 2, &["CPU 60000 does not exist"]);
        refused(&isoplane(&[command, "--cpus", ""]), 2, &["write a list such as"]);
    }
    refused(&isoplane(&["prepare"]), 2, &["--cpus", "write a list such as"]);
    refused(
        &isoplane(&["prepare", "--dry-run", "--cpus", &all]),
        2,
        if topology.allowed == topology.online { &["leave one out"] } else { &[] },
    );
}

#[test]
fn a_cpu_outside_the_affinity_mask_is_refused() {
    let allowed = Topology::read().unwrap().allowed;
    let mut cpus = allowed.iter();
    let (Some(first), Some(second)) = (cpus.next(), cpus.next()) else {
        eprintln!("SKIPPED a_cpu_outside_the_affinity_mask_is_refused: needs a second CPU");
        return;
    };
    let (first, second) = (first.to_string(), second.to_string());
    let within = |args: &[&str]| run(Command::new("taskset").args(["-c", &first, ISOPLANE]).args(args));
    let output = within(&["prepare", "--dry-run", "--cpus", &second]);
    refused(&output, 2, &[&format!("CPU {second} is outside"), "taskset"]);
    // A check tells the same as one finding of many.
    let output = within(&["check", "--cpus", &second]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{table}");
    assert!(table.contains(&format!("CPU {second} is outside")), "{table}");
}

#[test]
fn a_check_ends_with_its_verdict_and_json_agrees() {
    let output = isoplane(&["check", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = |name: &str| json[name].as_u64().unwrap();
    let good = count("costs") + count("unknown") == 0;
    assert_eq!(output.status.code(), Some(if good { 0 } else { 1 }), "{json:#}");
    let conditions = json["conditions"].as_array().unwrap();
    assert_eq!(conditions.len() as u64, count("ok") + count("costs") + count("unknown"));
    // This process is there, on this machine.
    let cpus = json["cpus"].as_str().unwrap();
    let table = String::from_utf8(isoplane(&["check", "--cpus", cpus]).stdout).unwrap();
    for condition in conditions {
        assert!(table.contains(&format!("\n  {} ", condition["name"].as_str().unwrap())), "{table}");
    }
    let whole = |line: &&str| line.starts_with("until") || line.starts_with("kernel command line");
    let wide = table.lines().filter(|line| !whole(line)).find(|line| line.chars().count() > 100);
    assert_eq!(wide, None);
    assert!(!table.contains('\x1b'), "colours are for terminals");
}

#[test]
fn without_root_nothing_is_changed_and_a_check_works() {
    // Where nobody else may go, the copy can be.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("isoplane");
    fs::copy(ISOPLANE, &copy).unwrap();
    let as_nobody = |args: &[&str]| {
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut setpriv = Command::new("setpriv");
            setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
            setpriv
        } else {
            Command::new(&copy)
        };
        run(command.args(args))
    };
    let Some(cpu) = Topology::read().unwrap().allowed.iter().nth(1) else {
        eprintln!("SKIPPED without_root_nothing_is_changed_and_a_check_works: needs a second CPU");
        return;
    };
    let cpu = cpu.to_string();
    let state = Path::new("/tmp").join("isoplane-that-is-not-there").display().to_string();
    let prepare = ["prepare", "--cpus", &cpu, "--state", &state];
    refused(&as_nobody(&prepare), 1, &["as root", "--dry-run"]);
    refused(&as_nobody(&["restore", "--state", &state]), 1, &["as root"]);
    assert!(!Path::new(&state).exists());
    let dry = as_nobody(&["prepare", "--cpus", &cpu, "--dry-run"]);
    assert!(dry.status.success() && String::from_utf8_lossy(&dry.stdout).contains("would change"), "{dry:?}");
    let check = as_nobody(&["check"]);
    assert!(matches!(check.status.code(), Some(0 | 1)), "{check:?}");
    assert!(String::from_utf8_lossy(&check.stdout).contains("cannot be known"), "{check:?}");
}

/// Whoever has the hardware for docs/real-nics.md is not to find that a command is none.
#[test]
fn the_checklist_for_real_nics_has_only_options_that_there_are() {
    let help = |program: &str, args: &[&str]| {
        let output = run(Command::new(program).args(args).arg("--help"));
        String::from_utf8(output.stdout).unwrap()
    };
    let [l2fwd, pktgen] =
        [env!("CARGO_BIN_EXE_l2fwd"), env!("CARGO_BIN_EXE_pktgen")].map(|path| help(path, &[]));
    let mut seen = 0;
    // What stands between backquotes, inline or fenced.
    for line in include_str!("../../docs/real-nics.md").split('`').skip(1).step_by(2).flat_map(str::lines) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let known = match words.first() {
            Some(&"isoplane") => help(ISOPLANE, &words[1..2]),
            Some(&"pktgen") => pktgen.clone(),
            _ if words.contains(&"l2fwd") => l2fwd.clone(),
            // Options alone: what is to be different from the step before.
            Some(option) if option.starts_with("--") => format!("{l2fwd}{pktgen}"),
            _ => continue,
        };
        for option in words.iter().filter(|word| word.starts_with("--")) {
            assert!(
                known.contains(&format!("{option} ")) || known.contains(&format!("{option}\n")),
                "{line}"
            );
        }
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
}
