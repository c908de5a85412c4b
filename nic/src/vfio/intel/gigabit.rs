//! The control side of Intel's gigabit NICs (82574, 82576): the link, the statistics, and the way back from a hang.
//!
//! A recovery goes by steps, each of them a call of [`Nic::refresh`], and none of them waits: the device is stopped, the workers rebuild their rings, its reset
//! is begun, and when it is seen to have ended the device is set up as it was.
#![forbid(unsafe_code)]

use super::hang::HangDetector;
use super::statistics::{Statistic, Statistics};
use super::tx::Carrier;
use crate::counters::{DropReason, QueueCounters};
use crate::port::{LinkState, MacAddress};
use crate::vfio::interrupt::LinkInterrupt;
use crate::vfio::nic::{Halt, NEVER_RUN_ON_SILICON, Nic, NicError};
use crate::vfio::registers::Registers;
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Device status (82574 datasheet 10.2.2, 82576 datasheet 8.2.2): link up, transmission paused, and 10, 100, 1000, 1000 Mb/s.
const STATUS: usize = 0x0008;
const STATUS_LU: u32 = 1 << 1;
const STATUS_TXOFF: u32 = 1 << 4;
const STATUS_SPEED_SHIFT: u32 = 6;
/// What a device that is not there answers; none has all bits of STATUS set.
const GONE: u32 = u32::MAX;
const UNPLUGGED: &str = "its registers read all ones: it was unplugged, or has lost its power";

/// A reset that takes longer has failed.
const RESET_LIMIT: Duration = Duration::from_secs(5);

/// What the chips do not have in common. Nothing here waits, but for what takes microseconds on a device that works.
pub(crate) trait GigabitChip: Send {
    /// Its statistics, all of which reading clears.
    const STATISTICS: &'static [Statistic];

    /// Its registers.
    fn registers(&self) -> &Registers;
    /// Where a transmit queue's head and tail are.
    fn transmit_queue(&self, queue: usize) -> [usize; 2];
    /// Counts what queues have dropped, where the device says of which queue it was.
    fn count_queues(&self, _rx: &[Arc<QueueCounters>]) {}
    /// Acknowledges the link's interrupt. The link is looked at afterwards, so a change behind this interrupts again.
    fn acknowledge(&self);
    /// Lets it come again, about once a second.
    fn rearm(&self) {}
    /// Makes up for what could not be done at once, about once a second.
    fn tidy(&self) {}
    /// No interrupt any more, behind a reset neither.
    fn silence(&mut self);
    /// No packet more, no interrupt, and no new request as a bus master.
    fn quiesce(&self);
    /// Starts the reset of a quiet device.
    fn start_reset(&self);
    /// Whether the reset that was started so long ago has ended.
    fn has_come_back(&self, since: Duration) -> bool;
    /// From the end of a reset to a device that runs. Where it fails it is called again.
    fn set_up(&self) -> Result<(), NicError>;
    /// Leaves it to whoever comes next. It is halted.
    fn close(&self);
}

/// Where a recovery stands.
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

/// What [`GigabitNic`] is made of.
pub(crate) struct Parts<C> {
    pub(crate) chip: C,
    /// The port's name, and the chip's.
    pub(crate) name: String,
    pub(crate) chip_name: &'static str,
    pub(crate) mac: MacAddress,
    pub(crate) checksum: bool,
    pub(crate) halt: Arc<Halt>,
    pub(crate) carrier: Arc<Carrier>,
    pub(crate) interrupt: LinkInterrupt,
    /// Of the receive queues, and the transmit queues.
    pub(crate) rx: Vec<Arc<QueueCounters>>,
    pub(crate) tx: Vec<Arc<QueueCounters>>,
}

/// An open NIC.
pub(crate) struct GigabitNic<C: GigabitChip> {
    parts: Parts<C>,
    hang: HangDetector,
    state: State,
    /// There has been a link: until then what is to be sent waits for it.
    had_link: bool,
    statistics: Statistics,
    resets: u64,
}

