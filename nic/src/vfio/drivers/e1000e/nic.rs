//! The control side: link, statistics, and the way back from a hang.
#![forbid(unsafe_code)]

use super::registers::*;
use super::setup::{self, Setup};
use super::{phy, reset};
use crate::counters::{DropReason, QueueCounters};
use crate::port::{LinkState, MacAddress};
use crate::vfio::intel::hang::HangDetector;
use crate::vfio::intel::statistics::{Statistic, Statistics};
use crate::vfio::intel::tx::Carrier;
use crate::vfio::interrupt::LinkInterrupt;
use crate::vfio::nic::{Halt, NEVER_RUN_ON_SILICON, Nic};
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Statistics (10.2.7), all of which reading clears.
static STATISTICS: &[Statistic] = &[
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

/// A reset that takes longer has failed.
const RESET_LIMIT: Duration = Duration::from_secs(5);

/// Where a recovery stands. Each step is taken by a call of [`Nic::refresh`], and none waits.
enum State {
    /// All is well.
    Running,
    /// The device is stopped, and the queues are rebuilding their rings.
    Stopped,
    /// The reset has been begun.
    Resetting(Instant),
    /// It answers no more; why.
    Gone(String),
}

/// An open 82574.
pub(super) struct E1000eNic {
    pub(super) chip: Chip,
    pub(super) halt: Arc<Halt>,
    pub(super) carrier: Arc<Carrier>,
    pub(super) setup: Setup,
    interrupt: LinkInterrupt,
    pub(super) name: String,
    pub(super) chip_name: &'static str,
    /// Of the first receive queue: what the device drops is nobody's in particular.
    pub(super) counters: Arc<QueueCounters>,
    hang: HangDetector,
    state: State,
    /// There has been a link: until then what is to be sent waits for it.
    had_link: bool,
    statistics: Statistics,
    resets: u64,
}

/// What [`E1000eNic`] is made of.
pub(super) struct Parts {
    pub(super) chip: Chip,
    pub(super) halt: Arc<Halt>,
    pub(super) carrier: Arc<Carrier>,
    pub(super) setup: Setup,
    pub(super) interrupt: LinkInterrupt,
    pub(super) name: String,
    pub(super) chip_name: &'static str,
    pub(super) counters: Arc<QueueCounters>,
    /// Of the transmit queues.
    pub(super) tx: Vec<Arc<QueueCounters>>,
}

impl E1000eNic {
    /// For a device that runs.
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { chip, halt, carrier, setup, interrupt, name, chip_name, counters, tx } = parts;
        let mut statistics = Statistics::new(STATISTICS);
        statistics.forget(&*chip.0);
        carrier.set(true);
        Self {
            chip,
            halt,
            carrier,
            hang: HangDetector::new(tx),
            setup,
            interrupt,
            name,
            chip_name,
            counters,
            state: State::Running,
            had_link: false,
            statistics,
            resets: 0,
        }
    }

    fn is_going(&self) -> bool {
        self.chip.is_gone() || self.halt.function().is_going()
    }

    /// For tests: a hang is seen at the second look.
    #[cfg(test)]
    pub(super) fn impatient(&mut self) {
        self.hang.impatient();
    }

    /// For tests: the time that a reset may take is over.
    #[cfg(test)]
    pub(super) fn expire(&mut self) {
        if let State::Resetting(since) = &mut self.state {
            *since = since.checked_sub(2 * RESET_LIMIT).unwrap_or(*since);
        }
    }

    /// Nothing more will come of it.
    fn give_up(&mut self, why: &str) {
        self.carrier.set(false);
        self.state = State::Gone(why.into());
    }

    fn count(&mut self) {
        self.statistics.read(&*self.chip.0);
        // Which queue they would have gone to, it does not say.
        self.counters.drops(DropReason::RxMissed).set(self.statistics.get("mpc"));
        self.counters.drops(DropReason::RxDropped).set(self.statistics.get("roc"));
    }

    /// Says whether there is a link.
    fn set_carrier(&mut self, up: bool) {
        self.had_link |= up;
        self.carrier.set(up || !self.had_link);
    }

    fn run(&mut self) {
        self.count();
        if self.interrupt.is_on() {
            setup::unmask_link(&self.chip);
        }
        let up = matches!(phy::link(self.chip.read(STATUS)), LinkState::Up { .. });
        self.set_carrier(up);
        let mut hung = None;
        for queue in 0..self.setup.tx.len() {
            let (head, tail) = (self.chip.read(tdh(queue)), self.chip.read(tdt(queue)));
            if self.hang.look(queue, head, tail, up) {
                hung = Some((queue, head, tail));
            }
        }
        let Some((queue, tdh, tdt)) = hung else { return };
        tracing::warn!(
            "{}: transmit queue {queue} hangs at descriptor {tdh} of up to {tdt}: the device is reset",
            self.name
        );
        self.carrier.set(false);
        reset::quiesce(&self.chip);
        self.halt.pause();
        self.halt.ask();
        self.state = State::Stopped;
    }

    fn finish_reset(&mut self, since: Instant) {
        if reset::has_ended(&self.chip) {
            reset::mask_interrupts(&self.chip);
            if !self.halt.resume() {
                return;
            }
            self.setup.apply(&self.chip);
            self.statistics.forget(&*self.chip.0);
            self.hang.restart();
            self.had_link = false;
            self.carrier.set(true);
            self.halt.gates.iter().for_each(|gate| gate.open());
            self.resets += 1;
            self.state = State::Running;
            tracing::info!("{}: the device goes on", self.name);
        } else if since.elapsed() > RESET_LIMIT {
            self.give_up("it hung, and did not come out of its reset");
        }
    }
}

