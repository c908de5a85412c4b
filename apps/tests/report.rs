//! The report's keys, which users' scripts go by: none may go, change its name or come in silence, and docs/counters.md has a word on each.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{l2fwd, read_report, run_within};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

/// Each object of the report, by its place in it (`/0` is a list's first), with its keys. A new key is a word more in one line here,
/// and in docs/counters.md.
const KEYS: &[(&str, &[&str])] = &[
    ("", &["duration_s", "tsc_hz", "ports", "workers", "pool", "kick", "isolation", "violations"]),
    (
        "/ports/0",
        &[
            "name",
            "driver",
            "mode",
            "rx_packets",
            "rx_bytes",
            "tx_packets",
            "tx_bytes",
            "punted",
            "drops",
            "doorbells",
            "extra",
        ],
    ),
    (
        "/workers/0",
        &["cpu", "packets", "tsc_per_packet", "turns", "sleeps", "loop_gap_ns", "affinity_changes", "stalls"],
    ),
    ("/workers/0/loop_gap_ns", &["p50", "p99", "p999", "p9999", "max"]),
    ("/pool", &["frames", "free", "held", "leaked"]),
    (
        "/isolation",
        &[
            "mode",
            "signal",
            "tickless",
            "lacks",
            "suspended_by",
            "signals",
            "allowed",
            "not_recorded",
            "interrupts",
            "softirqs",
            "threads",
            "trace_lost",
            "unexplained_gaps",
            "unexplained_ns",
            "unexplained_longest_ns",
            "dropped",
            "dropped_without_violation",
            "cannot_know",
        ],
    ),
];

/// Each line of `--violations`.
const VIOLATION_KEYS: &[&str] = &[
    "time",
    "worker",
    "cpu",
    "cause",
    "detail",
    "duration_ns",
    "address",
    "user_stack",
    "kernel_stack",
    "port",
    "queue",
    "dropped",
];

/// What pktgen's report has beyond that.
const PKTGEN_KEYS: &[(&str, &[&str])] = &[
    (
        "/traffic",
        &[
            "complete",
            "sent",
            "received",
            "lost",
            "in_flight",
            "duplicate",
            "reordered",
            "late",
            "corrupt",
            "unexpected",
            "foreign",
            "untracked",
            "streams",
        ],
    ),
    ("/traffic/streams/0", &["from", "to", "sent", "received", "lost", "duplicate", "reordered", "late"]),
];

/// The report of a program that is run with this command.
#[track_caller]
fn report_of(mut command: Command) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    command.args(["--stats-period", "0", "--report"]).arg(&path);
    let output = run_within(&mut command, Duration::from_secs(20));
    assert!(output.status.success(), "{output:?}");
    read_report(&path)
}

#[track_caller]
fn assert_keys(report: &Value, place: &str, keys: &[&str]) {
    let object = report.pointer(place).and_then(Value::as_object);
    let found: BTreeSet<&str> = object
        .unwrap_or_else(|| panic!("no object at {place}: {report:#}"))
        .keys()
        .map(String::as_str)
        .collect();
    let known: BTreeSet<&str> = keys.iter().copied().collect();
    let (new, gone) = (found.difference(&known), known.difference(&found));
    let (new, gone) = (new.collect::<Vec<_>>(), gone.collect::<Vec<_>>());
    assert!(
        new.is_empty() && gone.is_empty(),
        "\"{place}\" has the new keys {new:?}: add them to the lists here and to docs/counters.md; it lacks {gone:?}, which users rely on"
    );
}

#[test]
fn the_keys_are_those_that_users_know() {
    let report = report_of(l2fwd(&[
        "--port",
        "mem:gen?count=1000",
        "--port",
        "mem:gen?count=1000",
        "--no-mac-updating",
    ]));
    KEYS.iter().for_each(|(place, keys)| assert_keys(&report, place, keys));
    // `extra` is left out where a driver has no numbers of its own.
    assert_eq!((&report["isolation"]["mode"], &report["violations"]), (&"off".into(), &json!({})));
    let run = ["--port", "mem:null", "--port", "mem:null", "--duration", "0.1"];
    let report = report_of(l2fwd(&run));
    assert!(report["ports"][0].get("extra").is_none(), "{report:#}");
    // As user or root, isolated or not.
    let report = report_of(l2fwd(&[&run[..], &["--isolation", "soft"]].concat()));
    KEYS.iter()
        .filter(|(place, _)| *place == "/isolation")
        .for_each(|(place, keys)| assert_keys(&report, place, keys));

    let mut pktgen = Command::new(env!("CARGO_BIN_EXE_pktgen"));
    pktgen.args(["--port", "mem:cable", "--port", "mem:cable", "--count", "100"]);
    let report = report_of(pktgen);
    let traffic: &[(&str, &[&str])] = &[("", &[KEYS[0].1, &["traffic"]].concat())];
    traffic.iter().chain(PKTGEN_KEYS).for_each(|(place, keys)| assert_keys(&report, place, keys));
}

#[test]
fn namespace_the_keys_of_violations_are_those_that_users_know() {
    const TEST: &str = "namespace_the_keys_of_violations_are_those_that_users_know";
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED {TEST}: needs root to hear of interrupts");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("violations.jsonl");
    let run = ["--port", "mem:null", "--port", "mem:null", "--duration", "0.5", "--isolation", "soft"];
    let report = report_of(l2fwd(&[&run[..], &["--violations", path.to_str().unwrap()]].concat()));
    let text = std::fs::read_to_string(&path).unwrap();
    let mut by_cause: BTreeMap<String, u64> = BTreeMap::new();
    for line in text.lines() {
        let violation: Value = serde_json::from_str(line).unwrap();
        assert_keys(&violation, "", VIOLATION_KEYS);
        *by_cause.entry(violation["cause"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert!(!by_cause.is_empty(), "not a tick in half a second: {report:#}");
    assert_eq!(report["violations"], json!(by_cause), "the report counts the lines");
}

#[test]
fn every_key_is_documented() {
    let keys: BTreeSet<&str> = KEYS.iter().chain(PKTGEN_KEYS).flat_map(|(_, keys)| *keys).copied().collect();
    let keys: Vec<&str> = keys.into_iter().collect();
    let counters = ("docs/counters.md", include_str!("../../docs/counters.md"));
    let isolation = ("docs/isolation.md", include_str!("../../docs/isolation.md"));
    for ((file, document), heading, keys) in
        [(counters, "The report", &keys[..]), (isolation, "One violation", VIOLATION_KEYS)]
    {
        let section = document.split_once(&format!("\n## {heading}\n")).unwrap().1;
        let section = section.split_once("\n## ").unwrap().0;
        // `ports[]` is how a list is written there.
        let documented =
            |key: &&&str| section.contains(&format!("`{key}`")) || section.contains(&format!("`{key}[]`"));
        let missing: Vec<&&str> = keys.iter().filter(|key| !documented(key)).collect();
        assert!(missing.is_empty(), "{file}: not a word, under \"{heading}\", on {missing:?}");
    }
}
