//! The way to a device by its IOMMU group: `/dev/vfio/N`, and the container `/dev/vfio/vfio` that groups share.
//!
//! One container for all ports of the process, so that packet memory is mapped once and every device reaches it. A group can be had by one process only, and
//! only whole. It stays open until the last of its devices is closed; then the devices' bindings are undone, for the kernel gives no device of
//! an open group to another driver.
#![forbid(unsafe_code)]

use super::abi::{self, DmaMap, DmaUnmap, GroupStatus, IommuInfo};
use super::dma::{DmaSpace, Iommu};
use super::error::{VfioError, map_error};
use super::sys;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

const CONTAINER: &str = "/dev/vfio/vfio";
const GROUPS: &str = "/dev/vfio";

/// What undoes a binding when it is dropped.
pub(super) type Binding = Box<dyn Send + Sync>;

/// A container with an IOMMU, and its open groups.
struct Container {
    file: File,
    groups: Mutex<Vec<(u32, Weak<Group>)>>,
}

/// An open group. Its fields go in this order.
struct Group {
    file: File,
    /// Those of its devices that are closed already.
    bindings: Mutex<Vec<Binding>>,
    _container: Arc<Container>,
}

/// Keeps a group open for one of its devices, and then undoes the device's binding when the group is closed.
pub(super) struct Membership {
    group: Arc<Group>,
    binding: Option<Binding>,
}

/// What [`open`] gives.
pub(super) struct Opened {
    /// The device.
    pub(super) device: OwnedFd,
    /// To be dropped when the device is closed.
    pub(super) membership: Membership,
    /// The memory that it can reach.
    pub(super) dma: Arc<DmaSpace>,
}

/// The process's container, as long as a port has it open.
static SHARED: Mutex<Option<(Weak<Container>, Weak<DmaSpace>)>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_file(path: &Path, missing: impl FnOnce() -> VfioError) -> Result<File, VfioError> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.map_err(|error| VfioError::open(path, error, missing))
}

/// The number of a device's group.
pub(super) fn group_number(sysfs: &Path, address: &str) -> Result<u32, VfioError> {
    let link = fs::read_link(sysfs.join("bus/pci/devices").join(address).join("iommu_group"));
    let number = link.ok().and_then(|target| target.file_name()?.to_str()?.parse().ok());
    number.ok_or_else(|| VfioError::NoIommu { device: address.to_owned() })
}

/// Opens a device that is bound to vfio-pci.
pub(super) fn open(sysfs: &Path, address: &str, binding: Option<Binding>) -> Result<Opened, VfioError> {
    let number = group_number(sysfs, address)?;
    // Held to the end: two ports that open at once share the container.
    let mut shared = lock(&SHARED);
    let known = shared.as_ref().and_then(|(container, dma)| Some((container.upgrade()?, dma.upgrade()?)));
    // One whose last group was closed has lost its IOMMU, and what was mapped.
    let known = known.filter(|(container, _)| container.has_groups());
    let (container, dma) = match known {
        Some((container, dma)) => (container, Some(dma)),
        None => (Arc::new(Container::open()?), None),
    };
    let group = container.group(sysfs, number, address, dma.is_none())?;
    let dma = match dma {
        Some(dma) => {
            dma.narrow();
            dma
        }
        None => DmaSpace::new(Box::new(Type1(Arc::clone(&container)))),
    };
    *shared = Some((Arc::downgrade(&container), Arc::downgrade(&dma)));
    let name = CString::new(address).map_err(|error| VfioError::system("a device's name")(error.into()))?;
    let membership = Membership { group, binding };
    let device = sys::device_fd(membership.group.file.as_fd(), &name)
        .map_err(|error| device_error(error, number, address))?;
    Ok(Opened { device, membership, dma })
}

fn device_error(error: io::Error, group: u32, address: &str) -> VfioError {
    let path = group_path(group);
    match error.raw_os_error() {
        Some(libc::ENODEV) => VfioError::NotBound { path, device: address.to_owned() },
        Some(libc::EBUSY) => VfioError::InUse { path },
        _ => VfioError::system("the kernel does not give the device (VFIO_GROUP_GET_DEVICE_FD)")(error),
    }
}

fn group_path(number: u32) -> PathBuf {
    Path::new(GROUPS).join(number.to_string())
}

impl Container {
    fn open() -> Result<Self, VfioError> {
        let path = Path::new(CONTAINER);
        let file = open_file(path, || VfioError::NoVfio { path: path.to_owned() })?;
        let version = sys::call_number(file.as_fd(), abi::GET_API_VERSION, 0)
            .map_err(VfioError::system("cannot ask for VFIO's version"))?;
        if version != abi::API_VERSION {
            let error = io::Error::other(format!("version {version} of VFIO is not known"));
            return Err(VfioError::system("cannot use VFIO")(error));
        }
        Ok(Self { file, groups: Mutex::default() })
    }

    fn has_groups(&self) -> bool {
        lock(&self.groups).iter().any(|(_, group)| group.strong_count() > 0)
    }

