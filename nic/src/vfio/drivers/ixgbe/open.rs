//! Opens a port.
#![forbid(unsafe_code)]

use super::chip::{CHIPS, Chip};
use super::device::{Clock, Device, SystemClock};
use super::nic::IxgbeNic;
use super::receive::{self, Buffers};
use super::registers::{RDT, TDT};
use super::reset;
use super::setup::Setup;
use super::statistics::Statistics;
use crate::vfio::function::PciFunction;
use crate::vfio::intel::format::{Advanced, Advanced82599};
use crate::vfio::intel::rx::{IntelRx, RxParts};
use crate::vfio::intel::tx::{Carrier, IntelTx, TxParts};
use crate::vfio::interrupt::LinkInterrupt;
use crate::vfio::nic::{Halt, NEVER_RUN_ON_SILICON, NicConfig, NicError, OpenNic};
use crate::vfio::registers::TailRegister;
use std::sync::Arc;

/// The driver's `open`.
pub(super) fn open(function: &Arc<dyn PciFunction>, config: &NicConfig<'_>) -> Result<OpenNic, NicError> {
    open_with(function, config, Arc::new(SystemClock))
}

fn chip(function: &dyn PciFunction) -> Result<&'static Chip, NicError> {
    let id = function.id();
    CHIPS.iter().find(|chip| id.vendor == 0x8086 && id.device == chip.device).ok_or_else(|| {
        NicError::Device(format!("{:04x}:{:04x} is none of ixgbe's chips", id.vendor, id.device))
    })
}

/// The same with another clock.
pub(super) fn open_with(
    function: &Arc<dyn PciFunction>,
    config: &NicConfig<'_>,
    clock: Arc<dyn Clock>,
) -> Result<OpenNic, NicError> {
    let chip = chip(&**function)?;
    for (key, size) in [("rx_ring", config.rx_ring), ("tx_ring", config.tx_ring)] {
        if !size.is_power_of_two() {
            return Err(NicError::Specification(format!(
                "{key}={size} is not a power of two: choose {} or {}",
                size.next_power_of_two() / 2,
                size.next_power_of_two()
            )));
        }
    }
    if let Some(vlan) = config.vlans.iter().find(|vlan| **vlan > 4094) {
        return Err(NicError::Specification(format!("VLAN {vlan} does not exist: choose from 0 to 4094")));
    }
    let device = Device::new(function, chip, clock)?;
    tracing::warn!("{}: the driver for the {} was {}", config.name, chip.name, NEVER_RUN_ON_SILICON);
    reset::begin(&device)?;
    device.sleep(chip.reset_pause);
    let mac = reset::finish(&device)?;
    Statistics::discard(&device);

    let halt = Halt::new(Arc::clone(function), usize::from(config.rx_queues + config.tx_queues));
    let carrier = Arc::new(Carrier::default());
    let buffers = Buffers::new(config.max_packet_len(), config.pool().data_room());
    let no_memory = |source| NicError::System { what: "memory for its rings", source };
    let mut gates = halt.gates.iter().cloned();
    let mut rx = Vec::new();
    for (queue, gate) in (0..usize::from(config.rx_queues)).zip(&mut gates) {
        let parts = RxParts {
            size: config.rx_ring,
            buffer_bytes: buffers.bytes,
            max_packet_len: buffers.max_frame,
            checksum: config.checksum,
            frames: config.frames,
            id: config.id,
            tail: TailRegister::new(Arc::clone(device.registers()), RDT(queue)),
            halt: &halt,
            gate,
        };
        rx.push(IntelRx::<Advanced82599>::new(parts).map_err(no_memory)?);
    }
    let mut tx = Vec::new();
    for (queue, gate) in (0..usize::from(config.tx_queues)).zip(&mut gates) {
        let parts = TxParts {
            size: config.tx_ring,
            max_packet_len: config.mtu + 14,
            checksum: config.checksum,
            frames: config.frames,
            tail: TailRegister::new(Arc::clone(device.registers()), TDT(queue)),
            halt: &halt,
            gate,
            carrier: &carrier,
        };
        tx.push(IntelTx::<Advanced>::new(parts).map_err(no_memory)?);
    }

    let interrupt = LinkInterrupt::enable(&**function);
    let setup = Setup {
        mac,
        promiscuous: config.promiscuous,
        interrupt: interrupt.is_on(),
        vlans: config.vlans.to_vec(),
        buffers,
        rx: rx.iter().map(IntelRx::ring).collect(),
        tx: tx.iter().map(IntelTx::ring).collect(),
    };
    function.set_bus_master(true);
    setup.apply(&device)?;
    // In front of the first packet that may come.
    rx.iter().for_each(IntelRx::start);
    receive::enable(&device)?;
    let sent = tx.iter().map(|queue| Arc::clone(queue.counters())).collect();
    let counters = rx.iter().map(|queue| Arc::clone(queue.counters())).collect();
    Ok(OpenNic {
        nic: Box::new(IxgbeNic::new(config.name, device, setup, interrupt, halt, carrier, counters, sent)),
        rx: rx.into_iter().map(|queue| Box::new(queue) as _).collect(),
        tx: tx.into_iter().map(|queue| Box::new(queue) as _).collect(),
    })
}