/// What STATUS, as read, says of the link.
fn link(status: u32) -> LinkState {
    if status == GONE {
        return LinkState::Gone(UNPLUGGED.into());
    }
    if status & STATUS_LU == 0 {
        return LinkState::Down;
    }
    let speed_mbps = match status >> STATUS_SPEED_SHIFT & 3 {
        0 => 10,
        1 => 100,
        _ => 1000,
    };
    LinkState::Up { speed_mbps: Some(speed_mbps) }
}

impl<C: GigabitChip> GigabitNic<C> {
    /// For a device that runs.
    pub(crate) fn new(parts: Parts<C>) -> Self {
        let mut statistics = Statistics::new(C::STATISTICS);
        statistics.forget(&**parts.chip.registers());
        parts.carrier.set(true);
        let hang = HangDetector::new(parts.tx.iter().cloned());
        Self { parts, hang, state: State::Running, had_link: false, statistics, resets: 0 }
    }

    /// For tests: a hang is seen at the second look.
    #[cfg(test)]
    pub(crate) fn impatient(&mut self) {
        self.hang.impatient();
    }

    /// For tests: the time that a reset may take is over.
    #[cfg(test)]
    pub(crate) fn expire(&mut self) {
        if let State::Resetting(since) = &mut self.state {
            *since = since.checked_sub(2 * RESET_LIMIT).unwrap_or(*since);
        }
    }

    fn read(&self, register: usize) -> u32 {
        self.parts.chip.registers().read32(register)
    }

    /// Nothing more will come of it.
    fn give_up(&mut self, why: String) {
        self.parts.carrier.set(false);
        self.state = State::Gone(why);
    }

    /// What it counted itself.
    fn count(&mut self) {
        self.statistics.read(&**self.parts.chip.registers());
        self.publish();
    }

    fn publish(&self) {
        if let Some(first) = self.parts.rx.first() {
            // Which queue they would have gone to, it does not say.
            first.drops(DropReason::RxMissed).set(self.statistics.get("mpc"));
            first.drops(DropReason::RxDropped).set(self.statistics.get("roc"));
        }
        self.parts.chip.count_queues(&self.parts.rx);
    }

    /// Says whether there is a link.
    fn set_carrier(&mut self, up: bool) {
        self.had_link |= up;
        self.parts.carrier.set(up || !self.had_link);
    }

    /// Looks for a queue that hangs.
    fn watch(&mut self, status: u32) {
        let up = status & STATUS_LU != 0;
        self.set_carrier(up);
        let mut hung = None;
        for queue in 0..self.parts.tx.len() {
            let [head, tail] = self.parts.chip.transmit_queue(queue).map(|register| self.read(register));
            if head != GONE && self.hang.look(queue, head, tail, up && status & STATUS_TXOFF == 0) {
                hung = Some((queue, head, tail));
            }
        }
        let Some((queue, head, tail)) = hung else { return };
        tracing::warn!(
            "{}: transmit queue {queue} hangs at descriptor {head} of up to {tail}: the device is reset",
            self.parts.name
        );
        self.parts.carrier.set(false);
        self.parts.chip.quiesce();
        self.parts.halt.pause();
        self.parts.halt.ask();
        self.state = State::Stopped;
    }

    fn finish_reset(&mut self, since: Instant) {
        let Parts { chip, halt, carrier, name, .. } = &self.parts;
        if !chip.has_come_back(since.elapsed()) {
            if since.elapsed() > RESET_LIMIT {
                self.give_up("it hung, and did not come out of its reset".into());
            }
            return;
        }
        if !halt.resume() {
            // It is being closed.
            return;
        }
        if let Err(error) = chip.set_up() {
            halt.pause();
            if since.elapsed() <= 2 * RESET_LIMIT {
                // What somebody else uses may be free at the next step.
                return;
            }
            tracing::error!("{name}: the device could not be set up again: {error}");
            return self.give_up(format!("it hung, and could not be set up after its reset: {error}"));
        }
        self.statistics.forget(&**chip.registers());
        self.hang.restart();
        self.had_link = false;
        carrier.set(true);
        halt.gates.iter().for_each(|gate| gate.open());
        tracing::info!("{name}: the device goes on");
        self.resets += 1;
        self.state = State::Running;
    }
}

