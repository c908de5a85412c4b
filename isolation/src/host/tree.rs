//! The files by which a kernel tells about itself, below one root folder.
//!
//! All that is known of a host is read here, so that tests put a folder of their own in its place: one that is complete, one that has holes, one
//! that lies. Whatever is read may be missing, locked or garbled; that is an answer too, and never a reason to fail.
#![forbid(unsafe_code)]

use super::mask;
use nix::libc;
use percpu::{CpuList, Topology};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;

/// No file of interest is longer: `/proc/cpuinfo` of a thousand CPUs is not.
const LONGEST_BYTES: u64 = 4 << 20;
/// How much of a garbled file an error shows.
const SHOWN_CHARACTERS: usize = 40;

/// Why a file told nothing.
#[derive(Debug, Error)]
pub enum Unread {
    /// It is not there.
    #[error("there is no {path}")]
    Missing {
        /// The file.
        path: String,
    },
    /// The kernel does not let us.
    #[error("{path}: {}", in_words(source))]
    Refused {
        /// The file.
        path: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// It says something that nobody here understands.
    #[error("{path} says {text:?}, which is not understood")]
    Garbled {
        /// The file.
        path: String,
        /// How it begins.
        text: String,
    },
}

impl Unread {
    /// Whether the file is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

/// A machine, as its `/proc` and `/sys` show it.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Default for Host {
    /// This machine.
    fn default() -> Self {
        Self::at("/")
    }
}

impl Host {
    /// The machine whose `/proc`, `/sys` and `/dev` are in this folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where a file of the host, such as `/proc/cmdline`, is.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's bytes, at most so many.
    pub(crate) fn bytes(&self, path: &str, limit: u64) -> Result<Vec<u8>, Unread> {
        let read = || {
            let mut bytes = Vec::new();
            // Whoever put a FIFO there is not waited for.
            let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(self.path(path))?;
            file.take(limit).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => Unread::Missing { path: path.into() },
            _ => Unread::Refused { path: path.into(), source },
        })
    }

    /// A file's text as it is, with the newline at its end.
    pub(crate) fn text(&self, path: &str) -> Result<String, Unread> {
        let bytes = self.bytes(path, LONGEST_BYTES)?;
        String::from_utf8(bytes).map_err(|error| garbled(path, &String::from_utf8_lossy(error.as_bytes())))
    }

    /// A file's text without the white space around it.
    pub(crate) fn word(&self, path: &str) -> Result<String, Unread> {
        Ok(self.text(path)?.trim().to_owned())
    }

    /// A number.
    pub(crate) fn number<T: FromStr>(&self, path: &str) -> Result<T, Unread> {
        let word = self.word(path)?;
        word.parse().map_err(|_| garbled(path, &word))
    }

    /// A list of CPUs such as `0-3,8`; the kernel writes `(null)` or nothing for none.
    pub(crate) fn list(&self, path: &str) -> Result<CpuList, Unread> {
        let word = self.word(path)?;
        if word == "(null)" {
            return Ok(CpuList::default());
        }
        word.parse().map_err(|_| garbled(path, &word))
    }

    /// CPUs as a mask such as `ff,00000003`.
    pub(crate) fn mask(&self, path: &str) -> Result<CpuList, Unread> {
        let word = self.word(path)?;
        mask::parse(&word).ok_or_else(|| garbled(path, &word))
    }

    /// The word in brackets, of those a file such as `always [madvise] never` offers.
    pub(crate) fn chosen(&self, path: &str) -> Result<String, Unread> {
        let text = self.text(path)?;
        chosen(&text).map(str::to_owned).ok_or_else(|| garbled(path, &text))
    }

