//! What remembers a device's former driver, so that it comes back even after a crash: a small file for each device that was taken.
//!
//! It is there, whole, before the first change, and goes when all is back. Its owner holds a lock (flock(2)) on it for as long as the device is bound: a
//! file that can be locked was left by a process that is dead. Files are made, replaced and removed under a lock of their folder only, and
//! a file that is replaced is locked before it gets its name; so whoever finds the file finds a record that is whole, and an owner or none.
#![forbid(unsafe_code)]

use super::address::PciAddress;
use super::errors::PciError;
use super::holders::Holder;
use super::sysfs::Sysfs;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// `isoplane prepare` has its file there too. The next boot takes it away, together with all bindings.
const FOLDER: &str = "/run/isoplane";
/// Of the file's form.
const VERSION: u32 = 1;
/// How long another process is waited for that has the folder's lock, or that is about to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one is waited for that seems to be well: it may have been killed a moment ago, and not have seen it yet.
const SHORT_PATIENCE: Duration = Duration::from_secs(1);
/// No record is longer.
const LONGEST_BYTES: u64 = 4096;

/// How a device was before it was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    /// Of the boot in which it was taken; empty where the kernel tells none.
    boot_id: String,
    /// Who took it.
    process: u32,
    address: String,
    vendor: u16,
    device: u16,
    /// The driver that had it.
    pub(crate) driver: Option<String>,
    /// The driver it was reserved for.
    pub(crate) driver_override: Option<String>,
}

impl Record {
    /// How the device is now.
    pub(crate) fn of(device: &super::sysfs::PciDevice) -> Result<Self, PciError> {
        let id = device.id()?;
        Ok(Self {
            version: VERSION,
            boot_id: boot_id(device.sysfs()),
            process: std::process::id(),
            address: device.address().to_string(),
            vendor: id.vendor,
            device: id.device,
            driver: device.driver(),
            driver_override: device.driver_override(),
        })
    }

    /// Whether it is about this boot.
    pub(crate) fn is_of_this_boot(&self, sysfs: &Sysfs) -> bool {
        self.boot_id == boot_id(sysfs)
    }

    /// Whether the device at this address is still the one that was taken.
    pub(crate) fn is_about(&self, device: &super::sysfs::PciDevice) -> bool {
        device.id().is_ok_and(|id| (id.vendor, id.device) == (self.vendor, self.device))
    }

    /// What is wrong with one that was read: root writes where it says.
    fn fault(&self, address: PciAddress) -> Option<String> {
        let is_name = |name: &String| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !name.starts_with('.') && !name.is_empty() && name.chars().all(plain)
        };
        if self.version != VERSION {
            return Some(format!("its version is {}, and not {VERSION}", self.version));
        }
        if self.address != address.to_string() {
            return Some(format!("it is about {}", self.address));
        }
        let names = [&self.driver, &self.driver_override];
        let wrong = names.into_iter().flatten().find(|name| !is_name(name));
        wrong.map(|name| format!("{name:?} is no driver's name"))
    }
}

