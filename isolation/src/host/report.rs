//! All findings of one host: as a table for people, as JSON for programs, and as one line for the boot loader.
#![forbid(unsafe_code)]

use super::conditions::{Booted, CONDITIONS};
use super::finding::BootWord;
use super::{Condition, Finding, Host, Mend, Verdict, mask};
use percpu::CpuList;
use serde::Serialize;
use std::fmt::Write as _;

/// Of the JSON.
const VERSION: u32 = 1;
/// Columns of the table's first two.
const NAME: usize = 22;
const VERDICT: usize = 16;
const INDENT: usize = 2;

/// Checks every condition for workers on these CPUs. Changes nothing.
pub fn check(host: &Host, cpus: &CpuList) -> Report {
    let findings = CONDITIONS.iter().map(|condition| (*condition, condition.check(host, cpus))).collect();
    Report {
        cpus: cpus.clone(),
        release: host.word("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "of an unknown release".into()),
        findings,
        booted: Booted::read(host),
    }
}

/// What was found of every condition.
#[derive(Clone, Debug)]
pub struct Report {
    cpus: CpuList,
    release: String,
    /// Each condition with what was found.
    pub findings: Vec<(Condition, Finding)>,
    booted: Booted,
}

#[derive(Serialize)]
struct Json<'a> {
    version: u32,
    kernel: &'a str,
    cpus: String,
    ok: usize,
    costs: usize,
    unknown: usize,
    conditions: Vec<JsonCondition<'a>>,
    prepare: Option<String>,
    kernel_command_line: Option<String>,
}

#[derive(Serialize)]
struct JsonCondition<'a> {
    name: &'a str,
    kind: &'a str,
    verdict: Verdict,
    words: &'a str,
    mend: Vec<JsonMend>,
}

#[derive(Serialize)]
struct JsonMend {
    by: &'static str,
    text: String,
}

