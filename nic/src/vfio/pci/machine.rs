//! For tests: a machine in a folder, with a kernel that does to it what ours does when drivers are bound.

use super::address::PciAddress;
use super::sysfs::{Kernel, PciDevice, Sysfs};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Its kernel does all at once; what has not happened by then never will.
const LIMIT: Duration = Duration::from_millis(200);

/// What this kernel does wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// The write of this number fails, and those behind it do not.
    Once(usize),
    /// All from the write of this number on fail, as if the process had been killed there.
    From(usize),
    /// It says yes to each bind, and does nothing.
    Idle,
}

#[derive(Default)]
struct Inside {
    fault: Fault,
    writes: usize,
    addresses: BTreeMap<String, Vec<IpAddr>>,
}

struct ModelKernel {
    root: PathBuf,
    inside: Mutex<Inside>,
}

/// The machine. It has the drivers vfio-pci and igb, and no device.
pub(crate) struct Machine {
    folder: tempfile::TempDir,
    kernel: Arc<ModelKernel>,
}

/// A device to be added.
pub(crate) struct NewDevice<'a> {
    pub(crate) address: &'a str,
    pub(crate) id: (u16, u16),
    pub(crate) class: u32,
    pub(crate) driver: Option<&'a str>,
    pub(crate) group: Option<u32>,
    /// The interface that its driver, unless it is vfio-pci, makes of it.
    pub(crate) interface: Option<&'a str>,
}

pub(crate) const NIC: NewDevice<'_> = NewDevice {
    address: "0000:03:00.0",
    id: (0x8086, 0x10c9),
    class: 0x02_0000,
    driver: Some("igb"),
    group: Some(7),
    interface: Some("eth0"),
};

impl Machine {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        let machine = Self { kernel: Arc::new(ModelKernel { root, inside: Mutex::default() }), folder };
        machine.driver("igb");
        machine.driver("vfio-pci");
        machine.file("/sys/bus/pci/drivers_probe", "");
        machine.file("/proc/sys/kernel/random/boot_id", "boot one\n");
        machine.process(std::process::id(), 'R', 0);
        machine
    }

    /// With [`NIC`].
    pub(crate) fn with_nic() -> Self {
        let machine = Self::new();
        machine.add(&NIC);
        machine
    }

    pub(crate) fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.folder.path(), self.kernel.clone(), LIMIT)
    }

    pub(crate) fn device(&self, address: &str) -> PciDevice {
        self.sysfs().find(address.parse().unwrap()).unwrap()
    }

    pub(crate) fn nic(&self) -> PciDevice {
        self.device(NIC.address)
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.sysfs().path(path)
    }

    pub(crate) fn file(&self, path: &str, text: &str) {
        self.kernel.file(path, text);
    }

    pub(crate) fn remove(&self, path: &str) {
        let path = self.path(path);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }

    pub(crate) fn link(&self, path: &str, to: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(self.path(to), path).unwrap();
    }

    /// A process called l2fwd.
    pub(crate) fn process(&self, pid: u32, state: char, flags: u64) {
        self.file(&format!("/proc/{pid}/comm"), "l2fwd\n");
        let stat = format!("{pid} (l2 fwd) x) {state} 1 1 1 0 -1 {flags} 5 6");
        self.file(&format!("/proc/{pid}/stat"), &stat);
    }

    pub(crate) fn driver(&self, name: &str) {
        self.file(&format!("/sys/bus/pci/drivers/{name}/bind"), "");
        self.file(&format!("/sys/bus/pci/drivers/{name}/unbind"), "");
    }

    pub(crate) fn addresses(&self, interface: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.kernel.inside.lock().unwrap().addresses.insert(interface.to_owned(), addresses);
    }

    /// From now on.
    pub(crate) fn fault(&self, fault: Fault) {
        let mut inside = self.kernel.inside.lock().unwrap();
        *inside = Inside { fault, writes: 0, addresses: std::mem::take(&mut inside.addresses) };
    }

    /// Writes since the last [`fault`](Self::fault).
    pub(crate) fn writes(&self) -> usize {
        self.kernel.inside.lock().unwrap().writes
    }

    pub(crate) fn add(&self, new: &NewDevice<'_>) {
        let file = |name: &str, text: &str| {
            self.file(&format!("/sys/bus/pci/devices/{}/{name}", new.address), text);
        };
        file("vendor", &format!("0x{:04x}\n", new.id.0));
        file("device", &format!("0x{:04x}\n", new.id.1));
        file("class", &format!("0x{:06x}\n", new.class));
        file("driver_override", "(null)\n");
        file("resource", "0x00000000febc0000 0x00000000febdffff 0x0000000000040200\n");
        file("model/interface", new.interface.unwrap_or_default());
        if let Some(group) = new.group {
            let group = format!("/sys/kernel/iommu_groups/{group}");
            let device = format!("/sys/bus/pci/devices/{}", new.address);
            self.file(&format!("{group}/type"), "DMA\n");
            self.link(&format!("{group}/devices/{}", new.address), &device);
            self.link(&format!("{device}/iommu_group"), &group);
        }
        if let Some(driver) = new.driver {
            self.driver(driver);
            self.kernel.attach(new.address, driver);
        }
    }

    /// Every file and link with what is in it.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let (path, kind) = (entry.path(), entry.file_type().unwrap());
                let text = if kind.is_symlink() {
                    fs::read_link(&path).unwrap().display().to_string()
                } else if kind.is_dir() {
                    folders.push(path.clone());
                    "a folder".to_owned()
                } else {
                    fs::read_to_string(&path).unwrap()
                };
                found.insert(path, text);
            }
        }
        found
    }
}

