//! The 82574's registers, named as in its data sheet.
//!
//! "Intel 82574 GbE Controller Family Datasheet", revision 3.4: chapter 10.2 describes the registers, 7.1 receiving, 7.2 transmitting; sections
//! are cited by their numbers. What is no more than a bit that a specification update or every other driver asks for says so.
#![forbid(unsafe_code)]

use crate::vfio::registers::Registers;

// 10.2.2: general.

/// Device Control.
pub(super) const CTRL: usize = 0x0000;
/// Fields of [`CTRL`].
pub(super) mod ctrl {
    /// The device starts no further request as a bus master.
    pub(crate) const GIO_MASTER_DISABLE: u32 = 1 << 2;
    /// Set Link Up: the MAC follows the PHY.
    pub(crate) const SLU: u32 = 1 << 6;
    /// Force Speed.
    pub(crate) const FRCSPD: u32 = 1 << 11;
    /// Force Duplex.
    pub(crate) const FRCDPLX: u32 = 1 << 12;
    /// Software Reset: clears itself.
    pub(crate) const RST: u32 = 1 << 26;
    /// Receive Flow Control Enable.
    pub(crate) const RFCE: u32 = 1 << 27;
    /// Transmit Flow Control Enable.
    pub(crate) const TFCE: u32 = 1 << 28;
    /// VLAN Mode Enable: tags are taken off.
    pub(crate) const VME: u32 = 1 << 30;
}

/// Device Status.
pub(super) const STATUS: usize = 0x0008;
/// Fields of [`STATUS`].
pub(super) mod status {
    /// Full duplex.
    pub(crate) const FD: u32 = 1 << 0;
    /// Link Up.
    pub(crate) const LU: u32 = 1 << 1;
    /// Speed: 0 is 10 Mb/s, 1 is 100, 2 and 3 are 1000.
    pub(crate) const SPEED_SHIFT: u32 = 6;
    /// Requests as a bus master are allowed, or under way.
    pub(crate) const GIO_MASTER_ENABLE: u32 = 1 << 19;
}

/// EEPROM/Flash Control.
pub(super) const EECD: usize = 0x0010;
/// Fields of [`EECD`].
pub(super) mod eecd {
    /// Auto-Read Done: what the NVM says has been loaded.
    pub(crate) const AUTO_RD: u32 = 1 << 9;
}

/// Extended Device Control.
pub(super) const CTRL_EXT: usize = 0x0018;
/// Fields of [`CTRL_EXT`].
pub(super) mod ctrl_ext {
    /// Driver Loaded: the firmware leaves the device to a driver.
    pub(crate) const DRV_LOAD: u32 = 1 << 28;
}

/// VLAN Ether Type.
pub(super) const VET: usize = 0x0038;

/// Extended Configuration Control.
pub(super) const EXTCNF_CTRL: usize = 0x0F00;
/// Fields of [`EXTCNF_CTRL`].
pub(super) mod extcnf_ctrl {
    /// Software owns the MDIO bus.
    pub(crate) const MDIO_SW_OWNERSHIP: u32 = 1 << 5;
}

// 10.2.3: PCI Express.

/// PCIe Control.
pub(super) const GCR: usize = 0x5B00;
/// Fields of [`GCR`].
pub(super) mod gcr {
    /// Specification update: completions that get lost with ASPM; goes with bit 0 of [`super::GCR2`].
    pub(crate) const COMPLETION_ERRATUM: u32 = 1 << 22;
    /// L1 is entered without the receiver in L0s.
    pub(crate) const L1_ACT_WITHOUT_L0S_RX: u32 = 1 << 27;
}
/// PCIe Control 2.
pub(super) const GCR2: usize = 0x5B64;

// 10.2.4: interrupts.

/// Interrupt Cause Read: clears what it tells of.
pub(super) const ICR: usize = 0x00C0;
/// Fields of [`ICR`], [`IMS`] and [`IMC`].
pub(super) mod icr {
    /// Link Status Change.
    pub(crate) const LSC: u32 = 1 << 2;
    /// With MSI-X: any of the causes that are no queue's.
    pub(crate) const OTHER: u32 = 1 << 24;
}
/// Interrupt Mask Set.
pub(super) const IMS: usize = 0x00D0;
/// Interrupt Mask Clear.
pub(super) const IMC: usize = 0x00D8;
/// Interrupt Vector Allocation: a number and a bit that says that it counts, for each cause of MSI-X.
pub(super) const IVAR: usize = 0x00E4;
/// [`IVAR`]: other causes have a vector; which, in the three bits below.
pub(super) const IVAR_OTHER_VALID: u32 = 1 << 19;

// 10.2.5: receiving. Each queue has its registers 0x100 behind those of the one before.

