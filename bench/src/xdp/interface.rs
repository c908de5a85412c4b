//! Interfaces by name, and their counters.
#![forbid(unsafe_code)]

use std::{fs, io};
use thiserror::Error;

/// Why there is no generator or no sink, in one line with the way out.
#[derive(Debug, Error)]
pub enum XdpError {
    /// No such interface in this network namespace.
    #[error("no interface \"{0}\" in this network namespace: \"ip link\" lists them")]
    NoInterface(String),
    /// Too small for the headers, or too large for a page.
    #[error("packets of {0} bytes are not possible: choose from {min} to {max}", min = super::MIN_SIZE_BYTES, max = super::MAX_SIZE_BYTES)]
    Size(usize),
    /// Nothing, or too much to count.
    #[error(
        "{rate_pps} packets a second for {duration:?}: choose a rate above 0 and at most 6 x 10^9 packets in all"
    )]
    Pace {
        /// Packets a second.
        rate_pps: u32,
        /// For how long.
        duration: std::time::Duration,
    },
    /// The kernel refused a program.
    #[error("cannot load a BPF program: run as root, or with CAP_BPF and CAP_NET_ADMIN ({0})")]
    Load(io::Error),
    /// The kernel refused to attach one.
    #[error(
        "{interface}: cannot attach a program that counts what comes in: it takes Linux 6.6 and CAP_NET_ADMIN ({source})"
    )]
    Attach {
        /// The interface.
        interface: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel refused to run the generator.
    #[error("{interface}: cannot generate: it takes Linux 5.18, and the interface must be up ({source})")]
    Run {
        /// The interface.
        interface: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A counter could not be read.
    #[error("cannot read {what}: {source}")]
    Read {
        /// What was to be read.
        what: String,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// The index of an interface of this network namespace.
pub(crate) fn index(name: &str) -> Result<u32, XdpError> {
    nix::net::if_::if_nametoindex(name).map_err(|_| XdpError::NoInterface(name.to_owned()))
}

/// What the kernel counts for an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// Packets that came in.
    pub rx_packets: u64,
    /// Packets that came in and were dropped.
    pub rx_dropped: u64,
    /// Packets that went out.
    pub tx_packets: u64,
    /// Packets that were to go out and were dropped.
    pub tx_dropped: u64,
}

impl InterfaceCounters {
    /// Reads them for an interface of this network namespace.
    pub fn read(interface: &str) -> Result<Self, XdpError> {
        let what = "/proc/thread-self/net/dev";
        let text = fs::read_to_string(what).map_err(|source| XdpError::Read { what: what.into(), source })?;
        Self::parse(&text, interface).ok_or_else(|| XdpError::NoInterface(interface.to_owned()))
    }

    fn parse(text: &str, interface: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))?;
        let numbers: Vec<u64> = line.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let at = |index: usize| numbers.get(index).copied();
        Some(Self { rx_packets: at(1)?, rx_dropped: at(3)?, tx_packets: at(9)?, tx_dropped: at(11)? })
    }

    /// What was counted since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            rx_packets: self.rx_packets.wrapping_sub(before.rx_packets),
            rx_dropped: self.rx_dropped.wrapping_sub(before.rx_dropped),
            tx_packets: self.tx_packets.wrapping_sub(before.tx_packets),
            tx_dropped: self.tx_dropped.wrapping_sub(before.tx_dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_the_whole_name() {
        let text = "Inter-|   Receive\n face |bytes packets\n  p01: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n   \
                    p0: 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25\n";
        let counters = InterfaceCounters::parse(text, "p0").unwrap();
        assert_eq!(
            counters,
            InterfaceCounters { rx_packets: 11, rx_dropped: 13, tx_packets: 19, tx_dropped: 21 }
        );
        assert_eq!(InterfaceCounters::parse(text, "p"), None);
        assert_eq!(counters.since(&counters), InterfaceCounters::default());
    }
}