    /// Opens a group, or gives it where a device of it is open already. `first`: the container has no IOMMU yet.
    fn group(
        self: &Arc<Self>,
        sysfs: &Path,
        number: u32,
        address: &str,
        first: bool,
    ) -> Result<Arc<Group>, VfioError> {
        let mut groups = lock(&self.groups);
        groups.retain(|(_, group)| group.strong_count() > 0);
        let known = groups.iter().find(|(known, _)| *known == number);
        if let Some(group) = known.and_then(|(_, group)| group.upgrade()) {
            return Ok(group);
        }
        let path = group_path(number);
        let missing = || VfioError::NotBound { path: path.clone(), device: address.to_owned() };
        let file = open_file(&path, missing)?;
        let mut status = GroupStatus::default();
        sys::call(file.as_fd(), abi::GROUP_GET_STATUS, &mut status)
            .map_err(VfioError::system("cannot ask about the IOMMU group"))?;
        if status.flags & abi::GROUP_VIABLE == 0 {
            return Err(VfioError::NotViable { group: number, others: holders(sysfs, number) });
        }
        if status.flags & abi::GROUP_CONTAINER_SET != 0 {
            return Err(VfioError::InUse { path });
        }
        sys::set_container(file.as_fd(), self.file.as_fd()).map_err(|error| {
            // With an IOMMU set, the group's domain is made here.
            if error.raw_os_error() == Some(libc::EPERM) {
                return VfioError::NoInterruptRemapping;
            }
            VfioError::system("cannot put the IOMMU group into a container")(error)
        })?;
        if first {
            let has = sys::call_number(self.file.as_fd(), abi::CHECK_EXTENSION, abi::TYPE1V2_IOMMU);
            if !has.is_ok_and(|answer| answer > 0) {
                return Err(VfioError::NoType1);
            }
            sys::call_number(self.file.as_fd(), abi::SET_IOMMU, abi::TYPE1V2_IOMMU)
                .map_err(VfioError::set_iommu)?;
        }
        let group = Arc::new(Group { file, bindings: Mutex::default(), _container: Arc::clone(self) });
        groups.push((number, Arc::downgrade(&group)));
        Ok(group)
    }
}

/// The devices of a group that a driver of the kernel holds, with its name.
fn holders(sysfs: &Path, group: u32) -> String {
    let devices = sysfs.join("kernel/iommu_groups").join(group.to_string()).join("devices");
    let entries = fs::read_dir(devices).into_iter().flatten().flatten();
    let mut held: Vec<String> = entries
        .filter_map(|entry| {
            let driver = fs::read_link(entry.path().join("driver")).ok()?;
            let (name, driver) = (entry.file_name(), driver.file_name()?.to_string_lossy().into_owned());
            // Ports of a bridge may keep theirs.
            let harmless = ["vfio-pci", "pcieport", "pci-stub"].contains(&driver.as_str());
            (!harmless).then(|| format!("{} ({driver})", name.to_string_lossy()))
        })
        .collect();
    held.sort();
    if held.is_empty() { "unknown ones".to_owned() } else { held.join(", ") }
}

impl Drop for Membership {
    fn drop(&mut self) {
        lock(&self.group.bindings).extend(self.binding.take());
    }
}

/// The IOMMU behind a container.
struct Type1(Arc<Container>);

impl Iommu for Type1 {
    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        let info =
            sys::call_with_capabilities(self.0.file.as_fd(), abi::IOMMU_GET_INFO, IommuInfo::default());
        let Ok((info, bytes)) = info else { return Vec::new() };
        if info.flags & abi::IOMMU_INFO_CAPS == 0 {
            return before_ranges();
        }
        let capability = abi::capabilities(&bytes, info.cap_offset)
            .find(|(id, _)| *id == abi::IOMMU_CAP_IOVA_RANGE)
            .map(|(_, bytes)| abi::pairs(bytes));
        match capability {
            Some(pairs) => pairs.into_iter().map(|(start, last)| start..=last).collect(),
            None => before_ranges(),
        }
    }

    fn map(&self, iova: u64, address: NonNull<u8>, length: usize) -> io::Result<()> {
        let mut map = DmaMap {
            flags: abi::DMA_MAP_READ_WRITE,
            vaddr: address.as_ptr() as u64,
            iova,
            size: length as u64,
            ..DmaMap::default()
        };
        let mapped = sys::call(self.0.file.as_fd(), abi::IOMMU_MAP_DMA, &mut map);
        mapped.map(|_| ()).map_err(|error| map_error(error, length))
    }

    fn unmap(&self, iova: u64, length: usize) -> io::Result<()> {
        let mut unmap = DmaUnmap { iova, size: length as u64, ..DmaUnmap::default() };
        sys::call(self.0.file.as_fd(), abi::IOMMU_UNMAP_DMA, &mut unmap)?;
        // The kernel says how much it unmapped.
        if unmap.size == length as u64 { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

/// What kernels before 5.4 do not tell of: x86 keeps addresses for interrupts there, and some IOMMUs translate 39 bits.
fn before_ranges() -> Vec<RangeInclusive<u64>> {
    vec![0..=0xFEDF_FFFF, 0xFEF0_0000..=(1 << 39) - 1]
}
