//! What commands tell.

use super::super::bind::{self, Wishes, bind};
use super::super::host::{describe, tell};
use super::super::machine::{Machine, NIC, NewDevice};

#[test]
fn a_device_is_told_with_all_that_is_known() {
    let machine = Machine::with_nic();
    machine.add(&NewDevice {
        address: "0000:03:00.1",
        id: (0x1234, 0x5678),
        interface: Some("eth1"),
        driver: Some("other"),
        ..NIC
    });
    machine.file(&machine.nic().file("net/eth0/flags"), "0x1003\n");
    machine.addresses("eth0", &["fe80::1", "192.0.2.7"]);
    let told: Vec<_> = machine.sysfs().ethernet().iter().map(describe).collect();
    let [first, second] = &told[..] else { panic!("{told:#?}") };
    assert_eq!(
        (first.address.as_str(), first.id.as_deref(), first.driver.as_deref()),
        ("0000:03:00.0", Some("8086:10c9"), Some("igb"))
    );
    assert_eq!((first.iommu_group, first.group_viable), (Some(7), Some(false)));
    assert_eq!(first.interfaces[0].used.as_deref(), Some("has the address 192.0.2.7"));
    assert!(
        first.held_back_by[0].contains("\"echo 0000:03:00.1 > /sys/bus/pci/drivers/other/unbind\""),
        "{first:#?}"
    );
    assert!(second.isoplane_driver.is_none() && second.interfaces[0].used.is_none());
    assert_eq!(second.specification.as_deref(), Some("afxdp:eth1"));
    assert!(second.problem.as_deref().unwrap().contains("1234:5678"), "{second:#?}");
}

#[test]
fn restoring_is_told_in_a_line_for_each() {
    let machine = Machine::with_nic();
    machine.add(&NewDevice { address: "0000:04:00.0", group: Some(8), driver: None, ..NIC });
    let bound =
        ["0000:03:00.0", "0000:04:00.0"].map(|address| bind(&machine.device(address), Wishes::default()));
    for binding in bound {
        binding.unwrap().die();
    }
    let told: Vec<_> = bind::restore(&machine.sysfs()).into_iter().map(tell).collect();
    let lines: Vec<&str> = told.iter().map(|told| told.line.as_str()).collect();
    assert_eq!(lines, ["0000:03:00.0: back on its driver igb", "0000:04:00.0: without a driver, as before"]);
    assert!(told.iter().all(|told| told.is_done));
}
