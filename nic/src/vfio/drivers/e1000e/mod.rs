//! `e1000e`: Intel's 82574, a gigabit NIC with two queues of each kind.
//!
//! Written from its data sheet (revision 3.4) and tried on QEMU's model; `docs/vfio-e1000e.md` says what it does and does not.
#![forbid(unsafe_code)]

mod buffers;
mod descriptor;
mod nic;
mod open;
mod phy;
mod registers;
mod reset;
mod setup;
#[cfg(test)]
mod tests;

use crate::vfio::nic::{KnownDevice, NicDriver};

/// The driver.
pub(in crate::vfio) static DRIVER: NicDriver = NicDriver {
    name: "e1000e",
    // 10f6 is the 82574L's sibling 82574LA in the data sheet's family.
    devices: &[
        KnownDevice { vendor: 0x8086, device: 0x10D3, name: "82574L" },
        KnownDevice { vendor: 0x8086, device: 0x10F6, name: "82574LA" },
    ],
    max_queues: 2,
    ring_sizes: (32, 4096, 32),
    max_mtu: 9000,
    registers_bytes: registers::LENGTH,
    options: &[],
    open: open::open,
};
