//! Devices go from the kernel's drivers to vfio-pci and back, whoever dies in between.

use super::with_iommu;
use crate::common::kit;
use bench::vm::{Session, VmError, build_static, build_static_unit_tests};
use std::time::Duration;

/// With a driver of the kernel's, without one, and two functions of one device, which share a group.
const VIRTIO: &str = "0000:00:05.0";
const IGB: &str = "0000:00:06.0";
const SHARED: [&str; 2] = ["0000:00:07.0", "0000:00:07.1"];

/// Runs a unit test of the crate nic that is for a guest, and gives what it printed.
fn test(session: &mut Session, devices: &str, name: &str) -> Result<Vec<String>, VmError> {
    session.run(&format!(
        "ISOPLANE_PCI_DEVICES={devices} nic-tests --ignored --nocapture --exact vfio::pci::tests::guest::{name} 2>&1"
    ))
}

fn driver(session: &mut Session, address: &str) -> Result<String, VmError> {
    let link = session.run(&format!("readlink /sys/bus/pci/devices/{address}/driver || echo none"))?;
    Ok(link.concat().rsplit('/').next().unwrap_or_default().to_owned())
}

/// Has a process take the devices, and kills it when it has.
fn take_and_kill(session: &mut Session, devices: &str, kill: bool) -> Result<(), VmError> {
    session.run(&format!(
        "ISOPLANE_PCI_DEVICES={devices} nic-tests --ignored --nocapture --exact vfio::pci::tests::guest::devices_are_taken_and_kept_open >/tmp/taken 2>&1 & echo $! >/tmp/pid"
    ))?;
    session.run("for turn in $(seq 300); do grep -q taken$ /tmp/taken && break; sleep 0.1; done; grep -q taken$ /tmp/taken || { cat /tmp/taken; false; }")?;
    if kill {
        session.run("kill -9 $(cat /tmp/pid)")?;
    }
    Ok(())
}

#[test]
fn guest_devices_come_back_to_their_drivers() {
    let Some(kit) = kit("guest_devices_come_back_to_their_drivers") else { return };
    let tests = build_static_unit_tests("nic").unwrap_or_else(|error| panic!("{error}"));
    let isoplane = build_static("apps", "isoplane").unwrap_or_else(|error| panic!("{error}"));
    let machine = with_iommu("binding")
        .module("virtio_net")
        .nic("virtio-net-pci,disable-legacy=on,iommu_platform=on,addr=0x05")
        .nic("igb,addr=0x06")
        .nic("virtio-net-pci,disable-legacy=on,iommu_platform=on,multifunction=on,addr=0x07.0")
        .nic("virtio-net-pci,disable-legacy=on,iommu_platform=on,addr=0x07.1")
        .file("bin/nic-tests", &tests)
        .file("bin/isoplane", &isoplane)
        .timeout(Duration::from_secs(120));
    let run = |session: &mut Session| {
        let print = |lines: Vec<String>| lines.iter().for_each(|line| println!("{line}"));
        print(session.run("isoplane nics")?);
        assert_eq!(driver(session, VIRTIO)?, "virtio-pci");
        assert_eq!(driver(session, IGB)?, "none");

        print(test(session, &format!("{VIRTIO},{IGB}"), "devices_are_taken_and_given_back_again_and_again")?);
        assert_eq!(driver(session, VIRTIO)?, "virtio-pci");
        assert_eq!(driver(session, IGB)?, "none");

        // Killed: restore gives the devices back, and tells of each.
        take_and_kill(session, &format!("{VIRTIO},{IGB}"), true)?;
        assert_eq!(driver(session, VIRTIO)?, "vfio-pci");
        let told = session.run("isoplane restore")?;
        assert_eq!(
            told,
            [
                format!("  {VIRTIO}: back on its driver virtio-pci"),
                format!("  {IGB}: without a driver, as before")
            ]
        );
        assert_eq!(session.run("isoplane restore")?, ["nothing to restore"]);
        assert_eq!(driver(session, VIRTIO)?, "virtio-pci");

        // Killed: the next one gives it back too.
        take_and_kill(session, VIRTIO, true)?;
        print(test(session, VIRTIO, "devices_are_taken_and_given_back_again_and_again")?);
        assert_eq!(driver(session, VIRTIO)?, "vfio-pci");
        Ok(())
    };
    machine.converse(&kit, run).unwrap_or_else(|error| panic!("{error}"));
}