    /// The names in a folder, in order; those that are no text are left out.
    pub(crate) fn names(&self, folder: &str) -> Result<Vec<String>, Unread> {
        let entries = fs::read_dir(self.path(folder)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Unread::Missing { path: folder.into() },
            _ => Unread::Refused { path: folder.into(), source },
        })?;
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// The numbers in a folder such as `/proc`, ascending.
    pub(crate) fn numbers(&self, folder: &str) -> Result<Vec<u64>, Unread> {
        let mut numbers: Vec<u64> = self.names(folder)?.iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Whether there is such a file or folder.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Whether anybody may write to a file, by its mode; `None` where there is none.
    pub(crate) fn is_writable(&self, path: &str) -> Option<bool> {
        fs::metadata(self.path(path)).ok().map(|file| file.permissions().mode() & 0o222 != 0)
    }

    /// Writes to a file that is there, by one call, as the kernel wants it.
    pub(crate) fn write(&self, path: &str, text: &str) -> io::Result<()> {
        let mut file: File = OpenOptions::new().write(true).truncate(true).open(self.path(path))?;
        file.write_all(text.as_bytes())
    }

    /// A field of `/proc/self/status`.
    pub(crate) fn own_status(&self, field: &str) -> Result<String, Unread> {
        let path = "/proc/self/status";
        let text = self.text(path)?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.map(|line| line.trim().to_owned()).ok_or_else(|| garbled(path, &text))
    }

    /// Whether this process has a capability, by its number in include/uapi/linux/capability.h.
    pub(crate) fn has_capability(&self, number: u32) -> Result<bool, Unread> {
        let word = self.own_status("CapEff")?;
        let set = u64::from_str_radix(&word, 16).map_err(|_| garbled("/proc/self/status", &word))?;
        Ok(set & (1 << number) != 0)
    }

    /// The CPUs there are, and those that this process may use.
    pub(crate) fn topology(&self) -> Result<Topology, Unread> {
        let folder = "/sys/devices/system/cpu";
        if self.root == Path::new("/") {
            return Topology::read()
                .map_err(|source| Unread::Refused { path: "the affinity mask".into(), source });
        }
        let mask = self.own_status("Cpus_allowed_list")?;
        let mask: CpuList = mask.parse().map_err(|_| garbled("/proc/self/status", &mask))?;
        let online = self.list(&format!("{folder}/online"))?;
        let possible = self.list(&format!("{folder}/possible"))?;
        // As sched_getaffinity(2) does, which the file does not.
        let allowed = mask::both(&mask, &online);
        Ok(Topology { possible, online, cpuset: None, allowed })
    }

    /// Whether the kernel's release comes before this one.
    pub(crate) fn is_older_than(&self, major: u32, minor: u32) -> Result<bool, Unread> {
        let path = "/proc/sys/kernel/osrelease";
        let release = self.word(path)?;
        let mut numbers =
            release.split(|c: char| !c.is_ascii_digit()).map_while(|digits| digits.parse().ok());
        let found: Option<(u32, u32)> = numbers.next().zip(numbers.next());
        found.map(|found| found < (major, minor)).ok_or_else(|| garbled(path, &release))
    }

    /// The kernel's command line, word by word.
    pub(crate) fn command_line(&self) -> Result<Vec<String>, Unread> {
        Ok(self.text("/proc/cmdline")?.split_whitespace().map(str::to_owned).collect())
    }

    /// The first folder where a file system of this type is mounted.
    pub(crate) fn mounted(&self, kind: &str) -> Result<Option<String>, Unread> {
        let text = self.text("/proc/self/mounts")?;
        Ok(text.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let (_, folder, found) = (fields.next()?, fields.next()?, fields.next()?);
            (found == kind).then(|| folder.replace("\\040", " "))
        }))
    }
}

/// What the kernel answered, without its number.
pub(crate) fn in_words(error: &io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().to_owned()
}

/// The word in brackets.
pub(crate) fn chosen(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

pub(crate) fn garbled(path: &str, text: &str) -> Unread {
    Unread::Garbled { path: path.into(), text: text.trim().chars().take(SHOWN_CHARACTERS).collect() }
}
