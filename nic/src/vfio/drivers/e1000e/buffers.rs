//! How large the device may think a receive buffer is.
//!
//! It knows sizes of whole KB (RCTL.FLXBUF) and a few more (RCTL.BSIZE), and behind a frame's headroom is mostly less than the next larger one: 1536 bytes of a
//! 2 KiB frame. There are two honest ways. Without RCTL.LPE it discards what is longer than 1522 bytes, so that it never writes more than that, whatever size
//! it was told: a frame holds a whole packet. With RCTL.LPE it may write all that it was told, so it is told no more than there is, and a longer packet becomes a chain.
#![forbid(unsafe_code)]

use super::registers::rctl;

/// The frame check sequence, which counts against the device's limits.
const CRC: usize = 4;
/// The longest packet without RCTL.LPE, CRC included (10.2.5, RCTL.LPE).
const LONG: usize = 1522;

/// What the device is told, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReceiveBuffers {
    /// LPE, BSIZE and FLXBUF of RCTL.
    pub(super) rctl: u32,
    /// The most it writes into one buffer.
    pub(super) bytes: usize,
    /// The longest packet that it hands over, without the CRC.
    pub(super) longest: usize,
}

impl ReceiveBuffers {
    /// For frames with `room` bytes behind the headroom and packets of up to `mtu` bytes behind their header and tags; `None` where the frames
    /// have no room for the smallest buffer.
    pub(super) fn new(room: usize, mtu: usize) -> Option<Self> {
        // With one tag. A longer packet with two is discarded, which costs less than two frames for each long packet of everybody's.
        let short = mtu + 14 + 4 + CRC <= LONG;
        if short && (LONG..2048).contains(&room) {
            return Some(Self { rctl: 0, bytes: LONG, longest: LONG - CRC });
        }
        let (field, bytes) = match room {
            1024.. => {
                let kb = (room / 1024).min(15);
                ((kb as u32) << rctl::FLXBUF_SHIFT, kb * 1024)
            }
            512.. => (2 << rctl::BSIZE_SHIFT, 512),
            256.. => (3 << rctl::BSIZE_SHIFT, 256),
            _ => return None,
        };
        Some(Self { rctl: rctl::LPE | field, bytes, longest: mtu + 14 + 8 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_of_2_kib_holds_a_whole_packet_because_longer_ones_are_discarded() {
        let buffers = ReceiveBuffers::new(1920, 1500).unwrap();
        assert_eq!(buffers, ReceiveBuffers { rctl: 0, bytes: 1522, longest: 1518 });
        // One byte more, and it has to be told the truth.
        let buffers = ReceiveBuffers::new(1920, 1501).unwrap();
        assert_eq!((buffers.rctl, buffers.bytes), (rctl::LPE | 1 << rctl::FLXBUF_SHIFT, 1024));
        let buffers = ReceiveBuffers::new(1521, 1500).unwrap();
        assert_eq!((buffers.rctl, buffers.bytes), (rctl::LPE | 1 << rctl::FLXBUF_SHIFT, 1024));
        // Two tags fit where a frame has room for a whole packet whatever its length.
        let buffers = ReceiveBuffers::new(2048, 1500).unwrap();
        assert_eq!((buffers.bytes, buffers.longest), (2048, 1522));
        let buffers = ReceiveBuffers::new(3968, 9000).unwrap();
        assert_eq!((buffers.rctl >> rctl::FLXBUF_SHIFT, buffers.bytes, buffers.longest), (3, 3072, 9022));
        assert_eq!(ReceiveBuffers::new(255, 1500), None);
    }

    proptest! {
        #[test]
        fn property_the_device_never_writes_past_a_frame(room in 0_usize..20_000, mtu in 68_usize..10_000) {
            let Some(buffers) = ReceiveBuffers::new(room, mtu) else {
                prop_assert!(room < 256);
                return Ok(());
            };
            prop_assert!(buffers.bytes <= room);
            // What the device makes of the fields.
            let flxbuf = (buffers.rctl >> rctl::FLXBUF_SHIFT & 15) as usize * 1024;
            let bsize = 2048 >> (buffers.rctl >> rctl::BSIZE_SHIFT & 3);
            let told = if flxbuf > 0 { flxbuf } else { bsize };
            let most = if buffers.rctl & rctl::LPE == 0 { told.min(LONG) } else { told };
            prop_assert_eq!(buffers.bytes, most);
        }
    }
}
