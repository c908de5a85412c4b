//! What the device is told by its control queue after it was set up: who gets which packet, and which packets come at all.
#![forbid(unsafe_code)]

use super::abi::{ctrl, feature, hash};
use super::control::Control;
use super::features::Agreed;
use crate::port::MacAddress;
use crate::vfio::nic::NicError;
use std::time::Instant;

/// The key of the Toeplitz hash: the bytes 0x6D 0x5A over and over, by which both directions of a flow have the same hash.
const KEY_BYTES: [u8; 2] = [0x6D, 0x5A];
/// Bytes of a key that hash the addresses and ports of IPv6.
const KEY_LENGTH: usize = 40;
/// Entries of the indirection table, where the device takes so many: every share of up to 16 queues within one part in eight.
const TABLE_LENGTH: u16 = 128;
/// What is hashed where the device can. UDP by its addresses alone: fragments have no ports, and would overtake the rest of their flow.
const HASH_TYPES: u32 = hash::IPV4 | hash::TCPV4 | hash::IPV6 | hash::TCPV6;

/// How the device spreads packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rss {
    types: u32,
    table: u16,
}

impl Rss {
    /// By what the device says it can.
    pub(super) fn new(max_key: u8, max_table: u16, types: u32, rx_queues: u16) -> Result<Self, NicError> {
        let types = types & HASH_TYPES;
        // A power of two.
        let table = TABLE_LENGTH.min(1 << max_table.max(1).ilog2());
        if usize::from(max_key) < KEY_LENGTH || types == 0 || table < rx_queues {
            return Err(NicError::Device(format!(
                "its RSS cannot spread over {rx_queues} queues (key {max_key} bytes, table {max_table}, hash types {types:#x}): use fewer queues"
            )));
        }
        Ok(Self { types, table })
    }

    /// `struct virtio_net_rss_config` (5.1.6.5.7.1).
    fn command(self, rx_queues: u16, pairs: u16) -> Vec<u8> {
        let mut data = Vec::new();
        data.extend(self.types.to_le_bytes());
        data.extend((self.table - 1).to_le_bytes());
        // What has no hash goes to the first queue.
        data.extend(0_u16.to_le_bytes());
        (0..self.table).for_each(|entry| data.extend((entry % rx_queues).to_le_bytes()));
        data.extend(pairs.to_le_bytes());
        data.push(KEY_LENGTH as u8);
        data.extend(KEY_BYTES.iter().cycle().take(KEY_LENGTH));
        data
    }
}

/// All that is to be said.
pub(super) struct Settings {
    pub(super) agreed: Agreed,
    pub(super) rx_queues: u16,
    pub(super) rss: Option<Rss>,
    pub(super) promiscuous: bool,
    pub(super) vlans: Vec<u16>,
    /// To be set, where the device has none of its own.
    pub(super) mac: Option<MacAddress>,
}

impl Settings {
    /// Says it. Again after each reset.
    pub(super) fn apply(&self, control: &mut dyn Control, deadline: Instant) -> Result<(), NicError> {
        let mut say = |command, data: &[u8]| control.command(command, data, deadline);
        if let Some(rss) = self.rss {
            say(ctrl::MQ_RSS_CONFIG, &rss.command(self.rx_queues, self.agreed.pairs))?;
        } else if self.agreed.pairs > 1 {
            say(ctrl::MQ_VQ_PAIRS_SET, &self.agreed.pairs.to_le_bytes())?;
        }
        if self.agreed.has(feature::CTRL_RX) {
            say(ctrl::RX_PROMISC, &[self.promiscuous.into()])?;
            // Which groups anybody listens to, only the application knows.
            say(ctrl::RX_ALLMULTI, &[1])?;
            // No further station, no single group: two lists of no entries.
            say(ctrl::MAC_TABLE_SET, &[0; 8])?;
        }
        if let Some(mac) = self.mac
            && self.agreed.has(feature::CTRL_MAC_ADDR)
        {
            say(ctrl::MAC_ADDR_SET, &mac.0)?;
        }
        for vlan in &self.vlans {
            say(ctrl::VLAN_ADD, &vlan.to_le_bytes())?;
        }
        Ok(())
    }
}
