//! What the tests in guests share.
#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod forwarder;
pub(crate) mod hosts;

use bench::vm::{Kit, Outcome, Report};
use serde_json::Value;

/// What was fetched; where nothing was, the test is skipped.
pub(crate) fn kit(test: &str) -> Option<Kit> {
    match Kit::find() {
        Ok(kit) => Some(kit),
        Err(error) => {
            eprintln!("SKIPPED {test}: {error}");
            None
        }
    }
}

/// What the guest's checks of these names, one a line, have found: fails where one failed.
#[track_caller]
pub(crate) fn tell_checks(test: &str, report: &Report, names: &str) {
    let (mut passed, mut failures) = (0, Vec::new());
    for name in names.lines() {
        match report.outcome(name) {
            Outcome::Ok => passed += 1,
            // As libtest counts a test that skips itself.
            Outcome::Skipped(why) => {
                passed += 1;
                println!("SKIPPED {test} {name}: {why}");
            }
            Outcome::Failed(why) => failures.push(format!("{name}: {why}")),
        }
    }
    assert!(passed + failures.len() > 0, "the guest has no checks");
    // In libtest's words, which test.sh counts.
    println!("\ntest result: in the guest. {passed} passed; {} failed;", failures.len());
    let (logs, failures) = (report.logs.display(), failures.join("\n"));
    assert!(failures.is_empty(), "in the guest, whose console is in {logs}:\n{failures}");
}

/// The JSON that a command printed behind the line `mark`.
#[track_caller]
pub(crate) fn json_behind(report: &Report, mark: &str) -> Value {
    let lines = report.output.iter().skip_while(|line| *line != mark).skip(1);
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let first = serde_json::Deserializer::from_str(&text).into_iter().next();
    first.unwrap_or_else(|| panic!("nothing behind {mark}: {:#?}", report.output)).unwrap()
}

/// The number at a place of a report.
#[track_caller]
pub(crate) fn number(report: &Value, place: &str) -> u64 {
    report
        .pointer(place)
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("no number at {place}: {report:#}"))
}
