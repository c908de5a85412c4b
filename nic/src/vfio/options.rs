//! What can be said behind the question mark of `vfio:ADDRESS?...`, held against what the device's driver can do.
#![forbid(unsafe_code)]

use super::nic::NicDriver;
use crate::port::PortError;
use crate::spec::PortSpec;

/// The keys that every driver takes.
const KEYS: &[&str] = &["queues", "rx_ring", "tx_ring", "mtu", "checksum", "vlans", "iommu", "take"];
/// Descriptors of a ring where nothing is said and the driver can have them.
const RING: u16 = 1024;
/// The MTU where nothing is said.
const MTU: usize = 1500;

/// By which of the kernel's interfaces a device is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IommuChoice {
    /// iommufd where the kernel has it, else the group.
    Auto,
    /// `/dev/vfio/devices/vfioN` and `/dev/iommu`.
    Iommufd,
    /// `/dev/vfio/N` and `/dev/vfio/vfio`.
    Group,
    /// `/dev/vfio/noiommu-N`: the device reaches all memory.
    Off,
}

/// The options, with their defaults filled in.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) queues: u16,
    pub(super) rx_ring: u16,
    pub(super) tx_ring: u16,
    pub(super) mtu: usize,
    pub(super) checksum: bool,
    pub(super) vlans: Vec<u16>,
    pub(super) iommu: IommuChoice,
    /// Take it also where the kernel uses its interface.
    pub(super) take: bool,
    /// The driver's own.
    pub(super) own: Vec<(String, String)>,
}

impl Options {
    pub(super) fn read(spec: &PortSpec, driver: &NicDriver) -> Result<Self, PortError> {
        spec.check_keys(&[KEYS, driver.options].concat())?;
        let (least, most, multiple) = driver.ring_sizes;
        let ring = |key| {
            let size =
                spec.number(key, u64::from(least)..=u64::from(most), RING.clamp(least, most).into())?;
            if size.is_multiple_of(u64::from(multiple.max(1))) {
                return Ok(size as u16);
            }
            Err(spec.error(format!(
                "{key}={size}: {} has rings of a multiple of {multiple} descriptors",
                driver.name
            )))
        };
        let own =
            driver.options.iter().filter_map(|key| Some(((*key).to_owned(), spec.text(key)?.to_owned())));
        Ok(Self {
            queues: spec.number("queues", 1..=u64::from(driver.max_queues), 1)? as u16,
            rx_ring: ring("rx_ring")?,
            tx_ring: ring("tx_ring")?,
            mtu: spec.number("mtu", 68..=driver.max_mtu as u64, MTU.min(driver.max_mtu) as u64)? as usize,
            checksum: spec.switch("checksum", false)?,
            vlans: vlans(spec)?,
            iommu: spec.choice(
                "iommu",
                &[
                    ("auto", IommuChoice::Auto),
                    ("iommufd", IommuChoice::Iommufd),
                    ("group", IommuChoice::Group),
                    ("off", IommuChoice::Off),
                    ("noiommu", IommuChoice::Off),
                ],
                IommuChoice::Auto,
            )?,
            take: spec.choice("take", &[("yes", true), ("no", false)], false)?,
            own: own.collect(),
        })
    }
}

impl Options {
    /// The frames that the rings keep.
    pub(super) fn frames(&self, tx_queues: usize) -> usize {
        usize::from(self.queues) * usize::from(self.rx_ring) + tx_queues * usize::from(self.tx_ring)
    }
}

/// The VLANs, in order, each once.
fn vlans(spec: &PortSpec) -> Result<Vec<u16>, PortError> {
    let Some(text) = spec.text("vlans") else { return Ok(Vec::new()) };
    let ids = text.split(',').map(|id| id.parse::<u16>().ok().filter(|id| (1..=4094).contains(id)));
    let mut ids: Vec<u16> = ids.collect::<Option<_>>().ok_or_else(|| {
        spec.error(format!(
            "vlans={text}: write numbers from 1 to 4094 with commas between them, vlans=10,20"
        ))
    })?;
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::nic::NicError;

    static CHIP: NicDriver = NicDriver {
        name: "chip",
        devices: &[],
        max_queues: 4,
        ring_sizes: (64, 4096, 8),
        max_mtu: 9216,
        registers_bytes: 0,
        options: &["mode"],
        open: |_, _| Err(NicError::Device("it is a test's".into())),
    };

    fn read(options: &str) -> Result<Options, String> {
        let spec: PortSpec = format!("vfio:0000:03:00.0{options}").parse().unwrap();
        Options::read(&spec, &CHIP).map_err(|error| error.to_string())
    }

    #[test]
    fn options_have_defaults_that_the_driver_can_have() {
        let options = read("").unwrap();
        assert_eq!((options.queues, options.rx_ring, options.tx_ring, options.mtu), (1, 1024, 1024, 1500));
        assert_eq!((options.checksum, options.iommu, options.take), (false, IommuChoice::Auto, false));
        let options = read("?queues=2&rx_ring=128&tx_ring=64&mtu=9000&mode=fast").unwrap();
        assert_eq!((options.frames(3), options.mtu), (2 * 128 + 3 * 64, 9000));
        assert_eq!(options.own, [("mode".to_owned(), "fast".to_owned())]);
        let options = read("?vlans=20,10,20&checksum=on&iommu=group&take=yes").unwrap();
        assert_eq!((options.vlans, options.checksum, options.take), (vec![10, 20], true, true));
        let small = NicDriver { ring_sizes: (32, 256, 32), max_mtu: 1496, ..CHIP };
        let spec: PortSpec = "vfio:03:00.0".parse().unwrap();
        let options = Options::read(&spec, &small).unwrap();
        assert_eq!((options.rx_ring, options.mtu), (256, 1496));
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_write() {
        for (options, words) in [
            ("?queues=5", "from 1 to 4"),
            ("?queues=0", "from 1 to 4"),
            ("?rx_ring=32", "from 64 to 4096"),
            ("?tx_ring=100", "multiple of 8"),
            ("?mtu=9217", "from 68 to 9216"),
            ("?vlans=0", "vlans=10,20"),
            ("?vlans=1,,2", "vlans=10,20"),
            ("?vlans=4095", "vlans=10,20"),
            ("?iommu=maybe", "auto, iommufd, group, off"),
            ("?take=maybe", "yes, no"),
            ("?ring=1", "rx_ring"),
        ] {
            let error = read(options).unwrap_err();
            assert!(error.contains(words) && !error.contains('\n'), "{options}: {error}");
        }
    }
}
