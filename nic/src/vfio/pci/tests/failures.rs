//! Every failure of the start has its line, with the way out in it.

use super::super::bind::{self, Wishes, bind};
use super::super::errors::PciError;
use super::super::ids;
use super::super::machine::{Fault, Machine, NIC, NewDevice, address};
use std::io;

const PLAIN: Wishes = Wishes { take: false, no_iommu: false };
const TAKE: Wishes = Wishes { take: true, no_iommu: false };
const NO_IOMMU: Wishes = Wishes { take: false, no_iommu: true };

#[track_caller]
fn says(error: &PciError, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in: {text}");
    }
}

#[track_caller]
fn refused(machine: &Machine, wishes: Wishes, words: &[&str]) {
    machine.fault(Fault::None);
    let before = machine.snapshot();
    says(&bind(&machine.nic(), wishes).err().unwrap(), words);
    assert!(machine.writes() == 0 && machine.snapshot() == before, "a refusal changes nothing");
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

#[test]
fn no_such_device() {
    let machine = Machine::new();
    let find = |machine: &Machine| machine.sysfs().find(address("0000:09:00.0")).err().unwrap();
    says(&find(&machine), &["no PCI device at 0000:09:00.0", "has no Ethernet device on PCI"]);
    machine.add(&NIC);
    machine.add(&NewDevice { address: "0000:01:00.0", class: 0x01_0601, interface: None, ..NIC });
    let error = find(&machine);
    says(&error, &["choose an Ethernet device: 0000:03:00.0 (", "driver igb, interface eth0)"]);
    assert!(!error.to_string().contains("0000:01:00.0") && error.is_specification());
}

#[test]
fn wrong_class() {
    let machine = Machine::new();
    machine.add(&NewDevice { class: 0x01_0802, ..NIC });
    refused(&machine, PLAIN, &["no Ethernet device", "010802 (storage)", "has no Ethernet device on PCI"]);
    machine.add(&NewDevice { address: "0000:04:00.0", ..NIC });
    refused(&machine, PLAIN, &["choose an Ethernet device: 0000:04:00.0"]);
}

#[test]
fn unknown_device() {
    let machine = Machine::new();
    machine.add(&NewDevice { id: (0xabcd, 0x0123), ..NIC });
    let error = ids::driver(&machine.nic()).err().unwrap();
    says(&error, &["no driver of Isoplane knows 0000:03:00.0, which is abcd:0123:", "afxdp:INTERFACE"]);
    assert!(error.is_specification());
    machine.file("/usr/share/misc/pci.ids", "abcd  A Vendor\n\t0123  A Chip\n");
    says(&ids::driver(&machine.nic()).err().unwrap(), &["abcd:0123 (A Chip)"]);
    for driver in crate::vfio::table::NIC_DRIVERS {
        says(&error, &[driver.name, driver.devices[0].name]);
    }
}

#[test]
fn bar_too_small() {
    let machine = Machine::with_nic();
    assert!(machine.nic().check_registers("igb", 0x20000).is_ok());
    let error = machine.nic().check_registers("igb", 0x20001).unwrap_err();
    says(&error, &["BAR 0 has 131072 bytes, and igb needs 131073", "pci=realloc"]);
}

#[test]
fn no_iommu() {
    let machine = Machine::new();
    machine.add(&NewDevice { group: None, ..NIC });
    let words = [
        "behind no IOMMU",
        "VT-d or AMD-Vi",
        "\"intel_iommu=on iommu=pt\"",
        "iommu=off",
        "all of this machine's memory",
    ];
    refused(&machine, PLAIN, &words);
    refused(&machine, NO_IOMMU, &["\"modprobe vfio enable_unsafe_noiommu_mode=1\"", "CONFIG_VFIO_NOIOMMU"]);
    let parameter = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
    machine.file(parameter, "N\n");
    refused(&machine, NO_IOMMU, &[&format!("\"echo Y > {parameter}\"")]);
    machine.file(parameter, "Y\n");
    // The kernel makes a group when the device is bound.
    machine.file("/sys/kernel/iommu_groups/0/name", "vfio-noiommu\n");
    machine.link(&machine.nic().file("iommu_group"), "/sys/kernel/iommu_groups/0");
    refused(&machine, PLAIN, &["behind no IOMMU"]);
    let binding = bind(&machine.nic(), NO_IOMMU).unwrap();
    assert!(binding.is_no_iommu());
    assert_eq!(binding.group_path().unwrap(), "/dev/vfio/noiommu-0");
}

#[test]
fn group_not_viable() {
    let machine = Machine::with_nic();
    let other = |address, driver: Option<&'static str>, class| {
        machine.add(&NewDevice { address, driver, class, interface: Some("eth1"), ..NIC });
    };
    // None of these holds back.
    other("0000:00:01.0", Some("pcieport"), 0x06_0400);
    other("0000:00:01.1", Some("shpchp"), 0x06_0400);
    other("0000:03:00.1", Some("vfio-pci"), 0x02_0000);
    other("0000:03:00.2", Some("pci-stub"), 0x02_0000);
    other("0000:03:00.3", None, 0x02_0000);
    other("0000:03:00.4", Some("mlx5_vfio_pci"), 0x02_0000);
    assert!(bind(&machine.nic(), PLAIN).is_ok());
    // These do, each with what to type.
    other("0000:03:00.5", Some("igb"), 0x02_0000);
    other("0000:03:00.6", Some("snd_hda_intel"), 0x04_0300);
    let words = [
        "shares IOMMU group 7",
        "0000:03:00.5 (",
        "driver igb, interface eth1): run \"echo 0000:03:00.5 > /sys/bus/pci/drivers/igb/unbind\" as root; ",
        "driver snd_hda_intel, interface eth1): run \"echo 0000:03:00.6 > /sys/bus/pci/drivers/snd_hda_intel/unbind\"",
    ];
    refused(&machine, PLAIN, &words);
    let error = bind(&machine.nic(), TAKE).err().unwrap().to_string();
    for harmless in ["00:01.0", "00:01.1", "03:00.1", "03:00.2", "03:00.3", "03:00.4"] {
        assert!(!error.contains(harmless), "{harmless}: {error}");
    }
}

