//! Opening a NIC: the device is set up, its rings are made and filled, and it runs.
#![forbid(unsafe_code)]

use super::abi::feature;
use super::control::{COMMAND_TIME, Control, ControlQueue};
use super::device::{self, Identity, Queue, ring_size};
use super::nic::{Recovery, VirtioNic};
use super::packed::PackedRing;
use super::ring::{Ring, RingConfig};
use super::rx::{RxParts, VirtioRx};
use super::split::SplitRing;
use super::transport::Transport;
use super::trouble::QueueState;
use super::tx::{TxParts, VirtioTx};
use crate::port::{RxQueue, TxQueue};
use crate::vfio::function::PciFunction;
use crate::vfio::nic::{Halt, NEVER_RUN_ON_SILICON, NicConfig, NicError, OpenNic};
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// The fewest descriptors of a ring: the longest chain, and one that stays free.
pub(super) const LEAST_RING: u16 = 64;
/// Descriptors of the control queue: one command has two.
const CONTROL_RING: u16 = 16;
/// Descriptors of a queue that is never used.
const IDLE_RING: u16 = 16;

pub(super) fn open(function: &Arc<dyn PciFunction>, config: &NicConfig<'_>) -> Result<OpenNic, NicError> {
    for (key, size) in [("rx_ring", config.rx_ring), ("tx_ring", config.tx_ring)] {
        if !size.is_power_of_two() {
            return Err(NicError::Specification(format!(
                "{key}={size}: choose a power of two, {}",
                size.next_power_of_two()
            )));
        }
    }
    let transport = Transport::find(function)?;
    set_up(function, transport, config).inspect_err(|_| function.set_bus_master(false))
}

fn set_up(
    function: &Arc<dyn PciFunction>,
    mut transport: Transport,
    config: &NicConfig<'_>,
) -> Result<OpenNic, NicError> {
    let identity = device::negotiate(&transport, config, function.dma().translates())?;
    // Only now that it was reset: what it was told before is forgotten.
    function.set_bus_master(true);
    transport.enable_interrupt();
    tracing::warn!("{}: the driver virtio-net has {NEVER_RUN_ON_SILICON}", config.name);
    if identity.settings.agreed.has(feature::RING_PACKED) {
        open_with::<PackedRing>(transport, config, identity)
    } else {
        open_with::<SplitRing>(transport, config, identity)
    }
}

fn open_with<R: Ring>(
    transport: Transport,
    config: &NicConfig<'_>,
    identity: Identity,
) -> Result<OpenNic, NicError> {
    let system = |source: io::Error| NicError::System { what: "no memory for its rings", source };
    let agreed = identity.settings.agreed;
    let (function, space) = (Arc::clone(transport.function()), Arc::clone(transport.function().dma()));
    let (rx_count, tx_count) = (usize::from(config.rx_queues), usize::from(config.tx_queues));
    let halt = Halt::new(function, rx_count + tx_count);
    let states: Vec<_> = halt.gates.iter().map(QueueState::new).collect();
    let (rx_states, tx_states) = states.split_at(rx_count);
    let events = agreed.has(feature::EVENT_IDX);

    let (mut rx, mut tx, mut queues) = (Vec::new(), Vec::new(), Vec::new());
    for (pair, state) in (0_u16..).zip(rx_states) {
        let index = 2 * pair;
        let size = ring_size(&transport, index, config.rx_ring, LEAST_RING)?;
        let parts = RxParts {
            size,
            events,
            placement: agreed.placement,
            mergeable: agreed.has(feature::MRG_RXBUF),
            checksum: config.checksum,
            id: config.id,
            max_packet_len: config.max_packet_len(),
            index,
        };
        let queue = VirtioRx::<R>::new(&space, config.frames, parts, Arc::clone(state), Arc::clone(&halt))
            .map_err(system)?;
        queues.push(Queue { index, size, areas: queue.ring().areas() });
        rx.push(queue);
    }
    for (pair, state) in (0_u16..).zip(tx_states) {
        let index = 2 * pair + 1;
        let size = ring_size(&transport, index, config.tx_ring, LEAST_RING)?;
        let parts = TxParts { size, events, checksum: config.checksum, max_len: config.mtu + 14, index };
        let queue = VirtioTx::<R>::new(&space, config.frames, parts, Arc::clone(state), Arc::clone(&halt))
            .map_err(system)?;
        queues.push(Queue { index, size, areas: queue.ring().areas() });
        tx.push(queue);
    }
    // A device counts its queues by pairs: where there are more of one kind, it gets rings of the other that stay empty.
    let pairs = agreed.pairs;
    let mut idle: Vec<Box<dyn Send>> = Vec::new();
    let missing = (config.rx_queues..pairs)
        .map(|pair| 2 * pair)
        .chain((config.tx_queues..pairs).map(|pair| 2 * pair + 1));
    for index in missing {
        let size = ring_size(&transport, index, IDLE_RING, 1)?;
        let ring = R::new(&space, RingConfig { size, events, buffer: 0 }).map_err(system)?;
        queues.push(Queue { index, size, areas: ring.areas() });
        idle.push(Box::new(ring));
    }
    let mut control: Option<(Queue, Box<dyn Control>)> = None;
    if let Some(index) = identity.control {
        let size = ring_size(&transport, index, CONTROL_RING, 2)?;
        let ring = RingConfig { size, events, buffer: 0 };
        let queue = ControlQueue::<R>::new(&space, index, ring).map_err(system)?;
        control = Some((Queue { index, size, areas: queue.areas() }, Box::new(queue)));
    }

    let deadline = Instant::now() + COMMAND_TIME;
    // Whatever has been told of its rings is to forget them before they go.
    let registers = device::start(&transport, &queues, control.as_mut(), &identity.settings, deadline)
        .inspect_err(|_| {
            halt.halt();
            transport.begin_reset();
        })?;
    let mut registers = registers.into_iter();
    for queue in &mut rx {
        registers.next().into_iter().for_each(|register| queue.set_notify(register));
    }
    for queue in &mut tx {
        registers.next().into_iter().for_each(|register| queue.set_notify(register));
    }
    let nic = VirtioNic {
        name: config.name.to_owned(),
        mode: mode(config, &identity),
        mac: identity.mac,
        transport,
        settings: identity.settings,
        queues,
        control,
        _idle: idle,
        rx: rx_states.to_vec(),
        tx: tx_states.to_vec(),
        halt,
        recovery: Recovery::new(tx_count),
    };
    Ok(OpenNic {
        nic: Box::new(nic),
        rx: rx.into_iter().map(|queue| Box::new(queue) as Box<dyn RxQueue>).collect(),
        tx: tx.into_iter().map(|queue| Box::new(queue) as Box<dyn TxQueue>).collect(),
    })
}

/// How it runs, in a few words.
fn mode(config: &NicConfig<'_>, identity: &Identity) -> String {
    let agreed = identity.settings.agreed;
    let mut words = vec!["virtio-net".to_owned()];
    words.push(if agreed.has(feature::RING_PACKED) { "packed rings" } else { "split rings" }.into());
    words.push(match config.rx_queues {
        1 => "1 queue".into(),
        queues => format!("{queues} queues"),
    });
    for (wanted, word) in [
        (agreed.has(feature::RSS), "RSS"),
        (agreed.has(feature::MRG_RXBUF), "mergeable buffers"),
        (config.checksum, "checksum offload"),
        (true, NEVER_RUN_ON_SILICON),
    ] {
        if wanted {
            words.push(word.into());
        }
    }
    words.join(", ")
}
