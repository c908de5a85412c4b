//! What was found of one condition: whether it disturbs a worker, what that costs, and what mends it.
#![forbid(unsafe_code)]

use super::tree::Unread;
use serde::Serialize;
use std::fmt::Display;

/// Whether a condition disturbs a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It does not.
    Ok,
    /// It does.
    Costs,
    /// This kernel, or these privileges, do not tell.
    Unknown,
}

impl Verdict {
    /// As a table shows it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Costs => "costs you",
            Self::Unknown => "cannot be known",
        }
    }
}

/// What mends a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mend {
    /// `isoplane prepare`, with an option or none.
    Prepare(Option<&'static str>),
    /// A command to type, or words where there is none.
    Command(String),
    /// The kernel's command line, and so a reboot.
    Boot(BootWord),
}

/// A word of the kernel's command line that mends something for the CPUs asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootWord {
    /// `nohz_full=`
    NohzFull,
    /// `rcu_nocbs=`
    RcuNocbs,
    /// `isolcpus=domain,`
    IsolateDomain,
    /// `isolcpus=managed_irq,`
    IsolateManaged,
    /// A word that names no CPU.
    Word(&'static str),
}

/// What was found of one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it disturbs a worker.
    pub verdict: Verdict,
    /// What was found; behind "costs you" it reads as what that costs.
    pub words: String,
    /// What mends it, all of it needed; empty where it is in order or nothing does.
    pub mends: Vec<Mend>,
}

impl Finding {
    fn new(verdict: Verdict, words: impl Display) -> Self {
        Self { verdict, words: words.to_string(), mends: Vec::new() }
    }

    pub(crate) fn ok(words: impl Display) -> Self {
        Self::new(Verdict::Ok, words)
    }

    pub(crate) fn costs(words: impl Display) -> Self {
        Self::new(Verdict::Costs, words)
    }

    pub(crate) fn unknown(words: impl Display) -> Self {
        Self::new(Verdict::Unknown, words)
    }

    #[must_use]
    pub(crate) fn mend(mut self, mend: Mend) -> Self {
        self.mends.push(mend);
        self
    }

    #[must_use]
    pub(crate) fn prepare(self) -> Self {
        self.mend(Mend::Prepare(None))
    }

    #[must_use]
    pub(crate) fn command(self, command: impl Into<String>) -> Self {
        self.mend(Mend::Command(command.into()))
    }

    #[must_use]
    pub(crate) fn boot(self, word: BootWord) -> Self {
        self.mend(Mend::Boot(word))
    }
}

impl From<Unread> for Finding {
    fn from(error: Unread) -> Self {
        Self::unknown(error)
    }
}
