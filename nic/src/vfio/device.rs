//! A PCI function that VFIO gave us.
#![forbid(unsafe_code)]

use super::abi::{self, DeviceInfo, IrqInfo, RegionInfo};
use super::affinity;
use super::bar::Bar;
use super::dma::DmaSpace;
use super::error::VfioError;
use super::function::{PciFunction, PciId};
use super::membership::lock;
use super::registers::Registers;
use super::sys;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// PCI 3.0, 6.1: the command register, and its bit that lets the function access memory.
const COMMAND: u16 = 0x04;
const BUS_MASTER: u32 = 1 << 2;
/// Its bit that keeps the function from its interrupt line.
const INTX_DISABLE: u32 = 1 << 10;
/// Class code and revision: never all ones, and VFIO does not answer for the device there, as it does for its ids.
const CLASS: u16 = 0x08;
const BAR0: u16 = 0x10;
/// PCI 3.0, 6.7: where the capabilities start.
const CAPABILITIES: u16 = 0x34;
/// PCI Express 3.0, 7.8: the capability, its device status register, and the bit for transactions under way.
const PCI_EXPRESS: u32 = 0x10;
const DEVICE_STATUS: u16 = 0x0A;
const TRANSACTIONS_PENDING: u32 = 1 << 5;
/// The kernel waits as long before a reset; the longest completion timeout that there is by default is 50 ms.
const PENDING_LIMIT: Duration = Duration::from_millis(100);

/// The device's descriptor, open until the last mapping of its registers is gone. Then what kept its group open goes, and its binding is undone.
pub(super) struct DeviceFile {
    pub(super) fd: OwnedFd,
    /// The kernel has taken mapped registers away.
    lost: AtomicBool,
    _keeper: Box<dyn Send + Sync>,
}

impl DeviceFile {
    /// `keeper` is dropped when the device is closed.
    pub(super) fn new(fd: OwnedFd, keeper: Box<dyn Send + Sync>) -> Self {
        Self { fd, lost: AtomicBool::new(false), _keeper: keeper }
    }

    /// Somebody found that registers are no longer mapped.
    pub(super) fn set_lost(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// Whether anybody has found that.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Why a device is not ours any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The kernel asked for it.
    Requested,
    /// It reported an error that could not be corrected.
    Error,
    /// It answers with all ones.
    Silent,
}

impl Trouble {
    const ALL: [Self; 3] = [Self::Requested, Self::Error, Self::Silent];

    /// In words.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Requested => {
                "the kernel asked for the device: it is being removed, or unbound from vfio-pci"
            }
            Self::Error => {
                "the device reported an error that could not be corrected (AER): \"dmesg\" has more"
            }
            Self::Silent => "the device answers no more: it was removed, or has lost its power",
        }
    }
}

/// An open function.
pub(super) struct VfioFunction {
    address: String,
    id: PciId,
    resets: bool,
    /// Where the configuration space starts in the descriptor, and how long it is.
    config: (u64, u64),
    express: Option<u16>,
    msix_vectors: u16,
    msix_enabled: Mutex<bool>,
    bars: Mutex<Vec<Weak<Bar>>>,
    request: Option<OwnedFd>,
    error: Option<OwnedFd>,
    /// 0, or the number of a [`Trouble`] and one.
    trouble: AtomicU8,
    halted: AtomicBool,
    file: Arc<DeviceFile>,
    dma: Arc<DmaSpace>,
}

impl VfioFunction {
    /// Takes over an open device.
    pub(super) fn new(
        address: &str,
        file: Arc<DeviceFile>,
        dma: Arc<DmaSpace>,
    ) -> Result<Arc<Self>, VfioError> {
        let fd = file.fd.as_fd();
        let ask = VfioError::system("the device does not answer VFIO's questions");
        let mut info = DeviceInfo::default();
        sys::call(fd, abi::DEVICE_GET_INFO, &mut info).map_err(ask)?;
        if info.flags & abi::DEVICE_FLAGS_PCI == 0 {
            let error = io::Error::from_raw_os_error(libc::ENODEV);
            return Err(VfioError::system("VFIO says that it is no PCI device")(error));
        }
        let mut config = RegionInfo { index: abi::CONFIG_REGION, ..RegionInfo::default() };
        sys::call(fd, abi::DEVICE_GET_REGION_INFO, &mut config)
            .map_err(VfioError::system("the device shows no configuration space"))?;
        let vectors = irq_count(&file, abi::MSIX_IRQ);
        let mut this = Self {
            address: address.to_owned(),
            id: PciId { vendor: 0, device: 0 },
            resets: info.flags & abi::DEVICE_FLAGS_RESET != 0,
            config: (config.offset, config.size),
            express: None,
            msix_vectors: vectors.try_into().unwrap_or(u16::MAX),
            msix_enabled: Mutex::new(false),
            bars: Mutex::default(),
            request: None,
            error: None,
            trouble: AtomicU8::new(0),
            halted: AtomicBool::new(false),
            dma,
            file,
        };
        this.id = PciId { vendor: this.read_config(0, 2) as u16, device: this.read_config(2, 2) as u16 };
        this.express = this.find_capability(PCI_EXPRESS);
        this.request = this.watch(abi::REQUEST_IRQ);
        this.error = this.watch(abi::ERROR_IRQ);
        Ok(Arc::new(this))
    }

