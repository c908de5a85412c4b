//! An 82576 of software: its registers, and what it does to packets between its rings and the wire.
#![forbid(unsafe_code)]

use super::registers::*;
use crate::vfio::intel::filters::ADDRESS_VALID;
use crate::vfio::intel::mdic::MDIC;
use crate::vfio::intel::model::{ModelRing, Sent};
use crate::vfio::intel::rss::{KEY_BYTES, RETA, RSSRK};
use crate::vfio::model::{ModelIommu, ModelMsix};
use crate::vfio::registers::RegisterSpace;
use std::collections::HashMap;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// The address in its EEPROM.
pub(super) const MAC: [u8; 6] = [0x02, 0x1B, 0x21, 0x00, 0x05, 0x76];
/// Extended interrupt cause (8.8.1), a bit for each vector.
const EICR: usize = 0x1580;
const MPC: usize = 0x4010;
const GPRC: usize = 0x4074;
const GPTC: usize = 0x4080;
const STATISTICS: std::ops::Range<usize> = 0x4000..0x4100;

/// What a test can do to it.
#[derive(Default)]
struct State {
    registers: HashMap<usize, u32>,
    contexts: HashMap<usize, Option<[u64; 2]>>,
    /// All registers read all ones.
    unplugged: bool,
    /// It sends nothing.
    hung: bool,
    /// It does not come out of reset.
    stuck: bool,
    /// Values that registers have, whatever is written.
    forced: HashMap<usize, u32>,
    resets: u32,
    /// The firmware has the PHY.
    firmware: bool,
    /// Somebody else takes SMBI with the next write to MDIC, and keeps it.
    smbi_goes: bool,
    /// What a driver must not do, and did.
    breaches: Vec<&'static str>,
}

/// The device.
pub(super) struct Model {
    state: Mutex<State>,
    iommu: ModelIommu,
    pub(super) msix: ModelMsix,
    master: Mutex<Option<Arc<AtomicBool>>>,
}

impl State {
    fn get(&self, offset: usize) -> u32 {
        self.registers.get(&offset).copied().unwrap_or(0)
    }

    fn add(&mut self, offset: usize, count: u32) {
        *self.registers.entry(offset).or_default() += count;
    }

    fn reset(&mut self) {
        // Semaphores are the chip's, and not the port's.
        let kept = [SWSM, SW_FW_SYNC].map(|register| (register, self.get(register)));
        self.registers.clear();
        self.registers.extend(kept);
        self.contexts.clear();
        self.resets += 1;
        let [a, b, c, d, e, f] = MAC;
        let defaults = [
            (STATUS, STATUS_GIO_MASTER_ENABLE | 0b10 << STATUS_SPEED_SHIFT),
            (EEC, EEC_AUTO_RD),
            (RAL, u32::from_le_bytes([a, b, c, d])),
            (RAL + 4, u32::from_le_bytes([e, f, 0, 0]) | ADDRESS_VALID),
            (RXCSUM, RXCSUM_IPOFLD | RXCSUM_TUOFLD),
            (rxdctl(0), QUEUE_ENABLE | 1 << 16),
            (txdctl(0), QUEUE_ENABLE),
            (RLPML, 0x2600),
        ];
        self.registers.extend(defaults);
    }

    fn ring(&self, base: usize, head: u32) -> ModelRing {
        let address = u64::from(self.get(base)) | u64::from(self.get(base + 4)) << 32;
        ModelRing { base: address, size: self.get(base + 8) / 16, head }
    }

