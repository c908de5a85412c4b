//! Whether the kernel uses an interface: the device below it is not taken away from an administrator's own connection.
#![forbid(unsafe_code)]

use super::errors::PciError;
use super::sysfs::{KernelInterface, PciDevice, Sysfs};
use std::net::IpAddr;

/// Of `include/uapi/linux/if.h`.
const IFF_UP: u64 = 1;

/// An error where an interface of the device is used by this machine itself, or where virtual functions would go with it.
pub(crate) fn check_unused(device: &PciDevice) -> Result<(), PciError> {
    for interface in device.interfaces() {
        if let Some(why) = why_used(device.sysfs(), &interface) {
            return Err(PciError::InUse { address: device.address(), interface: interface.name, why });
        }
    }
    match device.virtual_functions() {
        0 => Ok(()),
        count => Err(PciError::VirtualFunctions { address: device.address(), count }),
    }
}

/// What an interface that is up is used for, in words behind "it is up and".
pub(crate) fn why_used(sysfs: &Sysfs, interface: &KernelInterface) -> Option<String> {
    if !is_up(sysfs, interface) {
        return None;
    }
    if let Some(master) = sysfs.link(&format!("{}/master", interface.folder)) {
        return Some(format!("belongs to {master}"));
    }
    if has_default_route(sysfs, &interface.name) {
        return Some("has the default route".into());
    }
    // The kernel gives each interface one of these by itself.
    let link_local = |address: &IpAddr| match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let addresses = sysfs.addresses(&interface.name);
    let address = addresses.iter().find(|address| !link_local(address))?;
    Some(format!("has the address {address}"))
}

/// Whether it is set up.
pub(crate) fn is_up(sysfs: &Sysfs, interface: &KernelInterface) -> bool {
    let flags = sysfs.word(&format!("{}/flags", interface.folder));
    flags.and_then(|flags| super::sysfs::hexadecimal(&flags)).is_some_and(|flags| flags & IFF_UP != 0)
}

/// By `/proc/net/route` (destination and mask in the second and eighth column) and `/proc/net/ipv6_route` (destination and its prefix's length in
/// the first two, flags in the last but one).
fn has_default_route(sysfs: &Sysfs, name: &str) -> bool {
    const RTF_REJECT: u32 = 0x200;
    let lines = |path| sysfs.word(path).unwrap_or_default();
    let v4 = lines("/proc/net/route").lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [found, "00000000", _, _, _, _, _, "00000000", ..] if found == name)
    });
    let v6 = lines("/proc/net/ipv6_route").lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [destination, "00", .., flags, found] = fields[..] else { return false };
        let rejects = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & RTF_REJECT != 0);
        found == name && !rejects && destination.bytes().all(|digit| digit == b'0')
    });
    v4 || v6
}
