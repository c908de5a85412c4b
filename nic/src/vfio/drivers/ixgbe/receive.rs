//! The receive unit (4.6.7) and its queues.
#![forbid(unsafe_code)]

use super::device::Device;
use super::registers::*;
use crate::vfio::nic::NicError;
use std::time::Duration;

const FCS: usize = 4;
/// Receive queues and packet buffers whose registers are set.
const BUFFERS: usize = 8;
/// Between two looks at RXDCTL and SECRXSTAT, and how many.
const APART: Duration = Duration::from_micros(20);
const TRIES: u32 = 100;

/// The longest packet of this driver, with Ethernet header and tags and without the frame check sequence: 15.5 KiB with it (7.1.1).
pub(super) const MAX_PACKET_LEN: usize = 15_872 - FCS;

/// How packets are cut into buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffers {
    /// MAXFRS.MFS: bytes with the frame check sequence; with a VLAN tag, four more pass.
    pub(super) max_frame: usize,
    /// SRRCTL.BSIZEPACKET: KiB of one buffer.
    pub(super) kib: usize,
    /// The most that is in one buffer.
    pub(super) bytes: usize,
}

impl Buffers {
    /// For packets of so many bytes in frames with so much room.
    ///
    /// Buffers are whole KiB, and what frames have room for is not. Where every packet that passes MAXFRS fits a frame, the size is rounded up, and
    /// MAXFRS keeps the device from using what is not there; else it is rounded down, and longer packets take several frames.
    pub(super) fn new(max_packet_len: usize, data_room: usize) -> Self {
        let max_frame = max_packet_len.min(MAX_PACKET_LEN) + FCS;
        // With one tag and without the frame check sequence this is again what MAXFRS says.
        let longest = max_frame;
        if longest <= data_room {
            return Self { max_frame, kib: longest.div_ceil(1024), bytes: longest };
        }
        let kib = (data_room / 1024).clamp(1, 16);
        Self { max_frame, kib, bytes: kib * 1024 }
    }
}

/// What is set once, with receive off. `queues` of them each have a statistics counter of their own.
pub(super) fn set_up(device: &Device, buffers: Buffers, queues: u16) {
    // No DCB: one packet buffer has all of the memory (4.6.11.3.4).
    device.write(RXPBSIZE(0), device.chip.rx_buffer_kib << RXPBSIZE_SHIFT);
    (1..BUFFERS).for_each(|buffer| device.write(RXPBSIZE(buffer), 0));
    // A switch that sends pause frames is not obeyed, and none are sent: packets that there is no room for are dropped and counted.
    device.update(MFLCN, MFLCN_RFCE | MFLCN_RPFC, MFLCN_DPF);
    device.update(FCCFG, FCCFG_TFCE, 0);
    device.write(MAXFRS, (buffers.max_frame as u32) << MAXFRS_MFS_SHIFT);
    device.update(HLREG0, HLREG0_LPBK, HLREG0_RXCRCSTRP | HLREG0_JUMBOEN);
    device.update(RDRXCTL, RDRXCTL_RSCFRSTSIZE, RDRXCTL_CRCSTRIP | RDRXCTL_RSCACKC | RDRXCTL_FCOE_WRFIX);
    // Packets stay as they were sent: no coalescing.
    device.update(RFCTL, 0, RFCTL_RSC_DIS | RFCTL_NFSW_DIS | RFCTL_NFSR_DIS);
    device.update(RXCSUM, RXCSUM_IPPCSE, RXCSUM_PCSD);
    for word in 0..usize::from(queues).div_ceil(4) {
        let counters = [0, 1, 2, 3].map(|queue| (word * 4 + queue) as u8 & 15);
        device.write(RQSMR(word), u32::from_le_bytes(counters));
    }
}

/// Tells queue `queue` of its ring: where it is, and its bytes. Its tail is 0 until the queue is enabled.
pub(super) fn set_ring(device: &Device, queue: usize, (iova, bytes): (u64, usize), buffers: Buffers) {
    device.write(RDBAL(queue), iova as u32);
    device.write(RDBAH(queue), (iova >> 32) as u32);
    device.write(RDLEN(queue), bytes as u32);
    device.write(RDH(queue), 0);
    device.write(RDT(queue), 0);
    device.write(SRRCTL(queue), buffers.kib as u32 | SRRCTL_DESCTYPE_ADVANCED | SRRCTL_DROP_EN);
    // 4.6.7, its last paragraph; and a descriptor must not overtake its packet.
    let relaxed = DCA_RXCTRL_DATA_WRO_EN | DCA_RXCTRL_HEAD_WRO_EN;
    device.update(DCA_RXCTRL(queue), DCA_RXCTRL_BIT_12 | relaxed, 0);
}

/// Enables a queue; then its tail may be written.
pub(super) fn enable_queue(device: &Device, queue: usize) -> Result<(), NicError> {
    device.update(RXDCTL(queue), 0, DCTL_ENABLE);
    if device.wait(RXDCTL(queue), TRIES, APART, |control| control & DCTL_ENABLE != 0) {
        return Ok(());
    }
    Err(device.failure(&format!("does not enable receive queue {queue} (RXDCTL.ENABLE)")))
}

/// Has packets come in: the last step. The security unit, of which nothing else is used, holds them back meanwhile.
pub(super) fn enable(device: &Device) -> Result<(), NicError> {
    device.update(CTRL_EXT, 0, CTRL_EXT_NS_DIS);
    device.update(SECRXCTRL, 0, SECRXCTRL_RX_DIS);
    let ready = device.wait(SECRXSTAT, TRIES, APART, |status| status & SECRXSTAT_SECRX_RDY != 0);
    if ready {
        device.update(RXCTRL, 0, RXCTRL_RXEN);
    }
    device.update(SECRXCTRL, SECRXCTRL_RX_DIS, 0);
    if ready { Ok(()) } else { Err(device.failure("does not empty its receive path (SECRXSTAT.SECRX_RDY)")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_packet_of_the_usual_length_fits_one_frame() {
        assert_eq!(Buffers::new(1522, 1536), Buffers { max_frame: 1526, kib: 2, bytes: 1526 });
        assert_eq!(Buffers::new(9022, 1536), Buffers { max_frame: 9026, kib: 1, bytes: 1024 });
        assert_eq!(Buffers::new(9022, 3520), Buffers { max_frame: 9026, kib: 3, bytes: 3072 });
    }

    proptest! {
        #[test]
        fn property_a_buffer_never_holds_more_than_a_frame(length in 60_usize..20_000, room in 1526_usize..4000) {
            let buffers = Buffers::new(length, room);
            // What passes MAXFRS with a tag, its frame check sequence stripped.
            let longest = buffers.max_frame + 4 - FCS;
            prop_assert!(longest.min(buffers.kib * 1024) <= buffers.bytes);
            prop_assert!(buffers.bytes <= room && (1..=16).contains(&buffers.kib));
            prop_assert!(buffers.max_frame <= 15_872);
        }
    }
}
