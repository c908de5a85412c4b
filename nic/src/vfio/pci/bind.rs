//! A device is given to `vfio-pci` and back: a stage with `check`, `apply` and `undo`.
//!
//! The order is that of a change that may be interrupted at any point: what was before is on record first ([`super::state`]); the reservation
//! (`driver_override`) comes before the present driver is taken away, so that nobody else takes the device in between. The way back
//! takes the reservation away first, for the same reason. Whatever fails, what was done is undone, and each wait has an end.
#![forbid(unsafe_code)]

use super::address::PciAddress;
use super::errors::PciError;
use super::group::{self, Group};
use super::holders;
use super::state::{Claim, Record, StateFile};
use super::sysfs::{PciDevice, Sysfs, until};
use super::traffic;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

const VFIO_PCI: &str = "vfio-pci";
/// How long a driver may take to come or go: some load firmware.
const DRIVER_LIMIT: Duration = Duration::from_secs(30);
/// How long somebody who has the device open is waited for: one that was killed gives it back when its memory is unmapped.
const HOLDER_LIMIT: Duration = Duration::from_secs(2);

/// What the user wants besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// Take the device even where the kernel uses its interface (`take=yes`).
    pub(crate) take: bool,
    /// Drive it without an IOMMU (`iommu=off`).
    pub(crate) no_iommu: bool,
}

/// A binding that has been checked, and changes nothing yet.
pub(crate) struct Plan {
    device: PciDevice,
    wishes: Wishes,
}

/// Checks all that can be known beforehand.
pub(in crate::vfio) fn check(device: &PciDevice, wishes: Wishes) -> Result<Plan, PciError> {
    device.check_ethernet()?;
    match Group::of(device) {
        // Without an IOMMU there is a group once the device is bound.
        _ if wishes.no_iommu => check_no_iommu(device.sysfs())?,
        Some(group) if !device.is_no_iommu_group() => group.check(device)?,
        _ => return Err(PciError::NoIommu { address: device.address() }),
    }
    if !is_bound(device) {
        check_vfio_pci(device.sysfs())?;
        if !wishes.take {
            traffic::check_unused(device)?;
        }
        check_privilege(device)?;
    }
    Ok(Plan { device: device.clone(), wishes })
}

/// Checks, and gives the device to `vfio-pci`, until what is returned is dropped.
pub(in crate::vfio) fn bind(device: &PciDevice, wishes: Wishes) -> Result<Binding, PciError> {
    check(device, wishes)?.apply()
}

/// Whether one of VFIO's drivers has it.
fn is_bound(device: &PciDevice) -> bool {
    device.driver().is_some_and(|driver| group::is_vfio(&driver))
}

fn check_no_iommu(sysfs: &Sysfs) -> Result<(), PciError> {
    match sysfs.word("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode").as_deref() {
        Some("Y" | "1") => Ok(()),
        found => Err(PciError::NoIommuNotAllowed { supported: found.is_some() }),
    }
}

fn check_vfio_pci(sysfs: &Sysfs) -> Result<(), PciError> {
    if sysfs.has("/sys/bus/pci/drivers/vfio-pci") {
        return Ok(());
    }
    let release = sysfs.word("/proc/sys/kernel/osrelease").unwrap_or_default();
    let list = sysfs.word(&format!("/lib/modules/{release}/modules.dep"));
    let module = |line: &str| line.split(':').next().is_some_and(|path| path.contains("/vfio-pci.ko"));
    Err(PciError::NoVfioPci { built: list.map(|list| list.lines().any(module)) })
}

fn check_privilege(device: &PciDevice) -> Result<(), PciError> {
    use nix::unistd::{AccessFlags, access};
    let path = device.file("driver_override");
    match access(&device.sysfs().path(&path), AccessFlags::W_OK) {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::EACCES) => Err(PciError::NotRoot { address: device.address() }),
        Err(error) => Err(step(device, format!("write to {path}"))(error.into())),
    }
}

