use super::*;
use crate::vfio::nic::NicError;
use crate::vfio::options::IommuChoice;
use proptest::prelude::*;

static CHIP: NicDriver = NicDriver {
    name: "chip",
    devices: &[KnownDevice { vendor: 0x8086, device: 0x10C9, name: "82576" }],
    max_queues: 4,
    ring_sizes: (64, 4096, 8),
    max_mtu: 9216,
    registers_bytes: 0x10000,
    options: &["mode"],
    open: |_, _| Err(NicError::Device("it is a test's".into())),
};

struct Machine(tempfile::TempDir);

impl Machine {
    fn new(devices: &[(&str, &str, &str, &str)]) -> Self {
        let sysfs = tempfile::tempdir().unwrap();
        for (address, vendor, device, class) in devices {
            let path = sysfs.path().join("bus/pci/devices").join(address);
            fs::create_dir_all(&path).unwrap();
            for (file, text) in [("vendor", vendor), ("device", device), ("class", class)] {
                fs::write(path.join(file), format!("{text}\n")).unwrap();
            }
        }
        Self(sysfs)
    }

    fn check(&self, text: &str) -> Result<VfioPlan, String> {
        let spec: PortSpec = text.parse().unwrap();
        check_in(&spec, self.0.path(), &[&CHIP]).map_err(|error| error.to_string())
    }
}

fn machine() -> Machine {
    Machine::new(&[
        ("0000:03:00.0", "0x8086", "0x10c9", "0x020000"),
        ("0000:00:1f.2", "0x8086", "0x2922", "0x010601"),
        ("0000:04:00.0", "0x15b3", "0x1017", "0x020000"),
    ])
}

#[test]
fn a_plan_says_what_it_needs() {
    let plan = machine().check("vfio:03:00.0?queues=2&rx_ring=128&tx_ring=64&mtu=9000&mode=fast").unwrap();
    assert_eq!((plan.address.as_str(), plan.device.name), ("0000:03:00.0", "82576"));
    assert_eq!((plan.rx_queues(), plan.max_tx_queues(), plan.frames(3)), (2, 4, 2 * 128 + 3 * 64));
    assert_eq!(plan.max_packet_len(), Some(9014));
    assert_eq!(plan.options.own, [("mode".to_owned(), "fast".to_owned())]);
    let plan = machine().check("vfio:0000:03:00.0").unwrap();
    let options = &plan.options;
    assert_eq!((options.queues, options.rx_ring, options.tx_ring, options.mtu), (1, 1024, 1024, 1500));
    assert_eq!((options.checksum, options.iommu), (false, IommuChoice::Auto));
    let plan = machine().check("vfio:0000:03:00.0?vlans=20,10,20&checksum=on&iommu=group").unwrap();
    assert_eq!(plan.options.vlans, [10, 20]);
    assert_eq!((plan.options.checksum, plan.options.iommu), (true, IommuChoice::Group));
}

#[test]
fn what_cannot_be_is_refused_with_what_to_write() {
    for (text, words) in [
        ("vfio:eth0", "lspci -D"),
        ("vfio:0000:03:00.8", "lspci -D"),
        ("vfio:0000:03:20.0", "lspci -D"),
        ("vfio:03:00", "lspci -D"),
        ("vfio:0000:05:00.0", "choose from 0000:03:00.0 (82576)"),
        ("vfio:0000:00:1f.2", "no Ethernet controller (its class is 0106)"),
        ("vfio:0000:04:00.0", "no driver for 15b3:1017"),
        ("vfio:0000:03:00.0?queues=5", "from 1 to 4"),
        ("vfio:0000:03:00.0?queues=0", "from 1 to 4"),
        ("vfio:0000:03:00.0?rx_ring=32", "from 64 to 4096"),
        ("vfio:0000:03:00.0?tx_ring=100", "multiple of 8"),
        ("vfio:0000:03:00.0?mtu=9217", "from 68 to 9216"),
        ("vfio:0000:03:00.0?vlans=0", "vlans=10,20"),
        ("vfio:0000:03:00.0?vlans=1,,2", "vlans=10,20"),
        ("vfio:0000:03:00.0?vlans=4095", "vlans=10,20"),
        ("vfio:0000:03:00.0?iommu=maybe", "auto, iommufd, group, noiommu"),
        ("vfio:0000:03:00.0?ring=1", "rx_ring"),
    ] {
        let error = machine().check(text).err().unwrap();
        assert!(error.contains(words) && !error.contains('\n'), "{text}: {error}");
    }
    let error = Machine::new(&[]).check("vfio:0000:03:00.0").err().unwrap();
    assert!(error.contains("none is here"), "{error}");
}

proptest! {
    #[test]
    fn property_any_address_is_refused_or_a_name_of_sysfs(text in "[0-9a-fA-F:.g/ ]{0,14}") {
        if let Some(address) = full_address(&text) {
            let known = address.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte));
            prop_assert!(known && address.len() >= 12, "{}", address);
        }
    }
}
