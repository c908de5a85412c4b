//! Sets of CPU numbers in the notation of `cpuset(7)` and `taskset -c`: `0,2-5`.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// The largest CPU number a list may name; far above any real machine, so that a typing error
/// such as `0-99999999` is an error and not a gigabyte.
const MAX_CPU: usize = 65_535;

/// A set of CPU numbers, kept in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuList(BTreeSet<usize>);

/// Why a CPU list could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CpuListError {
    /// Not a number and not a range.
    #[error("\"{item}\" is no CPU number or range: write a list such as 0,2-5")]
    Syntax {
        /// The part between two commas.
        item: String,
    },
    /// A range whose end is before its start.
    #[error("the CPU range {first}-{last} runs backwards: write {last}-{first}")]
    Backwards {
        /// What stands before the dash.
        first: usize,
        /// What stands behind it.
        last: usize,
    },
    /// The same CPU named twice.
    #[error("CPU {cpu} is in the list twice: name each CPU once")]
    Twice {
        /// The CPU in question.
        cpu: usize,
    },
    /// Beyond what any kernel supports.
    #[error("CPU {cpu} is beyond {MAX_CPU}, the highest number supported")]
    TooLarge {
        /// The number given.
        cpu: usize,
    },
}

impl CpuList {
    /// True where `cpu` is in the set.
    pub fn contains(&self, cpu: usize) -> bool {
        self.0.contains(&cpu)
    }

    /// The CPU numbers in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().copied()
    }

    /// How many CPUs the set has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True where the set has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<usize> for CpuList {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> Self {
        Self(cpus.into_iter().collect())
    }
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Self, CpuListError> {
        let mut cpus = BTreeSet::new();
        if text.trim().is_empty() {
            return Ok(Self(cpus));
        }
        for item in text.trim().split(',') {
            let number = |digits: &str| -> Result<usize, CpuListError> {
                let cpu: usize = digits
                    .trim()
                    .parse()
                    .map_err(|_| CpuListError::Syntax { item: item.trim().to_owned() })?;
                if cpu > MAX_CPU { Err(CpuListError::TooLarge { cpu }) } else { Ok(cpu) }
            };
            let (first, last) = match item.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(item)?, number(item)?),
            };
            if first > last {
                return Err(CpuListError::Backwards { first, last });
            }
            for cpu in first..=last {
                if !cpus.insert(cpu) {
                    return Err(CpuListError::Twice { cpu });
                }
            }
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut cpus = self.iter().peekable();
        while let Some(first) = cpus.next() {
            let mut last = first;
            while cpus.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            match last - first {
                0 => write!(f, "{separator}{first}")?,
                _ => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_are_read() {
        let list: CpuList = "0,2-5, 7".parse().unwrap();
        assert_eq!(list.iter().collect::<Vec<_>>(), [0, 2, 3, 4, 5, 7]);
        assert_eq!(list.to_string(), "0,2-5,7");
        assert!("".parse::<CpuList>().unwrap().is_empty());
    }

    #[test]
    fn bad_lists_say_what_is_wrong() {
        let error = |text: &str| text.parse::<CpuList>().unwrap_err();
        assert_eq!(error("1,x"), CpuListError::Syntax { item: "x".into() });
        assert_eq!(error("1,,2"), CpuListError::Syntax { item: "".into() });
        assert_eq!(error("-1"), CpuListError::Syntax { item: "-1".into() });
        assert_eq!(error("5-2"), CpuListError::Backwards { first: 5, last: 2 });
        assert_eq!(error("1,0-2"), CpuListError::Twice { cpu: 1 });
        assert_eq!(error("0-99999999"), CpuListError::TooLarge { cpu: 99_999_999 });
    }
}
