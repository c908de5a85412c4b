//! Opening a `vfio:` port: the device is bound, opened and reset, sees the packet memory, and is given to its driver.
#![forbid(unsafe_code)]

use super::container::{self, Binding};
use super::device::{DeviceFile, VfioFunction};
use super::error::VfioError;
use super::function::PciFunction;
use super::nic::{NicConfig, NicError};
use super::plan::{ETHERNET_HEADER, VfioPlan};
use super::port::VfioPort;
use crate::port::{OpenContext, OpenPort, PortError};
use std::io;
use std::sync::Arc;

/// Binds the device to vfio-pci; what it gives undoes that when it is dropped. `None` where it was bound before.
fn bind(_plan: &VfioPlan) -> Result<Option<Binding>, PortError> {
    Ok(None)
}

pub(super) fn open(plan: &VfioPlan, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
    let spec = &plan.spec;
    let refused = |error: NicError| match error {
        NicError::Specification(problem) => spec.error(problem),
        error => spec.open_error(error.to_string()),
    };
    let function = function(plan, bind(plan)?).map_err(|error| refused(error.into()))?;
    check_registers(plan, &*function).map_err(refused)?;
    let system = |what| move |source: io::Error| refused(NicError::System { what, source });
    if !function.reset().map_err(system("the device cannot be reset"))? {
        tracing::debug!("{}: the kernel cannot reset it, so its driver does", spec.name());
    }
    let frames = function
        .dma()
        .map_pool(context.pool)
        .map_err(system("the packet memory cannot be mapped for the device"))?;
    function.set_bus_master(true);
    let name = spec.name();
    let config = NicConfig {
        name: &name,
        rx_queues: plan.options.queues,
        tx_queues: context.tx_queues as u16,
        rx_ring: plan.options.rx_ring,
        tx_ring: plan.options.tx_ring,
        mtu: plan.options.mtu,
        promiscuous: context.promiscuous,
        checksum: plan.options.checksum,
        vlans: &plan.options.vlans,
        frames: &frames,
        id: context.id,
        options: &plan.options.own,
    };
    let shared: Arc<dyn PciFunction> = function.clone();
    let open = (plan.driver.open)(&shared, &config).map_err(refused)?;
    let port = VfioPort::new(name, plan.options.mtu + ETHERNET_HEADER, open.nic, function);
    Ok(OpenPort { port: Box::new(port), rx: open.rx, tx: open.tx })
}

fn function(plan: &VfioPlan, binding: Option<Binding>) -> Result<Arc<VfioFunction>, VfioError> {
    let opened = container::open(&plan.sysfs, &plan.address, binding)?;
    let file = Arc::new(DeviceFile::new(opened.device, Box::new(opened.membership)));
    VfioFunction::new(&plan.address, file, opened.dma)
}

/// Before anything else is done to the device: its registers are all there.
fn check_registers(plan: &VfioPlan, function: &dyn PciFunction) -> Result<(), NicError> {
    if plan.driver.registers_bytes == 0 {
        return Ok(());
    }
    let bar = function.bar(0).map_err(|source| NicError::System {
        what: "the device's registers (BAR 0) cannot be mapped",
        source,
    })?;
    let (has, wants) = (bar.length(), plan.driver.registers_bytes);
    if has >= wants {
        return Ok(());
    }
    Err(NicError::Device(format!(
        "BAR 0 has {has} bytes, and the driver {} needs {wants}: this is no {} that it knows, use afxdp: with its interface",
        plan.driver.name, plan.device.name
    )))
}
