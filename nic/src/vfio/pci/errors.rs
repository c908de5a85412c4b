//! Why a PCI function cannot be had: every way in which the start of a `vfio:` port can fail has its own line here, with the way out.
#![forbid(unsafe_code)]

use super::address::{AddressError, PciAddress};
use super::group::Member;
use super::holders::Holder;
use crate::port::PortError;
use crate::spec::PortSpec;
use crate::vfio::function::PciId;
use std::io;
use std::time::Duration;
use thiserror::Error;

/// Why not. One line each, without the port's name.
#[derive(Debug, Error)]
pub(crate) enum PciError {
    /// The text is no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// There is nothing at this address.
    #[error("there is no PCI device at {address}: {}", choose(there))]
    NoDevice {
        /// Where.
        address: PciAddress,
        /// The Ethernet functions there are.
        there: Vec<String>,
    },
    /// It is something else.
    #[error("{address} is no Ethernet device, its class is {class:06x}{}: {}", class_name(*class), choose(there))]
    NotEthernet {
        /// Where.
        address: PciAddress,
        /// Its class.
        class: u32,
        /// The Ethernet functions there are.
        there: Vec<String>,
    },
    /// None of our drivers knows it.
    #[error(
        "no driver of Isoplane knows {address}, which is {:04x}:{:04x}{}: {}; with a driver of the kernel's it can be afxdp:INTERFACE",
        id.vendor, id.device, in_brackets(name.as_deref()), known_devices(known)
    )]
    UnknownDevice {
        /// Where.
        address: PciAddress,
        /// What it is.
        id: PciId,
        /// The same in words, where a list on this machine knows them.
        name: Option<String>,
        /// What is known.
        known: Vec<String>,
    },
    /// Its registers cannot be where the data sheet says.
    #[error(
        "{address}: BAR 0 has {bytes} bytes, and {driver} needs {needs}: the firmware has not given the device its memory; look for \"BAR 0\" in dmesg, and boot with pci=realloc"
    )]
    BarTooSmall {
        /// Where.
        address: PciAddress,
        /// Our driver.
        driver: &'static str,
        /// Bytes there are.
        bytes: u64,
        /// Bytes it takes.
        needs: usize,
    },
    /// Nothing would keep the device from the rest of the memory.
    #[error(
        "{address} is behind no IOMMU: switch VT-d or AMD-Vi on in the firmware, and boot with \"intel_iommu=on iommu=pt\" (Intel) or \"iommu=pt\" (AMD); without an IOMMU only iommu=off drives it, which lets the device write to all of this machine's memory"
    )]
    NoIommu {
        /// Where.
        address: PciAddress,
    },
    /// It was to go without an IOMMU, and VFIO does not allow that.
    #[error(
        "iommu=off: this machine does not allow VFIO without an IOMMU: {}",
        match supported {
            true => "run \"echo Y > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode\" as root (the kernel is tainted by it)",
            false => "run \"modprobe vfio enable_unsafe_noiommu_mode=1\" as root; a kernel that does not know this parameter was built without CONFIG_VFIO_NOIOMMU",
        }
    )]
    NoIommuNotAllowed {
        /// The module is there and has the parameter.
        supported: bool,
    },
    /// Other drivers have devices that the IOMMU cannot tell from ours.
    #[error(
        "{address} shares IOMMU group {group} with devices that the kernel drives, and the IOMMU cannot tell them apart: {}",
        held_back_by.iter().map(Member::advice).collect::<Vec<_>>().join("; ")
    )]
    GroupNotViable {
        /// Where.
        address: PciAddress,
        /// The group's number.
        group: u32,
        /// Those that hold it back.
        held_back_by: Vec<Member>,
    },
    /// The kernel has no vfio-pci now.
    #[error(
        "the kernel's driver vfio-pci is not there: {}",
        match built {
            Some(true) => "run \"modprobe vfio-pci\" as root",
            Some(false) => "this kernel was built without CONFIG_VFIO_PCI; boot another one, or use afxdp:INTERFACE",
            None => "run \"modprobe vfio-pci\" as root; where that finds no such module, the kernel was built without CONFIG_VFIO_PCI",
        }
    )]
    NoVfioPci {
        /// Whether there is such a module for this kernel; `None` where nobody knows.
        built: Option<bool>,
    },
    /// VFIO has no back end.
    #[error("VFIO has no driver for this IOMMU: run \"modprobe vfio_iommu_type1\" as root")]
    NoIommuDriver,
    /// The device could raise any interrupt of the machine.
    #[error(
        "the IOMMU does not remap interrupts, so that a device could raise those of another: switch interrupt remapping on (in the firmware; no intremap=off for the kernel), or, where nobody but you runs programs on the devices, run \"echo 1 > /sys/module/{module}/parameters/allow_unsafe_interrupts\" as root"
    )]
    NoInterruptRemapping {
        /// The kernel's module that refused.
        module: &'static str,
    },
    /// Somebody else drives it.
    #[error("{address} is in use by {}", in_use_by(holders, path))]
    Busy {
        /// Where.
        address: PciAddress,
        /// What is open.
        path: String,
        /// Who has it open.
        holders: Vec<Holder>,
    },
    /// It carries this machine's own traffic.
    #[error(
        "{address} is in use: its interface {interface} is up and {why}; run \"ip link set {interface} down\" first, or write take=yes to take it from the kernel all the same"
    )]
    InUse {
        /// Where.
        address: PciAddress,
        /// The interface.
        interface: String,
        /// `is the default route`.
        why: String,
    },
    /// Its virtual functions would vanish with its driver.
    #[error(
        "{address} has {count} virtual function{}, which go with its driver: run \"echo 0 > /sys/bus/pci/devices/{address}/sriov_numvfs\" first, or write take=yes to take it all the same",
        if *count == 1 { "" } else { "s" }
    )]
    VirtualFunctions {
        /// Where.
        address: PciAddress,
        /// How many.
        count: u32,
    },
    /// The kernel's settings are root's.
    #[error("{address} has to be given to the driver vfio-pci, which needs root: run as root")]
    NotRoot {
        /// Where.
        address: PciAddress,
    },
    /// The device is given to others by the mode of a file.
    #[error("no permission to open {path}: run as root, or let root give it to you: chown NAME {path}")]
    NoPermission {
        /// What was to be opened.
        path: String,
    },
    /// A file of the kernel's cannot be read.
    #[error("cannot read {path}: {}", in_words(source))]
    Unreadable {
        /// The file.
        path: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A file of the kernel's says something unknown.
    #[error("{path} says {text:?}, which is not understood")]
    Garbled {
        /// The file.
        path: String,
        /// What it says.
        text: String,
    },
    /// The kernel refused a step of the binding.
    #[error("{address}: cannot {what}: {}{}", in_words(source), refusal_advice(source))]
    Step {
        /// Where.
        address: PciAddress,
        /// What was tried.
        what: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A step of the binding took no effect.
    #[error("{address}: {what} after {limit:?}: dmesg may tell why")]
    TooLate {
        /// Where.
        address: PciAddress,
        /// What has not happened.
        what: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The device was given back to nobody, after a failure.
    #[error("{problem}; and it could not be put back: {undoing}: run \"isoplane restore\"")]
    NotPutBack {
        /// The first failure.
        problem: Box<PciError>,
        /// The second.
        undoing: Box<PciError>,
    },
    /// What was before cannot be kept, or read.
    #[error("cannot {action} {path}, which remembers the device's driver: {}", in_words(source))]
    State {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: String,
        /// What the system answered.
        source: io::Error,
    },
    /// Not what we wrote.
    #[error("{path} does not tell a device's former driver: {why}; remove it")]
    NoState {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A device or what it hangs on was opened, and the kernel answered something else.
    #[error("cannot {what}: {}", in_words(source))]
    Open {
        /// What was tried, with the path.
        what: String,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl PciError {
    /// True where the specification is to blame: the same words will fail again on this machine.
    pub(crate) fn is_specification(&self) -> bool {
        matches!(
            self,
            Self::Address(_) | Self::NoDevice { .. } | Self::NotEthernet { .. } | Self::UnknownDevice { .. }
        )
    }

    /// As the error of a port.
    pub(crate) fn of_port(self, spec: &PortSpec) -> PortError {
        if self.is_specification() { spec.error(self.to_string()) } else { spec.open_error(self.to_string()) }
    }

    /// What it means that VFIO_SET_IOMMU failed.
    pub(crate) fn of_set_iommu(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM) => Self::NoInterruptRemapping { module: "vfio_iommu_type1" },
            Some(libc::ENODEV) => Self::NoIommuDriver,
            _ => Self::Open { what: "put the IOMMU to use (VFIO_SET_IOMMU)".into(), source: error },
        }
    }

    /// What it means that VFIO_DEVICE_ATTACH_IOMMUFD_PT failed.
    pub(crate) fn of_attach_iommufd(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM) => Self::NoInterruptRemapping { module: "iommufd" },
            _ => Self::Open {
                what: "attach the device to an address space (VFIO_DEVICE_ATTACH_IOMMUFD_PT)".into(),
                source: error,
            },
        }
    }
}

/// What the kernel answered, without its number.
pub(super) fn in_words(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::TimedOut {
        return "the kernel has not come back from it in time".into();
    }
    error.to_string().split(" (os error").next().unwrap_or_default().to_owned()
}

fn refusal_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => ": /sys is read-only, as in a container: bind it on the host",
        io::ErrorKind::PermissionDenied => ": run as root",
        _ => "",
    }
}

