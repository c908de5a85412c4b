//! The registers of the 82599, named as in its data sheet (Intel 82599 10 GbE Controller Datasheet, revision 3.4, section 8.2.3); those of the X540 and X550 are
//! the same where nothing else is said.
#![forbid(unsafe_code)]

macro_rules! registers {
    ($($(#[doc = $doc:literal])+ $name:ident = $offset:literal;)+) => {
        $($(#[doc = $doc])+ pub(super) const $name: usize = $offset;)+
    };
}

registers! {
    // General control, 8.2.3.1.
    /// Device Control.
    CTRL = 0x0_0000;
    /// Device Status.
    STATUS = 0x0_0008;
    /// Extended Device Control.
    CTRL_EXT = 0x0_0018;
    /// Extended SDP Control: the software-defined pins.
    ESDP = 0x0_0020;

    // EEPROM and firmware, 8.2.3.2 and 8.2.3.4.
    /// EEPROM/Flash Control.
    EEC = 0x1_0010;
    /// PCIe Control Extended.
    GCR_EXT = 0x1_1050;
    /// Software Semaphore.
    SWSM = 0x1_0140;
    /// Software-Firmware Synchronization.
    SW_FW_SYNC = 0x1_0160;

    // Flow control, 8.2.3.3.
    /// Flow Control Configuration.
    FCCFG = 0x0_3D00;

    // Interrupts, 8.2.3.5.
    /// Extended Interrupt Cause, cleared by reading.
    EICR = 0x0_0800;
    /// Extended Interrupt Mask Set.
    EIMS = 0x0_0880;
    /// Extended Interrupt Mask Clear.
    EIMC = 0x0_0888;
    /// General Purpose Interrupt Enable.
    GPIE = 0x0_0898;
    /// Interrupt Vector Allocation, of other causes than queues.
    IVAR_MISC = 0x0_0A00;
    /// Clears the masks of further causes, EIMC_EX.
    EIMC_EX = 0x0_0AB0;

    // Receive, 8.2.3.7.
    /// Filter Control.
    FCTRL = 0x0_5080;
    /// VLAN Control.
    VLNCTRL = 0x0_5088;
    /// Multicast Control.
    MCSTCTRL = 0x0_5090;
    /// Receive Checksum Control.
    RXCSUM = 0x0_5000;
    /// Receive Filter Control.
    RFCTL = 0x0_5008;
    /// Multiple Receive Queues Command.
    MRQC = 0x0_5818;

    // Receive DMA, 8.2.3.8.
    /// Receive DMA Control.
    RDRXCTL = 0x0_2F00;
    /// Receive Control.
    RXCTRL = 0x0_3000;

    // Transmit, 8.2.3.9, and its arbiter, 8.2.3.10.
    /// DMA Tx Control.
    DMATXCTL = 0x0_4A80;
    /// DMA Tx TCP Max Allow Size Requests.
    DTXMXSZRQ = 0x0_8100;
    /// Multiple Transmit Queues Command.
    MTQC = 0x0_8120;
    /// DCB Transmit Descriptor Plane Control and Status.
    RTTDCS = 0x0_4900;

    // Security, 8.2.3.12.
    /// Security Rx Control.
    SECRXCTRL = 0x0_8D00;
    /// Security Rx Status.
    SECRXSTAT = 0x0_8D04;

    // MAC, 8.2.3.22.
    /// MAC Core Control 0.
    HLREG0 = 0x0_4240;
    /// MDI Single Command and Address.
    MSCA = 0x0_425C;
    /// MDI Single Read and Write Data.
    MSRWD = 0x0_4260;
    /// Max Frame Size.
    MAXFRS = 0x0_4268;
    /// MAC Flow Control.
    MFLCN = 0x0_4294;
    /// Auto-Negotiation Control (82599).
    AUTOC = 0x0_42A0;
    /// Link Status.
    LINKS = 0x0_42A4;
    /// Auto-Negotiation Control 2 (82599).
    AUTOC2 = 0x0_42A8;

    // Statistics, 8.2.3.23: cleared by reading, stuck at their greatest value.
    /// CRC errors.
    CRCERRS = 0x0_4000;
    /// Illegal bytes.
    ILLERRC = 0x0_4004;
    /// Error bytes.
    ERRBC = 0x0_4008;
    /// Length field and length differ.
    RLEC = 0x0_4040;
    /// Good packets received.
    GPRC = 0x0_4074;
    /// Broadcasts received.
    BPRC = 0x0_4078;
    /// Multicasts received.
    MPRC = 0x0_407C;
    /// Good packets transmitted.
    GPTC = 0x0_4080;
    /// Shorter than 64 bytes, with a right CRC.
    RUC = 0x0_40A4;
    /// Shorter than 64 bytes, with a wrong CRC.
    RFC = 0x0_40A8;
    /// Longer than MAXFRS, with a right CRC.
    ROC = 0x0_40AC;
    /// Longer than MAXFRS, with a wrong CRC.
    RJC = 0x0_40B0;
    /// Packets that the receive DMA has written to memory.
    RXDGPC = 0x0_2F50;
    /// Transmitted packets that the anti-spoofing rules dropped.
    SSVPC = 0x0_8780;
}

/// Registers of which there are several: `NAME(n)`.
macro_rules! arrays {
    ($($(#[doc = $doc:literal])+ $name:ident = $offset:literal, $step:literal;)+) => {
        $(
            $(#[doc = $doc])+
            #[allow(non_snake_case)]
            pub(super) const fn $name(index: usize) -> usize { $offset + index * $step }
        )+
    };
}

arrays! {
    /// Receive Packet Buffer Size, of 8 buffers.
    RXPBSIZE = 0x0_3C00, 4;
    /// Transmit Packet Buffer Size, of 8.
    TXPBSIZE = 0x0_CC00, 4;
    /// Tx Packet Buffer Threshold, of 8.
    TXPBTHRESH = 0x0_4950, 4;
    /// Receive Address Low, of 128.
    RAL = 0x0_A200, 8;
    /// Receive Address High.
    RAH = 0x0_A204, 8;
    /// Multicast Table Array, 128 words.
    MTA = 0x0_5200, 4;
    /// VLAN Filter Table Array, 128 words.
    VFTA = 0x0_A000, 4;
    /// Redirection Table, 32 words of four entries.
    RETA = 0x0_5C00, 4;
    /// The X550's further 96 words.
    ERETA = 0x0_EE80, 4;
    /// RSS Random Key, 10 words.
    RSSRK = 0x0_5C80, 4;
    /// Receive Queue Statistic Mapping, four queues a word.
    RQSMR = 0x0_2300, 4;
    /// Missed Packets: no room in packet buffer n of 8.
    MPC = 0x0_3FA0, 4;
    /// Queue Packets Received, of 16 counters.
    QPRC = 0x0_1030, 0x40;
    /// Queue Packets Received Drop: no descriptor, or the queue was disabled.
    QPRDC = 0x0_1430, 0x40;
    /// Receive Descriptor Base Address Low, of queue n.
    RDBAL = 0x0_1000, 0x40;
    /// Receive Descriptor Base Address High.
    RDBAH = 0x0_1004, 0x40;
    /// Receive Descriptor Length.
    RDLEN = 0x0_1008, 0x40;
    /// Rx DCA Control.
    DCA_RXCTRL = 0x0_100C, 0x40;
    /// Receive Descriptor Head.
    RDH = 0x0_1010, 0x40;
    /// Split Receive Control.
    SRRCTL = 0x0_1014, 0x40;
    /// Receive Descriptor Tail.
    RDT = 0x0_1018, 0x40;
    /// Receive Descriptor Control.
    RXDCTL = 0x0_1028, 0x40;
    /// Transmit Descriptor Base Address Low.
    TDBAL = 0x0_6000, 0x40;
    /// Transmit Descriptor Base Address High.
    TDBAH = 0x0_6004, 0x40;
    /// Transmit Descriptor Length.
    TDLEN = 0x0_6008, 0x40;
    /// Tx DCA Control.
    DCA_TXCTRL = 0x0_600C, 0x40;
    /// Transmit Descriptor Head.
    TDH = 0x0_6010, 0x40;
    /// Transmit Descriptor Tail.
    TDT = 0x0_6018, 0x40;
    /// Transmit Descriptor Control.
    TXDCTL = 0x0_6028, 0x40;
}

macro_rules! bits {
    ($($(#[doc = $doc:literal])+ $name:ident = $value:expr;)+) => {
        $($(#[doc = $doc])+ pub(super) const $name: u32 = $value;)+
    };
}

bits! {
    /// PCIe Master Disable: no new requests.
    CTRL_MASTER_DISABLE = 1 << 2;
    /// Link Reset, clears itself.
    CTRL_LRST = 1 << 3;
    /// Device Reset, clears itself.
    CTRL_RST = 1 << 26;
    /// PCIe Master Enable Status: requests are under way, or may be made.
    STATUS_MASTER_ENABLE = 1 << 19;
    /// Which port of the chip it is.
    STATUS_LAN_ID = 3 << 2;
    /// No Snoop Disable: set while receive is set up, 4.6.7.
    CTRL_EXT_NS_DIS = 1 << 16;
    /// Says to the firmware that a driver is there.
    CTRL_EXT_DRV_LOAD = 1 << 28;
    /// SDP3's level: on Intel's SFP+ boards, which is what others follow, it turns the laser off.
    ESDP_SDP3_DATA = 1 << 3;
    /// SDP3 is an output.
    ESDP_SDP3_IODIR = 1 << 11;

    /// EEPROM Auto-Read Done.
    EEC_ARD = 1 << 9;
    /// Clears the buffers of the PCIe transaction layer, while set.
    GCR_EXT_BUFFERS_CLEAR = 1 << 30;
    /// Semaphore among drivers: taken by reading it as 0.
    SWSM_SMBI = 1 << 0;
    /// Semaphore between driver and firmware (82599): taken where it can be written as 1.
    SWSM_SWESMBI = 1 << 1;
    /// The same on the X540 and X550, in SW_FW_SYNC: taken by reading it as 0.
    SW_FW_SYNC_REGSMP = 1 << 31;
    /// The PHY of port 0 is used by software; the firmware's bits are five higher.
    SW_FW_SYNC_PHY0 = 1 << 1;
    /// The PHY of port 1.
    SW_FW_SYNC_PHY1 = 1 << 2;
    /// Registers of the MAC.
    SW_FW_SYNC_MAC_CSR = 1 << 3;

    /// Link Status Change, of EICR and EIMS.
    EICR_LSC = 1 << 20;
    /// Causes have vectors of MSI-X, as IVAR says.
    GPIE_MULTIPLE_MSIX = 1 << 4;
    /// A vector that is enabled by EIMS is no longer pending.
    GPIE_PBA_SUPPORT = 1 << 31;
    /// Other causes have a vector; which, in the bits below.
    IVAR_MISC_OTHER_VALID = 1 << 15;

    /// Store Bad Packets.
    FCTRL_SBP = 1 << 1;
    /// Multicast Promiscuous Enable.
    FCTRL_MPE = 1 << 8;
    /// Unicast Promiscuous Enable.
    FCTRL_UPE = 1 << 9;
    /// Broadcast Accept Mode.
    FCTRL_BAM = 1 << 10;
    /// VLAN Filter Enable.
    VLNCTRL_VFE = 1 << 30;
    /// Multicast Filter Enable.
    MCSTCTRL_MFE = 1 << 2;
    /// The receive address is valid.
    RAH_AV = 1 << 31;
    /// IP payload checksum of fragments: excluded by PCSD.
    RXCSUM_IPPCSE = 1 << 12;
    /// Packet Checksum Disable: the descriptor holds the RSS hash instead.
    RXCSUM_PCSD = 1 << 13;
    /// RSC Disable.
    RFCTL_RSC_DIS = 1 << 5;
    /// NFS Write Disable.
    RFCTL_NFSW_DIS = 1 << 6;
    /// NFS Read Disable.
    RFCTL_NFSR_DIS = 1 << 7;
    /// MRQE 0001b: RSS alone, 16 queues.
    MRQC_RSS = 1;
    /// Hash the ports of TCP over IPv4.
    MRQC_TCPIPV4 = 1 << 16;
    /// Hash the addresses of IPv4.
    MRQC_IPV4 = 1 << 17;
    /// Of IPv6.
    MRQC_IPV6 = 1 << 20;
    /// TCP over IPv6.
    MRQC_TCPIPV6 = 1 << 21;

    /// Strip the CRC: as HLREG0.RXCRCSTRP.
    RDRXCTL_CRCSTRIP = 1 << 1;
    /// DMA Init Done.
    RDRXCTL_DMAIDONE = 1 << 3;
    /// "Must be 0".
    RDRXCTL_RSCFRSTSIZE = 0x1F << 17;
    /// "Must be 1".
    RDRXCTL_RSCACKC = 1 << 25;
    /// "Must be 1".
    RDRXCTL_FCOE_WRFIX = 1 << 26;
    /// Receive Enable.
    RXCTRL_RXEN = 1 << 0;
    /// Bit 12 of DCA_RXCTRL is 1 after a reset, and "must be 0" before receive is enabled (4.6.7).
    DCA_RXCTRL_BIT_12 = 1 << 12;
    /// Relaxed ordering of data writes: a descriptor could overtake them.
    DCA_RXCTRL_DATA_WRO_EN = 1 << 13;
    /// Of header writes.
    DCA_RXCTRL_HEAD_WRO_EN = 1 << 15;
    /// Relaxed ordering of descriptor write-back.
    DCA_TXCTRL_DESC_WRO_EN = 1 << 11;
    /// Advanced descriptor, one buffer.
    SRRCTL_DESCTYPE_ADVANCED = 1 << 25;
    /// Drop packets when there is no descriptor, instead of blocking the packet buffer that all queues share.
    SRRCTL_DROP_EN = 1 << 28;
    /// Enable: of RXDCTL and of TXDCTL.
    DCTL_ENABLE = 1 << 25;
    /// Transmit Software Flush: write back what is done.
    TXDCTL_SWFLSH = 1 << 26;

    /// Transmit Enable.
    DMATXCTL_TE = 1 << 0;
    /// DCB Arbiters Disable: set while MTQC is written.
    RTTDCS_ARBDIS = 1 << 6;
    /// Rx security off: holds packets back.
    SECRXCTRL_RX_DIS = 1 << 1;
    /// The path is empty.
    SECRXSTAT_SECRX_RDY = 1 << 0;

    /// Append the CRC.
    HLREG0_TXCRCEN = 1 << 0;
    /// Strip the CRC.
    HLREG0_RXCRCSTRP = 1 << 1;
    /// Packets up to MAXFRS instead of 1518 bytes.
    HLREG0_JUMBOEN = 1 << 2;
    /// Pad short packets.
    HLREG0_TXPADEN = 1 << 10;
    /// Loopback.
    HLREG0_LPBK = 1 << 15;
    /// Discard Pause Frames.
    MFLCN_DPF = 1 << 1;
    /// Receive Flow Control Enable.
    MFLCN_RFCE = 1 << 3;
    /// Receive Priority Flow Control Enable, of all 8 classes and in general.
    MFLCN_RPFC = 0xFF4;
    /// Transmit Flow Control, both kinds.
    FCCFG_TFCE = 3 << 3;
    /// Start an MDI command; clears itself.
    MSCA_MDICMD = 1 << 30;
    /// Write.
    MSCA_WRITE = 1 << 26;
    /// Read.
    MSCA_READ = 3 << 26;

    /// Restart the link; clears itself.
    AUTOC_RESTART_AN = 1 << 12;
    /// Link Mode Select.
    AUTOC_LMS = 7 << 13;
    /// 10 Gb/s serial (SFI, KR without Clause 73).
    AUTOC_LMS_10G_SERIAL = 3 << 13;
    /// The serial interface of 10 Gb/s.
    AUTOC2_10G_PMA_PMD_SERIAL = 3 << 16;
    /// SFI.
    AUTOC2_10G_SFI = 2 << 16;
    /// Reasons of the EEPROM for which the link is off.
    AUTOC2_LINK_DISABLE = 7 << 28;
    /// Link Up.
    LINKS_UP = 1 << 30;
    /// Speed.
    LINKS_SPEED = 3 << 28;
    /// 10 Gb/s.
    LINKS_10G = 3 << 28;
    /// 1 Gb/s.
    LINKS_1G = 2 << 28;
    /// 100 Mb/s.
    LINKS_100M = 1 << 28;
    /// X550: 2.5 Gb/s instead of 10, or 5 instead of 0.1.
    LINKS_NON_STANDARD = 1 << 27;
}

/// Where KiB stand in RXPBSIZE.
pub(super) const RXPBSIZE_SHIFT: u32 = 10;
/// Where KiB stand in TXPBSIZE.
pub(super) const TXPBSIZE_SHIFT: u32 = 10;
/// Where the frame size stands in MAXFRS.
pub(super) const MAXFRS_MFS_SHIFT: u32 = 16;
/// Where the device (MMD) stands in MSCA, and where the PHY.
pub(super) const MSCA_DEVICE_SHIFT: u32 = 16;
/// Where the PHY stands in MSCA.
pub(super) const MSCA_PHY_SHIFT: u32 = 21;
