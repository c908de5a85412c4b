//! The chips that this driver knows, and in what they differ as far as it goes.
//!
//! Left out on purpose: the 82598 (another receive DMA, no DMAIDONE, other statistics), the backplane variants of the 82599 (KX4, KR: Clause 73 negotiation),
//! its QSFP+ and external-PHY variants, the X552 and X553 of system chips (their own PHY and firmware interface), and all virtual functions.
#![forbid(unsafe_code)]

use crate::vfio::nic::KnownDevice;
use std::time::Duration;

/// How a port gets its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    /// 82599 with an SFP+ cage: SFI, a laser to be turned on.
    Sfi,
    /// 82599 on XAUI: as the EEPROM says.
    Xaui,
    /// X540 and X550: 10GBASE-T, whose PHY negotiates by itself.
    Copper,
}

/// One chip.
#[derive(Debug)]
pub(super) struct Chip {
    pub(super) device: u16,
    pub(super) name: &'static str,
    pub(super) media: Media,
    /// Receive packet buffer, KiB.
    pub(super) rx_buffer_kib: u32,
    /// Entries of the redirection table: as many hash values are told apart.
    pub(super) reta_entries: usize,
    /// The semaphore with the firmware is SW_FW_SYNC.REGSMP, and not SWSM.SWESMBI.
    pub(super) regsmp: bool,
    /// Has 2.5 and 5 Gb/s.
    pub(super) non_standard_speeds: bool,
    /// How long nothing may be asked of it after a reset. 82599: 4.6.3.2 wants 10 ms; the firmware of the others takes its time.
    pub(super) reset_pause: Duration,
}

const fn n82599(device: u16, name: &'static str, media: Media) -> Chip {
    Chip {
        device,
        name,
        media,
        rx_buffer_kib: 512,
        reta_entries: 128,
        regsmp: false,
        non_standard_speeds: false,
        reset_pause: Duration::from_millis(10),
    }
}

const fn x540(device: u16, name: &'static str) -> Chip {
    Chip {
        rx_buffer_kib: 384,
        regsmp: true,
        reset_pause: Duration::from_millis(100),
        ..n82599(device, name, Media::Copper)
    }
}

const fn x550(device: u16, name: &'static str) -> Chip {
    Chip { reta_entries: 512, non_standard_speeds: true, ..x540(device, name) }
}

/// All of them.
pub(super) static CHIPS: [Chip; 8] = [
    n82599(0x10FB, "82599ES", Media::Sfi),
    n82599(0x154D, "82599ES", Media::Sfi),
    n82599(0x1557, "82599EN", Media::Sfi),
    n82599(0x10FC, "82599 (XAUI)", Media::Xaui),
    x540(0x1528, "X540-AT2"),
    x540(0x1560, "X540-AT1"),
    x550(0x1563, "X550-AT2"),
    x550(0x15D1, "X550-AT"),
];

/// The same for the table of drivers.
pub(super) static KNOWN: [KnownDevice; CHIPS.len()] = {
    let mut known = [const { KnownDevice { vendor: 0x8086, device: 0, name: "" } }; CHIPS.len()];
    let mut index = 0;
    while index < CHIPS.len() {
        known[index] = KnownDevice { vendor: 0x8086, device: CHIPS[index].device, name: CHIPS[index].name };
        index += 1;
    }
    known
};
