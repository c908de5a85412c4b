//! The control side: link, statistics, and the way out of a hang.
#![forbid(unsafe_code)]

use super::registers::*;
use super::setup::{self, Settings};
use crate::counters::{DropReason, QueueCounters};
use crate::port::{LinkState, MacAddress};
use crate::vfio::intel::hang::{HangDetector, Recovery};
use crate::vfio::intel::statistics::{Statistic, Statistics};
use crate::vfio::intel::tx::Carrier;
use crate::vfio::interrupt::LinkInterrupt;
use crate::vfio::nic::{Halt, NEVER_RUN_ON_SILICON, Nic, NicError};
use crate::vfio::registers::Registers;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Statistics (82576 datasheet 8.19), all of which reading clears.
static STATISTICS: &[Statistic] = &[
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
pub(super) struct Igb {
    /// The port's name.
    name: String,
    chip: &'static str,
    registers: Registers,
    halt: Arc<Halt>,
    carrier: Arc<Carrier>,
    settings: Settings,
    interrupt: LinkInterrupt,
    rx: Vec<Arc<QueueCounters>>,
    statistics: Statistics,
    hang: HangDetector,
    recovery: Recovery,
    recoveries: u64,
    /// There has been a link: until then what is to be sent waits for it.
    had_link: bool,
}

impl Igb {
    pub(super) fn new(
        name: &str,
        chip: &'static str,
        registers: Registers,
        halt: Arc<Halt>,
        carrier: Arc<Carrier>,
        settings: Settings,
        interrupt: LinkInterrupt,
        [rx, tx]: [Vec<Arc<QueueCounters>>; 2],
    ) -> Self {
        let mut statistics = Statistics::new(STATISTICS);
        statistics.forget(&*registers);
        Self {
            name: name.to_owned(),
            chip,
            registers,
            halt,
            carrier,
            hang: HangDetector::new(tx),
            settings,
            interrupt,
            rx,
            statistics,
            recovery: Recovery::Running,
            recoveries: 0,
            had_link: false,
        }
    }

    /// For tests: a hang is seen at the second look.
    #[cfg(test)]
    pub(super) fn impatient(mut self) -> Self {
        self.hang.impatient();
        self
    }

    /// STATUS; `None` where the device is gone.
    fn status(&self) -> Option<u32> {
        Some(self.registers.read32(STATUS)).filter(|status| *status != u32::MAX)
    }

    /// What it counted itself.
    fn count(&mut self) {
        self.statistics.read(&*self.registers);
        if let Some(first) = self.rx.first() {
            // Which queue they would have gone to, it does not say.
            first.drops(DropReason::RxMissed).set(self.statistics.get("mpc"));
            first.drops(DropReason::RxDropped).set(self.statistics.get("roc"));
        }
        self.count_queues();
    }

    /// Packets that a queue had no descriptor for: the register has only 12 bits.
    fn count_queues(&self) {
        for (queue, counters) in self.rx.iter().enumerate() {
            let dropped = self.registers.read32(rqdpc(queue));
            if dropped != u32::MAX {
                counters.drops(DropReason::RxRingFull).add((dropped & RQDPC_MASK).into());
            }
        }
    }

    /// Looks for a queue that hangs.
    fn watch(&mut self, status: u32) {
        let may_send = status & STATUS_LU != 0 && status & STATUS_TXOFF == 0;
        let mut hung = None;
        for queue in 0..self.settings.tx.len() {
            let (head, tail) = (self.registers.read32(tdh(queue)), self.registers.read32(tdt(queue)));
            if head != u32::MAX && self.hang.look(queue, head, tail, may_send) {
                hung = Some((queue, head, tail));
            }
        }
        if let Some((queue, head, tail)) = hung {
            tracing::warn!(
                "{}: transmit queue {queue} hangs at descriptor {head} of up to {tail}: the device is reset",
                self.name
            );
            self.carrier.set(false);
            setup::stop(&self.registers);
            self.halt.pause();
            self.recovery = Recovery::begin(&self.halt);
        }
    }

    /// All queues have rebuilt their rings.
    fn recover(&mut self) {
        let outcome = setup::reset(&self.registers).and_then(|()| {
            if !self.halt.resume() {
                return Err(NicError::Device("it is being closed".to_owned()));
            }
            setup::configure(&self.registers, &self.settings)
        });
        match outcome {
            Ok(()) => {
                tracing::info!("{}: the device goes on", self.name);
                self.hang.restart();
                self.recoveries += 1;
                self.had_link = false;
                self.carrier.set(true);
                self.recovery = Recovery::end(&self.halt);
            }
            Err(error) => {
                tracing::error!("{}: the device could not be set up again: {error}", self.name);
                self.halt.pause();
                self.recovery = Recovery::Failed;
            }
        }
    }
}

impl Nic for Igb {
    fn mode(&self) -> String {
        let queues = self.settings.rx.len();
        let rss = if queues > 1 { ", RSS" } else { "" };
        let plural = if queues == 1 { "" } else { "s" };
        format!("{}, {queues} queue{plural}{rss}, {}", self.chip, NEVER_RUN_ON_SILICON)
    }

    fn mac(&self) -> MacAddress {
        self.settings.mac
    }

    fn link(&mut self) -> LinkState {
        if self.interrupt.is_on() && self.recovery == Recovery::Running {
            // In front of the look at the link: what changes behind it interrupts again.
            self.registers.read32(ICR);
        }
        let gone = match self.status() {
            None => "its registers read all ones: it was unplugged, or its link to the machine is broken",
            Some(_) if self.recovery == Recovery::Failed => "it hung, and could not be set up again",
            Some(status) => {
                let up = status & STATUS_LU != 0 && self.recovery == Recovery::Running;
                self.had_link |= up;
                if self.recovery == Recovery::Running {
                    self.carrier.set(up || !self.had_link);
                }
                let speed = match status >> STATUS_SPEED_SHIFT & 0b11 {
                    0b00 => 10,
                    0b01 => 100,
                    _ => 1000,
                };
                return if up { LinkState::Up { speed_mbps: Some(speed) } } else { LinkState::Down };
            }
        };
        self.carrier.set(false);
        LinkState::Gone(gone.to_owned())
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.interrupt.events()
    }

    fn refresh(&mut self) {
        let Some(status) = self.status() else { return };
        if self.halt.is_halted() {
            return self.count();
        }
        match self.recovery {
            Recovery::Running => {
                self.count();
                self.watch(status);
            }
            recovery if recovery.is_due(&self.halt) => self.recover(),
            Recovery::Waiting if self.halt.asked_in_vain() => {
                tracing::error!("{}: a worker does not come round for the reset", self.name);
                self.recovery = Recovery::Failed;
            }
            _ => {}
        }
    }

    fn refresh_drops(&mut self) {
        if self.status().is_some() && self.recovery == Recovery::Running {
            self.statistics.read_one(&*self.registers, "mpc");
            if let Some(first) = self.rx.first() {
                first.drops(DropReason::RxMissed).set(self.statistics.get("mpc"));
            }
            self.count_queues();
        }
    }

    fn extra_counters(&self) -> Vec<(String, u64)> {
        let mut counters = self.statistics.all();
        counters.push(("hang_recoveries".into(), self.recoveries));
        counters
    }
}

impl Drop for Igb {
    fn drop(&mut self) {
        self.halt.halt();
        setup::stop(&self.registers);
        setup::mask_interrupts(&self.registers);
    }
}
