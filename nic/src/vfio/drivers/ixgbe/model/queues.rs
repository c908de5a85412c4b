//! Queues, and the order in which units and queues may be set up (4.6.7, 4.6.8).
#![forbid(unsafe_code)]

use super::Inner;
use std::collections::VecDeque;

const ENABLE: u32 = 1 << 25;

/// A receive queue.
#[derive(Debug, Default)]
pub(super) struct RxContext {
    /// It takes effect a few looks after it was asked for.
    pub(super) enabled: bool,
    looks: u32,
    /// Buffers that were fetched already: index and address. A device may read them as soon as the tail says so, and never again.
    pub(super) fetched: VecDeque<(u32, u64)>,
}

/// A transmit queue.
#[derive(Debug, Default)]
pub(super) struct TxContext {
    pub(super) enabled: bool,
    looks: u32,
    /// It does nothing any more.
    pub(super) hung: bool,
    /// Two contexts, of the context descriptors.
    pub(super) contexts: [Option<[u64; 2]>; 2],
}

impl Inner {
    pub(super) fn rxdctl(&mut self, queue: usize, value: u32) -> u32 {
        let context = &mut self.rx[queue];
        if value & ENABLE == 0 || context.enabled {
            return value;
        }
        context.looks = context.looks.saturating_sub(1);
        context.enabled = context.looks == 0;
        if context.enabled {
            self.check_rx_ring(queue);
            value
        } else {
            value & !ENABLE
        }
    }

    pub(super) fn txdctl(&mut self, queue: usize, value: u32) -> u32 {
        let context = &mut self.tx[queue];
        if value & ENABLE == 0 || context.enabled {
            return value;
        }
        context.looks = context.looks.saturating_sub(1);
        context.enabled = context.looks == 0;
        if context.enabled { value } else { value & !ENABLE }
    }

    fn check_ring(&mut self, what: &str, length: u32, head: u32, tail: u32) {
        if length == 0 || length > 512 << 10 {
            self.violation(format!("{what}: a ring of {length} bytes"));
        }
        if head != 0 || tail != 0 {
            self.violation(format!("{what}: enabled with head or tail not 0"));
        }
    }

    fn check_rx_ring(&mut self, queue: usize) {
        let [length, head, tail] = ["RDLEN", "RDH", "RDT"].map(|name| self.get(name, queue));
        self.check_ring(&format!("receive queue {queue}"), length, head, tail);
        let control = self.get("SRRCTL", queue);
        if control >> 25 & 7 != 1 || !(1..=16).contains(&(control & 31)) {
            self.violation(format!("SRRCTL of queue {queue}: this model knows one buffer of 1 to 16 KiB"));
        }
    }

    /// Behind the write of a register of which nothing takes time.
    pub(super) fn write_unit(&mut self, name: &'static str, index: usize, old: u32, value: u32) {
        match name {
            "RDT" => self.rx_tail(index, value),
            "TDT" => self.tx_tail(index, value),
            "RXDCTL" => {
                let context = &mut self.rx[index];
                if value & ENABLE == 0 {
                    (context.enabled, context.fetched) = (false, VecDeque::new());
                } else if old & ENABLE == 0 {
                    context.looks = 3;
                }
            }
            "TXDCTL" => {
                if value & ENABLE == 0 {
                    self.tx[index].enabled = false;
                } else if old & ENABLE == 0 {
                    self.tx[index].looks = 3;
                    self.check_tx_enable(index, value);
                }
            }
            "RDBAL" | "RDBAH" | "RDLEN" | "RDH" | "SRRCTL" if self.rx[index].enabled => {
                self.violation(format!("{name} was written while the queue is enabled"));
            }
            "TDBAL" | "TDBAH" | "TDLEN" | "TDH" if self.tx[index].enabled => {
                self.violation(format!("{name} was written while the queue is enabled"));
            }
            "MTQC" | "TXPBSIZE" if self.get("RTTDCS", 0) & 1 << 6 == 0 => {
                self.violation(format!("{name} was written without RTTDCS.ARBDIS"));
            }
            "MTQC" if value != 0 => self.violation("MTQC: this model knows neither DCB nor virtualisation"),
            "TDWBAL" if value & 1 != 0 => self.violation("TDWBAL: this model writes no heads back"),
            "SECRXCTRL" if value & 2 & !old != 0 => self.hold_security(),
            "RXCTRL" if value & 1 & !old != 0 => self.check_rx_enable(),
            "MAXFRS" if value >> 16 > 15_872 => self.violation("MAXFRS of more than 15.5 KiB"),
            "RXPBSIZE" | "RXCSUM" | "MRQC" | "MAXFRS" | "RFCTL" | "RSSRK"
                if self.get("RXCTRL", 0) & 1 != 0 =>
            {
                self.violation(format!("{name} was written while receive is on"));
            }
            _ => {}
        }
    }

