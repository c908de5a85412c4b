//! What a guest left behind: the text on its two serial lines, and what is to be made of it.
//!
//! The second line carries `BOOTED`, what the commands printed, and after each of them `EXIT status command`; at the end, `DONE`. A check says
//! `RESULT name ok`, `RESULT name failed: why` or `RESULT name skipped: why`. A guest that panicked, hung or fell silent has not
//! said `DONE`.
#![forbid(unsafe_code)]

use super::VmError;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many of the console's lines an error shows.
const EXCERPT_LINES: usize = 15;

/// What the kernel's account of its own failure begins with.
const KERNEL_FAILURES: [&str; 3] = ["BUG: ", "Oops: ", "Kernel panic"];

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is as it should be.
    Ok,
    /// It is not; why.
    Failed(String),
    /// The guest lacks something; what.
    Skipped(String),
}

/// One `RESULT` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    /// The check's name: one word.
    pub name: String,
    /// What it found.
    pub outcome: Outcome,
}

/// What a guest that ran to its end said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order they came.
    pub results: Vec<CheckResult>,
    /// Every other line that the commands printed.
    pub output: Vec<String>,
    /// The folder with the console's log.
    pub logs: PathBuf,
}

impl Report {
    /// What the check `name` found: a failure where it said nothing, or more than one thing.
    pub fn outcome(&self, name: &str) -> Outcome {
        let mut found = self.results.iter().filter(|result| result.name == name);
        match (found.next(), found.next()) {
            (Some(result), None) => result.outcome.clone(),
            (None, _) => Outcome::Failed("gave no result".to_owned()),
            (Some(_), Some(_)) => Outcome::Failed("gave more than one result".to_owned()),
        }
    }
}

impl CheckResult {
    /// Reads `RESULT name ok`, `RESULT name failed: why` or `RESULT name skipped: why`; `None` for any other line.
    fn parse(line: &str) -> Option<Self> {
        let (name, found) = line.strip_prefix("RESULT ")?.split_once(' ')?;
        let outcome = match found.split_once(": ") {
            None if found == "ok" => Outcome::Ok,
            Some(("failed", why)) => Outcome::Failed(why.to_owned()),
            Some(("skipped", why)) => Outcome::Skipped(why.to_owned()),
            _ => return None,
        };
        Some(Self { name: name.to_owned(), outcome })
    }
}

/// How QEMU ended.
pub(super) enum End {
    /// By itself, with this status.
    Exited(String),
    /// It was killed after this time.
    Killed(Duration),
}

/// What is left of a guest.
pub(super) struct Remains<'a> {
    pub(super) guest: &'a str,
    pub(super) end: End,
    /// The first serial line: firmware, kernel, and the commands' errors; after it, what QEMU itself complained about.
    pub(super) console: String,
    /// The second.
    pub(super) results: String,
    /// Where the logs are.
    pub(super) logs: &'a Path,
}

