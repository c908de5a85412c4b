//! The transmit unit (4.6.8) and its queues.
#![forbid(unsafe_code)]

use super::device::Device;
use super::registers::*;
use crate::vfio::nic::NicError;
use std::time::Duration;

/// KiB of the transmit packet buffer; and of its threshold, which leaves room for the longest packet.
const BUFFER_KIB: u32 = 160;
const THRESHOLD_KIB: u32 = BUFFER_KIB - 16;
const BUFFERS: usize = 8;
/// DTXMXSZRQ without DCB: as much as there is may be requested at once (4.6.11.3.4).
const MAX_BYTES_NUM_REQ: u32 = 0xFFF;
/// TXDCTL: PTHRESH, prefetch below 32 descriptors on chip; HTHRESH, at least 1 in memory; WTHRESH 0, write back at once what asks for it (RS).
const THRESHOLDS: u32 = 32 | 1 << 8;
/// Between two looks at TXDCTL, and how many.
const APART: Duration = Duration::from_micros(20);
const TRIES: u32 = 100;

/// What is set once, before the first queue is enabled.
pub(super) fn set_up(device: &Device) {
    device.update(HLREG0, 0, HLREG0_TXCRCEN | HLREG0_TXPADEN);
    // MTQC and the packet buffers may only change while the arbiter is off. MTQC 0: no DCB, no virtualisation, 64 queues on one packet buffer.
    device.update(RTTDCS, 0, RTTDCS_ARBDIS);
    device.write(MTQC, 0);
    device.write(TXPBSIZE(0), BUFFER_KIB << TXPBSIZE_SHIFT);
    device.write(TXPBTHRESH(0), THRESHOLD_KIB);
    for buffer in 1..BUFFERS {
        device.write(TXPBSIZE(buffer), 0);
        device.write(TXPBTHRESH(buffer), 0);
    }
    device.write(DTXMXSZRQ, MAX_BYTES_NUM_REQ);
    device.update(RTTDCS, RTTDCS_ARBDIS, 0);
    device.update(DMATXCTL, 0, DMATXCTL_TE);
}

/// Tells queue `queue` of its ring: where it is, and its bytes.
pub(super) fn set_ring(device: &Device, queue: usize, (iova, bytes): (u64, usize)) {
    device.write(TDBAL(queue), iova as u32);
    device.write(TDBAH(queue), (iova >> 32) as u32);
    device.write(TDLEN(queue), bytes as u32);
    device.write(TDH(queue), 0);
    device.write(TDT(queue), 0);
    device.update(DCA_TXCTRL(queue), DCA_TXCTRL_DESC_WRO_EN, 0);
    device.write(TXDCTL(queue), THRESHOLDS);
}

/// Enables a queue; then its tail may be written.
pub(super) fn enable_queue(device: &Device, queue: usize) -> Result<(), NicError> {
    device.update(TXDCTL(queue), 0, DCTL_ENABLE);
    if device.wait(TXDCTL(queue), TRIES, APART, |control| control & DCTL_ENABLE != 0) {
        return Ok(());
    }
    Err(device.failure(&format!("does not enable transmit queue {queue} (TXDCTL.ENABLE)")))
}
