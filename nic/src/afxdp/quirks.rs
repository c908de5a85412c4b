//! What drivers do that the others do not, in one table.
//!
//! What a driver does is a fact with its source beside it; how long to wait for it is our choice, with a margin. All of it is advice: where the table is wrong the kernel's answer counts.
#![forbid(unsafe_code)]

use super::abi::XDP_PACKET_HEADROOM;
use super::options::HEADERS;
use std::time::Duration;

/// What to do for a driver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quirk {
    /// The driver's name, as `ethtool -i` shows it.
    driver: &'static str,
    /// Why zero-copy is not even tried with `mode=auto`, and refused with `mode=zerocopy`.
    pub(super) no_zero_copy: Option<&'static str>,
    /// How long after a program was attached to wait for the carrier to come back.
    pub(super) carrier_wait: Duration,
    /// Whether the carrier goes down only some time after the program was attached: so long to watch for that.
    pub(super) carrier_drop_delay: Duration,
    /// Segments of a packet that one transmission can have in zero-copy mode.
    pub(super) zero_copy_segments: usize,
    /// In zero-copy mode, receive buffers are multiples of this many bytes.
    zero_copy_unit: usize,
}

impl Quirk {
    /// Whether frames of `frame_bytes` can take whole packets of an interface of this MTU in zero-copy mode.
    pub(super) fn zero_copy_fits(&self, mtu: usize, frame_bytes: usize) -> bool {
        let room = frame_bytes.saturating_sub(XDP_PACKET_HEADROOM);
        // The others split long packets, or refuse to, and say so when they are asked.
        self.zero_copy_unit == 1 || mtu + HEADERS <= room / self.zero_copy_unit * self.zero_copy_unit
    }
}

const DEFAULT: Quirk = Quirk {
    driver: "",
    no_zero_copy: None,
    carrier_wait: Duration::from_secs(2),
    carrier_drop_delay: Duration::ZERO,
    zero_copy_segments: 5,
    zero_copy_unit: 1,
};

/// SRRCTL.BSIZEPACKET of Intel's 1 and 10 Gbit/s NICs counts KiB, and the drivers round down: of a frame of 2048 bytes the NIC uses 1024,
/// and puts the rest of a longer packet into the next frame. igb_clean_rx_irq_zc and igc_clean_rx_irq_zc hand each over as a packet
/// (seen with Linux 7.3 on QEMU's igb); ixgbe_clean_rx_irq_zc drops them, and asks for other sizes on all but the 82599
/// (ixgbe_configure_srrctl).
const KIB: usize = 1024;

const TABLE: &[Quirk] = &[
    // The ring handlers are the stack's: no XSK pool support (drivers/net/veth.c).
    Quirk { driver: "veth", no_zero_copy: Some("it has no hardware to read the frames"), ..DEFAULT },
    Quirk { driver: "tun", no_zero_copy: Some("it has no hardware to read the frames"), ..DEFAULT },
    Quirk { driver: "bridge", no_zero_copy: Some("it has no hardware to read the frames"), ..DEFAULT },
    // These reset the device for a change between no program and a program, and the link may go with it. Kernel functions:
    // ixgbe_xdp_setup (ixgbe_setup_tc closes and opens), igb_xdp_setup and igc_xdp_set_prog (close and open),
    // i40e_xdp_setup (i40e_reset_and_rebuild), ice_xdp_setup_prog (ice_down, ice_up).
    Quirk {
        driver: "ixgbe",
        zero_copy_unit: KIB,
        carrier_wait: Duration::from_secs(8),
        carrier_drop_delay: Duration::from_millis(200),
        ..DEFAULT
    },
    Quirk {
        driver: "igb",
        zero_copy_unit: KIB,
        carrier_wait: Duration::from_secs(5),
        carrier_drop_delay: Duration::from_millis(200),
        ..DEFAULT
    },
    Quirk {
        driver: "igc",
        zero_copy_unit: KIB,
        carrier_wait: Duration::from_secs(5),
        carrier_drop_delay: Duration::from_millis(200),
        ..DEFAULT
    },
    Quirk { driver: "i40e", carrier_wait: Duration::from_secs(5), ..DEFAULT },
    Quirk { driver: "ice", carrier_wait: Duration::from_secs(5), ..DEFAULT },
    // Transmit rings stall until exit (github.com/amzn/amzn-drivers/issues/221).
    Quirk { driver: "ena", no_zero_copy: Some("its rings are known to stall"), ..DEFAULT },
];

/// The entry of a driver.
pub(super) fn of(driver: &str) -> Quirk {
    TABLE.iter().find(|quirk| quirk.driver == driver).copied().unwrap_or(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_driver_is_listed_once_and_found() {
        for (place, quirk) in TABLE.iter().enumerate() {
            assert!(TABLE[..place].iter().all(|before| before.driver != quirk.driver), "{}", quirk.driver);
            assert_eq!(of(quirk.driver).driver, quirk.driver);
        }
        assert!(of("unheard_of").no_zero_copy.is_none());
    }

    #[test]
    fn a_nic_that_counts_buffers_in_kib_has_few_of_a_small_frame() {
        let fits = |driver, mtu, frame| of(driver).zero_copy_fits(mtu, frame);
        assert!(!fits("igb", 1500, 2048) && fits("igb", 1002, 2048) && !fits("igb", 1003, 2048));
        assert!(fits("igb", 1500, 4096) && fits("igb", 3050, 4096) && !fits("igb", 3051, 4096));
        assert!(fits("virtio_net", 1500, 2048) && fits("virtio_net", 9000, 2048));
    }
}