#[test]
fn no_vfio_pci() {
    let machine = Machine::with_nic();
    machine.remove("/sys/bus/pci/drivers/vfio-pci");
    refused(&machine, PLAIN, &["vfio-pci is not there", "\"modprobe vfio-pci\"", "without CONFIG_VFIO_PCI"]);
    machine.file("/proc/sys/kernel/osrelease", "6.12.0\n");
    let modules = "/lib/modules/6.12.0/modules.dep";
    machine.file(modules, "kernel/drivers/vfio/vfio.ko.xz:\n");
    refused(&machine, PLAIN, &["this kernel was built without CONFIG_VFIO_PCI", "afxdp:INTERFACE"]);
    machine.file(modules, "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n");
    refused(&machine, PLAIN, &["not there: run \"modprobe vfio-pci\" as root"]);
}

#[test]
fn in_use_by_this_machine() {
    let machine = Machine::with_nic();
    let flags = machine.nic().file("net/eth0/flags");
    let route = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                 eth1 00000000 0102000A 0003 0 0 0 00000000 0 0 0\neth0 0002000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
    machine.file("/proc/net/route", route);
    machine.addresses("eth0", &["10.0.2.15"]);
    // Down: whatever is set on it is of no use.
    assert!(bind(&machine.nic(), PLAIN).is_ok());
    machine.file(&flags, "0x1003\n");
    let way_out = ["\"ip link set eth0 down\"", "take=yes"];
    let in_use = |why: &str| {
        refused(&machine, PLAIN, &[&[why], &way_out[..]].concat());
        machine.file(&flags, "0x1003\n");
        assert!(bind(&machine.nic(), TAKE).is_ok());
        machine.file(&flags, "0x1003\n");
    };
    in_use("interface eth0 is up and has the address 10.0.2.15");
    // Each interface has one of these.
    machine.addresses("eth0", &["fe80::5054:ff:fe12:3456"]);
    assert!(bind(&machine.nic(), PLAIN).is_ok());
    machine.file(&flags, "0x1003\n");
    machine.file("/proc/net/route", &route.replace("eth1", "eth0"));
    in_use("eth0 is up and has the default route");
    machine.remove("/proc/net/route");
    let zero = "0".repeat(32);
    let v6 = |flags: &str| format!("{zero} 00 {zero} 00 {zero} 00000400 00000001 00000000 {flags} eth0\n");
    machine.file("/proc/net/ipv6_route", &v6("00200200"));
    assert!(bind(&machine.nic(), PLAIN).is_ok(), "a route that rejects");
    machine.file(&flags, "0x1003\n");
    machine.file("/proc/net/ipv6_route", &v6("00000003"));
    in_use("eth0 is up and has the default route");
    machine.remove("/proc/net/ipv6_route");
    machine.link(&machine.nic().file("net/eth0/master"), "/sys/class/net/bond0");
    refused(&machine, PLAIN, &["eth0 is up and belongs to bond0"]);
}

