//! The control handle of an open port.
#![forbid(unsafe_code)]

use super::device::VfioFunction;
use super::nic::Nic;
use super::sys;
use crate::port::{LinkState, MacAddress, Port};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// An open port. Its fields go in this order: the driver's part stops the device, and then the device is closed.
pub(super) struct VfioPort {
    name: String,
    /// How it is open: `IOMMU group 7`.
    words: String,
    max_packet_len: usize,
    /// Why it has gone.
    gone: Option<String>,
    /// The CPU that its interrupts are to come to, where they do.
    interrupted: Option<usize>,
    nic: Box<dyn Nic>,
    function: Arc<VfioFunction>,
}

impl VfioPort {
    pub(super) fn new(
        name: String,
        words: String,
        max_packet_len: usize,
        nic: Box<dyn Nic>,
        function: Arc<VfioFunction>,
    ) -> Self {
        Self { name, words, max_packet_len, gone: None, interrupted: None, nic, function }
    }
}

impl Port for VfioPort {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "vfio"
    }

    fn mode(&self) -> String {
        format!("{}, {}", self.nic.mode(), self.words)
    }

    fn mac(&self) -> MacAddress {
        self.nic.mac()
    }

    fn max_packet_len(&self) -> usize {
        self.max_packet_len
    }

    fn link(&mut self) -> LinkState {
        if let Some(reason) = &self.gone {
            return LinkState::Gone(reason.clone());
        }
        let link = match self.function.trouble() {
            Some(trouble) => LinkState::Gone(trouble.reason().to_owned()),
            None => {
                for event in self.nic.events() {
                    sys::take_events(event);
                }
                self.nic.link()
            }
        };
        if let LinkState::Gone(reason) = &link {
            // Nobody asks again, and the kernel may be waiting for it.
            self.gone = Some(reason.clone());
            self.function.release();
        }
        link
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.function.events().chain(self.nic.events()).collect()
    }

    fn deliver_interrupts(&mut self, cpu: usize) {
        // A worker's CPU is to see none, and nothing depends on them.
        if self.gone.is_some() {
            return;
        }
        self.interrupted = Some(cpu).filter(|cpu| self.function.deliver_interrupts(*cpu));
        if self.interrupted.is_none() {
            self.nic.silence();
        }
    }

    fn refresh(&mut self) {
        if self.gone.is_none() {
            self.nic.refresh();
        }
        // Whoever spreads interrupts over the CPUs (irqbalance) knows nothing of workers.
        if let Some(cpu) = self.interrupted {
            self.deliver_interrupts(cpu);
        }
    }

    fn refresh_drops(&mut self) {
        if self.gone.is_none() {
            self.nic.refresh_drops();
        }
    }

    fn extra_counters(&self) -> Vec<(String, u64)> {
        self.nic.extra_counters()
    }
}
