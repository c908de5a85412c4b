//! Opening a device: reset, rings, set-up, in the order of the data sheet's chapter 4.
#![forbid(unsafe_code)]

use super::buffers::ReceiveBuffers;
use super::descriptor::{ExtendedRx, ExtendedTx};
use super::nic::{E1000e, E1000eNic};
use super::registers::*;
use super::setup::{Ring, Setup};
use super::{DRIVER, reset};
use crate::port::{RxQueue, TxQueue};
use crate::vfio::function::PciFunction;
use crate::vfio::intel::filters;
use crate::vfio::intel::gigabit::Parts;
use crate::vfio::intel::rx::{IntelRx, RxParts};
use crate::vfio::intel::tx::{Carrier, IntelTx, TxParts};
use crate::vfio::interrupt::LinkInterrupt;
use crate::vfio::nic::{Halt, NEVER_RUN_ON_SILICON, NicConfig, NicError, OpenNic};
use crate::vfio::registers::TailRegister;
use std::sync::Arc;

/// What a NIC consists of, before its queues lose their types.
pub(super) struct Opened {
    pub(super) nic: E1000eNic,
    pub(super) rx: Vec<IntelRx<ExtendedRx>>,
    pub(super) tx: Vec<IntelTx<ExtendedTx>>,
}

/// For the table of drivers.
pub(super) fn open(function: &Arc<dyn PciFunction>, config: &NicConfig<'_>) -> Result<OpenNic, NicError> {
    let Opened { nic, rx, tx } = open_typed(function, config)?;
    Ok(OpenNic {
        nic: Box::new(nic),
        rx: rx.into_iter().map(|queue| Box::new(queue) as Box<dyn RxQueue>).collect(),
        tx: tx.into_iter().map(|queue| Box::new(queue) as Box<dyn TxQueue>).collect(),
    })
}

pub(super) fn open_typed(
    function: &Arc<dyn PciFunction>,
    config: &NicConfig<'_>,
) -> Result<Opened, NicError> {
    let buffers = check(config)?;
    let registers = function.bar(0).map_err(|source| NicError::System { what: "mapping BAR 0", source })?;
    let chip = Chip(registers);
    reset::reset(&chip)?;
    let mac = filters::own_address(&*chip.0, RAL0).ok_or_else(|| {
        NicError::Device("it has no Ethernet address: its NVM is empty or could not be read".into())
    })?;
    warn(function, config);

    let queues = usize::from(config.rx_queues + config.tx_queues);
    let halt = Halt::new(Arc::clone(function), queues);
    let carrier = Arc::new(Carrier::default());
    let gate = |queue: usize| Arc::clone(&halt.gates[queue]);
    let rings = |source| NicError::System { what: "memory for the rings", source };
    let mut rx = Vec::new();
    for queue in 0..usize::from(config.rx_queues) {
        let parts = RxParts {
            size: config.rx_ring,
            buffer_bytes: buffers.bytes,
            max_packet_len: buffers.longest,
            checksum: config.checksum,
            frames: config.frames,
            id: config.id,
            tail: TailRegister::new(Arc::clone(&chip.0), rdt(queue)),
            halt: &halt,
            gate: gate(queue),
        };
        rx.push(IntelRx::<ExtendedRx>::new(parts).map_err(rings)?);
    }
    let mut tx = Vec::new();
    for queue in 0..usize::from(config.tx_queues) {
        let parts = TxParts {
            size: config.tx_ring,
            max_packet_len: config.mtu + 14,
            checksum: config.checksum,
            frames: config.frames,
            tail: TailRegister::new(Arc::clone(&chip.0), tdt(queue)),
            halt: &halt,
            gate: gate(usize::from(config.rx_queues) + queue),
            carrier: &carrier,
        };
        tx.push(IntelTx::<ExtendedTx>::new(parts).map_err(rings)?);
    }

    let interrupt = LinkInterrupt::enable(&**function);
    let ring = |(iova, bytes)| Ring { iova, bytes };
    let setup = Setup {
        rx: rx.iter().map(|queue| ring(queue.ring())).collect(),
        tx: tx.iter().map(|queue| ring(queue.ring())).collect(),
        buffers,
        mac,
        promiscuous: config.promiscuous,
        checksum: config.checksum,
        interrupt: interrupt.is_on(),
        vlans: config.vlans.to_vec(),
    };
    function.set_bus_master(true);
    setup.apply(&chip);
    rx.iter().for_each(IntelRx::start);

    let device = function.id().device;
    let known = DRIVER.devices.iter().find(|known| known.device == device);
    let nic = E1000eNic::new(Parts {
        tx: tx.iter().map(|queue| Arc::clone(queue.counters())).collect(),
        rx: rx.iter().map(|queue| Arc::clone(queue.counters())).collect(),
        chip: E1000e { chip, setup },
        mac,
        checksum: config.checksum,
        halt,
        carrier,
        interrupt,
        name: config.name.into(),
        chip_name: known.map_or(DRIVER.name, |known| known.name),
    });
    Ok(Opened { nic, rx, tx })
}

/// What the device cannot do; else what it is told of the buffers.
fn check(config: &NicConfig<'_>) -> Result<ReceiveBuffers, NicError> {
    let refuse = |problem: String| Err(NicError::Specification(problem));
    for (queues, kind) in [(config.rx_queues, "receive"), (config.tx_queues, "transmit")] {
        if queues > DRIVER.max_queues {
            return refuse(format!("an 82574 has 2 {kind} queues, not {queues}: pass queues=2"));
        }
    }
    for (key, size) in [("rx_ring", config.rx_ring), ("tx_ring", config.tx_ring)] {
        if !size.is_power_of_two() || !(DRIVER.ring_sizes.0..=DRIVER.ring_sizes.1).contains(&size) {
            let problem = "e1000e has rings of a power of two descriptors, such as 512 or 1024";
            return refuse(format!("{key}={size}: {problem}"));
        }
    }
    let room = config.pool().data_room();
    ReceiveBuffers::new(room, config.mtu).ok_or_else(|| {
        let problem = format!("frames have room for {room} bytes, and an 82574's smallest buffer has 256");
        NicError::Specification(format!("{problem}: use less headroom"))
    })
}

/// What whoever runs it should know.
fn warn(function: &Arc<dyn PciFunction>, config: &NicConfig<'_>) {
    tracing::warn!(port = config.name, driver = DRIVER.name, "{NEVER_RUN_ON_SILICON}: see docs/real-nics.md");
    // Of its specification update: with ASPM completions get lost, and transmission stops.
    if aspm(&**function) {
        let way_out = "an 82574 hangs with it, boot with pcie_aspm=off";
        tracing::warn!(port = config.name, "ASPM is on for the device's link: {way_out}");
    }
}

/// Whether the link to the device may go to sleep: ASPM Control of the PCI Express capability (PCIe base specification 7.5.3.7).
fn aspm(function: &dyn PciFunction) -> bool {
    const CAPABILITY_POINTER: u16 = 0x34;
    const PCI_EXPRESS: u32 = 0x10;
    const LINK_CONTROL: u16 = 0x10;
    let mut at = function.read_config(CAPABILITY_POINTER, 1) as u16;
    // No more than there is room for: the list may be a loop.
    for _ in 0..48 {
        if !(0x40..0xFC).contains(&at) {
            break;
        }
        let at_aligned = at & !3;
        if function.read_config(at_aligned, 1) == PCI_EXPRESS {
            let control = function.read_config(at_aligned + LINK_CONTROL, 2);
            return control & 3 != 0 && control != 0xFFFF;
        }
        at = function.read_config(at_aligned + 1, 1) as u16;
    }
    false
}
