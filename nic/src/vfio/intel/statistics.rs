//! A device's statistics, whose registers become 0 when they are read: the sums are kept here.
#![forbid(unsafe_code)]

use crate::vfio::registers::RegisterSpace;

/// One of them.
pub(crate) struct Statistic {
    /// Its name in the data sheet, in lower case.
    pub(crate) name: &'static str,
    /// Its place. Of those that are 64 bits wide, the low half's.
    pub(crate) offset: usize,
    /// Two registers; reading the upper one clears both.
    pub(crate) wide: bool,
}

impl Statistic {
    /// One of 32 bits.
    pub(crate) const fn new(name: &'static str, offset: usize) -> Self {
        Self { name, offset, wide: false }
    }

    /// One of 64 bits.
    pub(crate) const fn wide(name: &'static str, offset: usize) -> Self {
        Self { name, offset, wide: true }
    }
}

/// The sums since the device was opened.
pub(crate) struct Statistics {
    table: &'static [Statistic],
    sums: Vec<u64>,
}

impl Statistics {
    /// All 0.
    pub(crate) fn new(table: &'static [Statistic]) -> Self {
        Self { table, sums: vec![0; table.len()] }
    }

    /// Clears what the registers have: it is from before.
    pub(crate) fn forget(&mut self, registers: &dyn RegisterSpace) {
        let mut before = Self::new(self.table);
        before.read(registers);
    }

    /// Adds what the registers have. Before and after it the caller sees to it that the device is there.
    pub(crate) fn read(&mut self, registers: &dyn RegisterSpace) {
        self.read_those(registers, |_| true);
    }

    /// The same for one alone.
    pub(crate) fn read_one(&mut self, registers: &dyn RegisterSpace, name: &str) {
        self.read_those(registers, |statistic| statistic.name == name);
    }

    fn read_those(&mut self, registers: &dyn RegisterSpace, wanted: impl Fn(&Statistic) -> bool) {
        for (statistic, sum) in
            self.table.iter().zip(&mut self.sums).filter(|(statistic, _)| wanted(statistic))
        {
            let low = registers.read32(statistic.offset);
            let high = if statistic.wide { registers.read32(statistic.offset + 4) } else { 0 };
            // Nobody counts that far between two reads: the device is gone.
            if low != u32::MAX && !(statistic.wide && high == u32::MAX) {
                *sum = sum.wrapping_add(u64::from(low) | u64::from(high) << 32);
            }
        }
    }

    /// The sum of one.
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.table.iter().zip(&self.sums).find(|(known, _)| known.name == name).map_or(0, |(_, sum)| *sum)
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<(String, u64)> {
        self.table.iter().zip(&self.sums).map(|(known, sum)| (known.name.to_owned(), *sum)).collect()
    }
}