impl Nic for E1000eNic {
    fn mode(&self) -> String {
        let queues = match self.setup.rx.len() {
            1 => "1 queue".into(),
            count => format!("{count} queues, RSS"),
        };
        let checksum = if self.setup.checksum { ", checksum offload" } else { "" };
        format!("{}, {queues}{checksum}, {}", self.chip_name, NEVER_RUN_ON_SILICON)
    }

    fn mac(&self) -> MacAddress {
        self.setup.mac
    }

    fn link(&mut self) -> LinkState {
        let link = match &self.state {
            State::Gone(why) => return LinkState::Gone(why.clone()),
            State::Running => {
                if self.interrupt.is_on() {
                    setup::acknowledge_link(&self.chip);
                }
                phy::link(self.chip.read(STATUS))
            }
            State::Stopped | State::Resetting(_) => LinkState::Down,
        };
        match &link {
            LinkState::Gone(why) => self.give_up(&why.clone()),
            LinkState::Up { .. } => self.set_carrier(true),
            LinkState::Down if matches!(self.state, State::Running) => self.set_carrier(false),
            LinkState::Down => {}
        }
        link
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.interrupt.events()
    }

    fn refresh(&mut self) {
        if matches!(self.state, State::Gone(_)) {
            return;
        }
        if self.is_going() {
            return self.give_up("all registers read as ones: it was unplugged, or has lost its power");
        }
        if self.halt.is_halted() {
            return self.count();
        }
        match mem::replace(&mut self.state, State::Running) {
            State::Running => self.run(),
            State::Stopped if self.halt.asked_in_vain() => {
                self.give_up("it hung, and a worker does not come round for its reset");
            }
            State::Stopped if self.halt.is_ready() => {
                reset::start(&self.chip);
                self.state = State::Resetting(Instant::now());
            }
            State::Resetting(since) => {
                self.state = State::Resetting(since);
                self.finish_reset(since);
            }
            other => self.state = other,
        }
    }

    fn refresh_drops(&mut self) {
        if matches!(self.state, State::Running) && !self.chip.is_gone() {
            self.statistics.read_one(&*self.chip.0, "mpc");
            self.counters.drops(DropReason::RxMissed).set(self.statistics.get("mpc"));
        }
    }

    fn extra_counters(&self) -> Vec<(String, u64)> {
        let mut counters = self.statistics.all();
        counters.push(("hang_recoveries".into(), self.resets));
        counters
    }
}

impl Drop for E1000eNic {
    fn drop(&mut self) {
        self.halt.halt();
        if !self.chip.is_gone() {
            reset::quiesce(&self.chip);
            // The firmware has the PHY and the link for itself again.
            self.chip.modify(EXTCNF_CTRL, extcnf_ctrl::MDIO_SW_OWNERSHIP, 0);
            self.chip.modify(CTRL_EXT, ctrl_ext::DRV_LOAD, 0);
        }
    }
}
