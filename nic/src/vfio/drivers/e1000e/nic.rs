//! The control side: link, statistics, and the way back from a hang.
#![forbid(unsafe_code)]

use super::hang::{PATIENCE, Watch};
use super::registers::*;
use super::setup::Setup;
use super::statistics::{MPC, ROC, Statistics};
use super::{phy, reset};
use crate::counters::{DropReason, QueueCounters};
use crate::port::{LinkState, MacAddress};
use crate::vfio::intel::tx::Carrier;
use crate::vfio::nic::{Halt, Nic};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    pub(super) name: String,
    pub(super) chip_name: &'static str,
    /// Of the first receive queue: what the device drops is nobody's in particular.
    pub(super) counters: Arc<QueueCounters>,
    /// How long a transmit queue may stand.
    pub(super) patience: Duration,
    state: State,
    watches: Vec<Watch>,
    statistics: Statistics,
    resets: u64,
}

/// What [`E1000eNic`] is made of.
pub(super) struct Parts {
    pub(super) chip: Chip,
    pub(super) halt: Arc<Halt>,
    pub(super) carrier: Arc<Carrier>,
    pub(super) setup: Setup,
    pub(super) name: String,
    pub(super) chip_name: &'static str,
    pub(super) counters: Arc<QueueCounters>,
}

impl E1000eNic {
    /// For a device that runs.
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { chip, halt, carrier, setup, name, chip_name, counters } = parts;
        let watches = setup.tx.iter().map(|_| Watch::default()).collect();
        Self {
            chip,
            halt,
            carrier,
            setup,
            name,
            chip_name,
            counters,
            patience: PATIENCE,
            state: State::Running,
            watches,
            statistics: Statistics::default(),
            resets: 0,
        }
    }

    fn is_going(&self) -> bool {
        self.chip.is_gone() || self.halt.function().is_going()
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

    fn read_statistics(&mut self) {
        // From a copy: of a device that goes meanwhile nothing is believed.
        let mut statistics = self.statistics.clone();
        if !statistics.read(&self.chip) {
            return;
        }
        self.statistics = statistics;
        self.counters.drops(DropReason::RxMissed).set(self.statistics.get(MPC));
        self.counters.drops(DropReason::RxDropped).set(self.statistics.get(ROC));
    }

    /// The first transmit queue that stands still; all are looked at.
    fn hung(&mut self, now: Instant) -> Option<usize> {
        let mut hung = None;
        for (queue, watch) in self.watches.iter_mut().enumerate() {
            let (head, tail) = (self.chip.read(tdh(queue)), self.chip.read(tdt(queue)));
            if watch.look(head, tail, now, self.patience) && hung.is_none() {
                hung = Some(queue);
            }
        }
        hung
    }

    fn run(&mut self) {
        self.read_statistics();
        if phy::link(self.chip.read(STATUS)) == LinkState::Down {
            // Without a link nothing is sent, and nothing hangs.
            self.carrier.set(false);
            return self.watches.iter_mut().for_each(Watch::forget);
        }
        self.carrier.set(true);
        let Some(queue) = self.hung(Instant::now()) else { return };
        tracing::warn!(
            port = self.name,
            queue,
            tdh = self.chip.read(tdh(queue)),
            tdt = self.chip.read(tdt(queue)),
            "the device sends nothing any more: it is reset"
        );
        self.carrier.set(false);
        reset::quiesce(&self.chip);
        self.halt.function().set_bus_master(false);
        self.halt.gates.iter().for_each(|gate| gate.ask());
        self.state = State::Stopped;
    }

    fn finish_reset(&mut self, since: Instant) {
        if reset::has_ended(&self.chip) {
            reset::mask_interrupts(&self.chip);
            self.halt.function().set_bus_master(true);
            self.setup.apply(&self.chip);
            self.watches.iter_mut().for_each(Watch::forget);
            self.halt.gates.iter().for_each(|gate| gate.open());
            self.resets += 1;
            self.state = State::Running;
            tracing::info!(port = self.name, "the device runs again");
        } else if since.elapsed() > RESET_LIMIT {
            tracing::warn!(port = self.name, "the device does not come out of its reset");
            self.give_up("it did not come out of a reset");
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
        format!("{}, {queues}{checksum}, {}", self.chip_name, super::LABEL)
    }

    fn mac(&self) -> MacAddress {
        self.setup.mac
    }

    fn link(&mut self) -> LinkState {
        let link = match &self.state {
            State::Gone(why) => return LinkState::Gone(why.clone()),
            State::Running => phy::link(self.chip.read(STATUS)),
            State::Stopped | State::Resetting(_) => LinkState::Down,
        };
        if let LinkState::Gone(why) = &link {
            self.give_up(&why.clone());
        }
        self.carrier.set(matches!(link, LinkState::Up { .. }));
        link
    }

    fn refresh(&mut self) {
        if matches!(self.state, State::Gone(_)) || self.halt.is_halted() {
            return;
        }
        if self.is_going() {
            return self.give_up("all registers read as ones: it was unplugged, or has lost its power");
        }
        match mem::replace(&mut self.state, State::Running) {
            State::Running => self.run(),
            State::Stopped if self.halt.gates.iter().all(|gate| gate.is_ready()) => {
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

    fn extra_counters(&self) -> Vec<(String, u64)> {
        let mut counters = self.statistics.all();
        counters.push(("resets".into(), self.resets));
        counters
    }
}

impl Drop for E1000eNic {
    fn drop(&mut self) {
        self.halt.halt();
        if !self.chip.is_gone() {
            reset::quiesce(&self.chip);
            self.chip.modify(CTRL_EXT, ctrl_ext::DRV_LOAD, 0);
        }
    }
}
