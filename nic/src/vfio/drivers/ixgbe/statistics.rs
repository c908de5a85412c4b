//! What the device counts (8.2.3.23). Its counters are 32 bits, are cleared by reading, and stop at their greatest value, so they are read often and added up here.
#![forbid(unsafe_code)]

use super::device::Device;
use super::registers::*;

/// Per-queue counters that the chips have.
pub(super) const QUEUE_COUNTERS: usize = 16;
const MISSED: usize = 8;

/// Counters of the report, by the data sheet's names.
const NAMED: [(&str, usize); 14] = [
    ("gprc", GPRC),
    ("bprc", BPRC),
    ("mprc", MPRC),
    ("gptc", GPTC),
    ("rxdgpc", RXDGPC),
    ("crcerrs", CRCERRS),
    ("illerrc", ILLERRC),
    ("errbc", ERRBC),
    ("rlec", RLEC),
    ("ruc", RUC),
    ("rfc", RFC),
    ("roc", ROC),
    ("rjc", RJC),
    ("ssvpc", SSVPC),
];

/// All of it since the port was opened.
#[derive(Debug, Default)]
pub(super) struct Statistics {
    named: [u64; NAMED.len()],
    received: [u64; QUEUE_COUNTERS],
    dropped: [u64; QUEUE_COUNTERS],
    missed: u64,
}

/// A counter that was read as all ones: it is there and stuck, or the device has gone.
fn read(device: &Device, register: usize) -> Option<u64> {
    let value = device.read(register);
    (value != u32::MAX || !device.is_gone()).then_some(value.into())
}

impl Statistics {
    /// Adds what has been counted since the last time, of so many queues; `None` where the device has gone.
    pub(super) fn refresh(&mut self, device: &Device, queues: usize) -> Option<()> {
        self.refresh_drops(device, queues)?;
        for (total, (_, register)) in self.named.iter_mut().zip(NAMED) {
            *total += read(device, register)?;
        }
        for (queue, total) in self.received.iter_mut().enumerate().take(queues) {
            *total += read(device, QPRC(queue))?;
        }
        Some(())
    }

    /// The same for what says that packets were lost.
    pub(super) fn refresh_drops(&mut self, device: &Device, queues: usize) -> Option<()> {
        for buffer in 0..MISSED {
            self.missed += read(device, MPC(buffer))?;
        }
        for (queue, total) in self.dropped.iter_mut().enumerate().take(queues) {
            *total += read(device, QPRDC(queue))?;
        }
        Some(())
    }

    /// Forgets what was counted while nobody could receive: a reset has cleared some, and others hold what came before it.
    pub(super) fn discard(device: &Device) {
        Self::default().refresh(device, QUEUE_COUNTERS);
    }

    /// Packets that there was no room for in the packet buffer; for which queue, nobody says.
    pub(super) fn missed(&self) -> u64 {
        self.missed
    }

    /// Packets that a queue had no descriptor for.
    pub(super) fn dropped(&self, queue: usize) -> u64 {
        self.dropped.get(queue).copied().unwrap_or(0)
    }

    /// Packets longer than MAXFRS that were whole.
    pub(super) fn oversize(&self) -> u64 {
        NAMED.iter().zip(self.named).find(|((name, _), _)| *name == "roc").map_or(0, |(_, value)| value)
    }

    /// All that are not zero, for the report.
    pub(super) fn named(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let named = NAMED.iter().zip(self.named).map(|((name, _), value)| ((*name).to_owned(), value));
        let received =
            self.received.iter().enumerate().map(|(queue, value)| (format!("qprc{queue}"), *value));
        named.chain(received).filter(|(_, value)| *value > 0)
    }
}
