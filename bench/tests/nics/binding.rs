//! Devices go from the kernel's drivers to vfio-pci and back, whoever dies in between.

use super::with_iommu;
use crate::common::kit;
use bench::vm::{Session, VmError, build, build_unit_tests};
use std::time::{Duration, Instant};

/// With a driver of the kernel's, without one, and two functions of one device, which share a group.
const VIRTIO: &str = "0000:00:05.0";
const IGB: &str = "0000:00:06.0";
const SHARED: [&str; 2] = ["0000:00:07.0", "0000:00:07.1"];
/// Another one like the second.
const OTHER_IGB: &str = "0000:00:08.0";

/// Runs a unit test of the crate nic that is for a guest, and gives what it printed.
fn test(session: &mut Session, devices: &str, name: &str) -> Result<Vec<String>, VmError> {
    session.run(&format!(
        "ISOPLANE_PCI_DEVICES={devices} nic-tests --ignored --nocapture --exact vfio::pci::tests::guest::{name} 2>&1"
    ))
}

/// Runs the tests of what is below the drivers (nic/src/vfio/hardware.rs) whose names begin with `name`: so many there are.
fn test_hardware(session: &mut Session, settings: &str, name: &str, count: usize) -> Result<(), VmError> {
    let start = Instant::now();
    let said = session.run(&format!(
        "ISOPLANE_VFIO_IGB={IGB},{OTHER_IGB} {settings} nic-tests --ignored --nocapture --test-threads=1 vfio::hardware::{name} 2>&1 || true"
    ))?;
    said.iter().for_each(|line| println!("{line}"));
    println!("{name}: {:.1} s", start.elapsed().as_secs_f64());
    let all = format!("test result: ok. {count} passed; 0 failed;");
    assert!(said.iter().any(|line| line.starts_with(&all)), "{said:#?}");
    Ok(())
}

fn driver(session: &mut Session, address: &str) -> Result<String, VmError> {
    let link = session.run(&format!("readlink /sys/bus/pci/devices/{address}/driver || echo none"))?;
    Ok(link.concat().rsplit('/').next().unwrap_or_default().to_owned())
}

/// It is not to be had, and this is said of it.
fn refused(session: &mut Session, address: &str, words: &[&str]) -> Result<(), VmError> {
    let before = driver(session, address)?;
    let said = test(session, address, "a_device_that_cannot_be_taken_says_why")?.join("\n");
    println!("{said}");
    words.iter().for_each(|word| assert!(said.contains(word), "{word}: {said}"));
    assert_eq!(driver(session, address)?, before);
    Ok(())
}

/// Has a process take the devices, and kills it when it has.
fn take_and_kill(session: &mut Session, devices: &str) -> Result<(), VmError> {
    take(session, devices)?;
    session.run("kill -9 $(cat /tmp/pid)").map(drop)
}

/// Has a process take the devices, and keep them.
fn take(session: &mut Session, devices: &str) -> Result<(), VmError> {
    session.run(&format!(
        "ISOPLANE_PCI_DEVICES={devices} nic-tests --ignored --nocapture --exact vfio::pci::tests::guest::devices_are_taken_and_kept_open >/tmp/taken 2>&1 & echo $! >/tmp/pid"
    ))?;
    session.run("for turn in $(seq 300); do grep -q taken$ /tmp/taken && break; sleep 0.1; done; grep -q taken$ /tmp/taken || { cat /tmp/taken; false; }")?;
    Ok(())
}

#[test]
fn guest_devices_come_back_to_their_drivers() {
    let Some(kit) = kit("guest_devices_come_back_to_their_drivers") else { return };
    let tests = build_unit_tests("nic").unwrap_or_else(|error| panic!("{error}"));
    let isoplane = build("isoplane").unwrap_or_else(|error| panic!("{error}"));
    let machine = with_iommu("binding")
        .module("virtio_net")
        .nic("virtio-net-pci,disable-legacy=on,iommu_platform=on,addr=0x05")
        .nic("igb,addr=0x06")
        .nic("virtio-net-pci,disable-legacy=on,iommu_platform=on,multifunction=on,addr=0x07.0")
        .nic("virtio-net-pci,disable-legacy=on,iommu_platform=on,addr=0x07.1")
        .nic("igb,addr=0x08")
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

        test_hardware(session, "", "hardware_", 4)?;
        // Where the kernel takes no mapping more.
        let limit = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
        let before = session.run(&format!("cat {limit}; echo 0 >{limit}"))?.concat();
        test_hardware(session, "ISOPLANE_VFIO_REFUSED=dma_entry_limit", "refused_hardware_says_why", 1)?;
        session.run(&format!("echo {before} >{limit}"))?;
        assert_eq!(driver(session, IGB)?, "none");

        // Killed: restore gives the devices back, and tells of each.
        take_and_kill(session, &format!("{VIRTIO},{IGB}"))?;
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

        // Killed twice: the next one gives it back too.
        take_and_kill(session, VIRTIO)?;
        take_and_kill(session, VIRTIO)?;
        print(test(session, VIRTIO, "devices_are_taken_over_from_the_dead")?);
        assert_eq!(driver(session, VIRTIO)?, "virtio-pci");

        // Alive: whoever comes second is told who has it, and restore leaves it alone.
        take(session, VIRTIO)?;
        let busy = format!("{VIRTIO} is in use by process");
        refused(session, VIRTIO, &[&busy, "(nic-tests)", "end it"])?;
        let told = session.run("isoplane restore || echo status $?")?;
        assert!(told[0].contains(&format!("not restored: {busy}")) && told[1] == "status 1", "{told:?}");
        session.run("kill -9 $(cat /tmp/pid)")?;
        session.run("isoplane restore")?;

        // Bound by hand: it stays there, and the file of its group is had by one.
        let [igb, by_hand] = [format!("/sys/bus/pci/devices/{IGB}"), format!("echo {IGB} >/sys/bus/pci")];
        session.run(&format!("echo vfio-pci >{igb}/driver_override; {by_hand}/drivers_probe"))?;
        take(session, IGB)?;
        refused(session, IGB, &[&format!("{IGB} is in use by process"), "(nic-tests)"])?;
        session.run("kill -9 $(cat /tmp/pid)")?;
        assert_eq!(session.run("isoplane restore")?, ["nothing to restore"]);
        assert_eq!(driver(session, IGB)?, "vfio-pci");

        // The rest cannot be taken, and stays where it is.
        let unbind = format!("\"echo {} > /sys/bus/pci/drivers/virtio-pci/unbind\" as root", SHARED[1]);
        refused(session, SHARED[0], &["shares IOMMU group", &unbind])?;
        session.run("ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up")?;
        refused(session, VIRTIO, &["interface eth0 is up and has the address 192.0.2.1", "take=yes"])?;
        session.run("ip link set eth0 down")?;
        session.run(&format!("{by_hand}/drivers/vfio-pci/unbind; rmmod vfio-pci"))?;
        refused(session, VIRTIO, &["vfio-pci is not there", "\"modprobe vfio-pci\""])?;
        Ok(())
    };
    machine.converse(&kit, run).unwrap_or_else(|error| panic!("{error}"));
}