    /// By which the queue is chosen: Toeplitz over addresses, and ports where it is TCP.
    fn rss_queue(&self, bytes: &[u8]) -> usize {
        let mrqc = self.get(MRQC);
        if mrqc & 0b111 != MRQC_RSS || self.get(RXCSUM) & RXCSUM_PCSD == 0 {
            return 0;
        }
        let mut input: Vec<u8> = Vec::new();
        if bytes[12..14] == [8, 0] && mrqc & MRQC_IPV4 != 0 {
            input.extend(&bytes[26..34]);
            if bytes[23] == 6 && mrqc & MRQC_TCP_IPV4 != 0 {
                input.extend(&bytes[34..38]);
            }
        }
        if input.is_empty() {
            return 0;
        }
        let key: Vec<u8> =
            (0..KEY_BYTES).map(|at| self.get(RSSRK + at / 4 * 4).to_le_bytes()[at % 4]).collect();
        let bit = |at: usize| u32::from(key[at / 8] >> (7 - at % 8) & 1);
        let mut hash = 0;
        for at in 0..input.len() * 8 {
            if input[at / 8] >> (7 - at % 8) & 1 != 0 {
                hash ^= (0..32).fold(0, |window, next| window << 1 | bit(at + next));
            }
        }
        let index = (hash & 127) as usize;
        usize::from(self.get(RETA + index / 4 * 4).to_le_bytes()[index % 4] & 15)
    }

    fn accepts(&self, bytes: &[u8]) -> bool {
        let rctl = self.get(RCTL);
        let tagged = bytes[12..14] == [0x81, 0];
        if tagged && rctl & RCTL_VFE != 0 {
            let vlan = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]) & 0xFFF);
            if self.get(VFTA + vlan / 32 * 4) & 1 << (vlan % 32) == 0 {
                return false;
            }
        }
        let ours = || {
            let (low, high) = (self.get(RAL), self.get(RAL + 4));
            let address = [low.to_le_bytes(), (high & 0xFFFF).to_le_bytes()].concat();
            high & ADDRESS_VALID != 0 && address[..6] == bytes[..6]
        };
        match bytes[0] & 1 {
            1 if bytes[..6] == [0xFF; 6] => rctl & RCTL_BAM != 0,
            1 => rctl & RCTL_MPE != 0,
            _ => rctl & RCTL_UPE != 0 || ours(),
        }
    }
}