fn choose(there: &[String]) -> String {
    match there {
        [] => "this machine has no Ethernet device on PCI".into(),
        _ => format!("choose an Ethernet device: {}", there.join(", ")),
    }
}

fn in_brackets(name: Option<&str>) -> String {
    name.map(|name| format!(" ({name})")).unwrap_or_default()
}

fn known_devices(known: &[String]) -> String {
    match known {
        [] => "this build has no driver for any".into(),
        _ => format!("it drives {}", known.join("; ")),
    }
}

/// What the classes are that somebody could take for a NIC, and the commonest others.
fn class_name(class: u32) -> &'static str {
    match (class >> 16, class >> 8) {
        (_, 0x0280) => " (a wireless or other network device)",
        (0x01, _) => " (storage)",
        (0x02, _) => " (a network device of another kind)",
        (0x03, _) => " (graphics)",
        (0x06, _) => " (a bridge)",
        (0x0C, _) => " (a serial bus)",
        _ => "",
    }
}

fn in_use_by(holders: &[Holder], path: &str) -> String {
    match holders {
        [] => format!("another process, which has {path} open: end it, or wait until it has ended"),
        _ if holders.iter().any(|holder| holder.pid == std::process::id()) => {
            "this process already: give each port a device of its own".into()
        }
        _ => {
            let them: Vec<String> = holders.iter().map(Holder::to_string).collect();
            format!("{}: end it, or wait until it has ended", them.join(" and "))
        }
    }
}
