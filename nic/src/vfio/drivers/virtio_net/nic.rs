//! The control side of an open NIC: its link, its statistics, and its recovery.
//!
//! A device is reset when it says that it needs it, when a queue has seen what cannot be, or when nothing that was given to a transmit queue comes back.
//! Each step of that is one call of `refresh`; no step waits for a worker.
#![forbid(unsafe_code)]

use super::abi::{config, feature, status};
use super::control::Control;
use super::device::{self, Queue};
use super::settings::Settings;
use super::transport::Transport;
use super::trouble::QueueState;
use crate::port::{LinkState, MacAddress};
use crate::vfio::nic::{Halt, Nic};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Refreshes without anything sent, of a queue that has something to send, until the device counts as hung. They are a second apart.
const STUCK_AFTER: u32 = 5;
/// Refreshes that the workers and the device have for a reset.
const RESET_ROUNDS: u32 = 30;
/// Resets that a device may need one after the other, and refreshes after which it may have one more.
const RESETS: u32 = 5;
const RESET_REGROWS: u32 = 60;
/// How long the commands of a recovery may take, all together.
const COMMANDS_TIME: Duration = super::patience(100);

/// What the watch on a transmit queue remembers.
#[derive(Clone, Copy, Default)]
struct Watch {
    sent: u64,
    looks: u64,
    rounds: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// The device is being reset, and the queues are asked for empty rings, for so many refreshes.
    Resetting(u32),
}

/// The control side.
pub(super) struct VirtioNic {
    pub(super) name: String,
    pub(super) mode: String,
    pub(super) mac: MacAddress,
    pub(super) transport: Transport,
    pub(super) settings: Settings,
    /// Receive and transmit queues, as the device has them.
    pub(super) queues: Vec<Queue>,
    pub(super) control: Option<(Queue, Box<dyn Control>)>,
    /// The memory of rings that the device has and nobody uses.
    pub(super) _idle: Vec<Box<dyn Send>>,
    pub(super) rx: Vec<Arc<QueueState>>,
    pub(super) tx: Vec<Arc<QueueState>>,
    pub(super) halt: Arc<Halt>,
    pub(super) recovery: Recovery,
}

/// Where a recovery is.
pub(super) struct Recovery {
    state: State,
    watches: Vec<Watch>,
    /// Resets so far, those that are still allowed, and refreshes since the last one.
    resets: u64,
    allowed: u32,
    quiet: u32,
    /// Why there is nothing more to recover.
    gone: Option<String>,
}

impl Recovery {
    /// All is well, with so many transmit queues.
    pub(super) fn new(tx_queues: usize) -> Self {
        Self {
            state: State::Running,
            watches: vec![Watch::default(); tx_queues],
            resets: 0,
            allowed: RESETS,
            quiet: 0,
            gone: None,
        }
    }
}

impl VirtioNic {
    fn link_is_up(&self) -> bool {
        if !self.settings.agreed.has(feature::STATUS) {
            return true;
        }
        let status = self.transport.config(|device| device.read16(config::STATUS));
        status.is_some_and(|status| status & config::LINK_UP != 0)
    }

    /// Why the device has to be reset, if it has to.
    fn reason(&mut self, status: u8) -> Option<String> {
        for (kind, states) in [("receive", &self.rx), ("transmit", &self.tx)] {
            for (index, state) in states.iter().enumerate() {
                if let Some(trouble) = state.take() {
                    return Some(format!("{kind} queue {index}: {}", trouble.words()));
                }
            }
        }
        if status & status::DEVICE_NEEDS_RESET != 0 {
            return Some("it says that it needs a reset".into());
        }
        let up = self.link_is_up();
        for (index, (state, watch)) in self.tx.iter().zip(&mut self.recovery.watches).enumerate() {
            let (sent, looks) = (state.counters.packets.get(), state.looks.get());
            // A worker that does not look is not the device's fault.
            let stands = up && state.counters.held.get() > 0 && sent == watch.sent && looks != watch.looks;
            *watch = Watch { sent, looks, rounds: if stands { watch.rounds + 1 } else { 0 } };
            if watch.rounds >= STUCK_AFTER {
                watch.rounds = 0;
                return Some(format!("transmit queue {index}: nothing was sent for {STUCK_AFTER} s"));
            }
        }
        None
    }

