//! Numbers in either byte order: captures are written in that of the machine they were made on.
#![forbid(unsafe_code)]

/// The byte order of a capture, or of one section of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Little,
    Big,
}

impl Order {
    /// The 16 bits at `at`; `None` where `bytes` ends before.
    pub(super) fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let field = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Order::Little { u16::from_le_bytes(field) } else { u16::from_be_bytes(field) })
    }

    /// The 32 bits at `at`; `None` where `bytes` ends before.
    pub(super) fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let field = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Order::Little { u32::from_le_bytes(field) } else { u32::from_be_bytes(field) })
    }

    /// The 64 bits at `at`; `None` where `bytes` ends before.
    pub(super) fn u64(self, bytes: &[u8], at: usize) -> Option<u64> {
        let field = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Order::Little { u64::from_le_bytes(field) } else { u64::from_be_bytes(field) })
    }
}
