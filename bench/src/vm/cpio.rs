//! Writes the archive that the kernel unpacks as its first root file system: cpio in the "newc" form, uncompressed
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive being written. Names are relative to the guest's root.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds an executable file, and the directories above it that are not there yet.
    pub(super) fn file(&mut self, name: &str, content: &[u8]) {
        for (end, _) in name.match_indices('/') {
            if self.directories.insert(name[..end].to_owned()) {
                self.entry(&name[..end], DIRECTORY | 0o755, &[]);
            }
        }
        self.entry(name, REGULAR | 0o755, content);
    }

    /// The archive, complete.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry(TRAILER, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        // The form's only limit: a size is 32 bits.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let inode = self.entries;
        self.entries += 1;
        let links = if mode & DIRECTORY == 0 { 1 } else { 2 };
        // inode, mode, uid, gid, links, mtime, size, device major and minor, its own major and minor, name with its NUL, check sum.
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(&content[..size as usize]);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and content of each entry, read as buffer-format.rst says.
    fn entries(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            assert_eq!(&archive[..6], b"070701");
            let field = |n: usize| {
                let digits = std::str::from_utf8(&archive[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let content = (110 + name_size).next_multiple_of(4);
            let name = &archive[110..110 + name_size];
            assert_eq!(name.last(), Some(&0));
            let name = String::from_utf8(name[..name_size - 1].to_vec()).unwrap();
            if name == TRAILER {
                assert_eq!(archive.len(), content);
                return found;
            }
            found.push((name, mode, archive[content..content + size].to_vec()));
            archive = &archive[(content + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn files_are_found_again_below_directories_made_once() {
        let mut archive = Archive::default();
        archive.file("init", b"#!");
        archive.file("lib/modules/a.ko", b"12345");
        archive.file("lib/b", b"");
        let entries = entries(&archive.finish());
        let expected: [(&str, u32, &[u8]); 5] = [
            ("init", 0o100_755, b"#!"),
            ("lib", 0o040_755, b""),
            ("lib/modules", 0o040_755, b""),
            ("lib/modules/a.ko", 0o100_755, b"12345"),
            ("lib/b", 0o100_755, b""),
        ];
        assert_eq!(entries, expected.map(|(name, mode, content)| (name.to_owned(), mode, content.to_vec())));
    }
}
