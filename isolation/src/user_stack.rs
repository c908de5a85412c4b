//! The stack of a worker at a violation, from the registers and the piece of stack that its handler kept.
//!
//! Nothing of this happens in the handler. Unwind information and function names of the program and its libraries are read once,
//! before any worker is isolated: reading them later would map and unmap memory, which interrupts every CPU the process runs on.
#![forbid(unsafe_code)]

use crate::strict::Record;
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, Module, Unwinder};
use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol, SymbolKind};
use std::fs;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Frames that are looked for at most.
const MOST_FRAMES: usize = 32;

/// Bytes of a section, shared by the unwinder's tables.
type Bytes = Arc<[u8]>;

/// One file that is mapped to be run.
struct Loaded {
    /// Where it is.
    range: Range<u64>,
    /// What to take from an address to get one of the file's.
    base: u64,
    name: String,
    /// The file's functions: address, length, name; sorted.
    functions: Vec<(u64, u64, String)>,
}

/// What it takes to unwind and to name the frames of this process.
pub struct UserStacks {
    unwinder: UnwinderX86_64<Bytes>,
    cache: CacheX86_64,
    loaded: Vec<Loaded>,
}

/// The files of `/proc/self/maps` with any part that can be run: from the first mapped address to the last, and the path.
fn files(maps: &str) -> Vec<(Range<u64>, String)> {
    let mut files: Vec<(Range<u64>, String, bool)> = Vec::new();
    for line in maps.lines() {
        let mut words = line.splitn(6, ' ');
        let (Some(range), Some(access)) = (words.next(), words.next()) else { continue };
        let Some(path) = words.nth(3).map(str::trim).filter(|path| path.starts_with('/')) else { continue };
        let address = |text| u64::from_str_radix(text, 16).ok();
        let Some((Some(start), Some(end))) = range.split_once('-').map(|(a, b)| (address(a), address(b)))
        else {
            continue;
        };
        let runs = access.contains('x');
        match files.iter_mut().find(|(_, known, _)| known == path) {
            Some((range, _, executable)) => {
                range.end = end;
                *executable |= runs;
            }
            None => files.push((start..end, path.to_owned(), runs)),
        }
    }
    files.into_iter().filter(|file| file.2).map(|(range, path, _)| (range, path)).collect()
}

impl UserStacks {
    /// Reads what is mapped now. A file that cannot be read, or is none of ours, has addresses and no names.
    pub fn read() -> io::Result<Self> {
        let mut this =
            Self { unwinder: UnwinderX86_64::new(), cache: CacheX86_64::new(), loaded: Vec::new() };
        for (range, path) in files(&fs::read_to_string("/proc/self/maps")?) {
            if let Ok(bytes) = fs::read(&path) {
                this.add(range, &path, &bytes);
            }
        }
        Ok(this)
    }

