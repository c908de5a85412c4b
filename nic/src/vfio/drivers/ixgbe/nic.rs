//! The control side of a port: link, statistics, and the way out of a hang.
#![forbid(unsafe_code)]

use super::device::Device;
use super::registers::*;
use super::setup::Setup;
use super::statistics::Statistics;
use super::{link, receive, reset, semaphore};
use crate::counters::{DropReason, QueueCounters};
use crate::port::{LinkState, MacAddress};
use crate::vfio::intel::hang::HangDetector;
use crate::vfio::intel::tx::Carrier;
use crate::vfio::interrupt::LinkInterrupt;
use crate::vfio::nic::{Halt, NEVER_RUN_ON_SILICON, Nic, NicError};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

/// Attempts at one reset, each at another call, until the device counts as lost.
const MOST_ATTEMPTS: u32 = 10;

/// Where the port is. All but the first and the last last for some calls of `refresh` each: nothing is waited for.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// The workers empty and refill their rings; the device cannot reach memory.
    Emptying,
    /// All have: it is to be reset.
    Resetting,
    /// It was reset then, and needs its pause.
    Pausing(Instant),
    /// For good; why.
    Gone(String),
}

/// The control side.
pub(super) struct IxgbeNic {
    pub(super) name: String,
    pub(super) mode: String,
    pub(super) device: Device,
    pub(super) setup: Setup,
    interrupt: LinkInterrupt,
    pub(super) halt: Arc<Halt>,
    pub(super) carrier: Arc<Carrier>,
    pub(super) rx: Vec<Arc<QueueCounters>>,
    statistics: Statistics,
    hang: HangDetector,
    /// There has been a link since the last reset: until then what is to be sent waits for it.
    had_link: bool,
    phase: Phase,
    attempts: u32,
    /// What it had counted before the reset has been read.
    counted: bool,
    recoveries: u64,
}

impl IxgbeNic {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        name: &str,
        device: Device,
        setup: Setup,
        interrupt: LinkInterrupt,
        halt: Arc<Halt>,
        carrier: Arc<Carrier>,
        rx: Vec<Arc<QueueCounters>>,
        tx: Vec<Arc<QueueCounters>>,
    ) -> Self {
        let plural = |count: usize| if count == 1 { "queue" } else { "queues" };
        let rss = if rx.len() > 1 { ", RSS" } else { "" };
        let mode = format!(
            "{}, {} receive {}{rss}, {} transmit {}, {}",
            device.chip.name,
            rx.len(),
            plural(rx.len()),
            setup.tx.len(),
            plural(setup.tx.len()),
            NEVER_RUN_ON_SILICON,
        );
        let hang = HangDetector::new(tx);
        carrier.set(true);
        let name = name.to_owned();
        // Whoever waits now is the control thread.
        device.hurry();
        Self {
            name,
            mode,
            device,
            setup,
            interrupt,
            halt,
            carrier,
            rx,
            statistics: Statistics::default(),
            hang,
            had_link: false,
            phase: Phase::Running,
            attempts: 0,
            counted: false,
            recoveries: 0,
        }
    }

    fn gone(&mut self, why: String) {
        if !matches!(self.phase, Phase::Gone(_)) {
            tracing::error!("{}: {why}", self.name);
            self.carrier.set(false);
            self.phase = Phase::Gone(why);
        }
    }

    fn vanished(&mut self) {
        self.gone("the device answers no more: it was unplugged, or has no power".into());
    }

    /// Puts what the device counts as lost where drops are counted.
    fn publish_drops(&self) {
        for (queue, counters) in self.rx.iter().enumerate() {
            counters.drops(DropReason::RxRingFull).set(self.statistics.dropped(queue));
        }
        if let Some(first) = self.rx.first() {
            // The device does not say for which queue.
            first.drops(DropReason::RxMissed).set(self.statistics.missed());
            first.drops(DropReason::RxDropped).set(self.statistics.oversize());
        }
    }

    /// The first transmit queue that hangs.
    fn hanging(&mut self, may_send: bool) -> Option<usize> {
        let now = self.device.clock.now();
        let (device, hang) = (&self.device, &mut self.hang);
        // All are looked at, whether one hangs or not.
        let look = |queue: &usize| {
            hang.look_at(now, *queue, device.read(TDH(*queue)), device.read(TDT(*queue)), may_send)
        };
        let hanging: Vec<usize> = (0..self.setup.tx.len()).filter(look).collect();
        hanging.first().copied()
    }

    fn recover(&mut self, queue: usize) {
        tracing::warn!("{}: transmit queue {queue} stands still: the device is reset", self.name);
        self.carrier.set(false);
        self.halt.pause();
        self.halt.ask();
        self.attempts = 0;
        self.counted = false;
        self.phase = Phase::Emptying;
    }

    /// Takes the next step of a recovery.
    fn step(&mut self) {
        let next = match self.phase {
            Phase::Emptying if self.halt.is_ready() => Phase::Resetting,
            Phase::Emptying if self.halt.asked_in_vain() => {
                return self.gone("it hung, and a worker does not come round for its reset".to_owned());
            }
            Phase::Resetting if self.attempts == 0 && !self.counted => {
                // What was dropped since it was found to hang; a reset may clear it.
                let _ = self.statistics.refresh(&self.device, self.rx.len());
                self.publish_drops();
                self.counted = true;
                return self.step();
            }
            Phase::Resetting => match reset::begin(&self.device) {
                Ok(()) => Phase::Pausing(self.device.clock.now()),
                Err(error) => return self.try_again(&error),
            },
            Phase::Pausing(since)
                if self.device.clock.now().saturating_duration_since(since)
                    >= self.device.chip.reset_pause =>
            {
                match self.restart() {
                    Ok(()) => Phase::Running,
                    Err(error) => {
                        self.halt.pause();
                        return self.try_again(&error);
                    }
                }
            }
            _ => return,
        };
        if next == Phase::Running {
            self.recoveries += 1;
            self.had_link = false;
            self.carrier.set(true);
            self.hang.restart();
            self.halt.gates.iter().for_each(|gate| gate.open());
            tracing::warn!("{}: the device was reset, and runs again", self.name);
        }
        self.phase = next;
    }

    fn restart(&mut self) -> Result<(), NicError> {
        reset::finish(&self.device)?;
        if !self.halt.resume() {
            return Err(NicError::Device("it is being closed".to_owned()));
        }
        self.setup.apply(&self.device)?;
        receive::enable(&self.device)
    }

    fn try_again(&mut self, error: &NicError) {
        self.attempts += 1;
        if self.device.is_gone() {
            self.vanished();
        } else if self.attempts >= MOST_ATTEMPTS {
            self.gone(error.to_string());
        } else {
            self.phase = Phase::Resetting;
        }
    }
}