fn boot_id(sysfs: &Sysfs) -> String {
    sysfs.word("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// A device's file, whether it is there or not.
#[derive(Clone)]
pub(crate) struct StateFile {
    sysfs: Sysfs,
    address: PciAddress,
    path: PathBuf,
}

/// Such a file that is ours: nobody else takes the device, or gives it back, as long as this is kept.
pub(crate) struct Claim {
    state: StateFile,
    /// Locked.
    file: File,
    /// How the device was before.
    pub(crate) record: Record,
}

/// What is between a look at the file and its change; the lock is on the folder, for files come and go.
struct Folder(File);

impl StateFile {
    /// That of the device at this address.
    pub(crate) fn of(sysfs: &Sysfs, address: PciAddress) -> Self {
        let path = sysfs.path(FOLDER).join(format!("pci-{address}.json"));
        Self { sysfs: sysfs.clone(), address, path }
    }

    /// All that there are.
    pub(crate) fn all(sysfs: &Sysfs) -> Vec<Self> {
        let names = sysfs.names(FOLDER);
        let address = |name: &String| name.strip_prefix("pci-")?.strip_suffix(".json")?.parse().ok();
        names.iter().filter_map(address).map(|address| Self::of(sysfs, address)).collect()
    }

    /// The device's address.
    pub(crate) fn address(&self) -> PciAddress {
        self.address
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, action: &'static str) -> impl FnOnce(io::Error) -> PciError {
        let path = self.path.display().to_string();
        move |source| PciError::State { action, path, source }
    }

    fn lock_folder(&self, make: bool) -> Result<Folder, PciError> {
        let path = self.sysfs.path(FOLDER);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if make {
                fs::create_dir_all(&path).map_err(self.error("make the folder of"))?;
            }
            let folder = match File::open(&path) {
                Ok(folder) => folder,
                // Who was the last to leave it has removed it just now.
                Err(error)
                    if make && error.kind() == io::ErrorKind::NotFound && Instant::now() < deadline =>
                {
                    continue;
                }
                Err(error) => return Err(self.error("open the folder of")(error)),
            };
            match folder.try_lock() {
                // Whoever had it may have removed the folder, and a third may have made another.
                Ok(()) if is_same(&folder, &path) => return Ok(Folder(folder)),
                Err(TryLockError::Error(source)) => return Err(self.error("lock the folder of")(source)),
                _ if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                _ => return Err(self.error("lock the folder of")(io::ErrorKind::ResourceBusy.into())),
            }
        }
    }

    /// Makes it ours and writes `now` to it, which is asked when nobody else has the device. What a dead process left there is passed to `merge`
    /// beside it, which says what to remember.
    pub(crate) fn claim(
        &self,
        now: impl Fn() -> Result<Record, PciError>,
        merge: impl Fn(Record, Record) -> Record,
    ) -> Result<Claim, PciError> {
        self.patiently(|| {
            let _folder = self.lock_folder(true)?;
            let old = self.open()?;
            let record = match &old {
                Some(Claim { record, .. }) if record.is_of_this_boot(&self.sysfs) => {
                    merge(record.clone(), now()?)
                }
                _ => now()?,
            };
            let file = self.replace(&record)?;
            // Unlocked only now that the new one has its name.
            drop(old);
            Ok(Some(Claim { state: self.clone(), file, record }))
        })?
        .ok_or_else(|| self.error("find")(io::ErrorKind::NotFound.into()))
    }

    /// Makes it ours as a dead process has left it; `None` where there is none.
    pub(crate) fn adopt(&self) -> Result<Option<Claim>, PciError> {
        if !self.path.exists() {
            return Ok(None);
        }
        self.patiently(|| match self.lock_folder(false) {
            Ok(_folder) => self.open(),
            // Who had it has given it back meanwhile, and the folder was empty.
            Err(PciError::State { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// Again and again while another process has it that may be about to end.
    fn patiently(
        &self,
        attempt: impl Fn() -> Result<Option<Claim>, PciError>,
    ) -> Result<Option<Claim>, PciError> {
        let start = Instant::now();
        loop {
            match attempt() {
                Err(PciError::Busy { address, path, holders }) => {
                    let ending = holders.iter().all(|holder| holder.is_ending(&self.sysfs));
                    let patience = if ending { PATIENCE } else { SHORT_PATIENCE };
                    if start.elapsed() >= patience {
                        return Err(PciError::Busy { address, path, holders });
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                result => return result,
            }
        }
    }

    /// Opens and locks what is there, the folder being locked.
    fn open(&self) -> Result<Option<Claim>, PciError> {
        // Whoever put a FIFO there is not waited for, and a link is not followed.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error("open")(error)),
        };
        let mut text = String::new();
        (&file).take(LONGEST_BYTES).read_to_string(&mut text).map_err(self.error("read"))?;
        let record = serde_json::from_str::<Record>(&text).map_err(|error| error.to_string());
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(self.error("lock")(error)),
            Err(TryLockError::WouldBlock) => {
                let holder = record.ok().map(|record| Holder::of(&self.sysfs, record.process));
                let path = self.path.display().to_string();
                let holders = holder.into_iter().collect();
                return Err(PciError::Busy { address: self.address, path, holders });
            }
        }
        let refuse = |why| PciError::NoState { path: self.path.display().to_string(), why };
        let record = record.map_err(refuse)?;
        match record.fault(self.address) {
            Some(why) => Err(refuse(why)),
            None => Ok(Some(Claim { state: self.clone(), file, record })),
        }
    }

    /// Writes a new one, locks it, and gives it the name, the folder being locked.
    fn replace(&self, record: &Record) -> Result<File, PciError> {
        let text = serde_json::to_string_pretty(record).map_err(|error| self.error("write")(error.into()))?;
        let new = self.path.with_extension("json.new");
        let write = || {
            // Of a process that was killed; the folder's lock keeps it from being anybody's.
            remove_if_there(&new)?;
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&new)?;
            // Not synced: a machine that lost its power has nothing to put back.
            file.write_all(text.as_bytes())?;
            file.try_lock().map_err(io::Error::from)?;
            fs::rename(&new, &self.path)?;
            Ok(file)
        };
        write().map_err(self.error("write"))
    }
}

impl Claim {
    /// Removes the file: all is as it was. The folder goes with the last one.
    pub(crate) fn remove(self) -> Result<(), PciError> {
        let folder = self.state.lock_folder(false);
        // Another may have its name by now, if the folder was removed by hand.
        if is_same(&self.file, &self.state.path) {
            remove_if_there(&self.state.path).map_err(self.state.error("remove"))?;
        }
        if folder.is_ok() {
            let _ = remove_if_there(&self.state.path.with_extension("json.new"));
            // It stays where something else is in it.
            let _ = fs::remove_dir(self.state.sysfs.path(FOLDER));
        }
        Ok(())
    }
}

fn is_same(open: &File, path: &Path) -> bool {
    match (open.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