impl<C: GigabitChip> Nic for GigabitNic<C> {
    fn mode(&self) -> String {
        let queues = match self.parts.rx.len() {
            1 => "1 queue".into(),
            count => format!("{count} queues, RSS"),
        };
        let checksum = if self.parts.checksum { ", checksum offload" } else { "" };
        format!("{}, {queues}{checksum}, {NEVER_RUN_ON_SILICON}", self.parts.chip_name)
    }

    fn mac(&self) -> MacAddress {
        self.parts.mac
    }

    fn link(&mut self) -> LinkState {
        match &self.state {
            State::Gone(why) => return LinkState::Gone(why.clone()),
            // A device that is being reset must be left alone.
            State::Stopped | State::Resetting(_) => return LinkState::Down,
            State::Running => {}
        }
        if self.parts.interrupt.is_on() {
            self.parts.chip.acknowledge();
        }
        let link = link(self.read(STATUS));
        match &link {
            LinkState::Gone(why) => self.give_up(why.clone()),
            LinkState::Up { .. } => self.set_carrier(true),
            LinkState::Down => self.set_carrier(false),
        }
        link
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.parts.interrupt.events()
    }

    fn silence(&mut self) {
        self.parts.interrupt.end();
        self.parts.chip.silence();
    }

    fn refresh(&mut self) {
        if matches!(self.state, State::Gone(_)) {
            return;
        }
        let status = self.read(STATUS);
        if status == GONE || self.parts.halt.function().is_going() {
            return self.give_up(UNPLUGGED.into());
        }
        if self.parts.halt.is_halted() {
            if !matches!(self.state, State::Resetting(_)) {
                self.count();
            }
            return;
        }
        match mem::replace(&mut self.state, State::Running) {
            State::Running => {
                self.count();
                self.parts.chip.tidy();
                if self.parts.interrupt.is_on() {
                    self.parts.chip.rearm();
                }
                self.watch(status);
            }
            State::Stopped if self.parts.halt.is_ready() => {
                // The reset clears what was counted before the device stopped.
                self.count();
                self.parts.chip.start_reset();
                self.state = State::Resetting(Instant::now());
            }
            State::Stopped if self.parts.halt.asked_in_vain() => {
                self.give_up("it hung, and a worker does not come round for its reset".into());
            }
            State::Resetting(since) => {
                self.state = State::Resetting(since);
                self.finish_reset(since);
            }
            other => self.state = other,
        }
    }

    fn refresh_drops(&mut self) {
        if matches!(self.state, State::Running) && self.read(STATUS) != GONE {
            self.statistics.read_one(&**self.parts.chip.registers(), "mpc");
            self.publish();
        }
    }

    fn extra_counters(&self) -> Vec<(String, u64)> {
        let mut counters = self.statistics.all();
        counters.push(("hang_recoveries".into(), self.resets));
        counters
    }
}

impl<C: GigabitChip> Drop for GigabitNic<C> {
    fn drop(&mut self) {
        self.parts.halt.halt();
        // While it is being reset it must be left alone, and has forgotten all anyway.
        if !matches!(self.state, State::Resetting(_)) && self.read(STATUS) != GONE {
            self.parts.chip.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_is_as_status_says() {
        let up = |speed_mbps| LinkState::Up { speed_mbps: Some(speed_mbps) };
        let speeds = [(0x03, 10), (0x43, 100), (0x83, 1000), (0xC3, 1000), (0x8_0083, 1000)];
        for (status, speed) in speeds {
            assert_eq!(link(status), up(speed), "{status:#x}");
        }
        assert_eq!(link(0x81), LinkState::Down);
        assert!(matches!(link(GONE), LinkState::Gone(_)));
    }
}
