//! Opening a `vfio:` port: the device is bound, opened and reset, sees the packet memory, and is given to its driver.
#![forbid(unsafe_code)]

use super::device::{DeviceFile, VfioFunction};
use super::dma::{DmaSpace, PoolMapping};
use super::error::VfioError;
use super::function::PciFunction;
use super::nic::{NicConfig, NicError};
use super::options::IommuChoice;
use super::pci::bind;
use super::plan::VfioPlan;
use super::port::VfioPort;
use super::taken::Taken;
use super::way;
use crate::ethernet::ETHERNET_HEADER;
use crate::memory::Pool;
use crate::port::{OpenContext, OpenPort, PortError};
use std::io;
use std::sync::Arc;

pub(super) fn open(plan: VfioPlan, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
    open_with(plan, context, DmaSpace::map_pool)
}

/// How packet memory is made known to a device.
type MapPool = fn(&Arc<DmaSpace>, &Pool) -> io::Result<Arc<PoolMapping>>;

pub(super) fn open_with(
    plan: VfioPlan,
    context: &OpenContext<'_>,
    map_pool: MapPool,
) -> Result<OpenPort, PortError> {
    let VfioPlan { spec, driver, options, binding } = plan;
    let refused = |error: NicError| match error {
        NicError::Specification(problem) => spec.error(problem),
        error => spec.open_error(error.to_string()),
    };
    let system = |what| move |source: io::Error| refused(NicError::System { what, source });
    if options.iommu == IommuChoice::Off {
        tracing::warn!(
            "{}: WITHOUT AN IOMMU: the device, and a mistake in its driver here, can write to all of this machine's memory",
            spec.name()
        );
    }
    let (function, words) = function(binding, options.iommu).map_err(|error| match error {
        VfioError::Pci(error) => error.of_port(&spec),
        error => spec.open_error(error.to_string()),
    })?;
    if !function.reset().map_err(system("the device cannot be reset"))? {
        tracing::debug!("{}: the kernel cannot reset it, so its driver does", spec.name());
    }
    let frames = map_pool(function.dma(), context.pool)
        .map_err(system("the packet memory cannot be mapped for the device"))?;
    let name = spec.name();
    let config = NicConfig {
        name: &name,
        rx_queues: options.queues,
        tx_queues: context.tx_queues as u16,
        rx_ring: options.rx_ring,
        tx_ring: options.tx_ring,
        mtu: options.mtu,
        promiscuous: context.promiscuous,
        checksum: options.checksum,
        vlans: &options.vlans,
        frames: &frames,
        id: context.id,
        options: &options.own,
    };
    let shared: Arc<dyn PciFunction> = function.clone();
    let open = (driver.open)(&shared, &config).map_err(refused)?;
    let port = VfioPort::new(name, words, options.mtu + ETHERNET_HEADER, open.nic, function);
    Ok(OpenPort { port: Box::new(port), rx: open.rx, tx: open.tx })
}

/// Binds the device to vfio-pci and opens it; and how it is open, in words.
pub(super) fn function(
    binding: bind::Plan,
    iommu: IommuChoice,
) -> Result<(Arc<VfioFunction>, String), VfioError> {
    let binding = binding.apply()?;
    let address = binding.device().address().to_string();
    let taken = Taken::take(&address).ok_or_else(|| binding.busy("/dev/vfio"))?;
    let opened = way::open(binding, iommu)?;
    let file = Arc::new(DeviceFile::new(opened.device, Box::new((opened.membership, taken))));
    Ok((VfioFunction::new(&address, file, opened.dma)?, opened.words))
}