impl Report {
    /// How many conditions have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|(_, finding)| finding.verdict == verdict).count()
    }

    /// Whether every condition is known, and in order.
    pub fn is_ok(&self) -> bool {
        self.count(Verdict::Ok) == self.findings.len()
    }

    fn mends(&self) -> impl Iterator<Item = &Mend> {
        self.findings.iter().flat_map(|(_, finding)| &finding.mends)
    }

    /// The command that mends what can be mended while the machine runs; `None` where there is nothing.
    pub fn prepare_command(&self) -> Option<String> {
        let any = self.mends().any(|mend| matches!(mend, Mend::Prepare(_)));
        any.then(|| format!("isoplane prepare --cpus {}", self.cpus))
    }

    /// Options of that command which mend more, each at a price of its own.
    fn prepare_options(&self) -> Vec<&'static str> {
        let mut options: Vec<&str> = self
            .mends()
            .filter_map(|mend| if let Mend::Prepare(Some(option)) = mend { Some(*option) } else { None })
            .collect();
        options.dedup();
        options
    }

    /// The words of the kernel's command line that mend what only a boot can; `None` where there is nothing.
    pub fn kernel_command_line(&self) -> Option<String> {
        let has = |word| self.mends().any(|mend| *mend == Mend::Boot(word));
        let mut words = Vec::new();
        if has(BootWord::IsolateManaged) || has(BootWord::IsolateDomain) {
            // One word for both, of which the last one counts.
            let managed = has(BootWord::IsolateManaged) || self.booted.managed_irq;
            let domain = has(BootWord::IsolateDomain) || !self.booted.isolated.is_empty();
            let kinds = [managed.then_some("managed_irq,"), domain.then_some("domain,")];
            let kinds: String = kinds.into_iter().flatten().collect();
            words.push(format!("isolcpus={kinds}{}", mask::either(&self.booted.isolated, &self.cpus)));
        }
        for word in [BootWord::NohzFull, BootWord::RcuNocbs].into_iter().filter(|word| has(*word)) {
            words.push(self.boot_word(word));
        }
        for mend in self.mends() {
            if let Mend::Boot(BootWord::Word(word)) = mend {
                words.push((*word).to_owned());
            }
        }
        (!words.is_empty()).then(|| words.join(" "))
    }

    /// With the CPUs that it had at this boot.
    fn boot_word(&self, word: BootWord) -> String {
        let with = |booted: &CpuList| mask::either(booted, &self.cpus);
        match word {
            BootWord::NohzFull => format!("nohz_full={}", with(&self.booted.tickless)),
            BootWord::RcuNocbs => format!("rcu_nocbs={}", with(&self.booted.offloaded)),
            BootWord::IsolateDomain => format!("isolcpus=domain,{}", with(&self.booted.isolated)),
            BootWord::IsolateManaged => format!("isolcpus=managed_irq,{}", with(&self.booted.isolated)),
            BootWord::Word(word) => word.to_owned(),
        }
    }

    fn mend_text(&self, mend: &Mend) -> (&'static str, String) {
        match mend {
            Mend::Prepare(None) => ("prepare", format!("isoplane prepare --cpus {}", self.cpus)),
            Mend::Prepare(Some(option)) => {
                ("prepare", format!("isoplane prepare --cpus {} {option}", self.cpus))
            }
            Mend::Command(command) => ("command", command.clone()),
            Mend::Boot(word) => ("boot", self.boot_word(*word)),
        }
    }

    /// The report for programs. Names stay; fields may be added.
    pub fn json(&self) -> serde_json::Result<String> {
        let condition = |(condition, finding): &'_ (Condition, Finding)| {
            let mend = finding.mends.iter().map(|mend| {
                let (by, text) = self.mend_text(mend);
                JsonMend { by, text }
            });
            (condition.name, condition.kind, finding.verdict, mend.collect::<Vec<_>>())
        };
        let conditions = self.findings.iter().map(|found| {
            let (name, kind, verdict, mend) = condition(found);
            JsonCondition { name, kind, verdict, words: &found.1.words, mend }
        });
        serde_json::to_string_pretty(&Json {
            version: VERSION,
            kernel: &self.release,
            cpus: self.cpus.to_string(),
            ok: self.count(Verdict::Ok),
            costs: self.count(Verdict::Costs),
            unknown: self.count(Verdict::Unknown),
            conditions: conditions.collect(),
            prepare: self.prepare_command(),
            kernel_command_line: self.kernel_command_line(),
        })
    }

    /// The report for people, in this many columns.
    pub fn table(&self, columns: usize, colour: bool) -> String {
        let mut text = format!("Workers on {}, Linux {}\n", mask::words(&self.cpus), self.release);
        let mut kind = "";
        for (condition, finding) in &self.findings {
            if kind != condition.kind {
                kind = condition.kind;
                let _ = writeln!(text, "\n{}", paint(kind, "1", colour));
            }
            let colour_code = match finding.verdict {
                Verdict::Ok => "32",
                Verdict::Costs => "33",
                Verdict::Unknown => "36",
            };
            let label = paint(&format!("{:VERDICT$}", finding.verdict.label()), colour_code, colour);
            let mut head = format!("{:INDENT$}{:NAME$}{label}", "", condition.name);
            let room = |taken: usize| columns.saturating_sub(taken).max(20);
            for line in wrap(&finding.words, room(INDENT + NAME + VERDICT)) {
                let _ = writeln!(text, "{}", format!("{head}{line}").trim_end());
                head = " ".repeat(INDENT + NAME + VERDICT);
            }
            for mend in &finding.mends {
                let by = if matches!(mend, Mend::Boot(_)) { "boot with" } else { "mend" };
                for line in wrap(&format!("{by}: {}", self.mend_text(mend).1), room(INDENT + NAME)) {
                    let _ = writeln!(text, "{:1$}{line}", "", INDENT + NAME);
                }
            }
        }
        let _ = writeln!(
            text,
            "\n{} ok, {} cost you something, {} cannot be known",
            self.count(Verdict::Ok),
            self.count(Verdict::Costs),
            self.count(Verdict::Unknown)
        );
        if let Some(command) = self.prepare_command() {
            let options: String =
                self.prepare_options().iter().map(|option| format!(" [{option}]")).collect();
            let _ = writeln!(
                text,
                "to change now (undone by \"isoplane restore\" or a reboot): {command}{options}"
            );
        }
        if let Some(words) = self.kernel_command_line() {
            let _ = writeln!(text, "kernel command line: {words}");
        }
        text
    }
}

fn paint(text: &str, code: &str, colour: bool) -> String {
    if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Lines of at most so many characters, broken at spaces; a word that is longer breaks behind a slash.
fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut rest = word;
        let mut space = " ";
        loop {
            let line = lines.last().map_or("", String::as_str);
            let taken = if line.is_empty() { 0 } else { line.chars().count() + space.len() };
            let fits = rest.chars().count() + taken <= room;
            let part = if fits {
                rest.len()
            } else if taken > 0 {
                0
            } else {
                break_at(rest, room)
            };
            if let (Some(line), true) = (lines.last_mut(), part > 0 || fits) {
                if taken > 0 {
                    line.push_str(space);
                }
                line.push_str(&rest[..part]);
            }
            if fits {
                break;
            }
            rest = &rest[part..];
            space = "";
            lines.push(String::new());
        }
    }
    lines
}

/// Where a word breaks that is longer than the room: behind the last slash that fits, else where it must.
fn break_at(word: &str, room: usize) -> usize {
    let end = word.char_indices().nth(room).map_or(word.len(), |(at, _)| at);
    word[..end].rfind('/').map_or(end, |slash| slash + 1)
}

#[cfg(test)]
mod tests {
    use super::wrap;

    #[test]
    fn lines_break_at_spaces_and_long_words_behind_slashes() {
        assert_eq!(wrap("ab cd ef", 5), ["ab cd", "ef"]);
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("a /bc/defg/h i", 6), ["a", "/bc/", "defg/h", "i"]);
        assert_eq!(wrap("abcdefgh µµµµµµµ", 3), ["abc", "def", "gh", "µµµ", "µµµ", "µ"]);
    }
}
