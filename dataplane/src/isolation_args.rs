//! The command-line options by which a worker is kept from the kernel, and what they ask the isolation crate for.
#![forbid(unsafe_code)]

use crate::error::Error;
use clap::{Args, ValueEnum};
use isolation::{Config, Mode, Signals, Strictness};
use std::path::PathBuf;

/// How far to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum IsolationMode {
    /// Workers are pinned, and that is all
    #[default]
    Off,
    /// Kernel entries are signalled and logged; what the machine lacks is said
    Soft,
    /// The same, and refuses to start (status 1) where the machine cannot keep the kernel away
    Strict,
}

impl IsolationMode {
    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Soft => "soft",
            Self::Strict => "strict",
        }
    }
}

/// What a violation does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnViolation {
    /// It is counted and logged
    #[default]
    Log,
    /// With --one-shot: the worker isolates itself again at its next turn
    Rearm,
    /// The run ends in good order, with status 1
    Exit,
    /// The process ends by SIGABRT, in the middle of what did it
    Abort,
}

/// A switch with words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// Yes
    On,
    /// No
    #[default]
    Off,
}

/// Options of isolation.
#[derive(Args, Clone, Debug, Default)]
pub struct IsolationArgs {
    /// Keep the kernel away from the workers, and tell when it comes all the same
    #[arg(long, value_enum, value_name = "MODE", default_value = "off", help_heading = "Isolation")]
    pub isolation: IsolationMode,

    /// Kernel entries to signal: some of syscalls,exceptions,interrupts [default: all three]
    #[arg(long, value_name = "LIST", help_heading = "Isolation")]
    pub signal: Option<Signals>,

    /// Kernel entries to let through unsignalled: syscalls, exceptions; the worker quiesces after each
    #[arg(long, value_name = "LIST", help_heading = "Isolation")]
    pub allow: Option<Signals>,

    /// The first violation ends a worker's isolation, and the worker goes on without
    #[arg(long, help_heading = "Isolation")]
    pub one_shot: bool,

    /// What a violation does besides
    #[arg(long, value_enum, value_name = "ACTION", default_value = "log", help_heading = "Isolation")]
    pub on_violation: OnViolation,

    /// After a violation wait for quiet before going on, 2 s at most
    #[arg(long, value_enum, value_name = "SWITCH", default_value = "off", help_heading = "Isolation")]
    pub quiesce: OnOff,

    /// Write every violation as a line of JSON
    #[arg(long, value_name = "FILE.jsonl", help_heading = "Isolation")]
    pub violations: Option<PathBuf>,
}

impl IsolationArgs {
    /// Refuses what contradicts itself.
    pub(crate) fn check(&self, shared_cpu: bool) -> Result<(), Error> {
        let refuse = |text: &str| Err(Error::Configuration(text.into()));
        if self.isolation == IsolationMode::Off {
            let alone = [
                (self.signal.is_some(), "--signal"),
                (self.allow.is_some(), "--allow"),
                (self.one_shot, "--one-shot"),
                (self.on_violation != OnViolation::Log, "--on-violation"),
                (self.quiesce == OnOff::On, "--quiesce"),
                (self.violations.is_some(), "--violations"),
            ];
            if let Some((_, option)) = alone.iter().find(|(given, _)| *given) {
                return Err(Error::Configuration(format!(
                    "{option} says how to isolate workers, and they are not isolated: add --isolation soft or --isolation strict"
                )));
            }
        }
        if self.on_violation == OnViolation::Rearm && !self.one_shot {
            return refuse(
                "--on-violation rearm isolates a worker again, and without --one-shot its isolation does not end: add --one-shot",
            );
        }
        if self.allow.is_some_and(|allow| allow.contains(Signals::INTERRUPTS)) {
            return refuse(
                "--allow interrupts: nobody can keep them from coming; leave interrupts out of --signal not to hear of them",
            );
        }
        if self.isolation == IsolationMode::Strict && shared_cpu {
            return refuse(
                "--isolation strict: worker and control core share the only CPU there is; give the process a second CPU (one that the kernel isolates it has only by \"taskset -c\"), or use --isolation soft",
            );
        }
        Ok(())
    }

    /// What the isolation crate is asked for; `None` where workers are not isolated.
    pub(crate) fn config(&self) -> Option<Config> {
        let strictness = match self.isolation {
            IsolationMode::Off => return None,
            IsolationMode::Soft => Strictness::Soft,
            IsolationMode::Strict => Strictness::Strict,
        };
        let allow = self.allow.unwrap_or(Signals::NONE);
        Some(Config {
            signals: self.signals(),
            mode: if self.one_shot { Mode::OneShot } else { Mode::Persistent },
            strictness,
            allow_syscalls: allow.contains(Signals::SYSCALLS),
            allow_exceptions: allow.contains(Signals::EXCEPTIONS),
            quiesce: self.quiesce == OnOff::On,
            abort: self.on_violation == OnViolation::Abort,
            ..Config::default()
        })
    }

    /// What is signalled, allowed or not: an allowed entry is noticed by the same means.
    pub(crate) fn signals(&self) -> Signals {
        self.signal.unwrap_or(Signals::ALL).with(self.allow.unwrap_or(Signals::NONE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(args: &IsolationArgs, shared: bool) -> String {
        args.check(shared).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let off = IsolationArgs::default;
        assert_eq!(words(&off(), true), "");
        assert!(words(&IsolationArgs { one_shot: true, ..off() }, false).starts_with("--one-shot says"));
        let soft = || IsolationArgs { isolation: IsolationMode::Soft, ..off() };
        let rearm = IsolationArgs { on_violation: OnViolation::Rearm, ..soft() };
        assert!(words(&rearm, false).contains("add --one-shot"));
        assert_eq!(words(&IsolationArgs { one_shot: true, ..rearm }, false), "");
        let allow = IsolationArgs { allow: Some(Signals::INTERRUPTS), ..soft() };
        assert!(words(&allow, false).contains("leave interrupts out"));
        let strict = IsolationArgs { isolation: IsolationMode::Strict, ..off() };
        assert!(words(&strict, true).contains("second CPU"));
        assert_eq!(words(&strict, false), "");
    }

    #[test]
    fn allowed_entries_are_noticed_too() {
        let args = IsolationArgs {
            isolation: IsolationMode::Soft,
            signal: Some(Signals::EXCEPTIONS),
            allow: Some(Signals::SYSCALLS),
            ..IsolationArgs::default()
        };
        let config = args.config().unwrap();
        assert_eq!(config.signals, Signals::SYSCALLS.with(Signals::EXCEPTIONS));
        assert!(config.allow_syscalls && !config.allow_exceptions);
        assert!(IsolationArgs::default().config().is_none());
    }
}
