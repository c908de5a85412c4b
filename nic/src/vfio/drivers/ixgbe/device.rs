//! A chip and its registers: reads, writes, and waits that end.
#![forbid(unsafe_code)]

use super::chip::Chip;
use super::registers::STATUS;
use crate::vfio::function::PciFunction;
use crate::vfio::intel::kept::Kept;
use crate::vfio::nic::NicError;
use crate::vfio::registers::Registers;
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time as the driver sees it; a test's passes as the driver waits.
pub(super) trait Clock: Send + Sync {
    /// The present.
    fn now(&self) -> Instant;
    /// Waits so long, or a little longer.
    fn sleep(&self, duration: Duration);
}

/// The machine's time.
pub(super) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// One port of a chip.
pub(super) struct Device {
    registers: Registers,
    pub(super) chip: &'static Chip,
    pub(super) function: Arc<dyn PciFunction>,
    pub(super) clock: Arc<dyn Clock>,
    hurry: Cell<bool>,
    /// Somebody else has SWSM.SMBI, or SW_FW_SYNC.REGSMP.
    pub(super) smbi: Kept,
    pub(super) regsmp: Kept,
    /// Resources that are still ours, since SW_FW_SYNC was not to be had when they were to be given back.
    pub(super) left: Cell<u32>,
}

/// The longest wait of whoever is in a hurry.
const SHORTLY: Duration = Duration::from_millis(2);

impl Device {
    /// The device behind a function; its registers are BAR 0.
    pub(super) fn new(
        function: &Arc<dyn PciFunction>,
        chip: &'static Chip,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, NicError> {
        let registers =
            function.bar(0).map_err(|source| NicError::System { what: "mapping its registers", source })?;
        let function = Arc::clone(function);
        Ok(Self {
            registers,
            chip,
            function,
            clock,
            hurry: Cell::new(false),
            smbi: Kept::default(),
            regsmp: Kept::default(),
            left: Cell::new(0),
        })
    }

    /// All registers.
    pub(super) fn registers(&self) -> &Registers {
        &self.registers
    }

    pub(super) fn read(&self, register: usize) -> u32 {
        self.registers.read32(register)
    }

    pub(super) fn write(&self, register: usize, value: u32) {
        self.registers.write32(register, value);
    }

    /// Clears and sets bits, and leaves the others.
    pub(super) fn update(&self, register: usize, clear: u32, set: u32) {
        self.write(register, self.read(register) & !clear | set);
    }

    /// Has all writes so far reach the device.
    pub(super) fn flush(&self) {
        self.read(STATUS);
    }

    pub(super) fn sleep(&self, duration: Duration) {
        self.clock.sleep(duration);
    }

    /// From now on no wait lasts long.
    pub(super) fn hurry(&self) {
        self.hurry.set(true);
    }

    /// Whether that was said.
    pub(super) fn is_in_hurry(&self) -> bool {
        self.hurry.get()
    }

    /// Reads a register until it is as it should be: so many times at most, and so far apart.
    pub(super) fn wait(
        &self,
        register: usize,
        tries: u32,
        apart: Duration,
        done: impl Fn(u32) -> bool,
    ) -> bool {
        let short = (SHORTLY.as_nanos() / apart.as_nanos().max(1)) as u32;
        let tries = if self.is_in_hurry() { tries.min(short.max(1)) } else { tries };
        for left in (0..tries).rev() {
            let value = self.read(register);
            // None of those that are waited for can have all bits set.
            if value == u32::MAX {
                return false;
            }
            if done(value) {
                return true;
            }
            if left > 0 {
                self.sleep(apart);
            }
        }
        false
    }

    /// The same for so long, by the clock: a sleep may be twice as long as was asked for.
    pub(super) fn wait_for(
        &self,
        register: usize,
        limit: Duration,
        apart: Duration,
        mut done: impl FnMut(u32) -> bool,
    ) -> bool {
        let limit = if self.is_in_hurry() { limit.min(SHORTLY) } else { limit };
        let start = self.clock.now();
        loop {
            // Before the look, so that a thread that was away for long looks once more.
            let late = self.clock.now().saturating_duration_since(start) >= limit;
            let value = self.read(register);
            if value == u32::MAX {
                return false;
            }
            if done(value) {
                return true;
            }
            if late {
                return false;
            }
            self.sleep(apart);
        }
    }

    /// True where the device answers no more. STATUS has bits that are always 0.
    pub(super) fn is_gone(&self) -> bool {
        self.read(STATUS) == u32::MAX || self.function.is_going()
    }

    /// What to say where something did not come: that, or that the device has vanished.
    pub(super) fn failure(&self, what: &str) -> NicError {
        if self.is_gone() {
            return NicError::Device(
                "the device answers no more: it was unplugged, or has no power (look at \"dmesg\" and \"lspci\")"
                    .into(),
            );
        }
        NicError::Device(format!(
            "the {} {what}: take its power away once (a reboot may not), then try again",
            self.chip.name
        ))
    }
}
