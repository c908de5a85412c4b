//! Runs a test once on each of the three registrations, in a process of its own: the choice is made once a process.
#![allow(dead_code)]

use percpu::rseq::{Registration, registration};
use std::process::{Command, Stdio};
use std::time::Duration;

const CHILD: &str = "PERCPU_TEST_CHILD";

/// What a child of a test is started with, and what it must find.
const WAYS: [(&str, &[(&str, &str)]); 3] = [
    ("glibc", &[("ISOPLANE_RSEQ", "glibc")]),
    ("own", &[("ISOPLANE_RSEQ", "own"), ("GLIBC_TUNABLES", "glibc.pthread.rseq=0")]),
    ("off", &[("ISOPLANE_RSEQ", "off")]),
];

/// True where this is a child that [`on_each_registration`] started.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs `body` three times; `name` is the test's own.
pub(crate) fn on_each_registration(name: &str, body: impl FnOnce()) {
    if let Some(way) = std::env::var_os(CHILD) {
        match (way.to_str(), registration()) {
            (Some("glibc"), Registration::Glibc)
            | (Some("own"), Registration::Own)
            | (Some("off"), Registration::Off { .. }) => body(),
            (Some(way), Registration::Off { why }) => eprintln!("SKIPPED {name} ({way}): no rseq: {why}"),
            (way, other) => panic!("{way:?} was asked for, {other:?} found"),
        }
        return;
    }
    for (way, environment) in WAYS {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(CHILD, way)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && text.contains("1 passed"), "{way}: {}\n{text}", output.status);
        text.lines().filter(|line| line.contains("SKIPPED")).for_each(|line| eprintln!("{line}"));
        eprintln!(
            "{way}: {}",
            text.lines().filter(|line| line.starts_with("  ")).collect::<Vec<_>>().join(";")
        );
    }
}

/// How long a stress test runs in all: 60 s with `ISOPLANE_LONG=1`, as `./test.sh --long` sets it.
pub(crate) fn stress_time() -> Duration {
    let long = std::env::var_os("ISOPLANE_LONG").is_some_and(|value| value == "1");
    Duration::from_secs(if long { 60 } else { 3 })
}
