//! Registers of the 82576, named as in its data sheet ("Intel 82576EB Gigabit Ethernet Controller Datasheet", section 8); bits as far as they are used.
#![forbid(unsafe_code)]

/// Device control (8.2.1).
pub(super) const CTRL: usize = 0x0000;
/// Full duplex.
pub(super) const CTRL_FD: u32 = 1 << 0;
/// No new accesses to memory.
pub(super) const CTRL_GIO_MASTER_DISABLE: u32 = 1 << 2;
/// Set link up.
pub(super) const CTRL_SLU: u32 = 1 << 6;
/// Speed as in SPEED and not as negotiated.
pub(super) const CTRL_FRCSPD: u32 = 1 << 11;
/// Duplex as in FD.
pub(super) const CTRL_FRCDPX: u32 = 1 << 12;
/// Reset; clears itself.
pub(super) const CTRL_RST: u32 = 1 << 26;
/// Obey pause frames.
pub(super) const CTRL_RFCE: u32 = 1 << 27;
/// Send them.
pub(super) const CTRL_TFCE: u32 = 1 << 28;
/// Strip VLAN tags.
pub(super) const CTRL_VME: u32 = 1 << 30;

/// Device status (8.2.2).
pub(super) const STATUS: usize = 0x0008;
/// Link up.
pub(super) const STATUS_LU: u32 = 1 << 1;
/// Transmission paused by flow control.
pub(super) const STATUS_TXOFF: u32 = 1 << 4;
/// Which of the chip's ports this is, two bits.
pub(super) const STATUS_LAN_ID_SHIFT: u32 = 2;
/// 10, 100 and (both others) 1000 Mbps.
pub(super) const STATUS_SPEED_SHIFT: u32 = 6;
/// Accesses to memory are not all done.
pub(super) const STATUS_GIO_MASTER_ENABLE: u32 = 1 << 19;

/// EEPROM control (8.4.1).
pub(super) const EEC: usize = 0x0010;
/// The registers have been loaded from it.
pub(super) const EEC_AUTO_RD: u32 = 1 << 9;

/// Extended device control (8.2.3).
pub(super) const CTRL_EXT: usize = 0x0018;
/// A driver has the device, and the firmware leaves it alone.
pub(super) const CTRL_EXT_DRV_LOAD: u32 = 1 << 28;
/// Two VLAN tags are expected in each packet.
pub(super) const CTRL_EXT_EXTENDED_VLAN: u32 = 1 << 26;
/// Which side of the MAC has the link: 0 is the internal copper PHY.
pub(super) const CTRL_EXT_LINK_MODE: u32 = 0b11 << 22;

/// Software semaphore (8.7): between the drivers of the ports, SMBI, and between them and the firmware, SWESMBI.
pub(super) const SWSM: usize = 0x5B50;
/// Taken by reading it as 0.
pub(super) const SWSM_SMBI: u32 = 1 << 0;
/// Taken by writing it, where it can then be read.
pub(super) const SWSM_SWESMBI: u32 = 1 << 1;
/// Software-firmware synchronization.
pub(super) const SW_FW_SYNC: usize = 0x5B5C;

/// PCS configuration (8.18.1), of ports without the copper PHY.
pub(super) const PCS_CFG: usize = 0x4200;
/// PCS enabled.
pub(super) const PCS_CFG_ENABLE: u32 = 1 << 3;
/// PCS link control (8.18.2).
pub(super) const PCS_LCTL: usize = 0x4208;
/// Negotiate.
pub(super) const PCS_LCTL_AN_ENABLE: u32 = 1 << 16;
/// Negotiate anew.
pub(super) const PCS_LCTL_AN_RESTART: u32 = 1 << 17;

/// Interrupt cause (8.8.9); reading clears it. This and its masks are 0x1500 and following; all drivers use the places that they had in older chips, and have
/// here too, and an emulation may know no other.
pub(super) const ICR: usize = 0x00C0;
/// ICR, IMS: the link has come up or gone.
pub(super) const ICR_LSC: u32 = 1 << 2;
/// Interrupt mask set (8.8.11).
pub(super) const IMS: usize = 0x00D0;
/// Interrupt mask clear (8.8.12).
pub(super) const IMC: usize = 0x00D8;
/// General purpose interrupt enable (8.8.17).
pub(super) const GPIE: usize = 0x1514;
/// Every read of ICR clears it.
pub(super) const GPIE_NSICR: u32 = 1 << 0;
/// Causes have vectors of MSI-X, as IVAR says.
pub(super) const GPIE_MULTIPLE_MSIX: u32 = 1 << 4;
/// A vector that is enabled by EIMS is no longer pending.
pub(super) const GPIE_PBA_SUPPORT: u32 = 1 << 31;
/// Extended interrupt mask set (8.8.3), a bit for each vector.
pub(super) const EIMS: usize = 0x1524;
/// Extended interrupt mask clear (8.8.4).
pub(super) const EIMC: usize = 0x1528;
/// Extended interrupt auto clear (8.8.5): a vector's cause is cleared when its message is sent.
pub(super) const EIAC: usize = 0x152C;
/// Interrupt vector allocation, of other causes than queues (8.8.16).
pub(super) const IVAR_MISC: usize = 0x1740;
/// IVAR_MISC: other causes have a vector; which, in the bits below.
pub(super) const IVAR_OTHER_VALID: u32 = 1 << 15;

