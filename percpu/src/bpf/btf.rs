//! What the running kernel's structures and functions are: its type information,
//! [BTF](https://www.kernel.org/doc/html/latest/bpf/btf.html), as far as a program here asks for it.
//!
//! A BPF program that reads a field of a kernel structure needs its offset, which differs from kernel to kernel; one that is attached to a
//! kernel function needs the function's number. Both are looked up when the program is loaded.
//!
//! The bytes are not trusted, wherever they come from: each offset is checked before it is followed, and whatever does not fit is an
//! error or "not found".
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use thiserror::Error;

/// Where the kernel shows its own.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// Kernels have 5 to 10 MB.
const MAX_BYTES: u64 = 64 << 20;
const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 24;
/// `struct btf_type`.
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;
/// Anonymous structures in anonymous structures: the kernel has two or three.
const MAX_DEPTH: usize = 8;
/// Members looked at in one search: `task_struct` has some 300. What is nested often enough has any number.
const MAX_MEMBERS: usize = 100_000;

/// Why there is no type information.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The kernel shows none.
    #[error(
        "cannot read the kernel's type information, {VMLINUX}: {0}; it takes a kernel with CONFIG_DEBUG_INFO_BTF"
    )]
    Unreadable(#[source] io::Error),
    /// It is damaged, or of a kind that this reader does not know.
    #[error("the kernel's type information does not make sense at byte {at}: {what}")]
    Malformed {
        /// Where, from the beginning.
        at: usize,
        /// What does not fit.
        what: &'static str,
    },
}

/// `BTF_KIND_...`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Kind {
    Int = 1,
    Pointer = 2,
    Array = 3,
    Struct = 4,
    Union = 5,
    Enum = 6,
    Forward = 7,
    Typedef = 8,
    Volatile = 9,
    Const = 10,
    Restrict = 11,
    Function = 12,
    FunctionPrototype = 13,
    Variable = 14,
    DataSection = 15,
    Float = 16,
    DeclarationTag = 17,
    TypeTag = 18,
    Enum64 = 19,
}

impl Kind {
    fn new(number: u32) -> Option<Self> {
        use Kind::*;
        const KINDS: [Kind; 19] = [
            Int,
            Pointer,
            Array,
            Struct,
            Union,
            Enum,
            Forward,
            Typedef,
            Volatile,
            Const,
            Restrict,
            Function,
            FunctionPrototype,
            Variable,
            DataSection,
            Float,
            DeclarationTag,
            TypeTag,
            Enum64,
        ];
        KINDS.get((number as usize).checked_sub(1)?).copied()
    }

    /// Bytes behind the `struct btf_type`, for `elements` members, parameters or values.
    fn more_bytes(self, elements: usize) -> usize {
        match self {
            Kind::Int | Kind::Variable | Kind::DeclarationTag => 4,
            Kind::Array => 12,
            Kind::Struct | Kind::Union | Kind::DataSection | Kind::Enum64 => 12 * elements,
            Kind::Enum | Kind::FunctionPrototype => 8 * elements,
            _ => 0,
        }
    }
}

/// One `struct btf_type`.
#[derive(Clone, Copy, Debug)]
struct Type {
    name: u32,
    kind: Kind,
    elements: usize,
    /// Members have their sizes in bits beside their offsets.
    bit_fields: bool,
    /// Where its members begin.
    more: usize,
}

