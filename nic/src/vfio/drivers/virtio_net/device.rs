//! A device that is being set up: from its reset to DRIVER_OK and the commands behind it, at the start and again in a recovery.
#![forbid(unsafe_code)]

use super::abi::{config, feature, status};
use super::control::Control;
use super::features::{self, Agreed};
use super::settings::{Rss, Settings};
use super::transport::{Areas, Transport};
use crate::port::MacAddress;
use crate::vfio::nic::{NicConfig, NicError};
use crate::vfio::registers::TailRegister;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Instant;

/// A queue of the device as it is to be enabled.
#[derive(Clone, Copy)]
pub(super) struct Queue {
    pub(super) index: u16,
    pub(super) size: u16,
    pub(super) areas: Areas,
}

/// What a device says of itself when it is opened.
pub(super) struct Identity {
    pub(super) mac: MacAddress,
    /// The number of the control queue, where it has one.
    pub(super) control: Option<u16>,
    pub(super) settings: Settings,
}

/// Resets the device and agrees on features. The rings can then be made.
pub(super) fn negotiate(
    transport: &Transport,
    wanted: &NicConfig<'_>,
    translated: bool,
) -> Result<Identity, NicError> {
    transport.reset()?;
    transport.add_status(status::ACKNOWLEDGE);
    transport.add_status(status::DRIVER);
    let agreed = features::choose(transport.device_features(), wanted, translated)?;
    if !transport.set_features(agreed.bits) {
        return Err(NicError::Device(format!(
            "it does not accept the features {:#x}, which it has offered: it is broken",
            agreed.bits
        )));
    }
    identify(transport, wanted, agreed)
}

fn identify(transport: &Transport, wanted: &NicConfig<'_>, agreed: Agreed) -> Result<Identity, NicError> {
    let read = transport.config(|device| {
        let mut mac = [0; 6];
        mac.iter_mut().enumerate().for_each(|(index, byte)| *byte = device.read8(config::MAC + index));
        let pairs = device.read16(config::MAX_VIRTQUEUE_PAIRS);
        let mtu = device.read16(config::MTU);
        let key = device.read8(config::RSS_MAX_KEY_SIZE);
        let table = device.read16(config::RSS_MAX_INDIRECTION_TABLE_LENGTH);
        (mac, pairs, mtu, key, table, device.read32(config::SUPPORTED_HASH_TYPES))
    });
    let Some((mac, max_pairs, mtu, key, table, types)) = read else {
        return Err(NicError::Device(
            "its configuration is missing, or changes all the time: it is broken".into(),
        ));
    };
    let own = agreed.has(feature::MAC);
    if own && mac[0] & 1 != 0 {
        return Err(NicError::Device(format!(
            "its address {} is that of a group: give it one of a station (QEMU: mac=52:54:00:12:34:56)",
            MacAddress(mac)
        )));
    }
    let mac = if own { MacAddress(mac) } else { local_address() };
    if agreed.has(feature::MTU) && usize::from(mtu) < wanted.mtu {
        return Err(NicError::Specification(format!(
            "mtu={}: the device carries {mtu} at the most",
            wanted.mtu
        )));
    }
    let spreads = agreed.bits & (feature::MQ | feature::RSS) != 0;
    if spreads && !(agreed.pairs..=0x8000).contains(&max_pairs) {
        return Err(NicError::Specification(format!(
            "{} queues: the device has {max_pairs}, choose fewer (queues, and workers)",
            agreed.pairs
        )));
    }
    let rss = agreed.has(feature::RSS).then(|| Rss::new(key, table, types, wanted.rx_queues)).transpose()?;
    Ok(Identity {
        mac,
        control: agreed.has(feature::CTRL_VQ).then(|| if spreads { max_pairs.saturating_mul(2) } else { 2 }),
        settings: Settings {
            agreed,
            rx_queues: wanted.rx_queues,
            rss,
            promiscuous: wanted.promiscuous,
            vlans: wanted.vlans.to_vec(),
            mac: (!own).then_some(mac),
        },
    })
}

/// A random address of the locally administered ones (5.1.4.2: a device without MAC has none).
fn local_address() -> MacAddress {
    let [a, b, c, d, e, ..] = RandomState::new().build_hasher().finish().to_le_bytes();
    MacAddress([0x02, a, b, c, d, e])
}

/// The size that a ring gets: what is wanted, or the device's most; a power of two.
pub(super) fn ring_size(transport: &Transport, index: u16, wanted: u16, least: u16) -> Result<u16, NicError> {
    let most = transport.max_queue_size(index);
    if most < least {
        return Err(NicError::Device(match most {
            0 => format!("it has no queue {index}: use fewer queues"),
            _ => format!("its queue {index} has {most} descriptors, and {least} are needed"),
        }));
    }
    Ok(1 << wanted.min(most).ilog2())
}

/// Enables the queues, starts the device, and tells it the rest. The notification registers of `queues`, in their order.
pub(super) fn start(
    transport: &Transport,
    queues: &[Queue],
    control: Option<&mut (Queue, Box<dyn Control>)>,
    settings: &Settings,
    deadline: Instant,
) -> Result<Vec<TailRegister>, NicError> {
    transport.watch_config();
    let enable = |queue: &Queue| transport.enable_queue(queue.index, queue.size, queue.areas);
    let registers = queues.iter().map(enable).collect::<Result<Vec<_>, _>>()?;
    let control = match control {
        Some((queue, control)) => {
            control.restart(enable(queue)?);
            Some(control)
        }
        None => None,
    };
    transport.add_status(status::DRIVER_OK);
    if let Some(control) = control {
        settings.apply(&mut **control, deadline)?;
    }
    Ok(registers)
}

/// From the end of a reset to the start, as it was agreed before.
pub(super) fn start_again(
    transport: &Transport,
    queues: &[Queue],
    control: Option<&mut (Queue, Box<dyn Control>)>,
    settings: &Settings,
    deadline: Instant,
) -> Result<(), NicError> {
    transport.add_status(status::ACKNOWLEDGE);
    transport.add_status(status::DRIVER);
    if !transport.set_features(settings.agreed.bits) {
        return Err(NicError::Device("it does not accept the features of before its reset".into()));
    }
    start(transport, queues, control, settings, deadline).map(drop)
}
