//! One value of the kernel's that is changed, and put back byte by byte.
#![forbid(unsafe_code)]

use super::super::tree::{chosen, in_words};
use super::super::{Host, Unread, mask};
use super::partition;
use percpu::CpuList;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;

/// A change of the host, with all it takes to undo it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The stage that it belongs to.
    pub stage: String,
    #[serde(flatten)]
    pub(super) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Kind {
    /// A file that holds one value.
    Value {
        /// Where it is written.
        path: String,
        /// Where it is read, if that is another file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shown_by: Option<String>,
        /// All that the file said, byte by byte.
        old: String,
        /// What we write.
        new: String,
        /// What the file said after that; `None` as long as prepare has not come to its end.
        #[serde(default)]
        now: Option<String>,
    },
    /// The cpuset controller is switched on for the children of the root cgroup.
    Controller { root: String },
    /// A cgroup whose CPUs are an isolated partition.
    Partition { root: String, cpus: String },
}

/// What became of a change that was to be undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undone {
    /// The value is as it was before.
    Back,
    /// It was already.
    Already,
    /// Its file is no longer there, as of a device that was removed: nothing is left to put back.
    Gone,
    /// Somebody else has changed it since; it was left alone.
    Foreign {
        /// What it is now.
        found: String,
    },
    /// The kernel does not take the old value.
    Refused {
        /// Why, in words.
        why: String,
    },
}

impl Undone {
    /// Whether nothing is left to be done.
    pub fn is_done(&self) -> bool {
        !matches!(self, Self::Foreign { .. } | Self::Refused { .. })
    }
}

impl Change {
    pub(super) fn value(stage: &str, path: &str, shown_by: Option<&str>, old: String, new: String) -> Self {
        let (path, shown_by) = (path.to_owned(), shown_by.map(str::to_owned));
        Self { stage: stage.to_owned(), kind: Kind::Value { path, shown_by, old, new, now: None } }
    }

    pub(super) fn of(stage: &str, kind: Kind) -> Self {
        Self { stage: stage.to_owned(), kind }
    }

    /// The file or the cgroup.
    pub fn what(&self) -> String {
        match &self.kind {
            Kind::Value { path, .. } => path.clone(),
            Kind::Controller { root } => format!("{root}/{}", partition::SUBTREE_CONTROL),
            Kind::Partition { root, .. } => partition::folder(root),
        }
    }

    /// Makes the change, and remembers how the kernel shows it; else says why not, in words.
    pub(super) fn apply(&mut self, host: &Host) -> Result<(), String> {
        match &mut self.kind {
            Kind::Value { path, shown_by, new, now, .. } => {
                host.write(path, new).map_err(|error| refusal(path, &error))?;
                *now = host.text(shown_by.as_ref().unwrap_or(path)).ok();
                Ok(())
            }
            Kind::Controller { root } => partition::enable(host, root),
            Kind::Partition { root, cpus } => partition::make(host, root, cpus),
        }
    }

    /// Puts back what was before. With `force` also where somebody else has changed it since.
    pub(super) fn undo(&self, host: &Host, force: bool) -> Undone {
        match &self.kind {
            Kind::Controller { root } => partition::disable(host, root, force),
            Kind::Partition { root, .. } => partition::remove(host, root),
            Kind::Value { path, shown_by, old, new, now } => {
                let shown = || host.text(shown_by.as_ref().unwrap_or(path));
                let found = match shown() {
                    Ok(found) => found,
                    Err(Unread::Missing { .. }) => return Undone::Gone,
                    Err(error) => return Undone::Refused { why: error.to_string() },
                };
                if found == *old {
                    return Undone::Already;
                }
                let ours = now.as_ref() == Some(&found) || means(&found, new);
                if !ours && !force {
                    return Undone::Foreign { found: chosen(&found).unwrap_or(found.trim()).to_owned() };
                }
                if let Err(error) = host.write(path, chosen(old).unwrap_or(old)) {
                    return Undone::Refused { why: refusal(path, &error) };
                }
                match shown() {
                    Ok(found) if found == *old => Undone::Back,
                    Ok(found) => Undone::Refused {
                        why: format!("the kernel shows {:?}, and not {:?}", found.trim(), old.trim()),
                    },
                    Err(error) => Undone::Refused { why: error.to_string() },
                }
            }
        }
    }