/// Receive Control.
pub(super) const RCTL: usize = 0x0100;
/// Fields of [`RCTL`].
pub(super) mod rctl {
    /// Receiver Enable.
    pub(crate) const EN: u32 = 1 << 1;
    /// Unicast Promiscuous.
    pub(crate) const UPE: u32 = 1 << 3;
    /// Multicast Promiscuous.
    pub(crate) const MPE: u32 = 1 << 4;
    /// Long Packet Enable: without it what is longer than 1522 bytes, with the CRC, is discarded.
    pub(crate) const LPE: u32 = 1 << 5;
    /// Broadcast Accept Mode.
    pub(crate) const BAM: u32 = 1 << 15;
    /// Receive Buffer Size: 2048, 1024, 512, 256 bytes for 0 to 3.
    pub(crate) const BSIZE_SHIFT: u32 = 16;
    /// VLAN Filter Enable.
    pub(crate) const VFE: u32 = 1 << 18;
    /// Strip Ethernet CRC.
    pub(crate) const SECRC: u32 = 1 << 26;
    /// Flexible Buffer Size, in KB; stands for BSIZE where it is not 0.
    pub(crate) const FLXBUF_SHIFT: u32 = 27;
}

/// Receive Descriptor Base Address Low.
pub(super) const fn rdbal(queue: usize) -> usize {
    0x2800 + 0x100 * queue
}
/// Receive Descriptor Base Address High.
pub(super) const fn rdbah(queue: usize) -> usize {
    0x2804 + 0x100 * queue
}
/// Receive Descriptor Length, in bytes.
pub(super) const fn rdlen(queue: usize) -> usize {
    0x2808 + 0x100 * queue
}
/// Receive Descriptor Head.
pub(super) const fn rdh(queue: usize) -> usize {
    0x2810 + 0x100 * queue
}
/// Receive Descriptor Tail.
pub(super) const fn rdt(queue: usize) -> usize {
    0x2818 + 0x100 * queue
}
/// Receive Descriptor Control.
pub(super) const fn rxdctl(queue: usize) -> usize {
    0x2828 + 0x100 * queue
}
/// Receive Interrupt Delay Timer: also delays write-backs.
pub(super) const RDTR: usize = 0x2820;
/// Receive Interrupt Absolute Delay Timer.
pub(super) const RADV: usize = 0x282C;

/// Receive Checksum Control.
pub(super) const RXCSUM: usize = 0x5000;
/// Fields of [`RXCSUM`].
pub(super) mod rxcsum {
    /// IP Checksum Offload.
    pub(crate) const IPOFLD: u32 = 1 << 8;
    /// TCP/UDP Checksum Offload.
    pub(crate) const TUOFLD: u32 = 1 << 9;
    /// Packet Checksum Disable: the descriptor has the RSS hash in its place.
    pub(crate) const PCSD: u32 = 1 << 13;
}

/// Receive Filter Control.
pub(super) const RFCTL: usize = 0x5008;
/// Fields of [`RFCTL`].
pub(super) mod rfctl {
    /// iSCSI Disable.
    pub(crate) const ISCSI_DIS: u32 = 1 << 0;
    /// NFS Write Disable.
    pub(crate) const NFSW_DIS: u32 = 1 << 6;
    /// NFS Read Disable.
    pub(crate) const NFSR_DIS: u32 = 1 << 7;
    /// Extended Status Enable: extended receive descriptors, without which there is no RSS.
    pub(crate) const EXSTEN: u32 = 1 << 15;
    /// IPv6 Extension Header Disable, and the same for new ones. Every driver sets them: a malformed header can hang the receiver.
    pub(crate) const IPV6_EX_DIS: u32 = 1 << 16;
    /// See [`IPV6_EX_DIS`].
    pub(crate) const NEW_IPV6_EXT_DIS: u32 = 1 << 17;
}

/// Words of the tables [`MTA`] and [`VFTA`].
pub(super) const TABLE_WORDS: usize = 128;
/// Multicast Table Array.
pub(super) const MTA: usize = 0x5200;
/// Receive Address Low, of entry 0.
pub(super) const RAL0: usize = 0x5400;
/// Receive Address High, of entry 0; an entry has 8 bytes.
#[cfg(test)]
pub(super) const RAH0: usize = 0x5404;
/// Entries of the receive addresses.
pub(super) const RECEIVE_ADDRESSES: usize = 16;
/// VLAN Filter Table Array: a bit for each VLAN.
pub(super) const VFTA: usize = 0x5600;

/// Multiple Receive Queues Command.
pub(super) const MRQC: usize = 0x5818;
/// Fields of [`MRQC`].
pub(super) mod mrqc {
    /// Multiple Receive Queues Enable: RSS.
    pub(crate) const RSS: u32 = 1;
    /// Hash TCP over IPv4, by addresses and ports.
    pub(crate) const TCP_IPV4: u32 = 1 << 16;
    /// Hash IPv4, by addresses.
    pub(crate) const IPV4: u32 = 1 << 17;
    /// Hash TCP over IPv6.
    pub(crate) const TCP_IPV6: u32 = 1 << 18;
    /// Hash IPv6.
    pub(crate) const IPV6: u32 = 1 << 20;
}
// 10.2.6: transmitting.