impl Remains<'_> {
    /// The report, or the first thing that went wrong.
    pub(super) fn judge(self) -> Result<Report, VmError> {
        let guest = self.guest.to_owned();
        if let Some(at) = self.console.find("Kernel panic") {
            let reason = self.console[at..].lines().next().unwrap_or_default().to_owned();
            return Err(VmError::Panicked { guest, reason, console: self.excerpt() });
        }
        let mut report = Report { logs: self.logs.to_owned(), ..Report::default() };
        let mut done = false;
        // The terminal ends lines with a carriage return too.
        for line in self.results.lines().map(str::trim_end) {
            if ["BOOTED", "READY"].contains(&line) {
                // For the host only.
            } else if line == "DONE" {
                done = true;
            } else if let Some(result) = CheckResult::parse(line) {
                report.results.push(result);
            } else if let Some((status, command)) = line.strip_prefix("EXIT ").and_then(|l| l.split_once(' '))
            {
                // A status that is no number is as bad as one that is not 0.
                let (status, command) = (status.parse().unwrap_or(u32::MAX), command.to_owned());
                if status != 0 {
                    return Err(VmError::Command { guest, command, status, console: self.excerpt() });
                }
            } else {
                report.output.push(line.to_owned());
            }
        }
        match &self.end {
            // Whatever came after DONE, the commands had their say.
            End::Exited(_) if done => Ok(report),
            End::Exited(status) => {
                Err(VmError::Ended { guest, status: status.clone(), console: self.excerpt() })
            }
            End::Killed(limit) => Err(VmError::TimedOut { guest, limit: *limit, console: self.excerpt() }),
        }
    }

    /// The console's lines from where the kernel says that it failed, or else its last, each led by a bar and without what moves a
    /// terminal's cursor.
    fn excerpt(&self) -> String {
        let printable = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>();
        let lines: Vec<String> =
            self.console.lines().map(printable).filter(|line| !line.trim().is_empty()).collect();
        let failure = lines.iter().position(|line| KERNEL_FAILURES.iter().any(|words| line.contains(words)));
        let first = failure.unwrap_or(lines.len().saturating_sub(EXCERPT_LINES));
        let mut excerpt = String::new();
        for line in lines[first..].iter().take(EXCERPT_LINES) {
            excerpt += &format!("  | {line}\n");
        }
        if lines.is_empty() {
            excerpt += "  | (the console is empty)\n";
        }
        excerpt + &format!("  all of it: {}", self.logs.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(end: End, console: &str, results: &str) -> Result<Report, VmError> {
        let (console, results) = (console.to_owned(), results.to_owned());
        Remains { guest: "g", end, console, results, logs: Path::new("/logs/g") }.judge()
    }

    fn exited() -> End {
        End::Exited("exit status: 0".to_owned())
    }

    #[test]
    fn results_output_and_statuses_are_told_apart() {
        let said = "RESULT a ok\r\nhello\r\nRESULT b failed: 1: 2\r\nRESULT c skipped: no\r\nEXIT 0 guest x\r\nDONE\r\n";
        let report = judge(exited(), "", said).unwrap();
        assert_eq!(report.output, ["hello"]);
        assert_eq!(report.outcome("a"), Outcome::Ok);
        assert_eq!(report.outcome("b"), Outcome::Failed("1: 2".to_owned()));
        assert_eq!(report.outcome("c"), Outcome::Skipped("no".to_owned()));
    }

    #[test]
    fn silence_repetition_and_mangled_lines_are_failures() {
        let report = judge(exited(), "", "RESULT a ok\nRESULT a ok\nRESULT b o\nRESULT c\nDONE\n").unwrap();
        for name in ["a", "b", "c", "d"] {
            assert!(matches!(report.outcome(name), Outcome::Failed(_)), "{name}");
        }
        assert_eq!(report.output, ["RESULT b o", "RESULT c"]);
    }

    #[test]
    fn a_panic_outweighs_all_that_was_said() {
        let console =
            "boot\n[    3.1] Kernel panic - not syncing: sysrq triggered crash\n[    3.2] CPU: 1 PID: 7\n";
        let error = judge(exited(), console, "EXIT 0 a\nDONE\n").unwrap_err().to_string();
        assert!(error.starts_with("guest g: Kernel panic - not syncing: sysrq triggered crash\n"), "{error}");
        assert!(error.contains("  | [    3.2] CPU: 1 PID: 7\n"), "{error}");
        assert!(!error.contains("boot") && error.ends_with("all of it: /logs/g"), "{error}");
        let oops = format!("BUG: unable to handle\nOops: 0002\n{}{console}", "more\n".repeat(99));
        let error = judge(exited(), &oops, "").unwrap_err().to_string();
        assert!(error.starts_with("guest g: Kernel panic") && error.contains("  | BUG: unable"), "{error}");
    }

    #[test]
    fn what_is_not_done_failed() {
        let console: String = (0..100).map(|line| format!("line {line}\r\n")).collect();
        let error = judge(exited(), &console, "RESULT a ok\n").unwrap_err();
        assert!(matches!(error, VmError::Ended { .. }));
        let words = error.to_string();
        assert!(words.contains("ended (exit status: 0) before its commands were done"), "{words}");
        assert!(
            words.contains("line 99") && words.contains("line 85") && !words.contains("line 84"),
            "{words}"
        );
        let error = judge(End::Killed(Duration::from_secs(3)), "", "RESULT a ok\nDONE\n").unwrap_err();
        assert!(
            error.to_string().starts_with("guest g: not done after 3s, killed\n  | (the console is empty)")
        );
    }

    #[test]
    fn a_failed_command_is_named() {
        let error = judge(exited(), "", "EXIT 0 a\nEXIT 127 b c\nDONE\n").unwrap_err().to_string();
        assert!(
            error.contains("\"b c\" ended with status 127: not in the guest, or one of its libraries is not"),
            "{error}"
        );
        assert!(judge(exited(), "", "EXIT x b\nDONE\n").is_err());
    }
}
