//! From a device in any state to one that moves packets: reset, link, filters, queues (82576 datasheet 4.5).
#![forbid(unsafe_code)]

use super::registers::*;
use super::semaphore::{Patience, PhyAccess};
use crate::port::MacAddress;
use crate::vfio::intel::poll::{Ended, until, until_bits};
use crate::vfio::intel::{filters, mdic, rss};
use crate::vfio::nic::NicError;
use crate::vfio::registers::Registers;
use std::thread;
use std::time::{Duration, Instant};

/// How long a reset may take (4.2.1.6 says 1 ms, but nothing of a device that is broken).
const RESET: Duration = Duration::from_millis(100);
/// How long it may load its registers from the EEPROM.
const AUTO_READ: Duration = Duration::from_millis(25);
/// How long accesses to memory may go on that were under way.
const MASTER_DISABLE: Duration = Duration::from_millis(80);
/// How long a queue may take to come on or go off.
const QUEUE: Duration = Duration::from_millis(50);
/// The frame check sequence.
const FCS: usize = 4;

/// What is to be set up, and again after a hang.
pub(super) struct Settings {
    pub(super) mac: MacAddress,
    /// The longest packet, with tags, without the frame check sequence.
    pub(super) max_packet_len: usize,
    pub(super) promiscuous: bool,
    pub(super) checksum: bool,
    /// MSI-X vector 0 is there to tell of the link.
    pub(super) interrupt: bool,
    pub(super) vlans: Vec<u16>,
    /// KB that a receive buffer is said to have.
    pub(super) buffer_kb: u32,
    /// Address and bytes of each receive ring.
    pub(super) rx: Vec<(u64, usize)>,
    /// The same of the transmit rings.
    pub(super) tx: Vec<(u64, usize)>,
}

pub(super) fn gone() -> NicError {
    NicError::Device("the device answers no more: all its registers read all ones".into())
}

fn ended(what: &str, ended: Ended) -> NicError {
    match ended {
        Ended::Gone => gone(),
        Ended::Late(value) => NicError::Device(format!(
            "{what} ({value:#010x}): the device may be broken; try it again after the machine was off"
        )),
    }
}

/// Masks all interrupts, and clears those that are pending.
pub(super) fn mask_interrupts(registers: &Registers) {
    registers.write32(IMC, u32::MAX);
    registers.write32(EIMC, u32::MAX);
    registers.read32(ICR);
}

/// Has vector 0 tell of the link (7.3): no queue has one.
fn enable_interrupt(registers: &Registers) {
    // The mode first: what the others mean depends on it.
    registers.write32(GPIE, GPIE_MULTIPLE_MSIX | GPIE_NSICR | GPIE_PBA_SUPPORT);
    registers.write32(IVAR_MISC, IVAR_OTHER_VALID);
    registers.write32(EIAC, 1);
    registers.write32(EIMS, 1);
    registers.write32(IMS, ICR_LSC);
}

/// Stops both units, and with that new accesses to memory.
pub(super) fn stop(registers: &Registers) {
    registers.write32(RCTL, 0);
    registers.write32(TCTL, TCTL_PSP);
    // Reading makes the device see what was written.
    registers.read32(STATUS);
}

/// Has it stop: no interrupt, no packet, no new access to memory. A reset in the middle of one hangs the bus (5.2.3.3.2).
pub(super) fn quiesce(registers: &Registers) {
    mask_interrupts(registers);
    stop(registers);
    registers.write32(CTRL, registers.read32(CTRL) | CTRL_GIO_MASTER_DISABLE);
    registers.read32(STATUS);
}

/// Starts the reset of a quiet device (4.2.1.6). It must not be read for a millisecond.
pub(super) fn start_reset(registers: &Registers) {
    registers.write32(CTRL, registers.read32(CTRL) & !CTRL_GIO_MASTER_DISABLE | CTRL_RST);
}

