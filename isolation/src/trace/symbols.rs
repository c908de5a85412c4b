//! The names of the kernel's functions, from `/proc/kallsyms`.
//!
//! They are read once, before any worker is isolated: reading them later would take memory from the kernel while it must be left alone.
#![forbid(unsafe_code)]

use std::fs;
use std::io;

/// Functions, sorted by address.
#[derive(Debug, Default)]
pub struct KernelSymbols {
    /// Address, and where in `names` its name begins and ends.
    functions: Vec<(u64, u32, u32)>,
    names: String,
}

impl KernelSymbols {
    /// Reads them. Without privilege (`kernel.kptr_restrict`) all addresses are 0: then there are none.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&String::from_utf8_lossy(&fs::read("/proc/kallsyms")?)))
    }

    /// Lines such as `ffffffff81000000 T _stext`, with a module's name behind it or not.
    fn parse(text: &str) -> Self {
        let mut this = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let Ok(address) = u64::from_str_radix(address, 16) else { continue };
            if address == 0 || !matches!(kind, "t" | "T" | "w" | "W") {
                continue;
            }
            let begin = this.names.len() as u32;
            this.names.push_str(name);
            this.functions.push((address, begin, this.names.len() as u32));
        }
        // A stable sort: of several names for one address the first stays first.
        this.functions.sort_by_key(|function| function.0);
        this.functions.dedup_by_key(|function| function.0);
        this.functions.shrink_to_fit();
        this.names.shrink_to_fit();
        this
    }

    /// The function that an address is in; `None` where nothing is known.
    pub fn name(&self, address: u64) -> Option<&str> {
        let index = self.functions.partition_point(|function| function.0 <= address).checked_sub(1)?;
        let (_, begin, end) = self.functions[index];
        self.names.get(begin as usize..end as usize)
    }

    /// From where to where a function goes.
    pub(super) fn range(&self, name: &str) -> Option<std::ops::Range<u64>> {
        let name_of = |&(_, begin, end): &(u64, u32, u32)| &self.names[begin as usize..end as usize];
        let index = self.functions.iter().position(|function| name_of(function) == name)?;
        Some(self.functions[index].0..self.functions.get(index + 1)?.0)
    }

    /// The name of the function that an address is in, or the address in hexadecimal.
    pub fn name_or_address(&self, address: u64) -> String {
        self.name(address).map_or_else(|| format!("{address:#x}"), str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_function_before_it() {
        let text = "ffffffff81000100 t b\nffffffff81000000 T a\nffffffff81000100 t b_alias\nffffffff81000200 D data\n0000000000000000 T hidden\nbroken\n";
        let symbols = KernelSymbols::parse(text);
        assert_eq!(symbols.name(0xffff_ffff_8100_0000), Some("a"));
        assert_eq!(symbols.name(0xffff_ffff_8100_00ff), Some("a"));
        assert_eq!(symbols.name(0xffff_ffff_8100_0150), Some("b"));
        assert_eq!(symbols.name(0xffff_ffff_8000_0000), None);
        assert_eq!(symbols.name_or_address(16), "0x10");
        assert_eq!(KernelSymbols::parse("").name(1), None);
    }
}