impl Model {
    pub(super) fn new(iommu: &ModelIommu) -> Arc<Self> {
        let model = Self {
            state: Mutex::default(),
            iommu: iommu.clone(),
            msix: ModelMsix::default(),
            master: Mutex::default(),
        };
        model.state().reset();
        Arc::new(model)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Where it sees whether it may access memory.
    pub(super) fn set_master(&self, master: &Arc<AtomicBool>) {
        *self.master.lock().unwrap() = Some(Arc::clone(master));
    }

    fn may_access(&self) -> bool {
        let master = self.master.lock().unwrap();
        let state = self.state();
        !state.unplugged && master.as_ref().is_some_and(|master| master.load(Ordering::Acquire))
    }

    pub(super) fn unplug(&self) {
        self.state().unplugged = true;
    }

    pub(super) fn hang(&self, hung: bool) {
        self.state().hung = hung;
    }

    pub(super) fn stick(&self) {
        self.state().stuck = true;
    }

    pub(super) fn force(&self, offset: usize, value: u32) {
        self.state().forced.insert(offset, value);
    }

    /// Packets that found no room.
    pub(super) fn miss(&self, count: u32) {
        self.state().add(MPC, count);
    }

    /// Somebody else has the semaphore between ports, or no more.
    pub(super) fn keep_smbi(&self, kept: bool) {
        self.state().registers.insert(SWSM, kept.into());
    }

    /// Somebody else will have it once MDIC is written.
    pub(super) fn keep_smbi_from_mdic(&self) {
        self.state().smbi_goes = true;
    }

    pub(super) fn keep_phy(&self, kept: bool) {
        self.state().firmware = kept;
    }

    /// What the driver did wrong, and the semaphores that it still has.
    pub(super) fn breaches(&self) -> (Vec<&'static str>, [u32; 2]) {
        let state = self.state();
        (state.breaches.clone(), [SWSM, SW_FW_SYNC].map(|register| state.get(register)))
    }

    pub(super) fn resets(&self) -> u32 {
        self.state().resets
    }

    pub(super) fn set_link(&self, up: bool) {
        self.change_link(&mut self.state(), up);
    }

    fn change_link(&self, state: &mut State, up: bool) {
        let before = state.get(STATUS);
        let after = before & !STATUS_LU | if up { STATUS_LU } else { 0 };
        state.registers.insert(STATUS, after);
        if before != after {
            self.cause(state, ICR_LSC);
        }
    }

    /// Another cause than a queue (7.3.1, 7.3.2): by IMS, IVAR_MISC and EIMS to a message, once until it is cleared.
    fn cause(&self, state: &mut State, cause: u32) {
        let new = cause & !state.get(ICR) & state.get(IMS);
        let icr = state.get(ICR) | cause;
        state.registers.insert(ICR, icr);
        let allocated = state.get(IVAR_MISC) >> 8 & 0xFF;
        if new == 0 || state.get(GPIE) & GPIE_MULTIPLE_MSIX == 0 || allocated & 0x80 == 0 {
            return;
        }
        let vector = allocated & 0x1F;
        let pending = state.get(EICR) | 1 << vector;
        let may_access = self.master.lock().unwrap().as_ref().is_some_and(|on| on.load(Ordering::Acquire));
        if state.get(EICR) & 1 << vector != 0 || state.get(EIMS) & 1 << vector == 0 || !may_access {
            state.registers.insert(EICR, pending);
            return;
        }
        self.msix.send(vector as usize);
        state.registers.insert(EICR, pending & !state.get(EIAC));
    }

    /// What a register has, without a side effect.
    pub(super) fn peek(&self, offset: usize) -> u32 {
        self.state().get(offset)
    }

    /// A packet comes in by the wire; the queue it went to, if it did.
    pub(super) fn receive(&self, bytes: &[u8], flags: u64) -> Option<usize> {
        let may_access = self.may_access();
        let mut state = self.state();
        let on = state.get(STATUS) & STATUS_LU != 0 && state.get(RCTL) & RCTL_RXEN != 0;
        let most = if state.get(RCTL) & RCTL_LPE != 0 { state.get(RLPML) as usize } else { 1522 };
        if !on || !may_access || bytes.len() + 4 > most || !state.accepts(bytes) {
            return None;
        }
        let queue = state.rss_queue(bytes);
        let (control, head) = (state.get(srrctl(queue)), state.get(rdh(queue)));
        assert_eq!(control & 0b111 << 25, SRRCTL_ADVANCED);
        let buffer_bytes = (control & 0x7F) as usize * 1024;
        assert!(buffer_bytes > 0);
        let mut ring = state.ring(rdbal(queue), head);
        let enabled = state.get(rxdctl(queue)) & QUEUE_ENABLE != 0;
        let tail = state.get(rdt(queue));
        if !enabled || !ring.receive(&self.iommu, tail, bytes, buffer_bytes, flags) {
            let lost = if control & SRRCTL_DROP_EN != 0 { rqdpc(queue) } else { MPC };
            state.add(lost, 1);
            return None;
        }
        state.registers.insert(rdh(queue), ring.head);
        state.add(GPRC, 1);
        Some(queue)
    }

    /// What goes out by the wire now: with the queue it came from.
    pub(super) fn send(&self, most: usize) -> Vec<(usize, Sent)> {
        let may_access = self.may_access();
        let mut state = self.state();
        let mut all = Vec::new();
        if state.hung || !may_access || state.get(TCTL) & TCTL_EN == 0 {
            return all;
        }
        for queue in 0..usize::from(QUEUES) {
            if state.get(txdctl(queue)) & QUEUE_ENABLE == 0 || state.get(tdlen(queue)) == 0 {
                continue;
            }
            let mut ring = state.ring(tdbal(queue), state.get(tdh(queue)));
            let tail = state.get(tdt(queue));
            let mut context = state.contexts.remove(&queue).flatten();
            let sent = ring.send(&self.iommu, tail, most, &mut context);
            state.contexts.insert(queue, context);
            state.registers.insert(tdh(queue), ring.head);
            state.add(GPTC, sent.len() as u32);
            all.extend(sent.into_iter().map(|sent| (queue, sent)));
        }
        all
    }
}

impl RegisterSpace for Model {
    fn length(&self) -> usize {
        REGISTERS_BYTES
    }
    fn read8(&self, offset: usize) -> u8 {
        self.read32(offset & !3).to_le_bytes()[offset % 4]
    }
    fn read16(&self, offset: usize) -> u16 {
        (self.read32(offset & !3) >> (offset % 4 * 8)) as u16
    }

