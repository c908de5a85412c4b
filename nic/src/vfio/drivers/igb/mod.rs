//! Intel's 82576: 16 queues each way, advanced descriptors, RSS.
//!
//! [`registers`] are the data sheet's, [`setup`] brings the device up (and again after a hang), [`nic`] is the control side. The rings are those of all Intel NICs,
//! in [`crate::vfio::intel`].
#![forbid(unsafe_code)]

#[cfg(test)]
mod model;
mod nic;
mod registers;
mod semaphore;
mod setup;
#[cfg(test)]
mod tests;

use crate::vfio::function::PciFunction;
use crate::vfio::intel::format::{Advanced, Advanced82576};
use crate::vfio::intel::gigabit::Parts;
use crate::vfio::intel::rx::{IntelRx, RxParts};
use crate::vfio::intel::tx::{Carrier, IntelTx, TxParts};
use crate::vfio::interrupt::LinkInterrupt;
use crate::vfio::nic::{Halt, KnownDevice, NEVER_RUN_ON_SILICON, NicConfig, NicDriver, NicError, OpenNic};
use crate::vfio::registers::TailRegister;
use nic::{Igb, IgbNic};
use registers::{QUEUES, REGISTERS_BYTES, rdt, tdt};
use semaphore::{Patience, PhyAccess};
use setup::Settings;
use std::sync::Arc;

const INTEL: u16 = 0x8086;

/// The driver's line in the table.
pub(in crate::vfio) static DRIVER: NicDriver = NicDriver {
    name: "igb",
    devices: &[
        KnownDevice { vendor: INTEL, device: 0x10C9, name: "82576" },
        KnownDevice { vendor: INTEL, device: 0x10E8, name: "82576 quad copper" },
        KnownDevice { vendor: INTEL, device: 0x1526, name: "82576 quad copper ET2" },
        KnownDevice { vendor: INTEL, device: 0x150A, name: "82576NS" },
    ],
    max_queues: QUEUES,
    ring_sizes: (64, 4096, 64),
    max_mtu: 9216,
    registers_bytes: REGISTERS_BYTES,
    options: &[],
    open,
};

/// What a receive buffer is: the KB that the device is told, and the bytes that it may put there.
fn buffer(max_packet_len: usize, data_room: usize) -> (u32, usize) {
    // A frame of 2 KB has less than that behind its headroom, but the device counts in KB. No packet is longer than RLPML lets through, even if it should
    // not count a VLAN tag: where that fits, so does any packet.
    const TAG: usize = 4;
    let kb = data_room / 1024;
    if max_packet_len + TAG <= data_room && max_packet_len > kb * 1024 {
        return (kb as u32 + 1, data_room);
    }
    (kb as u32, kb * 1024)
}

fn open(function: &Arc<dyn PciFunction>, config: &NicConfig<'_>) -> Result<OpenNic, NicError> {
    open_igb(function, config).map(|(nic, rx, tx)| OpenNic { nic: Box::new(nic), rx, tx })
}

type Queues = (IgbNic, Vec<Box<dyn crate::port::RxQueue>>, Vec<Box<dyn crate::port::TxQueue>>);

fn open_igb(function: &Arc<dyn PciFunction>, config: &NicConfig<'_>) -> Result<Queues, NicError> {
    for (key, size) in [("rx_ring", config.rx_ring), ("tx_ring", config.tx_ring)] {
        if !size.is_power_of_two() {
            return Err(NicError::Specification(format!(
                "{key}={size}: igb has rings of a power of two descriptors, such as 512 or 1024"
            )));
        }
    }
    let system = |what| move |source| NicError::System { what, source };
    let registers = function.bar(0).map_err(system("its registers (BAR 0) cannot be mapped"))?;
    setup::reset(&registers)?;
    // Only now: what it was told before is forgotten.
    function.set_bus_master(true);
    let mac = setup::own_address(&registers)?;
    let max_packet_len = config.max_packet_len();
    let (buffer_kb, buffer_bytes) = buffer(max_packet_len, config.pool().data_room());
    let (rx_queues, tx_queues) = (usize::from(config.rx_queues), usize::from(config.tx_queues));
    let halt = Halt::new(Arc::clone(function), rx_queues + tx_queues);
    let carrier = Arc::new(Carrier::default());
    let no_memory = system("no memory for its rings");
    let rx = (0..rx_queues).map(|queue| {
        IntelRx::<Advanced82576>::new(RxParts {
            size: config.rx_ring,
            buffer_bytes,
            max_packet_len,
            checksum: config.checksum,
            frames: config.frames,
            id: config.id,
            tail: TailRegister::new(Arc::clone(&registers), rdt(queue)),
            halt: &halt,
            gate: Arc::clone(&halt.gates[queue]),
        })
    });
    let rx = rx.collect::<Result<Vec<_>, _>>().map_err(&no_memory)?;
    let tx = (0..tx_queues).map(|queue| {
        IntelTx::<Advanced>::new(TxParts {
            size: config.tx_ring,
            max_packet_len: config.mtu + 14,
            checksum: config.checksum,
            frames: config.frames,
            tail: TailRegister::new(Arc::clone(&registers), tdt(queue)),
            halt: &halt,
            gate: Arc::clone(&halt.gates[rx_queues + queue]),
            carrier: &carrier,
        })
    });
    let tx = tx.collect::<Result<Vec<_>, _>>().map_err(&no_memory)?;
    let interrupt = LinkInterrupt::enable(&**function);
    let settings = Settings {
        mac,
        max_packet_len,
        promiscuous: config.promiscuous,
        checksum: config.checksum,
        interrupt: interrupt.is_on(),
        vlans: config.vlans.to_vec(),
        buffer_kb,
        rx: rx.iter().map(IntelRx::ring).collect(),
        tx: tx.iter().map(IntelTx::ring).collect(),
    };
    let phy = PhyAccess::new(&registers);
    setup::configure(&registers, &settings, &phy, Patience::LONG)?;
    rx.iter().for_each(IntelRx::start);
    let chip = DRIVER.devices.iter().find(|known| known.device == function.id().device);
    let chip = chip.map_or("82576", |known| known.name);
    tracing::warn!(
        "{}: the driver igb for the {chip} has {NEVER_RUN_ON_SILICON}: see docs/vfio-igb.md",
        config.name
    );
    let nic = IgbNic::new(Parts {
        rx: rx.iter().map(|queue| Arc::clone(queue.counters())).collect(),
        tx: tx.iter().map(|queue| Arc::clone(queue.counters())).collect(),
        name: config.name.into(),
        chip_name: chip,
        chip: Igb { registers, settings, phy },
        mac,
        checksum: config.checksum,
        halt,
        carrier,
        interrupt,
    });
    let rx = rx.into_iter().map(|queue| Box::new(queue) as Box<dyn crate::port::RxQueue>);
    let tx = tx.into_iter().map(|queue| Box::new(queue) as Box<dyn crate::port::TxQueue>);
    Ok((nic, rx.collect(), tx.collect()))
}