    /// The device's address: `0000:03:00.0`.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// An eventfd for an interrupt of VFIO's own; `None` where the device has no such.
    fn watch(&self, index: u32) -> Option<OwnedFd> {
        if irq_count(&self.file, index) == 0 {
            return None;
        }
        let eventfd = [sys::eventfd().ok()?];
        sys::set_irqs(self.file.fd.as_fd(), index, &eventfd).ok()?;
        let [eventfd] = eventfd;
        Some(eventfd)
    }

    fn find_capability(&self, wanted: u32) -> Option<u16> {
        let mut at = self.read_config(CAPABILITIES, 1) as u16 & 0xFC;
        // A list that goes in circles ends: there is room for 48.
        for _ in 0..48 {
            if at < 0x40 {
                return None;
            }
            if self.read_config(at, 1) == wanted {
                return Some(at);
            }
            at = self.read_config(at + 1, 1) as u16 & 0xFC;
        }
        None
    }

    /// Why the device is not ours any more, once it is not.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        if self.trouble.load(Ordering::Relaxed) == 0 {
            let happened = |eventfd: &Option<OwnedFd>| {
                eventfd.as_ref().is_some_and(|eventfd| sys::take_events(eventfd.as_fd()) > 0)
            };
            let found = [
                happened(&self.request),
                happened(&self.error),
                self.file.is_lost() || self.read_config(CLASS, 4) == u32::MAX,
            ];
            if let Some(index) = found.into_iter().position(|found| found) {
                self.trouble.store(index as u8 + 1, Ordering::Relaxed);
            }
        }
        let number = usize::from(self.trouble.load(Ordering::Relaxed));
        number.checked_sub(1).and_then(|index| Trouble::ALL.get(index).copied())
    }

    /// Descriptors that are readable when there may be [`trouble`](Self::trouble).
    pub(super) fn events(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.request.iter().chain(&self.error).map(AsFd::as_fd)
    }

    /// Has its interrupts come to this CPU alone; false where that cannot be had.
    pub(super) fn deliver_interrupts(&self, cpu: usize) -> bool {
        if !*lock(&self.msix_enabled) {
            return true;
        }
        if let Err(error) = affinity::deliver(Path::new("/"), &self.address, cpu) {
            tracing::debug!("{}: no interrupts, they cannot be kept to CPU {cpu}: {error}", self.address);
            return false;
        }
        true
    }

    /// Gives a device that is in trouble back to the kernel, which waits for it, though its queues are still there: whatever they access from now on
    /// is answered with all ones.
    pub(super) fn release(&self) {
        self.set_bus_master(false);
        let detached = lock(&self.bars).iter().filter_map(Weak::upgrade).all(|bar| bar.detach());
        let replaced = File::open("/dev/null")
            .and_then(|nothing| sys::replace_fd(self.file.fd.as_fd(), nothing.as_fd()));
        if !detached || replaced.is_err() {
            tracing::warn!("{}: the kernel gets the device back when this process ends", self.address);
        }
    }

    /// Waits, not for ever, until what the function asked memory for has been answered.
    fn wait_for_transactions(&self) {
        let Some(express) = self.express else { return };
        let start = Instant::now();
        loop {
            let status = self.read_config(express + DEVICE_STATUS, 2);
            // Of a device that is gone, all ones.
            if status & TRANSACTIONS_PENDING == 0 || status == 0xFFFF {
                return;
            }
            if start.elapsed() > PENDING_LIMIT {
                tracing::warn!(
                    "{}: memory accesses are still under way after {PENDING_LIMIT:?}",
                    self.address
                );
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn irq_count(file: &DeviceFile, index: u32) -> u32 {
    let mut info = IrqInfo { index, ..IrqInfo::default() };
    sys::call(file.fd.as_fd(), abi::DEVICE_GET_IRQ_INFO, &mut info).map_or(0, |_| info.count)
}

impl PciFunction for VfioFunction {
    fn id(&self) -> PciId {
        self.id
    }

    fn read_config(&self, offset: u16, bytes: u8) -> u32 {
        let (fd, at) = (self.file.fd.as_fd(), self.config.0 + u64::from(offset));
        if u64::from(offset) + u64::from(bytes) > self.config.1 {
            return u32::MAX >> (32 - 8 * u32::from(bytes.clamp(1, 4)));
        }
        match bytes {
            1 => sys::read_at::<u8>(fd, at).unwrap_or(u8::MAX).into(),
            2 => sys::read_at(fd, at).map_or(u16::MAX, u16::from_le).into(),
            _ => sys::read_at(fd, at).map_or(u32::MAX, u32::from_le),
        }
    }

    fn write_config(&self, offset: u16, bytes: u8, value: u32) {
        let (fd, at) = (self.file.fd.as_fd(), self.config.0 + u64::from(offset));
        if u64::from(offset) + u64::from(bytes) > self.config.1 {
            return;
        }
        let written = match bytes {
            1 => sys::write_at(fd, at, value as u8),
            2 => sys::write_at(fd, at, (value as u16).to_le()),
            _ => sys::write_at(fd, at, value.to_le()),
        };
        if !written {
            tracing::debug!("{}: configuration space at {offset:#x} cannot be written", self.address);
        }
    }

    fn bar(&self, index: u8) -> io::Result<Registers> {
        if index >= abi::BARS || self.read_config(BAR0 + 4 * u16::from(index), 4) & 1 != 0 {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        let info = RegionInfo { index: abi::BAR0_REGION + u32::from(index), ..RegionInfo::default() };
        let (info, bytes) =
            sys::call_with_capabilities(self.file.fd.as_fd(), abi::DEVICE_GET_REGION_INFO, info)?;
        let bar = Arc::new(Bar::map(&self.file, &info, &bytes)?);
        lock(&self.bars).push(Arc::downgrade(&bar));
        Ok(bar)
    }

    fn reset(&self) -> io::Result<bool> {
        if !self.resets {
            return Ok(false);
        }
        match sys::call_number(self.file.fd.as_fd(), abi::DEVICE_RESET, 0) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn set_bus_master(&self, on: bool) {
        let command = self.read_config(COMMAND, 2);
        if command != 0xFFFF {
            // Nobody serves its interrupt line, which it may share with others.
            let command = command | INTX_DISABLE;
            self.write_config(COMMAND, 2, if on { command | BUS_MASTER } else { command & !BUS_MASTER });
        }
        self.halted.store(!on, Ordering::Relaxed);
        if !on {
            // The answer to this read comes behind all that the function had written before (PCI Express 3.0, 2.4.1).
            self.read_config(COMMAND, 2);
            self.wait_for_transactions();
        }
    }

    fn dma(&self) -> &Arc<DmaSpace> {
        &self.dma
    }

    fn msix_vectors(&self) -> u16 {
        self.msix_vectors
    }

    fn enable_msix(&self, count: u16) -> io::Result<Vec<OwnedFd>> {
        if count > self.msix_vectors {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut enabled = lock(&self.msix_enabled);
        let eventfds: Vec<OwnedFd> = (0..count).map(|_| sys::eventfd()).collect::<io::Result<_>>()?;
        if *enabled {
            // A number of vectors is changed by way of none.
            sys::set_irqs(self.file.fd.as_fd(), abi::MSIX_IRQ, &[])?;
            *enabled = false;
        }
        if count > 0 {
            sys::set_irqs(self.file.fd.as_fd(), abi::MSIX_IRQ, &eventfds)?;
            *enabled = true;
        }
        Ok(eventfds)
    }

    fn is_going(&self) -> bool {
        self.trouble().is_some()
    }
}

impl Drop for VfioFunction {
    fn drop(&mut self) {
        // A driver that failed half way may have left the device at work, and its rings are gone.
        if !self.halted.load(Ordering::Relaxed) {
            self.set_bus_master(false);
        }
    }
}