fn step(device: &PciDevice, what: impl Into<String>) -> impl FnOnce(io::Error) -> PciError {
    let (address, what) = (device.address(), what.into());
    move |source| PciError::Step { address, what, source }
}

impl Plan {
    /// Gives the device to `vfio-pci`.
    pub(crate) fn apply(self) -> Result<Binding, PciError> {
        let Self { device, wishes } = self;
        let file = StateFile::of(device.sysfs(), device.address());
        if is_bound(&device) {
            let claim = match file.adopt() {
                // Somebody bound it for us. What a dead process of root's left, `isoplane restore` puts back.
                Err(PciError::State { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                    None
                }
                claim => claim?,
            };
            if let Some(Claim { record, .. }) = &claim {
                let before = record.driver.as_deref().unwrap_or("no driver");
                let address = device.address();
                tracing::info!(
                    "{address} was left on vfio-pci by a process that is dead: it goes back to {before} at the end"
                );
            }
            // Whoever had it may have given it back meanwhile.
            if claim.is_some() || is_bound(&device) {
                let binding = Binding { device, wishes, claim };
                binding.wait_for_node()?;
                return Ok(binding);
            }
        }
        let claim = file.claim(|| Record::of(&device), remembered)?;
        // From here on its Drop undoes it.
        let mut binding = Binding { device, wishes, claim: Some(claim) };
        match binding.take().and_then(|()| binding.wait_for_node()) {
            Ok(()) => Ok(binding),
            Err(problem) => Err(match binding.undo() {
                Ok(()) => problem,
                Err(undoing) => {
                    PciError::NotPutBack { problem: Box::new(problem), undoing: Box::new(undoing) }
                }
            }),
        }
    }
}

/// What to remember of a device, by what a dead process remembered and what it is now: a driver that has it now is somebody's later choice, but
/// where none has it, that process was killed on its way, and may have left its own reservation.
fn remembered(dead: Record, mut now: Record) -> Record {
    if now.driver.as_deref().is_none_or(|driver| driver == VFIO_PCI) {
        now.driver = dead.driver;
    }
    if now.driver_override.as_deref() == Some(VFIO_PCI) {
        now.driver_override = dead.driver_override;
    }
    now
}

/// A device that `vfio-pci` has. Dropping it gives the device back to the driver that had it before, or leaves it where it was found on VFIO's;
/// everything that was opened of it must be closed by then.
pub(crate) struct Binding {
    device: PciDevice,
    wishes: Wishes,
    /// `None` where the device is to stay on VFIO's driver.
    claim: Option<Claim>,
}

impl Binding {
    fn take(&self) -> Result<(), PciError> {
        let device = &self.device;
        let sysfs = device.sysfs();
        sysfs
            .write(&device.file("driver_override"), VFIO_PCI, DRIVER_LIMIT)
            .map_err(step(device, "reserve it for vfio-pci (driver_override)"))?;
        match device.driver() {
            // By a process that died meanwhile, or by hand.
            Some(driver) if group::is_vfio(&driver) => return Ok(()),
            Some(driver) => unbind(device, &driver)?,
            None => {}
        }
        let bind = format!("/sys/bus/pci/drivers/{VFIO_PCI}/bind");
        let address = device.address().to_string();
        sysfs
            .write(&bind, &address, DRIVER_LIMIT)
            .map_err(step(device, "have vfio-pci take it (dmesg may tell why)"))?;
        wait(device, "vfio-pci has not taken it", || device.driver().as_deref() == Some(VFIO_PCI))
    }

    /// The device.
    pub(crate) fn device(&self) -> &PciDevice {
        &self.device
    }

    /// The file of its group: `/dev/vfio/N`, or `/dev/vfio/noiommu-N`.
    pub(crate) fn group_path(&self) -> Result<String, PciError> {
        let number = self.device.group().ok_or(PciError::NoIommu { address: self.device.address() })?;
        Ok(match self.device.is_no_iommu_group() {
            true => format!("/dev/vfio/noiommu-{number}"),
            false => format!("/dev/vfio/{number}"),
        })
    }

