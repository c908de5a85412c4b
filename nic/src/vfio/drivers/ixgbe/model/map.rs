//! The register map, written down from the data sheet's tables a second time: a wrong offset or a reserved bit in the driver's list is seen here.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::LazyLock;

/// How a register answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Read and write.
    Rw,
    /// Writes are against the rules.
    Ro,
    /// A statistics counter: reading clears it.
    Rc,
    /// Reads as 0.
    Wo,
}

/// A row of the map.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    offset: usize,
    count: usize,
    step: usize,
    /// Its value after a reset.
    pub(super) reset: u32,
    /// The bits that are not reserved.
    pub(super) bits: u32,
    pub(super) access: Access,
}

const fn rw(name: &'static str, offset: usize, reset: u32, bits: u32) -> Row {
    Row { name, offset, count: 1, step: 4, reset, bits, access: Access::Rw }
}

const fn ro(name: &'static str, offset: usize, reset: u32) -> Row {
    Row { access: Access::Ro, ..rw(name, offset, reset, 0) }
}

const fn rc(name: &'static str, offset: usize) -> Row {
    Row { access: Access::Rc, ..rw(name, offset, 0, 0) }
}

const fn wo(name: &'static str, offset: usize, bits: u32) -> Row {
    Row { access: Access::Wo, ..rw(name, offset, 0, bits) }
}

const fn many(row: Row, count: usize, step: usize) -> Row {
    Row { count, step, ..row }
}

const ALL: u32 = u32::MAX;

/// 8.2.3. What differs between chips is set by [`super::Kind`].
static ROWS: &[Row] = &[
    rw("CTRL", 0x00000, 0, 0x0400_000C),
    ro("STATUS", 0x00008, 0x0008_0000),
    rw("CTRL_EXT", 0x00018, 0, 0x1403_4000),
    rw("ESDP", 0x00020, 0, 0x0003_FFFF),
    ro("EEC", 0x10010, 0x0000_0300),
    rw("GCR_EXT", 0x11050, 0, 0xC000_0003),
    rw("SWSM", 0x10140, 0, 0x0000_0007),
    ro("FWSM", 0x10148, 0x0000_8004),
    rw("SW_FW_SYNC", 0x10160, 0, 0x8000_07FF),
    rw("FCCFG", 0x03D00, 0, 0x0000_0018),
    rc("EICR", 0x00800),
    rw("EIMS", 0x00880, 0, 0x7FFF_FFFF),
    wo("EIMC", 0x00888, 0x7FFF_FFFF),
    rw("EIAC", 0x00810, 0, 0x7FFF_FFFF),
    rw("EIAM", 0x00890, 0, 0x7FFF_FFFF),
    rw("GPIE", 0x00898, 0, 0xC000_FFF0),
    rw("IVAR_MISC", 0x00A00, 0, 0x0000_FFFF),
    many(rw("EIMS_EX", 0x00AA0, 0, ALL), 2, 4),
    many(wo("EIMC_EX", 0x00AB0, ALL), 2, 4),
    rw("FCTRL", 0x05080, 0, 0x0000_0702),
    rw("VLNCTRL", 0x05088, 0x0000_8100, 0x7000_FFFF),
    rw("MCSTCTRL", 0x05090, 0, 0x0000_0007),
    rw("RXCSUM", 0x05000, 0, 0x0000_3000),
    rw("RFCTL", 0x05008, 0, 0x0000_47E0),
    rw("MRQC", 0x05818, 0, 0x01FF_000F),
    rw("RDRXCTL", 0x02F00, 0x0010_0000, 0x063E_0002),
    rw("RXCTRL", 0x03000, 0, 0x0000_0001),
    many(rw("RXPBSIZE", 0x03C00, 0, 0x000F_FC00), 8, 4),
    many(rw("TXPBSIZE", 0x0CC00, 0xA0 << 10, 0x000F_FC00), 8, 4),
    many(rw("TXPBTHRESH", 0x04950, 0x96, 0x0000_03FF), 8, 4),
    many(rw("RAL", 0x0A200, 0, ALL), 128, 8),
    many(rw("RAH", 0x0A204, 0, 0x8000_FFFF), 128, 8),
    many(rw("MTA", 0x05200, 0, ALL), 128, 4),
    many(rw("VFTA", 0x0A000, 0, ALL), 128, 4),
    many(rw("RETA", 0x05C00, 0, 0x3F3F_3F3F), 32, 4),
    many(rw("ERETA", 0x0EE80, 0, 0x3F3F_3F3F), 96, 4),
    many(rw("RSSRK", 0x05C80, 0, ALL), 10, 4),
    many(rw("RQSMR", 0x02300, 0, 0x0F0F_0F0F), 32, 4),
    many(rw("RDBAL", 0x01000, 0, 0xFFFF_FF80), 64, 0x40),
    many(rw("RDBAH", 0x01004, 0, ALL), 64, 0x40),
    many(rw("RDLEN", 0x01008, 0, 0x000F_FF80), 64, 0x40),
    many(rw("DCA_RXCTRL", 0x0100C, 0x0000_B200, 0xFF00_B2E0), 64, 0x40),
    many(rw("RDH", 0x01010, 0, 0x0000_FFFF), 64, 0x40),
    many(rw("SRRCTL", 0x01014, 0x0000_0402, 0x1FC0_3F1F), 64, 0x40),
    many(rw("RDT", 0x01018, 0, 0x0000_FFFF), 64, 0x40),
    many(rw("RXDCTL", 0x01028, 0, 0x4600_0000), 64, 0x40),
    many(rw("TDBAL", 0x06000, 0, 0xFFFF_FF80), 128, 0x40),
    many(rw("TDBAH", 0x06004, 0, ALL), 128, 0x40),
    many(rw("TDLEN", 0x06008, 0, 0x000F_FF80), 128, 0x40),
    many(rw("DCA_TXCTRL", 0x0600C, 0x0000_2A00, 0xFF00_2A20), 128, 0x40),
    many(rw("TDH", 0x06010, 0, 0x0000_FFFF), 128, 0x40),
    many(rw("TDT", 0x06018, 0, 0x0000_FFFF), 128, 0x40),
    many(rw("TXDCTL", 0x06028, 0, 0x067F_7F7F), 128, 0x40),
    many(rw("TDWBAL", 0x06038, 0, ALL), 128, 0x40),
    many(rw("TDWBAH", 0x0603C, 0, ALL), 128, 0x40),
    rw("DMATXCTL", 0x04A80, 0x8100_0000, 0xFFFF_0009),
    rw("DTXMXSZRQ", 0x08100, 0x10, 0x0000_0FFF),
    rw("MTQC", 0x08120, 0, 0x0000_000F),
    rw("RTTDCS", 0x04900, 0, 0x0040_0053),
    rw("SECRXCTRL", 0x08D00, 0x1, 0x0000_0003),
    ro("SECRXSTAT", 0x08D04, 0),
    rw("HLREG0", 0x04240, 0x0801_0403, 0x1803_8407),
    rw("MSCA", 0x0425C, 0, ALL),
    rw("MSRWD", 0x04260, 0, ALL),
    rw("MAXFRS", 0x04268, 1518 << 16, 0xFFFF_0000),
    rw("MFLCN", 0x04294, 0, 0x0000_0FFF),
    rw("AUTOC", 0x042A0, 0xC09C_6004, ALL),
    ro("LINKS", 0x042A4, 0),
    rw("AUTOC2", 0x042A8, 0x000A_0000, 0xFFFF_0000),
    many(rc("MPC", 0x03FA0), 8, 4),
    rc("CRCERRS", 0x04000),
    rc("ILLERRC", 0x04004),
    rc("ERRBC", 0x04008),
    rc("RLEC", 0x04040),
    rc("GPRC", 0x04074),
    rc("BPRC", 0x04078),
    rc("MPRC", 0x0407C),
    rc("GPTC", 0x04080),
    rc("RUC", 0x040A4),
    rc("RFC", 0x040A8),
    rc("ROC", 0x040AC),
    rc("RJC", 0x040B0),
    rc("RXDGPC", 0x02F50),
    rc("SSVPC", 0x08780),
    many(rc("QPRC", 0x01030), 16, 0x40),
    many(rc("QPRDC", 0x01430), 16, 0x40),
];

