//! What the control side needs of an 82574.
#![forbid(unsafe_code)]

use super::registers::*;
use super::reset;
use super::setup::{self, Setup};
use crate::vfio::intel::gigabit::{GigabitChip, GigabitNic};
use crate::vfio::intel::statistics::Statistic;
use crate::vfio::nic::NicError;
use crate::vfio::registers::Registers;
use std::time::Duration;

/// Statistics (10.2.7), all of which reading clears.
const STATISTICS: &[Statistic] = &[
    Statistic::new("crcerrs", 0x4000),
    Statistic::new("algnerrc", 0x4004),
    Statistic::new("rxerrc", 0x400C),
    Statistic::new("mpc", 0x4010),
    Statistic::new("ecol", 0x4018),
    Statistic::new("latecol", 0x4020),
    Statistic::new("tncrs", 0x4034),
    Statistic::new("cexterr", 0x403C),
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
    Statistic::new("mgtpdc", 0x40B8),
    Statistic::new("tpr", 0x40D0),
    Statistic::new("tpt", 0x40D4),
];

/// An open 82574.
pub(super) type E1000eNic = GigabitNic<E1000e>;

/// Its registers, and what is to be in them.
pub(super) struct E1000e {
    pub(super) chip: Chip,
    pub(super) setup: Setup,
}

impl GigabitChip for E1000e {
    const STATISTICS: &'static [Statistic] = STATISTICS;

    fn registers(&self) -> &Registers {
        &self.chip.0
    }

    fn transmit_queue(&self, queue: usize) -> [usize; 2] {
        [tdh(queue), tdt(queue)]
    }

    fn acknowledge(&self) {
        setup::acknowledge_link(&self.chip);
    }

    fn rearm(&self) {
        setup::unmask_link(&self.chip);
    }

    fn silence(&mut self) {
        self.setup.interrupt = false;
        reset::mask_interrupts(&self.chip);
    }

    fn quiesce(&self) {
        reset::quiesce(&self.chip);
    }

    fn start_reset(&self) {
        reset::start(&self.chip);
    }

    fn has_come_back(&self, _since: Duration) -> bool {
        reset::has_ended(&self.chip)
    }

    fn set_up(&self) -> Result<(), NicError> {
        reset::mask_interrupts(&self.chip);
        self.setup.apply(&self.chip);
        Ok(())
    }

    fn close(&self) {
        reset::quiesce(&self.chip);
        // The firmware has the PHY and the link for itself again.
        self.chip.modify(EXTCNF_CTRL, extcnf_ctrl::MDIO_SW_OWNERSHIP, 0);
        self.chip.modify(CTRL_EXT, ctrl_ext::DRV_LOAD, 0);
    }
}