/// Type information, read whole.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    /// Number 0, which is `void`, is left out: number `n` is at `n - 1`.
    types: Vec<Type>,
    /// Where the names are: begin and end.
    names: (usize, usize),
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl Btf {
    /// That of the running kernel.
    pub fn of_kernel() -> Result<Self, BtfError> {
        let mut bytes = Vec::new();
        let file = File::open(VMLINUX).map_err(BtfError::Unreadable)?;
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(BtfError::Unreadable)?;
        Self::parse(bytes)
    }

    /// Reads it, in this machine's byte order.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let malformed = |at, what| BtfError::Malformed { at, what };
        let header = |at| word(&bytes, at).ok_or(malformed(at, "it ends within the header"));
        let first = header(0)?.to_ne_bytes();
        if u16::from_ne_bytes([first[0], first[1]]) != MAGIC || first[2] != VERSION {
            return Err(malformed(0, "no BTF of version 1"));
        }
        let header_bytes = header(4)? as usize;
        if header_bytes < HEADER_BYTES {
            return Err(malformed(4, "the header is too short"));
        }
        // Offsets count from the header's end.
        let section = |at: usize| -> Result<(usize, usize), BtfError> {
            let begin = header_bytes.checked_add(header(at)? as usize);
            let end = begin.and_then(|begin| begin.checked_add(header(at + 4).ok()? as usize));
            match (begin, end) {
                (Some(begin), Some(end)) if end <= bytes.len() => Ok((begin, end)),
                _ => Err(malformed(at, "a section goes beyond the end")),
            }
        };
        let (mut at, end) = section(8)?;
        let names = section(16)?;
        let mut types = Vec::new();
        while at < end {
            let field = |offset| word(&bytes[..end], at + offset).ok_or(malformed(at, "a type is cut off"));
            let (name, info) = (field(0)?, field(4)?);
            field(8)?;
            let kind = Kind::new(info >> 24 & 0x1f).ok_or(malformed(at, "a type of unknown kind"))?;
            let elements = (info & 0xffff) as usize;
            let more = at + TYPE_BYTES;
            types.push(Type { name, kind, elements, bit_fields: info >> 31 == 1, more });
            at = more + kind.more_bytes(elements);
            if at > end {
                return Err(malformed(more, "a type is cut off"));
            }
        }
        Ok(Self { bytes, types, names })
    }

    fn name(&self, offset: u32) -> Option<&[u8]> {
        let (begin, end) = self.names;
        let name = self.bytes.get(begin.checked_add(offset as usize)?..end)?;
        Some(&name[..name.iter().position(|&byte| byte == 0)?])
    }

    fn get(&self, number: u32) -> Option<&Type> {
        self.types.get((number as usize).checked_sub(1)?)
    }

    /// The number of a type or function.
    pub fn find(&self, kind: Kind, name: &str) -> Option<u32> {
        let is_it = |entry: &Type| entry.kind == kind && self.name(entry.name) == Some(name.as_bytes());
        u32::try_from(self.types.iter().position(is_it)? + 1).ok()
    }

    /// Where a structure has a member, in bytes from its beginning; also one of an anonymous structure or union inside. `None`
    /// where there is no such member, or it is a bit field.
    pub fn member_offset(&self, structure: &str, member: &str) -> Option<u32> {
        let number = self.find(Kind::Struct, structure)?;
        let mut left = MAX_MEMBERS;
        let bits = self.member_bits(self.get(number)?, member.as_bytes(), 0, &mut left)?;
        (bits % 8 == 0).then_some(bits / 8)
    }

    fn member_bits(&self, structure: &Type, wanted: &[u8], depth: usize, left: &mut usize) -> Option<u32> {
        if depth == MAX_DEPTH {
            return None;
        }
        (0..structure.elements).find_map(|index| {
            *left = left.checked_sub(1)?;
            let at = structure.more + index * MEMBER_BYTES;
            let (name, number, offset) =
                (word(&self.bytes, at)?, word(&self.bytes, at + 4)?, word(&self.bytes, at + 8)?);
            let (bits, size_bits) =
                if structure.bit_fields { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            let name = self.name(name)?;
            if !name.is_empty() {
                return (name == wanted && size_bits == 0).then_some(bits);
            }
            let inner = self.get(number)?;
            let holds_members = matches!(inner.kind, Kind::Struct | Kind::Union);
            let inner = holds_members.then(|| self.member_bits(inner, wanted, depth + 1, left))??;
            bits.checked_add(inner)
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Header, types and names, as the kernel lays them out.
    fn build(types: &[u32], names: &str) -> Vec<u8> {
        let type_bytes = types.len() as u32 * 4;
        let first = u32::from_ne_bytes([MAGIC.to_ne_bytes()[0], MAGIC.to_ne_bytes()[1], VERSION, 0]);
        let header = [first, HEADER_BYTES as u32, 0, type_bytes, type_bytes, names.len() as u32];
        let words = header.iter().chain(types).flat_map(|word| word.to_ne_bytes());
        words.chain(names.bytes()).collect()
    }

    /// `struct s { int a; struct { int b; }; int c:3; }` and `int f(void)`.
    fn sample() -> Vec<u8> {
        const STRUCT: u32 = 4 << 24;
        let names = "\0int\0s\0a\0b\0c\0f\0";
        #[rustfmt::skip]
        let types = [
            1, 1 << 24, 4, 0x0100_0020,                                             // 1: int
            0, STRUCT | 1, 4, /* b */ 9, 1, 0,                                      // 2
            5, 1 << 31 | STRUCT | 3, 12, /* a */ 7, 1, 0, /* - */ 0, 2, 32, /* c */ 11, 1, 3 << 24 | 64, // 3: s
            0, 13 << 24, 1,                                                         // 4
            13, 12 << 24, 4,                                                        // 5: f
        ];
        build(&types, names)
    }

    #[test]
    fn members_and_functions_are_found() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!((btf.find(Kind::Struct, "s"), btf.find(Kind::Function, "f")), (Some(3), Some(5)));
        assert_eq!((btf.find(Kind::Struct, "f"), btf.find(Kind::Struct, "t")), (None, None));
        assert_eq!(btf.member_offset("s", "a"), Some(0));
        assert_eq!(btf.member_offset("s", "b"), Some(4));
        assert_eq!(btf.member_offset("s", "c"), None, "a bit field");
        assert_eq!(btf.member_offset("s", "d"), None);
    }

    #[test]
    fn a_structure_inside_itself_ends() {
        let types = [1, 4 << 24 | 1, 4, 0, 1, 0];
        let btf = Btf::parse(build(&types, "\0s\0")).unwrap();
        assert_eq!(btf.member_offset("s", "x"), None);
    }

    /// A thousand anonymous structures, each with a thousand of itself: a search through all would take for ever.
    #[test]
    fn a_search_is_bounded() {
        let mut types = vec![1, 4 << 24 | 1000, 4];
        types.extend([0, 2, 0].repeat(1000));
        types.extend([0, 4 << 24 | 1000, 4]);
        types.extend([0, 2, 0].repeat(1000));
        let btf = Btf::parse(build(&types, "\0s\0")).unwrap();
        assert_eq!(btf.member_offset("s", "x"), None);
    }

    #[test]
    fn the_running_kernels_is_read() {
        let btf = match Btf::of_kernel() {
            Err(BtfError::Unreadable(error)) => {
                eprintln!("SKIPPED the_running_kernels_is_read: no BTF: {error}");
                return;
            }
            btf => btf.unwrap(),
        };
        let pid = btf.member_offset("task_struct", "pid").unwrap();
        // Neighbours, in every kernel there was.
        assert_eq!(btf.member_offset("task_struct", "tgid"), Some(pid + 4));
        assert_eq!(btf.member_offset("list_head", "prev"), Some(size_of::<usize>() as u32));
        assert!(btf.find(Kind::Function, "schedule").is_some());
        assert!(btf.types.len() > 10_000);
    }

    proptest! {
        #[test]
        fn property_any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Btf::parse(bytes);
        }

        /// Some bytes of a good one changed, and its end cut off.
        #[test]
        fn property_damage_is_read_or_refused(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in 0_usize..40,
        ) {
            let mut bytes = sample();
            bytes.truncate(bytes.len() - cut);
            for (index, value) in changes {
                let index = index.index(bytes.len());
                bytes[index] = value;
            }
            if let Ok(btf) = Btf::parse(bytes) {
                for name in ["s", "a", "b", "c", ""] {
                    btf.member_offset("s", name);
                    btf.find(Kind::Function, name);
                }
            }
        }

        #[test]
        fn property_any_types_are_searched_to_an_end(types in proptest::collection::vec(0_u32..8, 0..60)) {
            // Small numbers are names and types that exist; every third word is the kind.
            let words: Vec<u32> = types.iter().enumerate().map(|(at, &word)| if at % 3 == 1 { 4 << 24 | word } else { word }).collect();
            if let Ok(btf) = Btf::parse(build(&words, "\0s\0")) {
                btf.member_offset("s", "x");
            }
        }
    }
}
