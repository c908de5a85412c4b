//! Memory that does not fault: locked, present, and not shared with a child by copy-on-write.
//!
//! The kernel's own `mlockall(2)` would count address space that is only reserved, of which packet memory has terabytes: so the maps are
//! locked one by one, as `/proc/self/maps` lists them. Where locking is not allowed, what can be done is done: every page is made
//! present, which holds until memory gets short.
#![forbid(unsafe_code)]

use crate::sys;
use std::fs;
use std::io;
use std::ops::Range;

/// One line of `/proc/self/maps` that can be touched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Map {
    range: Range<u64>,
    writable: bool,
    name: String,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locked {
    /// Bytes that are locked.
    pub locked_bytes: u64,
    /// Bytes that are only present: the kernel refused to lock them.
    pub present_bytes: u64,
    /// What the kernel answered, as an errno; 0 where it refused nothing.
    pub errno: i32,
}

/// The maps with any access; the kernel's own are not memory.
fn parse(maps: &str) -> Vec<Map> {
    let map = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (range, access) = (words.next()?, words.next()?);
        let (start, end) = range.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        let name = words.nth(3).unwrap_or_default();
        let kernels = ["[vvar]", "[vvar_vclock]", "[vdso]", "[vsyscall]"].contains(&name);
        (access.starts_with(['r', '-']) && !access.starts_with("---") && !kernels).then_some(Map {
            range: address(start)?..address(end)?,
            writable: access.as_bytes().get(1) == Some(&b'w'),
            name: name.to_owned(),
        })
    };
    maps.lines().filter_map(map).collect()
}

/// Locks all memory of this process that there is now, and keeps its heap as it is. Memory that is mapped later is not locked.
pub fn lock_process() -> io::Result<Locked> {
    sys::keep_heap();
    let mut result = Locked::default();
    for map in parse(&fs::read_to_string("/proc/self/maps")?) {
        lock_map(&map.range, map.writable, &mut result);
    }
    Ok(result)
}

fn lock_map(range: &Range<u64>, writable: bool, result: &mut Locked) {
    let bytes = range.end - range.start;
    match sys::lock(range) {
        Ok(()) => result.locked_bytes += bytes,
        // Part of it was unmapped meanwhile, by another thread: nobody's any more.
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && !exists(range) => return,
        Err(error) => {
            result.present_bytes += bytes;
            result.errno = error.raw_os_error().unwrap_or(libc::EPERM);
        }
    }
    // Locking a shared map makes its pages present to be read. The kernel may refuse this for a device's memory.
    let _ = sys::populate(range, writable);
}

/// The end of `range`, from where the map begins that its last byte is in: the main thread's stack is not mapped as far as it may grow.
pub(crate) fn mapped_end(range: &Range<u64>) -> io::Result<Range<u64>> {
    let maps = parse(&fs::read_to_string("/proc/self/maps")?);
    let map = maps.iter().find(|map| map.range.contains(&(range.end - 1)));
    Ok(map.map_or(range.start, |map| map.range.start.max(range.start))..range.end)
}

fn exists(range: &Range<u64>) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    parse(&maps).iter().any(|map| map.range.start <= range.start && range.end <= map.range.end)
}

/// Keeps the pages of `range` from children by fork for as long as it lives: a fork elsewhere in the process then causes no fault here.
#[derive(Debug)]
pub struct KeptFromChildren(Range<u64>);

impl KeptFromChildren {
    /// The whole pages that `range` touches. A child that uses anything there ends by SIGSEGV.
    pub fn new(range: &Range<u64>) -> io::Result<Self> {
        const PAGE: u64 = 4096;
        let pages = range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE);
        // Where a part of it is not mapped, the rest is done all the same: the guard takes that back.
        let kept = Self(pages);
        sys::keep_from_children(&kept.0, true)?;
        Ok(kept)
    }
}

impl Drop for KeptFromChildren {
    fn drop(&mut self) {
        // Fails only where it was unmapped before.
        let _ = sys::keep_from_children(&self.0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_reserved_and_what_is_the_kernels_is_left_out() {
        let maps = "\
            55a0c4000000-55a0c4021000 rw-p 00000000 00:00 0                          [heap]\n\
            7f0000000000-7f0000100000 ---p 00000000 00:00 0 \n\
            7f0000200000-7f0000300000 r-xp 00000000 fe:00 123                        /usr/lib/a b.so\n\
            7ffd00000000-7ffd00004000 r--p 00000000 00:00 0                          [vvar]\n\
            nonsense\n";
        let maps = parse(maps);
        assert_eq!(maps.len(), 2, "{maps:?}");
        assert_eq!((maps[0].name.as_str(), maps[0].writable), ("[heap]", true));
        assert_eq!((maps[1].range.start, maps[1].writable), (0x7f00_0020_0000, false));
    }

    #[test]
    fn locked_memory_is_present() {
        let mut memory = vec![0_u8; 64 << 12];
        let start = (memory.as_mut_ptr() as u64).next_multiple_of(4096);
        let range = start..start + (32 << 12);
        let mut result = Locked::default();
        lock_map(&range, true, &mut result);
        assert_eq!(result.locked_bytes + result.present_bytes, 32 << 12, "{result:?}");
        let kept = KeptFromChildren::new(&range).unwrap();
        drop(kept);
    }
}
