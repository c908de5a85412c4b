//! All that can keep a NIC from being driven, each with its own line. In a machine whose IOMMU does not remap interrupts; for the reason that [`with_iommu`]
//! has, it has one CPU.

use super::vfio::{ADDRESSES, IGB};
use super::{VIRTIO, with_iommu_device};
use crate::common::kit;
use bench::vm::{Guest, Session, VmError, build};
use std::time::Duration;

/// A NIC that no driver knows, and one of two that share an IOMMU group.
const STRANGER: &str = "0000:00:0c.0";
const SHARED: &str = "0000:00:0d.0";

/// Runs a program that must not run, and gives what it says.
#[track_caller]
pub(super) fn refused(session: &mut Session, command: &str, status: &str) -> Result<String, VmError> {
    let said = session.run(&format!("timeout 20 {command} 2>&1; echo status $?"))?;
    assert_eq!(said.last().map(String::as_str), Some(status), "{command}: {said:#?}");
    let errors: Vec<&String> = said.iter().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(errors.len(), 1, "{command}: one line says it: {said:#?}");
    println!("{}", errors[0]);
    Ok(errors[0].clone())
}

#[test]
fn guest_vfio_failures_say_the_way_out() {
    let Some(kit) = kit("guest_vfio_failures_say_the_way_out") else { return };
    let l2fwd = build("l2fwd").unwrap_or_else(|error| panic!("{error}"));
    let igb = ADDRESSES[IGB[0]];
    let machine = with_iommu_device("vfio-failures", "intel-iommu,intremap=off")
        .cpus(1)
        .module("virtio_net")
        .file("bin/l2fwd", &l2fwd)
        .nic(&format!("igb,addr=0x{}", &igb[8..10]))
        .nic(&format!("vmxnet3,addr=0x{}", &STRANGER[8..10]))
        .nic(&format!("{VIRTIO},multifunction=on,addr=0x{}.0", &SHARED[8..10]))
        .nic(&format!("{VIRTIO},addr=0x{}.1", &SHARED[8..10]))
        .timeout(Duration::from_secs(120));
    let run = |session: &mut Session| {
        let fails = |session: &mut Session, address: &str, words: &[&str]| {
            // What is wrong with the machine is 1, what is wrong with the command is 2.
            let status = if [igb, SHARED].contains(&address) { "status 1" } else { "status 2" };
            let command = format!("l2fwd --port vfio:{address} --port mem:null --duration 1");
            let said = refused(session, &command, status)?;
            for word in words {
                assert!(said.contains(word), "{word}: {said}");
            }
            Ok::<_, VmError>(())
        };
        // Modules that are not loaded, one after another; then what intremap=off means.
        session.run("rmmod vfio_pci && rmmod vfio_iommu_type1 && ls /lib/modules")?;
        fails(session, igb, &["vfio-pci is not there", "modprobe vfio-pci"])?;
        session.run("insmod /lib/modules/vfio?pci.ko")?;
        fails(session, igb, &["run \"modprobe vfio_iommu_type1\""])?;
        session.run("insmod /lib/modules/vfio_iommu_type1.ko")?;
        fails(session, igb, &["does not remap interrupts", "allow_unsafe_interrupts"])?;
        session.run("echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")?;
        // Devices that are not what is asked for.
        fails(session, "0000:00:00.0", &["is no Ethernet device", igb])?;
        fails(session, "0000:00:1e.7", &["there is no PCI device at", igb])?;
        fails(session, STRANGER, &["no driver of Isoplane knows", "15ad:07b0"])?;
        fails(session, SHARED, &["shares IOMMU group", "virtio-pci"])?;
        Ok(())
    };
    machine.converse(&kit, run).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn guest_without_an_iommu_says_so() {
    let Some(kit) = kit("guest_without_an_iommu_says_so") else { return };
    let l2fwd = build("l2fwd").unwrap_or_else(|error| panic!("{error}"));
    let igb = ADDRESSES[IGB[0]];
    let machine = Guest::new("no-iommu")
        .cpus(1)
        .module("vfio-pci")
        .file("bin/l2fwd", &l2fwd)
        .nic(&format!("igb,addr=0x{}", &igb[8..10]))
        .timeout(Duration::from_secs(60));
    let run = |session: &mut Session| {
        for (option, words) in [("", "is behind no IOMMU"), ("?iommu=off", "enable_unsafe_noiommu_mode")] {
            let command = format!("l2fwd --port 'vfio:{igb}{option}' --port mem:null --duration 1");
            let said = refused(session, &command, "status 1")?;
            assert!(said.contains(words), "{words}: {said}");
        }
        Ok(())
    };
    machine.converse(&kit, run).unwrap_or_else(|error| panic!("{error}"));
}