impl Nic for IxgbeNic {
    fn mode(&self) -> String {
        self.mode.clone()
    }

    fn mac(&self) -> MacAddress {
        self.setup.mac
    }

    fn link(&mut self) -> LinkState {
        let state = match &self.phase {
            Phase::Running => {
                if self.interrupt.is_on() {
                    // In front of the look at the link: what changes behind it interrupts again.
                    self.device.read(EICR);
                }
                link::state(&self.device)
            }
            Phase::Gone(why) => LinkState::Gone(why.clone()),
            _ if self.device.is_gone() => {
                self.vanished();
                return self.link();
            }
            _ => LinkState::Down,
        };
        let up = matches!(state, LinkState::Up { .. });
        self.had_link |= up;
        self.carrier.set(up || state == LinkState::Down && self.phase == Phase::Running && !self.had_link);
        if let LinkState::Gone(why) = &state {
            self.gone(why.clone());
        }
        state
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.interrupt.events()
    }

    fn silence(&mut self) {
        self.interrupt.end();
        self.setup.interrupt = false;
        // While it is being reset it has none anyway.
        if matches!(self.phase, Phase::Running | Phase::Emptying) {
            self.device.write(EIMC, EICR_LSC);
        }
    }

    fn refresh(&mut self) {
        if self.halt.is_halted() {
            if self.phase == Phase::Running {
                // The last look at what it counted.
                let _ = self.statistics.refresh(&self.device, self.rx.len());
                self.publish_drops();
            }
            return;
        }
        semaphore::give_back(&self.device);
        match self.phase {
            Phase::Gone(_) => {}
            Phase::Running => {
                let answered = self.statistics.refresh(&self.device, self.rx.len());
                // What was read before it vanished counts.
                self.publish_drops();
                if answered.is_none() {
                    return self.vanished();
                }
                // Without a link nothing is sent.
                let up = matches!(self.link(), LinkState::Up { .. });
                if let Some(queue) = self.hanging(up) {
                    self.recover(queue);
                }
            }
            _ if self.device.is_gone() => self.vanished(),
            _ => self.step(),
        }
    }

    fn refresh_drops(&mut self) {
        if self.phase == Phase::Running
            && self.statistics.refresh_drops(&self.device, self.rx.len()).is_some()
        {
            self.publish_drops();
        }
    }

    fn extra_counters(&self) -> Vec<(String, u64)> {
        let recoveries = ("hang_recoveries".to_owned(), self.recoveries);
        self.statistics.named().chain([recoveries]).collect()
    }
}

impl Drop for IxgbeNic {
    fn drop(&mut self) {
        self.halt.halt();
        // While it is being reset it must be left alone, and has forgotten both anyway.
        let is_set_up = matches!(self.phase, Phase::Running | Phase::Emptying);
        if is_set_up && !self.device.is_gone() {
            self.device.update(RXCTRL, RXCTRL_RXEN, 0);
            self.device.write(EIMC, EICR_LSC);
            // The firmware has the link for itself again.
            self.device.update(CTRL_EXT, CTRL_EXT_DRV_LOAD, 0);
        }
        // The last chance: 20 ms of it.
        (0..10).for_each(|_| semaphore::give_back(&self.device));
    }
}
