//! What can be said behind the question mark of `vfio:ADDRESS?...`, held against what the device's driver can do.
#![forbid(unsafe_code)]

use super::nic::NicDriver;
use crate::port::PortError;
use crate::spec::PortSpec;

/// The keys that every driver takes.
const KEYS: &[&str] = &["queues", "rx_ring", "tx_ring", "mtu", "checksum", "vlans", "iommu"];
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
    NoIommu,
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
                    ("noiommu", IommuChoice::NoIommu),
                ],
                IommuChoice::Auto,
            )?,
            own: own.collect(),
        })
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
