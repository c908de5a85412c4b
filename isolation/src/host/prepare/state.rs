//! The file that keeps the old values. It is there, whole and on the disk, before the first value changes, and goes when the last is back.
#![forbid(unsafe_code)]

use super::super::{Host, HostError, mask};
use super::change::Change;
use nix::libc;
use percpu::CpuList;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Of the file's form.
const VERSION: u32 = 1;
/// How long another run is waited for. One that was killed keeps its lock until its last write has ended.
const PATIENCE: Duration = Duration::from_secs(10);
const DEFAULT_FOLDER: &str = "/run/isoplane";

/// What the file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    /// Of the boot in which the values were changed: the next one forgets them.
    boot_id: String,
    pub(super) cpus: String,
    pub(super) changes: Vec<Change>,
}

impl State {
    pub(super) fn new(host: &Host, cpus: &CpuList, changes: Vec<Change>) -> Self {
        Self { version: VERSION, boot_id: boot_id(host), cpus: cpus.to_string(), changes }
    }

    pub(super) fn is_of_this_boot(&self, host: &Host) -> bool {
        self.boot_id == boot_id(host)
    }
}

/// Empty where the kernel tells none: then every boot is this one.
fn boot_id(host: &Host) -> String {
    host.word("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Where the old values are kept.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
    is_default: bool,
}

impl Default for StateFile {
    /// `/run/isoplane/prepared.json`, which the next boot takes away together with all that was changed.
    fn default() -> Self {
        Self { path: Path::new(DEFAULT_FOLDER).join("prepared.json"), is_default: true }
    }
}

impl StateFile {
    /// Another file.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), is_default: false }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The option by which a command finds it, with a space before; nothing for the default one.
    pub fn option(&self) -> String {
        if self.is_default { String::new() } else { format!(" --state {}", self.path.display()) }
    }

    fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    fn error(&self, action: &'static str) -> impl FnOnce(io::Error) -> HostError {
        let path = self.path.display().to_string();
        move |source| HostError::State { action, path, source }
    }

    /// Whether there can be one: without its folder there is none.
    pub(super) fn may_exist(&self) -> bool {
        self.folder().exists()
    }

    /// Keeps all others that use this file away, for as long as what it returns is kept. The lock is on the folder: the file comes and goes.
    pub(super) fn lock(&self, make_folder: bool) -> Result<File, HostError> {
        if make_folder && self.is_default {
            fs::create_dir_all(self.folder()).map_err(self.error("make"))?;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let folder = File::open(self.folder()).map_err(self.error("open the folder of"))?;
            match folder.try_lock() {
                // Whoever had it may have removed the folder, and a third may have made another.
                Ok(()) if self.is_folder(&folder) => return Ok(folder),
                Err(TryLockError::Error(source)) => return Err(self.error("lock")(source)),
                _ if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
                _ => return Err(HostError::Busy { path: self.path.display().to_string() }),
            }
        }
    }

    fn is_folder(&self, open: &File) -> bool {
        match (open.metadata(), fs::metadata(self.folder())) {
            (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
            _ => false,
        }
    }

    pub(super) fn prepared(&self, cpus: &str) -> HostError {
        let path = self.path.display().to_string();
        let cpus = match cpus.parse::<CpuList>() {
            Ok(list) => format!("{} {}", mask::words(&list), if list.len() == 1 { "is" } else { "are" }),
            Err(_) => "this machine is".to_owned(),
        };
        HostError::Prepared { cpus, path, option: self.option() }
    }

    /// What it holds; `None` where there is none.
    pub(super) fn load(&self) -> Result<Option<State>, HostError> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error("read")(error)),
        };
        let refuse = |why: String| HostError::NoState { path: self.path.display().to_string(), why };
        let state: State = serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        if state.version != VERSION {
            return Err(refuse(format!("its version is {}, and not {VERSION}", state.version)));
        }
        match state.changes.iter().find_map(Change::fault) {
            Some(fault) => Err(refuse(fault)),
            None => Ok(Some(state)),
        }
    }

    /// Writes it, so that at every moment the old one or the new one is on the disk.
    pub(super) fn save(&self, state: &State) -> Result<(), HostError> {
        let text = serde_json::to_string_pretty(state).map_err(|error| self.error("write")(error.into()))?;
        let new = self.unfinished();
        let write = || {
            // Of a run that was killed; the lock keeps it from being anybody's.
            remove_if_there(&new)?;
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            File::open(self.folder())?.sync_all()
        };
        write().map_err(self.error("write"))
    }

    /// Removes it, and the folder that was made for it.
    pub(super) fn remove(&self) -> Result<(), HostError> {
        remove_if_there(&self.path)
            .and_then(|()| remove_if_there(&self.unfinished()))
            .map_err(self.error("remove"))?;
        if self.is_default {
            // It stays where something else is in it.
            let _ = fs::remove_dir(self.folder());
        }
        Ok(())
    }

    fn unfinished(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        name.into()
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
