//! What is read from files of the kernel's and of others, right and wrong.

use super::super::ids;
use super::super::machine::{Machine, NIC, NewDevice};
use super::super::sysfs::{bar_sizes, hexadecimal};
use crate::vfio::function::PciId;
use proptest::prelude::*;

#[test]
fn bars_have_the_lengths_that_the_kernel_tells() {
    let text = "0x00000000febc0000 0x00000000febdffff 0x0000000000040200\n\
                0x000000000000c000 0x000000000000c01f 0x0000000000040101\n\
                0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                0x00000000feb00000 0x00000000feb03fff 0x0000000000140204\n";
    assert_eq!(bar_sizes(text), [0x20000, 0, 0, 0x4000, 0, 0]);
    assert_eq!(bar_sizes(""), [0; 6]);
    let all = "0x0 0xffffffffffffffff 0x200\n0x9 0x8 0x200\n0x1 x 0x200\n-1";
    assert_eq!(bar_sizes(all), [u64::MAX, 0, 0, 0, 0, 0]);
}

#[test]
fn names_come_from_the_list_of_the_machine() {
    let list = "# comment\n8086  Intel Corporation\n\t10c9  82576 Gigabit Network Connection\n\
                \t\t8086 0001  a subsystem\n1af4  Red Hat, Inc.\n\t1041  Virtio 1.0 network device\n\
                C 02  Network controller\n\t00  Ethernet controller\n";
    let machine = Machine::new();
    let name = |vendor, device| ids::listed(&machine.sysfs(), PciId { vendor, device });
    assert_eq!(name(0x8086, 0x10c9), None);
    machine.file("/usr/share/misc/pci.ids", list);
    assert_eq!(name(0x8086, 0x10c9).as_deref(), Some("82576 Gigabit Network Connection"));
    assert_eq!(name(0x1af4, 0x1041).as_deref(), Some("Virtio 1.0 network device"));
    assert_eq!(name(0x8086, 0x1041), None, "of another vendor");
    assert_eq!(name(0x1af4, 0x0001), None, "a subsystem is no device");
    assert_eq!(name(0x1af4, 0x0000), None, "a class is no device");
}

#[test]
fn interfaces_of_virtio_devices_are_found_too() {
    let machine = Machine::new();
    machine.add(&NewDevice { driver: Some("virtio-pci"), interface: None, ..NIC });
    machine.file(&machine.nic().file("virtio0/net/eth7/flags"), "0x1003\n");
    machine.file(&machine.nic().file("net/eth1/flags"), "0x1003\n");
    let names: Vec<String> = machine.nic().interfaces().into_iter().map(|interface| interface.name).collect();
    assert_eq!(names, ["eth1", "eth7"]);
    assert!(machine.nic().describe().ends_with("driver virtio-pci, interface eth1, interface eth7)"));
}

proptest! {
    #[test]
    fn property_numbers_are_read_back(number: u64, digits in "[0-9a-fA-Fx+-]{0,20}") {
        prop_assert_eq!(hexadecimal(&format!("0x{number:x}")), Some(number));
        prop_assert_eq!(hexadecimal(&digits).is_some(), digits.strip_prefix("0x").is_some_and(|digits| {
            !digits.contains(['+', '-']) && u64::from_str_radix(digits, 16).is_ok()
        }));
    }

}

proptest! {
    // Each makes a machine.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn property_any_file_is_read_without_harm(resource in "[0-9a-fx \n]{0,200}", word in "\\PC{0,20}", list in "[0-9a-f\t \nC]{0,80}") {
        let sizes = bar_sizes(&resource);
        prop_assert!(sizes.iter().all(|size| *size == 0 || resource.contains("0x")));
        let machine = Machine::with_nic();
        let nic = machine.nic();
        for file in ["vendor", "class", "driver_override", "resource", "sriov_numvfs"] {
            machine.file(&nic.file(file), &word);
        }
        machine.file("/usr/share/hwdata/pci.ids", &list);
        let described = nic.describe();
        prop_assert!(described.starts_with("0000:03:00.0 ("));
        prop_assert_eq!(nic.id().is_ok(), hexadecimal(word.trim()).is_some_and(|number| number <= u64::from(u32::MAX)));
        prop_assert_eq!(super::super::bind::check(&nic, Default::default()).is_ok(), nic.is_ethernet() == Some(true));
    }
}