    fn add(&mut self, range: Range<u64>, path: &str, bytes: &[u8]) {
        let Ok(file) = object::File::parse(bytes) else { return };
        let first = file.segments().map(|segment| segment.address()).min().unwrap_or(0);
        let base = range.start.wrapping_sub(first / 4096 * 4096);
        let section = |name: &str| {
            let section = file.section_by_name(name)?;
            let data: Bytes = section.uncompressed_data().ok()?.into_owned().into();
            Some((section.address()..section.address() + section.size(), data))
        };
        let (text, eh_frame, header) = (section(".text"), section(".eh_frame"), section(".eh_frame_hdr"));
        let split = |section: Option<(Range<u64>, Bytes)>| section.unzip();
        let ((text_svma, text), (eh_frame_svma, eh_frame), (eh_frame_hdr_svma, eh_frame_hdr)) =
            (split(text), split(eh_frame), split(header));
        let info = ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma,
            text,
            eh_frame_svma,
            eh_frame,
            eh_frame_hdr_svma,
            eh_frame_hdr,
            ..Default::default()
        };
        self.unwinder.add_module(Module::new(path.to_owned(), range.clone(), base, info));
        let symbols = file.symbols().chain(file.dynamic_symbols());
        let mut functions: Vec<(u64, u64, String)> = symbols
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.address() != 0)
            .filter_map(|symbol| Some((symbol.address(), symbol.size(), symbol.name().ok()?.to_owned())))
            .collect();
        functions.sort();
        functions.dedup_by_key(|function| function.0);
        let name = path.rsplit('/').next().unwrap_or(path).to_owned();
        self.loaded.push(Loaded { range, base, name, functions });
    }

    /// The frames of a record, innermost first, each by its function's name and how far into it.
    pub fn frames(&mut self, record: &Record) -> Vec<String> {
        let stack = &record.stack[..(record.stack_bytes as usize).min(record.stack.len())];
        self.frames_at(record.ip, record.sp, record.bp, stack)
    }

    /// The same of a thread with these registers, whose stack was this from `sp` up.
    pub fn frames_at(&mut self, ip: u64, sp: u64, bp: u64, stack: &[u8]) -> Vec<String> {
        let mut read = |address: u64| {
            let at = usize::try_from(address.checked_sub(sp).ok_or(())?).map_err(|_| ())?;
            let word = stack.get(at..at.checked_add(8).ok_or(())?).ok_or(())?;
            <[u8; 8]>::try_from(word).map(u64::from_ne_bytes).map_err(|_| ())
        };
        let registers = UnwindRegsX86_64::new(ip, sp, bp);
        let mut frames = self.unwinder.iter_frames(ip, registers, &mut self.cache, &mut read);
        let mut addresses = Vec::new();
        while let Ok(Some(frame)) = frames.next() {
            let address = frame.address_for_lookup();
            // What is in no file is no function: the unwinder has lost its way.
            if !self.loaded.iter().any(|file| file.range.contains(&address)) {
                break;
            }
            addresses.push(address);
            if addresses.len() == MOST_FRAMES {
                break;
            }
        }
        addresses.into_iter().map(|address| self.name(address)).collect()
    }

    /// `function+0x1a`, or `file+0x1234` where the function has no name.
    pub fn name(&self, address: u64) -> String {
        let Some(file) = self.loaded.iter().find(|file| file.range.contains(&address)) else {
            return format!("{address:#x}");
        };
        let at = address.wrapping_sub(file.base);
        let index = file.functions.partition_point(|function| function.0 <= at).checked_sub(1);
        match index.map(|index| &file.functions[index]) {
            Some((start, length, name)) if at < start + length => {
                format!("{:#}+{:#x}", rustc_demangle::demangle(name), at - start)
            }
            _ => format!("{}+{at:#x}", file.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_one_range_each_and_data_is_left_out() {
        let maps = "\
            5500000000-5500001000 r--p 00000000 fe:00 12   /usr/bin/a b\n\
            5500001000-5500002000 r-xp 00001000 fe:00 12   /usr/bin/a b\n\
            5500002000-5500003000 rw-p 00002000 fe:00 12   /usr/bin/a b\n\
            7f00000000-7f00001000 r--p 00000000 fe:00 13   /usr/share/data\n\
            7f00002000-7f00003000 rw-p 00000000 00:00 0 \n\
            7f00004000-7f00005000 r-xp 00000000 00:00 0    [vdso]\n";
        assert_eq!(files(maps), [(0x55_0000_0000..0x55_0000_3000, "/usr/bin/a b".to_owned())]);
    }

    #[test]
    fn functions_of_this_program_have_names() {
        let stacks = UserStacks::read().unwrap();
        let name = stacks.name(functions_of_this_program_have_names as *const () as u64 + 1);
        assert!(name.contains("functions_of_this_program_have_names+0x1"), "{name}");
        assert_eq!(stacks.name(0x10), "0x10");
    }
}