/// Receive control (8.10.1).
pub(super) const RCTL: usize = 0x0100;
/// Receive.
pub(super) const RCTL_RXEN: u32 = 1 << 1;
/// Unicast promiscuous.
pub(super) const RCTL_UPE: u32 = 1 << 3;
/// Multicast promiscuous.
pub(super) const RCTL_MPE: u32 = 1 << 4;
/// Packets longer than 1522 bytes, up to RLPML.
pub(super) const RCTL_LPE: u32 = 1 << 5;
/// Broadcast accepted.
pub(super) const RCTL_BAM: u32 = 1 << 15;
/// VLAN filter enabled.
pub(super) const RCTL_VFE: u32 = 1 << 18;
/// Strip the frame check sequence.
pub(super) const RCTL_SECRC: u32 = 1 << 26;

/// Transmit control (8.12.1).
pub(super) const TCTL: usize = 0x0400;
/// Transmit.
pub(super) const TCTL_EN: u32 = 1 << 1;
/// Pad short packets.
pub(super) const TCTL_PSP: u32 = 1 << 3;
/// Collision threshold: 15, as the data sheet has it.
pub(super) const TCTL_CT: u32 = 0xF << 4;
/// Back-off slot time.
pub(super) const TCTL_BST: u32 = 0x40 << 12;
/// Send again after a late collision.
pub(super) const TCTL_RTLC: u32 = 1 << 24;

/// Receive checksum control (8.10.16).
pub(super) const RXCSUM: usize = 0x5000;
/// IPv4's header.
pub(super) const RXCSUM_IPOFLD: u32 = 1 << 8;
/// TCP and UDP.
pub(super) const RXCSUM_TUOFLD: u32 = 1 << 9;
/// No sum of the whole packet, but the RSS hash in its place.
pub(super) const RXCSUM_PCSD: u32 = 1 << 13;

/// Receive long packet maximum length, with the frame check sequence (8.10.4).
pub(super) const RLPML: usize = 0x5004;
/// Multicast table (8.10.17): 128 words.
pub(super) const MTA: usize = 0x5200;
/// Receive addresses, the first 16 (8.10.18).
pub(super) const RAL: usize = 0x5400;
/// The others.
pub(super) const RAL_16: usize = 0x54E0;
/// VLAN filter table (8.10.20): 128 words.
pub(super) const VFTA: usize = 0x5600;
/// Words of a table of 4096 bits.
pub(super) const TABLE_WORDS: usize = 128;

/// Multiple receive queues command (8.10.21).
pub(super) const MRQC: usize = 0x5818;
/// RSS on all queues.
pub(super) const MRQC_RSS: u32 = 0b010;
/// By addresses and ports of TCP over IPv4.
pub(super) const MRQC_TCP_IPV4: u32 = 1 << 16;
/// By addresses of IPv4.
pub(super) const MRQC_IPV4: u32 = 1 << 17;
/// By addresses of IPv6.
pub(super) const MRQC_IPV6: u32 = 1 << 20;
/// By addresses and ports of TCP over IPv6.
pub(super) const MRQC_TCP_IPV6: u32 = 1 << 21;

/// Queues of each kind, and from one to the next.
pub(super) const QUEUES: u16 = 16;
const STRIDE: usize = 0x40;

macro_rules! of_queue {
    ($($(#[$doc:meta])* $name:ident = $first:literal;)*) => {
        $($(#[$doc])* pub(super) const fn $name(queue: usize) -> usize { $first + queue * STRIDE })*
    };
}

of_queue! {
    /// Receive descriptor base address, low (8.10.5).
    rdbal = 0xC000;
    /// High.
    rdbah = 0xC004;
    /// Its length in bytes.
    rdlen = 0xC008;
    /// Split and replication receive control (8.10.2).
    srrctl = 0xC00C;
    /// Head.
    rdh = 0xC010;
    /// Tail.
    rdt = 0xC018;
    /// Receive descriptor control (8.10.10).
    rxdctl = 0xC028;
    /// Packets dropped since the queue had no descriptor (8.10.13), 12 bits; reading clears it.
    rqdpc = 0xC030;
    /// Transmit descriptor base address, low (8.12.9).
    tdbal = 0xE000;
    /// High.
    tdbah = 0xE004;
    /// Its length in bytes.
    tdlen = 0xE008;
    /// Head.
    tdh = 0xE010;
    /// Tail.
    tdt = 0xE018;
    /// Transmit descriptor control (8.12.14).
    txdctl = 0xE028;
    /// Where the head would be written to instead of DD (8.12.16).
    tdwbal = 0xE038;
}

/// RQDPC's bits.
pub(super) const RQDPC_MASK: u32 = 0xFFF;
/// SRRCTL: a buffer is so many KB (BSIZEPACKET is its low bits); advanced descriptors with one buffer.
pub(super) const SRRCTL_ADVANCED: u32 = 0b001 << 25;
/// SRRCTL: drop what has no descriptor, and do not hold up the other queues.
pub(super) const SRRCTL_DROP_EN: u32 = 1 << 31;
/// RXDCTL, TXDCTL: the queue is on.
pub(super) const QUEUE_ENABLE: u32 = 1 << 25;
/// RXDCTL, TXDCTL: fetch 8 descriptors at once where there are 8 more, and write back each when it is done.
pub(super) const THRESHOLDS: u32 = 8 | 8 << 8 | 1 << 16;

/// Bytes of BAR 0 up to the last register used.
pub(super) const REGISTERS_BYTES: usize = 0x20000;
