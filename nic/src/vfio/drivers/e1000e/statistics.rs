//! The device's own counters (10.2.7). Reading one sets it back to 0, so they are added up here.
//!
//! They stop at their greatest value, which is 32 ones: 2^32 packets are 48 minutes of the smallest ones at full speed, and they are read once a second. So a
//! counter that reads as all ones is no count but a device that is gone.
#![forbid(unsafe_code)]

use super::registers::{Chip, GONE};

/// Offset and name of each. Those of 64 bits are read at their low half first: the high one clears both.
const COUNTERS: [(usize, &str); 27] = [
    (0x4000, "crcerrs"),
    (0x400C, "rxerrc"),
    (MPC, "mpc"),
    (0x4014, "scc"),
    (0x4018, "ecol"),
    (0x4020, "latecol"),
    (0x4034, "tncrs"),
    (0x403C, "cexterr"),
    (0x4040, "rlec"),
    (0x4048, "xonrxc"),
    (0x404C, "xontxc"),
    (0x4050, "xoffrxc"),
    (0x4054, "xofftxc"),
    (0x4074, "gprc"),
    (0x4078, "bprc"),
    (0x407C, "mprc"),
    (0x4080, "gptc"),
    (0x40A0, "rnbc"),
    (0x40A4, "ruc"),
    (0x40A8, "rfc"),
    (ROC, "roc"),
    (0x40B0, "rjc"),
    (0x40B8, "mgtpdc"),
    (0x40D0, "tpr"),
    (0x40D4, "tpt"),
    (0x40F0, "mptc"),
    (0x40F4, "bptc"),
];

/// Missed Packets: the device had neither a descriptor nor room in its own memory.
pub(super) const MPC: usize = 0x4010;
/// Receive Oversize: longer than it was allowed to receive.
pub(super) const ROC: usize = 0x40AC;
const GORCL: usize = 0x4088;
const GORCH: usize = 0x408C;
const GOTCL: usize = 0x4090;
const GOTCH: usize = 0x4094;

/// The sums.
#[derive(Clone, Debug, Default)]
pub(super) struct Statistics {
    sums: [u64; COUNTERS.len()],
    gorc: u64,
    gotc: u64,
}

impl Statistics {
    /// Adds what has been counted since the last time; false, and nothing is added from there on, where the device is gone.
    pub(super) fn read(&mut self, chip: &Chip) -> bool {
        for ((offset, _), sum) in COUNTERS.iter().zip(&mut self.sums) {
            match chip.read(*offset) {
                GONE => return false,
                count => *sum = sum.wrapping_add(count.into()),
            }
        }
        for (low, high, sum) in [(GORCL, GORCH, &mut self.gorc), (GOTCL, GOTCH, &mut self.gotc)] {
            let (low, high) = (chip.read(low), chip.read(high));
            if high == GONE {
                return false;
            }
            *sum = sum.wrapping_add(u64::from(high) << 32 | u64::from(low));
        }
        true
    }

    /// Has the device forget what it counted before: after a reset its counters may be anything.
    pub(super) fn discard(chip: &Chip) {
        Self::default().read(chip);
    }

    /// One of them, by its offset.
    pub(super) fn get(&self, wanted: usize) -> u64 {
        let found = COUNTERS.iter().zip(&self.sums).find(|((offset, _), _)| *offset == wanted);
        found.map_or(0, |(_, sum)| *sum)
    }

    /// Names and values, those that are 0 left out, but for the packets.
    pub(super) fn all(&self) -> Vec<(String, u64)> {
        let octets = [("gorc", self.gorc), ("gotc", self.gotc)];
        let counts = COUNTERS.iter().zip(&self.sums).map(|((_, name), sum)| (*name, *sum));
        counts
            .chain(octets)
            .filter(|(name, value)| *value > 0 || matches!(*name, "gprc" | "gptc" | "mpc"))
            .map(|(name, value)| (name.to_string(), value))
            .collect()
    }
}