    /// Its own file, for iommufd; `None` where the kernel has none.
    pub(crate) fn cdev_path(&self) -> Option<String> {
        self.device.cdev().filter(|path| self.device.sysfs().has(path))
    }

    /// True where no IOMMU stands between the device and the memory.
    pub(crate) fn is_no_iommu(&self) -> bool {
        self.wishes.no_iommu && self.device.is_no_iommu_group()
    }

    /// Opens `/dev/vfio/N` ([`group_path`](Self::group_path)), which one process can at a time.
    pub(crate) fn open_group(&self) -> Result<File, PciError> {
        open(&self.device, &self.group_path()?)
    }

    /// Opens `/dev/vfio/devices/vfioN`.
    pub(crate) fn open_cdev(&self) -> Result<Option<File>, PciError> {
        self.cdev_path().map(|path| open(&self.device, &path)).transpose()
    }

    /// What it means that the device is busy, where only a later call says so (VFIO_DEVICE_BIND_IOMMUFD, VFIO_GROUP_GET_DEVICE_FD).
    pub(crate) fn busy(&self, path: &str) -> PciError {
        busy(&self.device, path)
    }

    fn wait_for_node(&self) -> Result<(), PciError> {
        let there = || {
            self.cdev_path().is_some() || self.group_path().is_ok_and(|path| self.device.sysfs().has(&path))
        };
        if !until(self.device.sysfs().limit(), there) {
            let what = match self.group_path() {
                Ok(path) => format!("there is no {path}"),
                Err(_) => "vfio-pci has made no group for it".into(),
            };
            return Err(too_late(&self.device, what));
        }
        Ok(())
    }

    /// Whether the device goes back at the end.
    #[cfg(test)]
    pub(super) fn is_to_be_undone(&self) -> bool {
        self.claim.is_some()
    }

    /// Ends as a process does that is killed.
    #[cfg(test)]
    pub(super) fn die(mut self) {
        self.claim = None;
    }

    /// Gives the device back now, and says what went wrong.
    pub(crate) fn undo(&mut self) -> Result<(), PciError> {
        let Some(claim) = self.claim.take() else { return Ok(()) };
        put_back(&self.device, &claim.record)?;
        claim.remove()
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            tracing::error!("{error}: run \"isoplane restore\"");
        }
    }
}

/// What became of a device that was to be put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PutBack {
    /// Its former driver has it again, or none, as before.
    Back,
    /// Somebody else gave it to a driver since: it stays there.
    Foreign(String),
    /// It is no longer there.
    Gone,
}

/// Gives a device back. What is already as it was is left alone, so that it can be done again.
pub(super) fn put_back(device: &PciDevice, record: &Record) -> Result<PutBack, PciError> {
    if !device.is_there() || !record.is_about(device) {
        return Ok(PutBack::Gone);
    }
    let sysfs = device.sysfs();
    if device.driver_override().as_deref() == Some(VFIO_PCI)
        && record.driver_override.as_deref() != Some(VFIO_PCI)
    {
        // A newline is the way to say none.
        let before = record.driver_override.as_deref().unwrap_or("\n");
        sysfs
            .write(&device.file("driver_override"), before, DRIVER_LIMIT)
            .map_err(step(device, "end its reservation for vfio-pci (driver_override)"))?;
    }
    match device.driver() {
        Some(driver) if Some(&driver) == record.driver.as_ref() => return Ok(PutBack::Back),
        Some(driver) if driver == VFIO_PCI => {
            wait_until_free(device)?;
            unbind(device, &driver)?;
        }
        Some(driver) => return Ok(PutBack::Foreign(driver)),
        None => {}
    }
    let Some(driver) = &record.driver else { return Ok(PutBack::Back) };
    let bind = format!("/sys/bus/pci/drivers/{driver}/bind");
    let address = device.address().to_string();
    let is_back = || device.driver().as_ref() == Some(driver);
    let bound = sysfs.write(&bind, &address, DRIVER_LIMIT);
    if bound.is_err() && !is_back() {
        // It may have been loaded anew, or know the device no longer: the kernel finds the one that does.
        sysfs
            .write("/sys/bus/pci/drivers_probe", &address, DRIVER_LIMIT)
            .map_err(step(device, format!("have the kernel look for its driver {driver} (drivers_probe)")))?;
    }
    match bound {
        Err(source) if !until(sysfs.limit(), is_back) => {
            Err(step(device, format!("give it back to its driver {driver}"))(source))
        }
        _ => wait(device, &format!("its driver {driver} has not taken it back"), is_back),
    }?;
    Ok(PutBack::Back)
}

