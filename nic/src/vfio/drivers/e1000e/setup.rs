//! What the device is told between its reset and its first packet, and again when it was reset because it hung.
//!
//! All of it is plain data, so that the second time is like the first.
#![forbid(unsafe_code)]

use super::buffers::ReceiveBuffers;
use super::phy;
use super::registers::*;
use crate::port::MacAddress;
use crate::vfio::intel::{filters, rss};

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
    /// MSI-X vector 0 is there to tell of the link.
    pub(super) interrupt: bool,
    /// VLANs to receive; all where it is empty.
    pub(super) vlans: Vec<u16>,
}

/// RETA: bit 7 of an entry is the queue, the rest is for software.
const RETA_QUEUE: u8 = 0x80;

/// Fetches ahead while 32 descriptors are left, at least 4 at a time, and writes each back at once: nobody waits for an interrupt.
const RXDCTL: u32 =
    32 << dctl::PTHRESH_SHIFT | 4 << dctl::HTHRESH_SHIFT | 1 << dctl::WTHRESH_SHIFT | dctl::GRAN;
/// The same for transmitting, with the bit that has to be set.
const TXDCTL: u32 = 31 << dctl::PTHRESH_SHIFT
    | 1 << dctl::HTHRESH_SHIFT
    | 1 << dctl::WTHRESH_SHIFT
    | dctl::GRAN
    | dctl::COUNT_DESC;

/// Lets a change of the link interrupt.
pub(super) fn unmask_link(chip: &Chip) {
    chip.write(IMS, icr::LSC | icr::OTHER);
}

/// Acknowledges that it did; the link is to be looked at next.
pub(super) fn acknowledge_link(chip: &Chip) {
    let causes = chip.read(ICR);
    if causes == GONE || causes & (icr::LSC | icr::OTHER) == 0 {
        return;
    }
    if causes & icr::LSC == 0 {
        // With MSI-X all causes come by this one, whatever is masked: a receiver that overflows, for one, and that again and again.
        chip.write(IMC, icr::LSC | icr::OTHER);
    }
    // Reading alone does not clear it in this mode.
    chip.write(ICR, causes);
}

impl Setup {
    /// Tells the device, which has just been reset; it receives when this returns, into buffers it is still to be given.
    pub(super) fn apply(&self, chip: &Chip) {
        chip.modify(GCR, 0, gcr::COMPLETION_ERRATUM | gcr::L1_ACT_WITHOUT_L0S_RX);
        chip.modify(GCR2, 0, 1);
        chip.modify(CTRL_EXT, 0, ctrl_ext::DRV_LOAD);
        self.filters(chip);
        self.receive(chip);
        self.transmit(chip);
        if self.interrupt {
            chip.write(IVAR, IVAR_OTHER_VALID);
            unmask_link(chip);
        }
        if let Err(why) = phy::bring_up(chip) {
            tracing::warn!("the 82574's PHY does not answer ({why:?}): there may be no link");
        }
        chip.write(RCTL, self.rctl());
        chip.flush();
    }

    fn filters(&self, chip: &Chip) {
        chip.write(VET, 0x8100);
        filters::set_table(&*chip.0, MTA, TABLE_WORDS, &[]);
        filters::set_address(&*chip.0, RAL0, self.mac);
        filters::clear_addresses(&*chip.0, RAL0, 1..RECEIVE_ADDRESSES);
        filters::set_table(&*chip.0, VFTA, TABLE_WORDS, &self.vlans);
    }

    fn receive(&self, chip: &Chip) {
        let plain = rfctl::ISCSI_DIS | rfctl::NFSW_DIS | rfctl::NFSR_DIS;
        chip.write(RFCTL, plain | rfctl::EXSTEN | rfctl::IPV6_EX_DIS | rfctl::NEW_IPV6_EXT_DIS);
        let check = if self.checksum { rxcsum::IPOFLD | rxcsum::TUOFLD } else { 0 };
        // With RSS the packet checksum must be off, for the hash takes its place in the descriptor.
        chip.write(RXCSUM, check | rxcsum::PCSD);
        if self.rx.len() > 1 {
            rss::program(&*chip.0, self.rx.len() as u16, |queue| queue * RETA_QUEUE);
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
            // What it has besides, the threshold for read requests, is as the reset has left it.
            let on = tctl::EN | tctl::PSP | tctl::CT | tctl::COLD | tctl::RTLC | tctl::MULR;
            chip.modify(TCTL, tctl::CT_MASK | tctl::COLD_MASK, on);
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