    fn check_tx_enable(&mut self, queue: usize, value: u32) {
        if self.get("DMATXCTL", 0) & 1 == 0 {
            self.violation("TXDCTL.ENABLE before DMATXCTL.TE");
        }
        if self.get("RTTDCS", 0) & 1 << 6 != 0 {
            self.violation("TXDCTL.ENABLE with RTTDCS.ARBDIS");
        }
        if self.get("DTXMXSZRQ", 0) != 0xFFF {
            self.violation("DTXMXSZRQ is not what it has to be without DCB");
        }
        let threshold = value >> 8 & 0x7F;
        if value & 0x7F != 0 && threshold == 0 {
            self.violation("TXDCTL.PTHRESH without HTHRESH");
        }
        if self.get("DCA_TXCTRL", queue) & 1 << 11 != 0 {
            self.violation("descriptors are written back with relaxed ordering");
        }
        let sizes: u32 = (0..8).map(|buffer| self.get("TXPBSIZE", buffer) >> 10).sum();
        if sizes > 160 {
            self.violation(format!("transmit packet buffers of {sizes} KiB"));
        }
        let [length, head, tail] = ["TDLEN", "TDH", "TDT"].map(|name| self.get(name, queue));
        self.check_ring(&format!("transmit queue {queue}"), length, head, tail);
    }

    fn check_rx_enable(&mut self) {
        if !self.security_is_quiet() {
            self.violation("RXCTRL.RXEN while packets may be in the security unit");
        }
        if !self.dma_is_done() {
            self.violation("RXCTRL.RXEN before RDRXCTL.DMAIDONE was seen");
        }
        if self.get("CTRL_EXT", 0) & 1 << 16 == 0 {
            self.violation("RXCTRL.RXEN without CTRL_EXT.NS_DIS");
        }
        let enabled: Vec<usize> = (0..64).filter(|queue| self.rx[*queue].enabled).collect();
        for queue in &enabled {
            if self.get("DCA_RXCTRL", *queue) & (1 << 12 | 1 << 13 | 1 << 15) != 0 {
                self.violation("RXCTRL.RXEN with bit 12 or relaxed ordering in DCA_RXCTRL");
            }
        }
        let rdrxctl = self.get("RDRXCTL", 0);
        if rdrxctl & (0x1F << 17 | 3 << 25) != 3 << 25 {
            self.violation("RDRXCTL: RSCFRSTSIZE must be 0, RSCACKC and FCOE_WRFIX 1");
        }
        if (rdrxctl ^ self.get("HLREG0", 0)) & 2 != 0 {
            self.violation("RDRXCTL.CRCSTRIP and HLREG0.RXCRCSTRP differ");
        }
        let sizes: u32 = (0..8).map(|buffer| self.get("RXPBSIZE", buffer) >> 10).sum();
        if sizes > self.kind.rx_buffer_kib {
            self.violation(format!("receive packet buffers of {sizes} KiB"));
        }
        let mode = self.get("MRQC", 0) & 15;
        if mode > 1 || enabled.len() > 1 && mode == 0 {
            self.violation(format!("MRQC.MRQE {mode} for {} queues", enabled.len()));
        }
        if mode == 1 && self.get("RXCSUM", 0) & 1 << 13 == 0 {
            self.violation("RSS without RXCSUM.PCSD");
        }
        if (0..8).any(|word| self.get("MFLCN", 0) & 1 << (4 + word) != 0) || self.get("MFLCN", 0) & 4 != 0 {
            self.violation("priority flow control without DCB");
        }
    }

    fn rx_tail(&mut self, queue: usize, value: u32) {
        let ring = self.get("RDLEN", queue) / 16;
        if !self.rx[queue].enabled {
            if value != 0 {
                self.violation(format!("RDT of queue {queue} was written before the queue is enabled"));
            }
            return;
        }
        if value >= ring {
            return self.violation(format!("RDT of queue {queue}: {value} in a ring of {ring}"));
        }
        // From behind what was fetched to the tail.
        let head = self.get("RDH", queue);
        let base = u64::from(self.get("RDBAL", queue)) | u64::from(self.get("RDBAH", queue)) << 32;
        let mut at = (head + self.rx[queue].fetched.len() as u32) % ring;
        while at != value && self.bus_master {
            let Some(words) = self.fetch::<16>("a receive descriptor", base + u64::from(at) * 16) else {
                return;
            };
            let (low, high) = words.split_at(8);
            let [low, high] = [low, high].map(|half| u64::from_le_bytes(half.try_into().unwrap_or_default()));
            if high & 1 != 0 {
                self.violation("a receive descriptor was given away with DD set");
            }
            self.rx[queue].fetched.push_back((at, low));
            at = (at + 1) % ring;
        }
        if self.rx[queue].fetched.len() as u32 >= ring {
            self.violation(format!("RDT of queue {queue} went past the head"));
        }
    }

    fn tx_tail(&mut self, queue: usize, value: u32) {
        let ring = self.get("TDLEN", queue) / 16;
        if !self.tx[queue].enabled {
            if value != 0 {
                self.violation(format!("TDT of queue {queue} was written before the queue is enabled"));
            }
            return;
        }
        if value >= ring {
            return self.violation(format!("TDT of queue {queue}: {value} in a ring of {ring}"));
        }
        self.transmit(queue);
    }
}