/// Second addresses of the same registers: first, count, step, and where the first really is.
const ALIASES: &[(usize, usize, usize, usize)] = &[
    (0x05400, 32, 4, 0x0A200),
    (0x0EB00, 32, 4, 0x05C00),
    (0x0EB80, 10, 4, 0x05C80),
    (0x0EC80, 1, 4, 0x05818),
];

impl Row {
    /// Where it is.
    pub(super) fn place(&self, index: usize) -> usize {
        self.offset + index * self.step
    }
}

/// Rows by name and by address, the same for all models.
pub(super) static MAP: LazyLock<Map> = LazyLock::new(Map::new);

/// See [`MAP`].
pub(super) struct Map {
    names: HashMap<&'static str, &'static Row>,
    places: HashMap<usize, (&'static Row, usize)>,
}

impl Map {
    fn new() -> Self {
        let names = ROWS.iter().map(|row| (row.name, row)).collect();
        let mut places = HashMap::new();
        for row in ROWS {
            for index in 0..row.count {
                let taken = places.insert(row.place(index), (row, index));
                assert!(taken.is_none(), "{} lies on another register", row.name);
            }
        }
        for (alias, count, step, first) in ALIASES {
            for index in 0..*count {
                let place = places[&(first + index * step)];
                assert!(places.insert(alias + index * step, place).is_none());
            }
        }
        Self { names, places }
    }

    /// What is at an address.
    pub(super) fn at(&self, offset: usize) -> Option<(&'static Row, usize)> {
        self.places.get(&offset).copied()
    }

    /// Where a register is.
    pub(super) fn place(&self, name: &str, index: usize) -> usize {
        let row = self.names[name];
        assert!(index < row.count, "{name}[{index}]");
        row.place(index)
    }

    /// All rows, with each index.
    pub(super) fn all() -> impl Iterator<Item = (&'static Row, usize)> {
        ROWS.iter().flat_map(|row| (0..row.count).map(move |index| (row, index)))
    }
}
