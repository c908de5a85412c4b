//! What the kernel tells about PCI functions, below one root folder: tests put a folder of their own in its place.
//!
//! A function may vanish between two reads, and what a file says may not be understood: both are errors in words. Writes go through [`Kernel`],
//! which tests replace by one that does what a kernel would do to the folder.
#![forbid(unsafe_code)]

use super::address::PciAddress;
use super::errors::PciError;
use crate::vfio::function::PciId;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Network controller, Ethernet (PCI Code and ID Assignment, class 02h, subclass 00h).
const CLASS_ETHERNET: u32 = 0x0200;
/// Bridge, PCI-to-PCI.
const CLASS_PCI_BRIDGE: u32 = 0x0604;
/// Of `include/linux/ioport.h`.
const IORESOURCE_MEM: u64 = 0x200;
/// BARs of a function.
pub(crate) const BARS: usize = 6;
/// How long a link or a device node may take to appear.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at something that is to happen.
const POLL: Duration = Duration::from_millis(5);

/// What is done by more than reading.
pub(crate) trait Kernel: Send + Sync {
    /// Writes to a file that is there, by one call.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;

    /// The addresses of an interface.
    fn addresses(&self, interface: &str) -> Vec<IpAddr>;
}

/// The kernel below us.
struct RunningKernel;

impl Kernel for RunningKernel {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
    }

    fn addresses(&self, interface: &str) -> Vec<IpAddr> {
        let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
        all.filter(|entry| entry.interface_name == interface)
            .filter_map(|entry| {
                let address = entry.address?;
                let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
            })
            .collect()
    }
}

/// A machine, as its `/sys`, `/proc`, `/dev` and `/run` show it.
#[derive(Clone)]
pub(crate) struct Sysfs {
    root: PathBuf,
    kernel: Arc<dyn Kernel>,
    limit: Duration,
}

impl Default for Sysfs {
    /// This machine.
    fn default() -> Self {
        Self { root: "/".into(), kernel: Arc::new(RunningKernel), limit: LIMIT }
    }
}

impl Sysfs {
    /// The machine below `root`, which takes at most so long to do anything.
    #[cfg(test)]
    pub(crate) fn at(root: impl Into<PathBuf>, kernel: Arc<dyn Kernel>, limit: Duration) -> Self {
        Self { root: root.into(), kernel, limit }
    }

    /// How long what was asked for may take to show.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Where a file of the machine is.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Whether there is such a file.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// A file's text without the white space around it; `None` where it cannot be read.
    pub(crate) fn word(&self, path: &str) -> Option<String> {
        Some(fs::read_to_string(self.path(path)).ok()?.trim().to_owned())
    }

    /// The names in a folder, in order; none where it cannot be read.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The last part of where a link leads; `None` where there is none.
    pub(crate) fn link(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Writes to a file, in a thread of its own: what a driver does meanwhile may take long, and a device that somebody uses is waited for by the
    /// kernel without end.
    pub(crate) fn write(&self, path: &str, text: &str, limit: Duration) -> io::Result<()> {
        let (kernel, path, text) = (self.kernel.clone(), self.path(path), text.to_owned());
        let (done, result) = mpsc::channel();
        thread::Builder::new().name("pci-bind".into()).spawn(move || {
            // Whoever waited may have given up.
            let _ = done.send(kernel.write(&path, &text));
        })?;
        result.recv_timeout(limit).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// The addresses of an interface.
    pub(crate) fn addresses(&self, interface: &str) -> Vec<IpAddr> {
        self.kernel.addresses(interface)
    }

    /// Every PCI function, in order.
    pub(crate) fn devices(&self) -> Vec<PciDevice> {
        let names = self.names(DEVICES);
        let mut addresses: Vec<PciAddress> = names.iter().filter_map(|name| name.parse().ok()).collect();
        addresses.sort();
        addresses.into_iter().map(|address| PciDevice { sysfs: self.clone(), address }).collect()
    }

    /// Every Ethernet function, in order.
    pub(crate) fn ethernet(&self) -> Vec<PciDevice> {
        self.devices().into_iter().filter(|device| device.is_ethernet() == Some(true)).collect()
    }

    /// The function at an address, whether it is there or not.
    pub(crate) fn device(&self, address: PciAddress) -> PciDevice {
        PciDevice { sysfs: self.clone(), address }
    }

    /// The function at an address; where there is none, the error says which there are.
    pub(crate) fn find(&self, address: PciAddress) -> Result<PciDevice, PciError> {
        let device = self.device(address);
        if device.is_there() {
            return Ok(device);
        }
        let there = self.ethernet().iter().map(PciDevice::describe).collect();
        Err(PciError::NoDevice { address, there })
    }
}

/// Looks again and again until it is so; false where it is not in time.
pub(crate) fn until(limit: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL);
    }
}