    /// Stops it, and asks for empty rings.
    fn stop(&mut self, reason: String) {
        // First this: whoever sees a closed gate may use the rings as its own.
        self.halt.pause();
        self.transport.begin_reset();
        self.halt.ask();
        if self.recovery.allowed == 0 {
            return self.give_up(format!("{reason}, again and again"));
        }
        self.recovery.allowed -= 1;
        self.recovery.quiet = 0;
        self.recovery.state = State::Resetting(0);
        tracing::warn!("{}: the device is reset: {reason}", self.name);
    }

    fn give_up(&mut self, reason: String) {
        self.halt.halt();
        self.recovery.gone = Some(reason);
    }

    /// Sets it up again, when all are ready.
    fn go_on(&mut self, rounds: u32) {
        let ready = self.halt.is_ready();
        if !ready || self.transport.status() != 0 {
            self.recovery.state = State::Resetting(rounds + 1);
            if rounds >= RESET_ROUNDS {
                self.give_up(if ready {
                    format!("it has not ended a reset within {RESET_ROUNDS} s")
                } else {
                    format!("a worker has not come round within {RESET_ROUNDS} s for its reset")
                });
            }
            return;
        }
        if !self.halt.resume() {
            return;
        }
        // What they complained of was before the reset, and none of them runs.
        for state in self.rx.iter().chain(&self.tx) {
            state.take();
        }
        let control = self.control.as_mut();
        let deadline = Instant::now() + COMMANDS_TIME;
        match device::start_again(&self.transport, &self.queues, control, &self.settings, deadline) {
            Ok(()) => {
                self.recovery.state = State::Running;
                self.recovery.resets += 1;
                self.halt.gates.iter().for_each(|gate| gate.open());
                tracing::info!("{}: the device works again", self.name);
            }
            Err(error) => self.give_up(format!("after its reset: {error}")),
        }
    }
}

impl Nic for VirtioNic {
    fn mode(&self) -> String {
        self.mode.clone()
    }

    fn mac(&self) -> MacAddress {
        self.mac
    }

    fn link(&mut self) -> LinkState {
        if let Some(reason) = &self.recovery.gone {
            return LinkState::Gone(reason.clone());
        }
        if self.transport.status() == status::GONE {
            return LinkState::Gone("its registers read all ones: it is not there any more".into());
        }
        if self.recovery.state != State::Running || !self.link_is_up() {
            return LinkState::Down;
        }
        let known = self.settings.agreed.has(feature::SPEED_DUPLEX);
        let speed = known.then(|| self.transport.config(|device| device.read32(config::SPEED))).flatten();
        LinkState::Up { speed_mbps: speed.filter(|speed| (1..config::SPEED_UNKNOWN).contains(speed)) }
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.transport.events()
    }

    fn silence(&mut self) {
        self.transport.silence();
    }

    fn refresh(&mut self) {
        if self.recovery.gone.is_some() || self.halt.is_halted() {
            return;
        }
        let status = self.transport.status();
        if status == status::GONE {
            return;
        }
        match self.recovery.state {
            State::Resetting(rounds) => self.go_on(rounds),
            State::Running => {
                if let Some(reason) = self.reason(status) {
                    return self.stop(reason);
                }
                self.recovery.quiet += 1;
                if self.recovery.quiet >= RESET_REGROWS {
                    self.recovery.quiet = 0;
                    self.recovery.allowed = RESETS.min(self.recovery.allowed + 1);
                }
            }
        }
    }

    fn extra_counters(&self) -> Vec<(String, u64)> {
        let notified = |states: &[Arc<QueueState>]| states.iter().map(|state| state.notified.get()).sum();
        vec![
            ("rx_notifications".into(), notified(&self.rx)),
            ("tx_notifications".into(), notified(&self.tx)),
            ("device_resets".into(), self.recovery.resets),
        ]
    }
}

impl Drop for VirtioNic {
    /// Stops it, and leaves it as it was found.
    fn drop(&mut self) {
        self.halt.halt();
        self.transport.begin_reset();
    }
}
