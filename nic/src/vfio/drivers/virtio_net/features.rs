//! What of a device's offer is taken: feature bits, and the shape of the rings.
#![forbid(unsafe_code)]

use super::abi::feature::{
    ACCESS_PLATFORM, CSUM, CTRL_MAC_ADDR, CTRL_RX, CTRL_VLAN, CTRL_VQ, EVENT_IDX, GUEST_CSUM, MAC, MQ,
    MRG_RXBUF, MTU, ORDER_PLATFORM, RING_PACKED, RSS, SPEED_DUPLEX, STATUS, VERSION_1,
};
use super::rx::Placement;
use crate::vfio::nic::{NicConfig, NicError};

/// What the user says of the rings' layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RingChoice {
    /// Packed where the device has it.
    Auto,
    Split,
    Packed,
}

impl RingChoice {
    /// By the option `ring`.
    pub(super) fn read(config: &NicConfig<'_>) -> Result<Self, NicError> {
        match config.option("ring") {
            None | Some("auto") => Ok(Self::Auto),
            Some("split") => Ok(Self::Split),
            Some("packed") => Ok(Self::Packed),
            Some(other) => {
                Err(NicError::Specification(format!("ring={other}: choose auto, split or packed")))
            }
        }
    }
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// The feature bits.
    pub(super) bits: u64,
    /// Pairs of queues in use.
    pub(super) pairs: u16,
    /// Where received packets start.
    pub(super) placement: Placement,
}

impl Agreed {
    /// Whether a feature is agreed on.
    pub(super) fn has(&self, feature: u64) -> bool {
        self.bits & feature == feature
    }
}

/// Chooses from what is offered. `translated`: the device is behind an IOMMU.
pub(super) fn choose(offered: u64, config: &NicConfig<'_>, translated: bool) -> Result<Agreed, NicError> {
    let has = |feature: u64| offered & feature == feature;
    let refuse = |problem: String| Err(NicError::Specification(problem));
    let mut bits = VERSION_1;
    if !has(VERSION_1) {
        return Err(NicError::Device(
            "it is no virtio 1.x device: start it as a modern one (QEMU: disable-legacy=on)".into(),
        ));
    }
    if translated && !has(ACCESS_PLATFORM) {
        return Err(NicError::Device(
            "it goes past the IOMMU, to memory that is not ours: start it behind it (QEMU: iommu_platform=on)".into(),
        ));
    }
    bits |= offered & (ACCESS_PLATFORM | ORDER_PLATFORM | EVENT_IDX | MAC | STATUS | MTU);
    // Devices may say a speed only to drivers that ask for it.
    bits |= offered & SPEED_DUPLEX;
    if has(CTRL_VQ) {
        bits |= CTRL_VQ | offered & (CTRL_RX | CTRL_MAC_ADDR);
    }
    match RingChoice::read(config)? {
        RingChoice::Packed if !has(RING_PACKED) => {
            return refuse(
                "ring=packed: the device has split rings only, leave it out (QEMU: packed=on)".into(),
            );
        }
        RingChoice::Split => {}
        _ => bits |= offered & RING_PACKED,
    }
    if config.checksum {
        if !has(CSUM | GUEST_CSUM) {
            return refuse("checksum=on: the device has no checksum offload, leave it out".into());
        }
        bits |= CSUM | GUEST_CSUM;
    }
    if !config.vlans.is_empty() {
        if !has(CTRL_VQ | CTRL_VLAN) {
            return refuse("vlans=...: the device filters no VLANs, leave it out".into());
        }
        if config.promiscuous {
            return refuse(
                "vlans=...: a virtio device that receives everything filters no VLANs: leave out vlans, or --promiscuous".into(),
            );
        }
        // Only then: a device that was told of no VLAN drops all that are tagged.
        bits |= CTRL_VLAN;
    }
    let (frame, headroom) = (config.pool().frame_size(), config.pool().headroom());
    let most = Placement::most(frame, headroom);
    let wanted = if config.max_packet_len() > most {
        if !has(MRG_RXBUF) {
            return refuse(format!(
                "mtu={}: the device puts a packet into one buffer only: choose an mtu up to {} or frames of 4096 bytes",
                config.mtu,
                most - 22
            ));
        }
        bits |= MRG_RXBUF;
        config.pool().data_room().min(most)
    } else {
        config.max_packet_len()
    };
    let pairs = config.rx_queues.max(config.tx_queues).max(1);
    if pairs > 1 {
        if !has(CTRL_VQ | RSS) && !has(CTRL_VQ | MQ) {
            return refuse(format!(
                "{pairs} queues: the device has one pair only, leave out queues and use one worker (QEMU: mq=on)"
            ));
        }
        bits |= offered & (MQ | RSS);
        if !has(RSS) && config.rx_queues < pairs {
            return refuse(format!(
                "the device spreads packets over as many receive queues as there are transmit queues: choose queues={pairs}"
            ));
        }
    }
    Ok(Agreed { bits, pairs, placement: Placement::new(frame, headroom, wanted) })
}