/// Transmit Control.
pub(super) const TCTL: usize = 0x0400;
/// Fields of [`TCTL`].
pub(super) mod tctl {
    /// Transmit Enable.
    pub(crate) const EN: u32 = 1 << 1;
    /// Pad Short Packets.
    pub(crate) const PSP: u32 = 1 << 3;
    /// Collision Threshold: 15 tries.
    pub(crate) const CT: u32 = 15 << 4;
    /// Its field.
    pub(crate) const CT_MASK: u32 = 0xFF << 4;
    /// Collision Distance: 63 byte times, for full duplex.
    pub(crate) const COLD: u32 = 63 << 12;
    /// Its field.
    pub(crate) const COLD_MASK: u32 = 0x3FF << 12;
    /// Re-transmit on Late Collision.
    pub(crate) const RTLC: u32 = 1 << 24;
    /// Multiple Request Support: more than one read is under way.
    pub(crate) const MULR: u32 = 1 << 28;
}
/// Transmit IPG.
pub(super) const TIPG: usize = 0x0410;
/// What the data sheet recommends for [`TIPG`]: IPGT 8, IPGR1 8, IPGR2 6.
pub(super) const TIPG_RECOMMENDED: u32 = 8 | 8 << 10 | 6 << 20;

/// Transmit Descriptor Base Address Low.
pub(super) const fn tdbal(queue: usize) -> usize {
    0x3800 + 0x100 * queue
}
/// Transmit Descriptor Base Address High.
pub(super) const fn tdbah(queue: usize) -> usize {
    0x3804 + 0x100 * queue
}
/// Transmit Descriptor Length, in bytes.
pub(super) const fn tdlen(queue: usize) -> usize {
    0x3808 + 0x100 * queue
}
/// Transmit Descriptor Head.
pub(super) const fn tdh(queue: usize) -> usize {
    0x3810 + 0x100 * queue
}
/// Transmit Descriptor Tail.
pub(super) const fn tdt(queue: usize) -> usize {
    0x3818 + 0x100 * queue
}
/// Transmit Descriptor Control.
pub(super) const fn txdctl(queue: usize) -> usize {
    0x3828 + 0x100 * queue
}
/// Transmit Arbitration Count (10.2.6.9).
pub(super) const fn tarc(queue: usize) -> usize {
    0x3840 + 0x100 * queue
}
/// Fields of RXDCTL and TXDCTL.
pub(super) mod dctl {
    /// Prefetch Threshold.
    pub(crate) const PTHRESH_SHIFT: u32 = 0;
    /// Host Threshold.
    pub(crate) const HTHRESH_SHIFT: u32 = 8;
    /// Write-Back Threshold.
    pub(crate) const WTHRESH_SHIFT: u32 = 16;
    /// Reserved in TXDCTL, and to be set: descriptors are counted.
    pub(crate) const COUNT_DESC: u32 = 1 << 22;
    /// Granularity: thresholds are in descriptors.
    pub(crate) const GRAN: u32 = 1 << 24;
}
/// Fields of TARC.
pub(super) mod tarc_fields {
    /// Compensation Mode.
    pub(crate) const COMP: u32 = 1 << 7;
    /// The queue is enabled.
    pub(crate) const ENABLE: u32 = 1 << 10;
    /// Specification update: what two queues need.
    pub(crate) const MULTI_QUEUE_ERRATUM: u32 = 7 << 23;
    /// Specification update: what every 82574 needs.
    pub(crate) const ERRATUM: u32 = 1 << 26;
    /// Bits 30:27, to be cleared.
    pub(crate) const CLEARED: u32 = 15 << 27;
}

// 10.2.7: statistics are in `nic.rs`.

/// What a device that is not there answers.
pub(super) const GONE: u32 = u32::MAX;

/// Bytes of registers that the driver needs: the data sheet's 128 KB.
pub(super) const LENGTH: usize = 0x2_0000;

/// The registers, by reading and writing which everything happens.
#[derive(Clone)]
pub(super) struct Chip(pub(super) Registers);

impl Chip {
    /// Reads a register.
    pub(super) fn read(&self, register: usize) -> u32 {
        self.0.read32(register)
    }

    /// Writes a register.
    pub(super) fn write(&self, register: usize, value: u32) {
        self.0.write32(register, value);
    }

    /// Clears bits, then sets others.
    pub(super) fn modify(&self, register: usize, clear: u32, set: u32) {
        self.write(register, self.read(register) & !clear | set);
    }

    /// Has what was written arrive.
    pub(super) fn flush(&self) {
        self.read(STATUS);
    }

    /// True where nobody answers. No device has all bits of [`STATUS`] set.
    pub(super) fn is_gone(&self) -> bool {
        self.read(STATUS) == GONE
    }
}