impl ModelKernel {
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn attach(&self, address: &str, driver: &str) {
        let device = self.path(&format!("/sys/bus/pci/devices/{address}"));
        symlink(self.path(&format!("/sys/bus/pci/drivers/{driver}")), device.join("driver")).unwrap();
        if driver == "vfio-pci" {
            if let Ok(group) = fs::read_link(device.join("iommu_group")) {
                let kind = if group.join("name").exists() { "noiommu-" } else { "" };
                self.file(&format!("/dev/vfio/{kind}{}", group.file_name().unwrap().display()), "");
            }
            return;
        }
        let interface = fs::read_to_string(device.join("model/interface")).unwrap();
        if !interface.is_empty() {
            self.file(&format!("/sys/bus/pci/devices/{address}/net/{interface}/flags"), "0x1002\n");
        }
    }

    fn detach(&self, address: &str) {
        let device = self.path(&format!("/sys/bus/pci/devices/{address}"));
        fs::remove_file(device.join("driver")).unwrap();
        let _ = fs::remove_dir_all(device.join("net"));
        let _ = fs::remove_dir_all(self.path("/dev"));
    }

    fn is_bound(&self, address: &str) -> bool {
        self.path(&format!("/sys/bus/pci/devices/{address}/driver")).is_symlink()
    }

    fn reserved_for(&self, address: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(&format!("/sys/bus/pci/devices/{address}/driver_override")));
        Some(text.unwrap().trim().to_owned()).filter(|name| name != "(null)")
    }
}

impl Kernel for ModelKernel {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let mut inside = self.inside.lock().unwrap();
        inside.writes += 1;
        let fails = match inside.fault {
            Fault::Once(number) => inside.writes == number,
            Fault::From(number) => inside.writes >= number,
            Fault::None | Fault::Idle => false,
        };
        if fails {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if !path.exists() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let refuse = |errno| Err(io::Error::from_raw_os_error(errno));
        let folder = path.parent().unwrap();
        match path.file_name().unwrap().to_str().unwrap() {
            "driver_override" => {
                let name = text.trim();
                fs::write(path, format!("{}\n", if name.is_empty() { "(null)" } else { name }))
            }
            "unbind" => {
                // As the kernel does: the address must be that of a device of this driver's.
                let driver = fs::canonicalize(folder).unwrap();
                let device = self.path(&format!("/sys/bus/pci/devices/{text}/driver"));
                if fs::canonicalize(device).ok() != Some(driver) {
                    return refuse(libc::ENODEV);
                }
                self.detach(text);
                Ok(())
            }
            "bind" => {
                let driver = folder.file_name().unwrap().to_str().unwrap();
                let reserved = self.reserved_for(text);
                let fits = match &reserved {
                    Some(reserved) => reserved == driver,
                    None => driver != "vfio-pci",
                };
                if self.is_bound(text) || !fits {
                    return refuse(libc::ENODEV);
                }
                if !matches!(inside.fault, Fault::Idle) {
                    self.attach(text, driver);
                }
                Ok(())
            }
            "drivers_probe" => {
                let driver = self.reserved_for(text).unwrap_or_else(|| "igb".to_owned());
                if !self.is_bound(text) && self.path(&format!("/sys/bus/pci/drivers/{driver}")).exists() {
                    self.attach(text, &driver);
                }
                Ok(())
            }
            _ => refuse(libc::EINVAL),
        }
    }

    fn addresses(&self, interface: &str) -> Vec<IpAddr> {
        self.inside.lock().unwrap().addresses.get(interface).cloned().unwrap_or_default()
    }
}

/// An address that is right.
pub(crate) fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}
