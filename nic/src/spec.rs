//! Port specifications: `driver:target?key=value&key=value`.
//!
//! The target may hold colons (`vfio:0000:03:00.0`). Keys that the driver does not know, keys given twice and values out of range
//! are errors with the words that help.
#![forbid(unsafe_code)]

use crate::port::PortError;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A specification taken apart, not yet checked by its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    text: String,
    driver: String,
    target: String,
    options: Vec<(String, String)>,
}

impl FromStr for PortSpec {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        let wrong = |problem: String| PortError::Specification { port: format!("\"{text}\""), problem };
        let (driver, rest) = text
            .split_once(':')
            .ok_or_else(|| wrong("no driver: write driver:target, such as afxdp:eth0 or mem:gen".into()))?;
        let (target, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut options: Vec<(String, String)> = Vec::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').ok_or_else(|| {
                wrong(format!("the option \"{option}\" has no value: write {option}=VALUE"))
            })?;
            if options.iter().any(|(known, _)| known == key) {
                return Err(wrong(format!("the option \"{key}\" is there twice: give it once")));
            }
            options.push((key.to_owned(), value.to_owned()));
        }
        if target.is_empty() {
            return Err(wrong(format!("nothing behind \"{driver}:\": write {driver}:TARGET")));
        }
        Ok(Self { text: text.to_owned(), driver: driver.to_owned(), target: target.to_owned(), options })
    }
}

impl PortSpec {
    /// What stands before the first colon.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// What stands between the first colon and the question mark.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Driver and target: the port's name.
    pub fn name(&self) -> String {
        format!("{}:{}", self.driver, self.target)
    }

    /// An error about this specification.
    pub fn error(&self, problem: impl Into<String>) -> PortError {
        PortError::Specification { port: self.text.clone(), problem: problem.into() }
    }

    /// An error of the system that this specification ran into.
    pub fn open_error(&self, problem: impl Into<String>) -> PortError {
        PortError::Open { port: self.name(), problem: problem.into() }
    }

    /// Refuses options that are not in `known`.
    pub fn check_keys(&self, known: &[&str]) -> Result<(), PortError> {
        match self.options.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, _)) if known.is_empty() => {
                Err(self.error(format!("unknown option \"{key}\": it takes none")))
            }
            Some((key, _)) => {
                Err(self.error(format!("unknown option \"{key}\": it takes {}", known.join(", "))))
            }
        }
    }

    /// The text of an option.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// A whole number, within `range`. Decimal; `k`, `M` and `G` behind it multiply by powers of 1000.
    pub fn number(&self, key: &str, range: RangeInclusive<u64>, default: u64) -> Result<u64, PortError> {
        let Some(text) = self.text(key) else {
            return Ok(default);
        };
        parse_number(text).filter(|number| range.contains(number)).ok_or_else(|| {
            self.error(format!(
                "{key}={text}: choose a whole number from {} to {}",
                range.start(),
                range.end()
            ))
        })
    }

    /// One of a list of words.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)], default: T) -> Result<T, PortError> {
        let Some(text) = self.text(key) else {
            return Ok(default);
        };
        choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            self.error(format!("{key}={text}: choose {}", words.join(", ")))
        })
    }

    /// `on` or `off`.
    pub fn switch(&self, key: &str, default: bool) -> Result<bool, PortError> {
        self.choice(key, &[("on", true), ("off", false)], default)
    }
}

/// A whole number in decimal; `k`, `M` and `G` behind it multiply by powers of 1000.
pub fn parse_number(text: &str) -> Option<u64> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 1_000),
        Some(b'M') => (&text[..text.len() - 1], 1_000_000),
        Some(b'G') => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor))
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(text: &str) -> PortSpec {
        text.parse().unwrap()
    }

    #[test]
    fn a_specification_is_taken_apart() {
        let spec = spec("vfio:0000:03:00.0?queues=2&mode=fast");
        assert_eq!((spec.driver(), spec.target()), ("vfio", "0000:03:00.0"));
        assert_eq!(spec.number("queues", 1..=4, 1).unwrap(), 2);
        assert_eq!(spec.number("frames", 1..=4, 3).unwrap(), 3);
        assert_eq!(spec.name(), "vfio:0000:03:00.0");
    }

    #[test]
    fn numbers_have_suffixes_and_bounds() {
        assert_eq!(spec("mem:x?rate=2M").number("rate", 0..=u64::MAX, 0).unwrap(), 2_000_000);
        for wrong in ["5", "-1", "x", "", "1e3", "99999999999G", "k"] {
            let error = spec(&format!("mem:x?rate={wrong}")).number("rate", 0..=4, 0).unwrap_err();
            assert!(error.to_string().contains("from 0 to 4"), "{error}");
        }
    }

    #[test]
    fn mistakes_are_explained() {
        let error = |text: &str| text.parse::<PortSpec>().unwrap_err().to_string();
        assert!(error("eth0").contains("no driver"));
        assert!(error("afxdp:").contains("nothing behind"));
        assert!(error("mem:gen?size").contains("no value"));
        assert!(error("mem:gen?size=1&size=2").contains("twice"));
        let error = spec("mem:gen?sise=1").check_keys(&["size", "rate"]).unwrap_err().to_string();
        assert!(error.contains("\"sise\"") && error.contains("size, rate"), "{error}");
        let error = spec("mem:gen?check=maybe").switch("check", true).unwrap_err().to_string();
        assert!(error.contains("on, off"), "{error}");
    }

    proptest! {
        #[test]
        fn property_any_text_is_read_or_refused(text in "\\PC{0,40}") {
            if let Ok(spec) = text.parse::<PortSpec>() {
                prop_assert_eq!(spec.to_string(), text);
            }
        }
    }
}