    /// What is wrong with a change that a state file holds; root writes there what it says.
    pub(super) fn fault(&self) -> Option<String> {
        let in_order = match &self.kind {
            Kind::Value { path, shown_by, .. } => {
                [Some(path), shown_by.as_ref()].into_iter().flatten().all(|path| {
                    ["/proc/sys/", "/proc/irq/", "/sys/"].iter().any(|folder| path.starts_with(folder))
                        && !path.split('/').any(|part| part == "..")
                })
            }
            Kind::Controller { root } | Kind::Partition { root, .. } => {
                root.starts_with("/sys/fs/cgroup") && !root.split('/').any(|part| part == "..")
            }
        };
        (!in_order).then(|| format!("{:?} is no setting of the kernel's", self.what()))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Value { path, old, new, .. } => {
                write!(f, "{path}: {} -> {new}", chosen(old).unwrap_or(old.trim()))
            }
            Kind::Controller { .. } => write!(f, "{}: +cpuset", self.what()),
            Kind::Partition { cpus, .. } => write!(f, "{}: an isolated partition of {cpus}", self.what()),
        }
    }
}

/// Whether the kernel's words for a value mean what was written: masks and lists have many spellings.
fn means(found: &str, written: &str) -> bool {
    let plain = |text: &str| chosen(text).unwrap_or(text.trim()).to_owned();
    let (found, written) = (plain(found), plain(written));
    let list = |text: &str| text.parse::<CpuList>().ok().filter(|_| text.contains(['-', ',']));
    let same = |one: Option<CpuList>, other: Option<CpuList>| one.is_some() && one == other;
    found == written || same(mask::parse(&found), mask::parse(&written)) || same(list(&found), list(&written))
}

/// Why the kernel refused a write, in words.
fn refusal(path: &str, error: &io::Error) -> String {
    use nix::libc::{EBUSY, EIO, EPERM};
    let fixed = path.starts_with("/proc/irq/") && matches!(error.raw_os_error(), Some(EPERM | EIO));
    let miscounted = path.contains("/fair_server/") && error.raw_os_error() == Some(EBUSY);
    let reason = in_words(error);
    match () {
        () if fixed => format!("only its driver may move it ({reason})"),
        () if miscounted => format!("{reason}: this kernel has miscounted bandwidth; try with --rt"),
        () => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_value_are_the_same_and_others_are_not() {
        for (found, written) in [
            ("00000000,00000001\n", "1"),
            ("0-1,3\n", "0,1,3"),
            ("always [madvise] never\n", "madvise"),
            ("120\n", "120"),
            ("n/a\n", "n/a"),
        ] {
            assert!(means(found, written), "{found:?} {written:?}");
        }
        for (found, written) in
            [("3\n", "1"), ("[always] madvise never\n", "madvise"), ("0\n", "n/a"), ("", "0")]
        {
            assert!(!means(found, written), "{found:?} {written:?}");
        }
    }

    #[test]
    fn only_settings_of_the_kernel_are_written() {
        let fault = |path: &str| Change::value("x", path, None, "".into(), "".into()).fault();
        assert_eq!(fault("/proc/sys/vm/stat_interval"), None);
        assert!(fault("/etc/passwd").is_some());
        assert!(fault("/sys/../etc/passwd").is_some());
        assert!(fault("/proc/self/oom_score_adj").is_some());
        assert!(Change::of("x", Kind::Partition { root: "/etc".into(), cpus: "1".into() }).fault().is_some());
    }
}