/// Whether the reset that was started so long ago has ended, and the EEPROM has been read. There are boards without one; whether an address came from
/// somewhere is seen later.
pub(super) fn has_come_back(registers: &Registers, since: Duration) -> bool {
    let control = registers.read32(CTRL);
    let is_loaded = since >= AUTO_READ || registers.read32(EEC) & EEC_AUTO_RD != 0;
    control != u32::MAX && control & CTRL_RST == 0 && is_loaded
}

/// All of it, for who may wait.
pub(super) fn reset(registers: &Registers) -> Result<(), NicError> {
    if registers.read32(CTRL) == u32::MAX {
        return Err(gone());
    }
    quiesce(registers);
    match until_bits(&**registers, STATUS, STATUS_GIO_MASTER_ENABLE, false, MASTER_DISABLE) {
        Err(Ended::Gone) => return Err(gone()),
        // One that does not end is no worse after the reset.
        Err(Ended::Late(_)) => tracing::debug!("accesses to memory go on; the device is reset all the same"),
        Ok(_) => {}
    }
    start_reset(registers);
    thread::sleep(Duration::from_millis(1));
    let start = Instant::now();
    until(&**registers, CTRL, RESET, |_| has_come_back(registers, start.elapsed()))
        .map_err(|why| ended("it does not come out of reset", why))?;
    mask_interrupts(registers);
    Ok(())
}

/// Its own address, as its EEPROM has it.
pub(super) fn own_address(registers: &Registers) -> Result<MacAddress, NicError> {
    filters::own_address(&**registers, RAL).ok_or_else(|| {
        NicError::Device("it has no Ethernet address: its EEPROM is empty or could not be read".into())
    })
}

/// Everything but the tails of the receive queues. The device has been reset, and no queue is used.
pub(super) fn configure(
    registers: &Registers,
    settings: &Settings,
    phy: &PhyAccess,
    patience: Patience,
) -> Result<(), NicError> {
    let ctrl = registers.read32(CTRL) & !(CTRL_FRCSPD | CTRL_FRCDPX | CTRL_VME | CTRL_RFCE | CTRL_TFCE);
    registers.write32(CTRL, ctrl | CTRL_SLU | CTRL_FD);
    let extended = registers.read32(CTRL_EXT) & !CTRL_EXT_EXTENDED_VLAN;
    registers.write32(CTRL_EXT, extended | CTRL_EXT_DRV_LOAD);
    if settings.interrupt {
        enable_interrupt(registers);
    }
    link(registers, (extended & CTRL_EXT_LINK_MODE == 0).then_some(phy), patience)?;
    filter(registers, settings);
    for queue in 0..usize::from(QUEUES) {
        receive_queue(registers, queue, settings)?;
        transmit_queue(registers, queue, settings)?;
    }
    registers.write32(TCTL, TCTL_EN | TCTL_PSP | TCTL_CT | TCTL_BST | TCTL_RTLC);
    let vlan_filter = if settings.vlans.is_empty() { 0 } else { RCTL_VFE };
    let unicast = if settings.promiscuous { RCTL_UPE } else { 0 };
    registers.write32(RCTL, RCTL_RXEN | RCTL_LPE | RCTL_BAM | RCTL_MPE | RCTL_SECRC | vlan_filter | unicast);
    if registers.read32(STATUS) == u32::MAX { Err(gone()) } else { Ok(()) }
}