    fn read32(&self, offset: usize) -> u32 {
        let mut state = self.state();
        if state.unplugged || offset >= REGISTERS_BYTES {
            return u32::MAX;
        }
        if let Some(forced) = state.forced.get(&offset) {
            return *forced;
        }
        let value = state.get(offset);
        match offset {
            SWSM => drop(state.registers.insert(SWSM, value | SWSM_SMBI)),
            SW_FW_SYNC if state.firmware => return value | 1 << 17,
            _ => {}
        }
        if offset == ICR && (state.get(GPIE) & GPIE_NSICR != 0 || state.get(IMS) == 0) {
            state.registers.insert(ICR, 0);
        }
        let clears =
            STATISTICS.contains(&offset) || (0xC000..0xC400).contains(&offset) && offset % 0x40 == 0x30;
        if clears {
            state.registers.insert(offset, 0);
        }
        value
    }

    fn write8(&self, _offset: usize, _value: u8) {}
    fn write16(&self, _offset: usize, _value: u16) {}

    fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state();
        if state.unplugged || offset >= REGISTERS_BYTES {
            return;
        }
        match offset {
            CTRL if value & CTRL_RST != 0 => {
                state.reset();
                if state.stuck {
                    state.registers.insert(CTRL, CTRL_RST);
                }
            }
            CTRL => {
                let enabled = if value & CTRL_GIO_MASTER_DISABLE != 0 { 0 } else { STATUS_GIO_MASTER_ENABLE };
                let status = state.get(STATUS) & !STATUS_GIO_MASTER_ENABLE | enabled;
                state.registers.extend([(CTRL, value), (STATUS, status)]);
            }
            STATUS => {}
            SW_FW_SYNC => {
                if state.get(SWSM) & (SWSM_SMBI | SWSM_SWESMBI) != SWSM_SMBI | SWSM_SWESMBI {
                    state.breaches.push("SW_FW_SYNC without its guards");
                }
                let firmware = state.firmware && value & 1 << 1 != 0;
                if firmware {
                    state.breaches.push("the firmware's PHY");
                }
                state.registers.insert(SW_FW_SYNC, value & 0xFFFF);
            }
            MDIC => {
                if mem::take(&mut state.smbi_goes) {
                    state.registers.insert(SWSM, SWSM_SMBI);
                }
                if state.get(SW_FW_SYNC) & 1 << 1 == 0 {
                    state.breaches.push("MDIC without the PHY's semaphore");
                }
                // PHY 1's register 0 with autonegotiation restarted: there is a link.
                let restarted = value >> 26 & 3 == 1 && value >> 16 & 31 == 0 && value & 1 << 9 != 0;
                if restarted && state.get(CTRL) & CTRL_SLU != 0 {
                    self.change_link(&mut state, true);
                }
                let wrong = if value >> 21 & 31 == 1 { 0 } else { 1 << 30 };
                state.registers.insert(MDIC, value & !0xFFFF | 0x1140 | 1 << 28 | wrong);
            }
            // Setting and clearing bits of a mask is done in two places.
            IMS | EIMS => {
                let mask = state.get(offset) | value;
                state.registers.insert(offset, mask);
            }
            IMC | EIMC => {
                let mask = if offset == IMC { IMS } else { EIMS };
                let left = state.get(mask) & !value;
                state.registers.insert(mask, left);
            }
            _ => drop(state.registers.insert(offset, value)),
        }
    }
}