#[test]
fn virtual_functions_would_vanish() {
    let machine = Machine::with_nic();
    machine.file(&machine.nic().file("sriov_numvfs"), "3\n");
    refused(&machine, PLAIN, &["3 virtual functions", "sriov_numvfs\" first", "take=yes"]);
    assert!(bind(&machine.nic(), TAKE).is_ok());
}

#[test]
fn device_busy() {
    let machine = Machine::with_nic();
    let binding = bind(&machine.nic(), PLAIN).unwrap();
    says(
        &binding.busy("/dev/vfio/7"),
        &["0000:03:00.0 is in use by another process, which has /dev/vfio/7 open"],
    );
    machine.file("/proc/4711/comm", "testpmd\n");
    std::fs::create_dir(machine.path("/proc/4711/fd")).unwrap();
    std::os::unix::fs::symlink("/dev/vfio/7", machine.path("/proc/4711/fd/9")).unwrap();
    machine.file("/proc/4712/comm", "other\n");
    says(&binding.busy("/dev/vfio/7"), &["in use by process 4711 (testpmd): end it"]);
}

#[test]
fn no_permission() {
    let machine = Machine::with_nic();
    let binding = bind(&machine.nic(), PLAIN).unwrap();
    says(
        &PciError::NoPermission { path: binding.group_path().unwrap() },
        &["no permission to open /dev/vfio/7", "run as root", "chown NAME /dev/vfio/7"],
    );
    says(&PciError::NotRoot { address: address("03:00.0") }, &["0000:03:00.0", "run as root"]);
    // Whatever else opening it says.
    machine.remove("/dev/vfio/7");
    says(&binding.open_group().unwrap_err(), &["cannot open /dev/vfio/7: No such file"]);
}

#[test]
fn what_the_kernel_answers_later_is_told_in_words() {
    let module = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    says(
        &PciError::of_set_iommu(errno(libc::EPERM)),
        &["does not remap interrupts", &format!("\"echo 1 > {module}\" as root")],
    );
    says(&PciError::of_set_iommu(errno(libc::ENODEV)), &["\"modprobe vfio_iommu_type1\""]);
    says(&PciError::of_set_iommu(errno(libc::EIO)), &["VFIO_SET_IOMMU", "Input/output error"]);
    says(
        &PciError::of_attach_iommufd(errno(libc::EPERM)),
        &["/sys/module/iommufd/parameters/allow_unsafe_interrupts"],
    );
}

#[test]
fn a_driver_that_never_takes_the_device_is_given_up() {
    let machine = Machine::new();
    // Without a driver, so that the way back does not wait too.
    machine.add(&NewDevice { driver: None, ..NIC });
    machine.fault(Fault::Idle);
    let before = machine.snapshot();
    let error = bind::check(&machine.nic(), PLAIN).unwrap().apply().err().unwrap();
    says(&error, &["vfio-pci has not taken it after 200ms", "dmesg"]);
    let folder = machine.path("/run");
    std::fs::remove_dir(folder).unwrap();
    assert_eq!(machine.snapshot(), before);
}

#[test]
fn refusals_of_the_kernel_name_the_step() {
    let step = |number| {
        let source = errno(number);
        PciError::Step { address: address("03:00.0"), what: "have vfio-pci take it".into(), source }
    };
    says(&step(libc::EROFS), &["cannot have vfio-pci take it: Read-only", "as in a container"]);
    says(&step(libc::EACCES), &["Permission denied", "run as root"]);
    says(&step(libc::EINVAL), &["0000:03:00.0: cannot have vfio-pci take it: Invalid argument"]);
}
