//! What the device is told between its reset and its first packet, and again when it was reset because it hung.
//!
//! All of it is plain data, so that the second time is like the first.
#![forbid(unsafe_code)]

use super::buffers::ReceiveBuffers;
use super::phy;
use super::registers::*;
use super::statistics::Statistics;
use crate::port::MacAddress;

/// Where a ring is, for the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    /// Its address.
    pub(super) iova: u64,
    /// Its length in bytes, a multiple of 128.
    pub(super) bytes: usize,
}

/// How the device is to run.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// Receive rings, one or two.
    pub(super) rx: Vec<Ring>,
    /// Transmit rings, up to two.
    pub(super) tx: Vec<Ring>,
    /// What it is told of the receive buffers.
    pub(super) buffers: ReceiveBuffers,
    /// Its own address.
    pub(super) mac: MacAddress,
    /// Receive packets for other stations.
    pub(super) promiscuous: bool,
    /// Look at the checksums of received packets.
    pub(super) checksum: bool,
    /// VLANs to receive; all where it is empty.
    pub(super) vlans: Vec<u16>,
}

/// The key of Microsoft's verification suite for RSS, which most drivers use.
pub(super) const RSS_KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];
/// Four entries of the redirection table, whose bit 7 is the queue: 0, 1, 0, 1.
const RETA_ALTERNATING: u32 = 0x8000_8000;

/// Fetches ahead while 32 descriptors are left, at least 4 at a time, and writes each back at once: nobody waits for an interrupt.
const RXDCTL: u32 =
    32 << dctl::PTHRESH_SHIFT | 4 << dctl::HTHRESH_SHIFT | 1 << dctl::WTHRESH_SHIFT | dctl::GRAN;
/// The same for transmitting, with the bit that has to be set.
const TXDCTL: u32 = 31 << dctl::PTHRESH_SHIFT
    | 1 << dctl::HTHRESH_SHIFT
    | 1 << dctl::WTHRESH_SHIFT
    | dctl::GRAN
    | dctl::COUNT_DESC;

impl Setup {
    /// Tells the device, which has just been reset; it receives when this returns, into buffers it is still to be given.
    pub(super) fn apply(&self, chip: &Chip) {
        chip.modify(GCR, 0, gcr::COMPLETION_ERRATUM | gcr::L1_ACT_WITHOUT_L0S_RX);
        chip.modify(GCR2, 0, 1);
        chip.modify(CTRL_EXT, 0, ctrl_ext::DRV_LOAD);
        self.filters(chip);
        self.receive(chip);
        self.transmit(chip);
        phy::bring_up(chip);
        Statistics::discard(chip);
        chip.write(RCTL, self.rctl());
        chip.flush();
    }

    fn filters(&self, chip: &Chip) {
        chip.write(VET, 0x8100);
        (0..128).for_each(|word| chip.write(MTA + 4 * word, 0));
        let [a, b, c, d, e, f] = self.mac.0;
        // The high half has the bit that makes an entry valid, and is written last.
        chip.write(RAL0, u32::from_le_bytes([a, b, c, d]));
        chip.write(RAH0, u32::from_le_bytes([e, f, 0, 0]) | rah::AV);
        for entry in 1..RECEIVE_ADDRESSES {
            chip.write(RAH0 + 8 * entry, 0);
            chip.write(RAL0 + 8 * entry, 0);
        }
        for word in 0..128_u16 {
            let ours = self.vlans.iter().filter(|vlan| **vlan / 32 == word);
            chip.write(VFTA + 4 * usize::from(word), ours.fold(0, |bits, vlan| bits | 1 << (vlan % 32)));
        }
    }

    fn receive(&self, chip: &Chip) {
        let plain = rfctl::ISCSI_DIS | rfctl::NFSW_DIS | rfctl::NFSR_DIS;
        chip.write(RFCTL, plain | rfctl::EXSTEN | rfctl::IPV6_EX_DIS | rfctl::NEW_IPV6_EXT_DIS);
        let check = if self.checksum { rxcsum::IPOFLD | rxcsum::TUOFLD } else { 0 };
        // With RSS the packet checksum must be off, for the hash takes its place in the descriptor.
        chip.write(RXCSUM, check | rxcsum::PCSD);
        if self.rx.len() > 1 {
            for (word, bytes) in RSS_KEY.chunks_exact(4).enumerate() {
                chip.write(RSSRK + 4 * word, u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
            }
            (0..32).for_each(|word| chip.write(RETA + 4 * word, RETA_ALTERNATING));
            let hashed = mrqc::TCP_IPV4 | mrqc::IPV4 | mrqc::TCP_IPV6 | mrqc::IPV6;
            chip.write(MRQC, mrqc::RSS | hashed);
        } else {
            chip.write(MRQC, 0);
        }
        chip.write(RDTR, 0);
        chip.write(RADV, 0);
        for (queue, ring) in self.rx.iter().enumerate() {
            chip.write(rdbal(queue), ring.iova as u32);
            chip.write(rdbah(queue), (ring.iova >> 32) as u32);
            chip.write(rdlen(queue), ring.bytes as u32);
            chip.write(rdh(queue), 0);
            chip.write(rdt(queue), 0);
            chip.write(rxdctl(queue), RXDCTL);
        }
    }

    fn transmit(&self, chip: &Chip) {
        let two = self.tx.len() > 1;
        for (queue, ring) in self.tx.iter().enumerate() {
            chip.write(tdbal(queue), ring.iova as u32);
            chip.write(tdbah(queue), (ring.iova >> 32) as u32);
            chip.write(tdlen(queue), ring.bytes as u32);
            chip.write(tdh(queue), 0);
            chip.write(tdt(queue), 0);
            chip.write(txdctl(queue), TXDCTL);
            let both = if two { tarc_fields::COMP | tarc_fields::MULTI_QUEUE_ERRATUM } else { 0 };
            chip.modify(tarc(queue), tarc_fields::CLEARED, tarc_fields::ENABLE | tarc_fields::ERRATUM | both);
        }
        chip.write(TIPG, TIPG_RECOMMENDED);
        if !self.tx.is_empty() {
            chip.write(TCTL, tctl::EN | tctl::PSP | tctl::CT | tctl::COLD | tctl::RTLC | tctl::MULR);
        }
    }

    fn rctl(&self) -> u32 {
        let mut value = rctl::EN | rctl::SECRC | rctl::BAM | rctl::MPE | self.buffers.rctl;
        if self.promiscuous {
            value |= rctl::UPE;
        }
        if !self.vlans.is_empty() {
            value |= rctl::VFE;
        }
        value
    }
}