/// Addresses, VLANs, RSS, checksums.
fn filter(registers: &Registers, settings: &Settings) {
    filters::set_address(&**registers, RAL, settings.mac);
    filters::clear_addresses(&**registers, RAL, 1..16);
    filters::clear_addresses(&**registers, RAL_16, 0..8);
    filters::set_table(&**registers, MTA, TABLE_WORDS, &[]);
    filters::set_table(&**registers, VFTA, TABLE_WORDS, &settings.vlans);
    registers.write32(RLPML, (settings.max_packet_len + FCS) as u32);
    let sums = if settings.checksum { RXCSUM_IPOFLD | RXCSUM_TUOFLD } else { 0 };
    registers.write32(RXCSUM, sums | RXCSUM_PCSD);
    let queues = settings.rx.len() as u16;
    rss::program(&**registers, queues, |queue| queue);
    let hashes = MRQC_TCP_IPV4 | MRQC_IPV4 | MRQC_IPV6 | MRQC_TCP_IPV6;
    registers.write32(MRQC, if queues > 1 { MRQC_RSS | hashes } else { 0 });
}

/// A receive queue (4.5.9): off, and on again where it has a ring.
fn receive_queue(registers: &Registers, queue: usize, settings: &Settings) -> Result<(), NicError> {
    registers.write32(rxdctl(queue), 0);
    until_bits(&**registers, rxdctl(queue), QUEUE_ENABLE, false, QUEUE)
        .map_err(|why| ended(&format!("receive queue {queue} does not stop"), why))?;
    let Some((iova, bytes)) = settings.rx.get(queue) else { return Ok(()) };
    registers.write32(rdbal(queue), *iova as u32);
    registers.write32(rdbah(queue), (iova >> 32) as u32);
    registers.write32(rdlen(queue), *bytes as u32);
    // With several queues a full one must not hold up the others.
    let drop = if settings.rx.len() > 1 { SRRCTL_DROP_EN } else { 0 };
    registers.write32(srrctl(queue), settings.buffer_kb | SRRCTL_ADVANCED | drop);
    registers.write32(rdh(queue), 0);
    registers.write32(rdt(queue), 0);
    registers.write32(rxdctl(queue), THRESHOLDS | QUEUE_ENABLE);
    until_bits(&**registers, rxdctl(queue), QUEUE_ENABLE, true, QUEUE)
        .map_err(|why| ended(&format!("receive queue {queue} does not start"), why))?;
    Ok(())
}

/// A transmit queue (4.5.10).
fn transmit_queue(registers: &Registers, queue: usize, settings: &Settings) -> Result<(), NicError> {
    registers.write32(txdctl(queue), 0);
    until_bits(&**registers, txdctl(queue), QUEUE_ENABLE, false, QUEUE)
        .map_err(|why| ended(&format!("transmit queue {queue} does not stop"), why))?;
    let Some((iova, bytes)) = settings.tx.get(queue) else { return Ok(()) };
    registers.write32(tdbal(queue), *iova as u32);
    registers.write32(tdbah(queue), (iova >> 32) as u32);
    registers.write32(tdlen(queue), *bytes as u32);
    registers.write32(tdwbal(queue), 0);
    registers.write32(tdh(queue), 0);
    registers.write32(tdt(queue), 0);
    registers.write32(txdctl(queue), THRESHOLDS | QUEUE_ENABLE);
    until_bits(&**registers, txdctl(queue), QUEUE_ENABLE, true, QUEUE)
        .map_err(|why| ended(&format!("transmit queue {queue} does not start"), why))?;
    Ok(())
}

/// Has the link negotiated; it comes up when it does.
fn link(registers: &Registers, phy: Option<&PhyAccess>, patience: Patience) -> Result<(), NicError> {
    if let Some(phy) = phy {
        let _phy = phy.acquire(patience)?;
        if let Err(why) = mdic::restart_autonegotiation(&**registers) {
            tracing::warn!("the PHY does not answer ({why:?}): there may be no link");
        }
        return Ok(());
    }
    // SerDes, SGMII (4.5.7.3): the PCS negotiates.
    registers.write32(PCS_CFG, registers.read32(PCS_CFG) | PCS_CFG_ENABLE);
    registers.write32(PCS_LCTL, registers.read32(PCS_LCTL) | PCS_LCTL_AN_ENABLE | PCS_LCTL_AN_RESTART);
    Ok(())
}
