//! What the control side needs of an 82576.
#![forbid(unsafe_code)]

use super::registers::*;
use super::semaphore::{Patience, PhyAccess};
use super::setup::{self, Settings};
use crate::counters::{DropReason, QueueCounters};
use crate::vfio::intel::gigabit::{GigabitChip, GigabitNic};
use crate::vfio::intel::statistics::Statistic;
use crate::vfio::nic::NicError;
use crate::vfio::registers::Registers;
use std::sync::Arc;
use std::time::Duration;

/// Statistics (82576 datasheet 8.19), all of which reading clears.
const STATISTICS: &[Statistic] = &[
    Statistic::new("crcerrs", 0x4000),
    Statistic::new("algnerrc", 0x4004),
    Statistic::new("rxerrc", 0x400C),
    Statistic::new("mpc", 0x4010),
    Statistic::new("rlec", 0x4040),
    Statistic::new("xonrxc", 0x4048),
    Statistic::new("xoffrxc", 0x4050),
    Statistic::new("gprc", 0x4074),
    Statistic::new("bprc", 0x4078),
    Statistic::new("mprc", 0x407C),
    Statistic::new("gptc", 0x4080),
    Statistic::wide("gorc", 0x4088),
    Statistic::wide("gotc", 0x4090),
    Statistic::new("rnbc", 0x40A0),
    Statistic::new("ruc", 0x40A4),
    Statistic::new("rfc", 0x40A8),
    Statistic::new("roc", 0x40AC),
    Statistic::new("rjc", 0x40B0),
    Statistic::new("tpr", 0x40D0),
    Statistic::new("tpt", 0x40D4),
];

/// An open 82576.
pub(super) type IgbNic = GigabitNic<Igb>;

/// Its registers, and what is to be in them.
pub(super) struct Igb {
    pub(super) registers: Registers,
    pub(super) settings: Settings,
    pub(super) phy: PhyAccess,
}

impl GigabitChip for Igb {
    const STATISTICS: &'static [Statistic] = STATISTICS;

    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn transmit_queue(&self, queue: usize) -> [usize; 2] {
        [tdh(queue), tdt(queue)]
    }

    /// Packets that a queue had no descriptor for: the register has only 12 bits.
    fn count_queues(&self, rx: &[Arc<QueueCounters>]) {
        for (queue, counters) in rx.iter().enumerate() {
            let dropped = self.registers.read32(rqdpc(queue));
            if dropped != u32::MAX {
                counters.drops(DropReason::RxRingFull).add((dropped & RQDPC_MASK).into());
            }
        }
    }

    fn acknowledge(&self) {
        self.registers.read32(ICR);
    }

    fn tidy(&self) {
        self.phy.give_back(Patience::SHORT);
    }

    fn silence(&mut self) {
        self.settings.interrupt = false;
        setup::mask_interrupts(&self.registers);
    }

    fn quiesce(&self) {
        setup::quiesce(&self.registers);
    }

    fn start_reset(&self) {
        setup::start_reset(&self.registers);
    }

    fn has_come_back(&self, since: Duration) -> bool {
        setup::has_come_back(&self.registers, since)
    }

    fn set_up(&self) -> Result<(), NicError> {
        setup::mask_interrupts(&self.registers);
        setup::configure(&self.registers, &self.settings, &self.phy, Patience::SHORT)
    }

    fn close(&self) {
        setup::stop(&self.registers);
        setup::mask_interrupts(&self.registers);
        // The firmware has the device for itself again.
        let extended = self.registers.read32(CTRL_EXT);
        self.registers.write32(CTRL_EXT, extended & !CTRL_EXT_DRV_LOAD);
    }
}
