//! From a device that was reset to one that runs: the same when a port is opened and after a hang.
#![forbid(unsafe_code)]

use super::device::Device;
use super::receive::Buffers;
use super::registers::*;
use super::{filters, link, receive, rss, transmit};
use crate::port::MacAddress;
use crate::vfio::nic::NicError;

/// A ring: the device's address, and bytes.
pub(super) type Ring = (u64, usize);

/// What a device is set up for.
pub(super) struct Setup {
    pub(super) mac: MacAddress,
    pub(super) promiscuous: bool,
    /// MSI-X vector 0 is there to tell of the link.
    pub(super) interrupt: bool,
    pub(super) vlans: Vec<u16>,
    pub(super) buffers: Buffers,
    /// The receive queues' rings.
    pub(super) rx: Vec<Ring>,
    /// The transmit queues'.
    pub(super) tx: Vec<Ring>,
}

impl Setup {
    /// All but the last step, [`receive::enable`]; behind it receive tails may be written.
    pub(super) fn apply(&self, device: &Device) -> Result<(), NicError> {
        // The order of 4.6.3.
        link::set_up(device)?;
        filters::set(device, self.mac, self.promiscuous, &self.vlans);
        rss::set(device, self.rx.len() as u16);
        receive::set_up(device, self.buffers, self.rx.len() as u16);
        for (queue, ring) in self.rx.iter().enumerate() {
            receive::set_ring(device, queue, *ring, self.buffers);
        }
        transmit::set_up(device);
        for (queue, ring) in self.tx.iter().enumerate() {
            transmit::set_ring(device, queue, *ring);
        }
        (0..self.rx.len()).try_for_each(|queue| receive::enable_queue(device, queue))?;
        (0..self.tx.len()).try_for_each(|queue| transmit::enable_queue(device, queue))?;
        if self.interrupt {
            // 7.3.4: no queue has a vector. Reading EICR acknowledges the cause.
            device.write(GPIE, GPIE_MULTIPLE_MSIX | GPIE_PBA_SUPPORT);
            device.write(IVAR_MISC, IVAR_MISC_OTHER_VALID);
            device.write(EIMS, EICR_LSC);
        }
        Ok(())
    }
}
