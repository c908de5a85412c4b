//! What drivers do that the others do not, in one table.
//!
//! What a driver does is a fact with its source beside it; how long to wait for it is our choice, with a margin. All of it is advice: where the table is wrong the kernel's answer counts.
#![forbid(unsafe_code)]

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
}

const DEFAULT: Quirk = Quirk {
    driver: "",
    no_zero_copy: None,
    carrier_wait: Duration::from_secs(2),
    carrier_drop_delay: Duration::ZERO,
    zero_copy_segments: 5,
};

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
        carrier_wait: Duration::from_secs(8),
        carrier_drop_delay: Duration::from_millis(200),
        ..DEFAULT
    },
    Quirk {
        driver: "igb",
        carrier_wait: Duration::from_secs(5),
        carrier_drop_delay: Duration::from_millis(200),
        ..DEFAULT
    },
    Quirk {
        driver: "igc",
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
}