fn unbind(device: &PciDevice, driver: &str) -> Result<(), PciError> {
    let address = device.address().to_string();
    match device.sysfs().write(&device.file("driver/unbind"), &address, DRIVER_LIMIT) {
        // It has left by itself.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => result.map_err(step(device, format!("take it from its driver {driver}")))?,
    }
    wait(device, &format!("its driver {driver} has not let it go"), || device.driver().is_none())
}

/// The kernel would wait without end for whoever has the device open: so it is asked only when nobody has.
fn wait_until_free(device: &PciDevice) -> Result<(), PciError> {
    let Some(number) = device.group() else { return Ok(()) };
    let kind = if device.is_no_iommu_group() { "noiommu-" } else { "" };
    let path = format!("/dev/vfio/{kind}{number}");
    if !device.sysfs().has(&path) {
        return Ok(());
    }
    match open(device, &path) {
        Err(error @ PciError::Busy { .. }) => Err(error),
        // Whoever may write to the driver's files has the right to.
        _ => Ok(()),
    }
}

fn wait(device: &PciDevice, what: &str, done: impl Fn() -> bool) -> Result<(), PciError> {
    if until(device.sysfs().limit(), done) { Ok(()) } else { Err(too_late(device, what.to_owned())) }
}

fn too_late(device: &PciDevice, what: String) -> PciError {
    PciError::TooLate { address: device.address(), what, limit: device.sysfs().limit() }
}

fn busy(device: &PciDevice, path: &str) -> PciError {
    let (address, path) = (device.address(), path.to_owned());
    PciError::Busy { address, holders: holders::of_file(device.sysfs(), &path), path }
}

/// Opens a file of VFIO's. One that is busy is waited for a moment: a process that was killed gives up its locks before its devices.
fn open(device: &PciDevice, path: &str) -> Result<File, PciError> {
    let deadline = Instant::now() + HOLDER_LIMIT;
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(device.sysfs().path(path));
        let error = match file {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EBUSY) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            Some(libc::EBUSY) => return Err(busy(device, path)),
            Some(libc::EACCES | libc::EPERM) => return Err(PciError::NoPermission { path: path.into() }),
            _ => return Err(PciError::Open { what: format!("open {path}"), source: error }),
        }
    }
}

/// What [`restore`] did with one device.
pub(crate) struct RestoredDevice {
    /// Which.
    pub(crate) address: PciAddress,
    /// The driver it was to go back to.
    pub(crate) driver: Option<String>,
    /// What became of it.
    pub(crate) outcome: Result<PutBack, PciError>,
}

/// Puts back each device that a dead process has left on `vfio-pci`. One whose process is alive is left alone, with an error that names the process.
pub(super) fn restore(sysfs: &Sysfs) -> Vec<RestoredDevice> {
    let restore = |file: StateFile| {
        let device = sysfs.device(file.address());
        let mut driver = None;
        let outcome = (|| {
            let Some(claim) = file.adopt()? else { return Ok(None) };
            driver = claim.record.driver.clone();
            let put_back = match claim.record.is_of_this_boot(sysfs) {
                true => put_back(&device, &claim.record)?,
                // A boot puts everything back.
                false => PutBack::Back,
            };
            claim.remove()?;
            Ok(Some(put_back))
        })();
        Some(RestoredDevice { address: file.address(), driver, outcome: outcome.transpose()? })
    };
    StateFile::all(sysfs).into_iter().filter_map(restore).collect()
}
