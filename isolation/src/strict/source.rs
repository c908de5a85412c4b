//! The ways into the kernel that can be signalled, numbered so that a handler can count them without a search.
#![forbid(unsafe_code)]

use crate::vectors::VECTORS;
use std::fmt;
use std::str::FromStr;

const FIRST_VECTOR: u32 = 5;
/// How many sources there are.
pub(crate) const SOURCES: usize = FIRST_VECTOR as usize + VECTORS.len();

/// One way into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A system call.
    Syscall,
    /// A page fault in user mode.
    PageFault,
    /// The thread was moved to another CPU.
    Migration,
    /// The thread left the CPU to another task.
    Switch,
    /// An interrupt of a device.
    DeviceInterrupt,
    /// An interrupt of the CPU's own, by the name of its vector.
    Vector(&'static str),
}

impl Source {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Syscall => 0,
            Self::PageFault => 1,
            Self::Migration => 2,
            Self::Switch => 3,
            Self::DeviceInterrupt => 4,
            Self::Vector(name) => {
                let vector = VECTORS.iter().position(|&vector| vector == name).unwrap_or(0);
                FIRST_VECTOR + vector as u32
            }
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Syscall),
            1 => Some(Self::PageFault),
            2 => Some(Self::Migration),
            3 => Some(Self::Switch),
            4 => Some(Self::DeviceInterrupt),
            vector => VECTORS.get((vector - FIRST_VECTOR) as usize).map(|name| Self::Vector(name)),
        }
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SOURCES as u32).filter_map(Self::from_number)
    }

    /// The class it belongs to, by which it is chosen.
    pub fn class(self) -> Signals {
        match self {
            Self::Syscall => Signals::SYSCALLS,
            Self::PageFault => Signals::EXCEPTIONS,
            _ => Signals::INTERRUPTS,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syscall => f.write_str("syscall"),
            Self::PageFault => f.write_str("exception:page_fault"),
            Self::Migration => f.write_str("migration"),
            Self::Switch => f.write_str("task"),
            Self::DeviceInterrupt => f.write_str("irq:device"),
            Self::Vector(name) => write!(f, "irq:{name}"),
        }
    }
}

/// Which classes of kernel entries are signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals(u8);

impl Signals {
    /// None.
    pub const NONE: Self = Self(0);
    /// System calls, by SIGSYS.
    pub const SYSCALLS: Self = Self(1);
    /// Page faults, by SIGTRAP.
    pub const EXCEPTIONS: Self = Self(2);
    /// Interrupts, preemption and migration, by SIGTRAP.
    pub const INTERRUPTS: Self = Self(4);
    /// All three.
    pub const ALL: Self = Self(7);

    const NAMES: [(&'static str, Self); 3] =
        [("syscalls", Self::SYSCALLS), ("exceptions", Self::EXCEPTIONS), ("interrupts", Self::INTERRUPTS)];

    /// Whether all of `other` are in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those of the first that are not in the second.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Those of either.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> =
            Self::NAMES.iter().filter(|(_, one)| self.contains(*one)).map(|(name, _)| *name).collect();
        f.write_str(if names.is_empty() { "none".to_owned() } else { names.join(",") }.as_str())
    }
}

impl FromStr for Signals {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').try_fold(Self::NONE, |signals, word| {
            let found = Self::NAMES.iter().find(|(name, _)| *name == word.trim());
            found.map(|(_, one)| signals.with(*one)).ok_or_else(|| {
                format!(
                    "\"{word}\" is no class of kernel entries: write some of syscalls,exceptions,interrupts"
                )
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sources_are_the_same() {
        assert_eq!(Source::all().count(), SOURCES);
        for source in Source::all() {
            assert_eq!(Source::from_number(source.number()), Some(source));
        }
        assert_eq!(Source::from_number(SOURCES as u32), None);
    }

    #[test]
    fn classes_are_read_and_written() {
        for text in ["syscalls", "exceptions,interrupts", "syscalls,exceptions,interrupts"] {
            assert_eq!(text.parse::<Signals>().unwrap().to_string(), text);
        }
        assert!("signals".parse::<Signals>().unwrap_err().contains("some of syscalls"));
        assert!("".parse::<Signals>().is_err());
    }
}