const DEVICES: &str = "/sys/bus/pci/devices";

/// One function, known by its address. Everything is read when it is asked for.
#[derive(Clone)]
pub(crate) struct PciDevice {
    sysfs: Sysfs,
    address: PciAddress,
}

/// A network interface that a kernel driver made of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelInterface {
    /// Its name. One in another network namespace is not seen.
    pub(crate) name: String,
    /// Its folder.
    pub(crate) folder: String,
}

impl PciDevice {
    /// On this machine; where there is none, the error says which there are.
    pub(crate) fn find(address: PciAddress) -> Result<Self, PciError> {
        Sysfs::default().find(address)
    }

    /// Where it is.
    pub(crate) fn address(&self) -> PciAddress {
        self.address
    }

    /// The machine it is in.
    pub(crate) fn sysfs(&self) -> &Sysfs {
        &self.sysfs
    }

    /// A file of its folder.
    pub(crate) fn file(&self, name: &str) -> String {
        format!("{DEVICES}/{}/{name}", self.address)
    }

    /// Whether it is there: it may be unplugged at any time.
    pub(crate) fn is_there(&self) -> bool {
        self.sysfs.has(&format!("{DEVICES}/{}", self.address))
    }

    /// A number in the kernel's way, such as `0x8086`.
    fn number(&self, name: &str) -> Result<u32, PciError> {
        let path = self.file(name);
        let text = fs::read_to_string(self.sysfs.path(&path))
            .map_err(|source| PciError::Unreadable { path: path.clone(), source })?;
        hexadecimal(text.trim())
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| PciError::Garbled { path, text: text.trim().chars().take(40).collect() })
    }

    /// Vendor and device.
    pub(crate) fn id(&self) -> Result<PciId, PciError> {
        // 16 bits each: what is above cannot be.
        let number = |name| Ok::<u16, PciError>(self.number(name)? as u16);
        Ok(PciId { vendor: number("vendor")?, device: number("device")? })
    }

    /// Class, subclass and programming interface, 24 bits.
    pub(crate) fn class(&self) -> Result<u32, PciError> {
        self.number("class")
    }

    /// Whether it is an Ethernet function; `None` where that cannot be read.
    pub(crate) fn is_ethernet(&self) -> Option<bool> {
        Some(self.class().ok()? >> 8 == CLASS_ETHERNET)
    }

    /// An error where it is no Ethernet function.
    pub(crate) fn check_ethernet(&self) -> Result<(), PciError> {
        let class = self.class()?;
        if class >> 8 == CLASS_ETHERNET {
            return Ok(());
        }
        let there = self.sysfs.ethernet().iter().map(Self::describe).collect();
        Err(PciError::NotEthernet { address: self.address, class, there })
    }

    /// The driver that has it.
    pub(crate) fn driver(&self) -> Option<String> {
        self.sysfs.link(&self.file("driver"))
    }

    /// The driver it is reserved for.
    pub(crate) fn driver_override(&self) -> Option<String> {
        let word = self.sysfs.word(&self.file("driver_override"))?;
        (!word.is_empty() && word != "(null)").then_some(word)
    }

    /// The number of its IOMMU group.
    pub(crate) fn group(&self) -> Option<u32> {
        self.sysfs.link(&self.file("iommu_group"))?.parse().ok()
    }

    /// True where the group is one that VFIO made up, for a device without an IOMMU.
    pub(crate) fn is_no_iommu_group(&self) -> bool {
        self.sysfs.word(&self.file("iommu_group/name")).as_deref() == Some("vfio-noiommu")
    }

    /// Bytes of each BAR of memory; 0 where there is none.
    pub(crate) fn bars(&self) -> [u64; BARS] {
        let text = fs::read_to_string(self.sysfs.path(&self.file("resource"))).unwrap_or_default();
        bar_sizes(&text)
    }

    /// An error where BAR 0 is shorter than what the driver called `driver` needs.
    pub(crate) fn check_registers(&self, driver: &'static str, needs: usize) -> Result<(), PciError> {
        let bytes = self.bars()[0];
        if bytes >= needs as u64 {
            return Ok(());
        }
        Err(PciError::BarTooSmall { address: self.address, driver, bytes, needs })
    }

    /// The interfaces that its kernel driver made.
    pub(crate) fn interfaces(&self) -> Vec<KernelInterface> {
        // Those of a virtio device are below the device on the virtio bus.
        let below = self.sysfs.names(&self.file(""));
        let below = below.into_iter().filter(|name| name.starts_with("virtio"));
        let folders = [String::from("net")].into_iter().chain(below.map(|name| format!("{name}/net")));
        folders
            .flat_map(|folder| {
                let folder = self.file(&folder);
                self.sysfs
                    .names(&folder)
                    .into_iter()
                    .map(move |name| KernelInterface { folder: format!("{folder}/{name}"), name })
            })
            .collect()
    }

    /// How many virtual functions it has now (SR-IOV); they are its driver's, and go with it.
    pub(crate) fn virtual_functions(&self) -> u32 {
        self.sysfs.word(&self.file("sriov_numvfs")).and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// The device that iommufd knows it by, `/dev/vfio/devices/vfioN`, where the kernel has that.
    pub(crate) fn cdev(&self) -> Option<String> {
        let name = self.sysfs.names(&self.file("vfio-dev")).into_iter().next()?;
        Some(format!("/dev/vfio/devices/{name}"))
    }

    /// `0000:03:00.0 (82576, driver igb, interface eth0)`, for messages.
    pub(crate) fn describe(&self) -> String {
        let mut words: Vec<String> = super::ids::name(self).into_iter().collect();
        words.push(match self.driver() {
            Some(driver) => format!("driver {driver}"),
            None => "no driver".into(),
        });
        words.extend(self.interfaces().into_iter().map(|interface| format!("interface {}", interface.name)));
        format!("{} ({})", self.address, words.join(", "))
    }
}

/// Whether a class is that of a bridge from PCI to PCI.
pub(crate) fn is_bridge(class: u32) -> bool {
    class >> 8 == CLASS_PCI_BRIDGE
}

/// `0x` and digits.
pub(crate) fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    // from_str_radix takes a sign.
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, 16).ok())?
}

/// The file `resource`: first and last address and flags, a line for each BAR.
pub(super) fn bar_sizes(text: &str) -> [u64; BARS] {
    let mut sizes = [0; BARS];
    for (size, line) in sizes.iter_mut().zip(text.lines()) {
        let mut numbers = line.split_whitespace().map(hexadecimal);
        let (Some(Some(first)), Some(Some(last)), Some(Some(flags))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            continue;
        };
        if flags & IORESOURCE_MEM != 0 && last > first {
            *size = (last - first).saturating_add(1);
        }
    }
    sizes
}
