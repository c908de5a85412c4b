//! A capture in memory, checked from end to end.
//!
//! The file is read into anonymous memory and not mapped: a mapped file that somebody shortens kills the process by SIGBUS, and a
//! page of it that is not in the cache would stop a worker for a disk access. It costs memory of the file's size, and 24 bytes a
//! packet for the index by which packets are found without looking at the format again.
#![forbid(unsafe_code)]

use super::classic::Classic;
use super::error::CaptureError;
use super::ng::Ng;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// One packet as the formats describe it.
pub(super) struct Record {
    position: usize,
    time_ns: Option<u64>,
    captured: u32,
    original: u32,
}

impl Record {
    /// Takes the frame check sequence off the end: packets in memory have none.
    pub(super) fn new(
        position: usize,
        time_ns: Option<u64>,
        captured: u32,
        original: u32,
        fcs_bytes: u32,
    ) -> Self {
        // Some writers get the original length wrong; it cannot be below what they captured.
        let original = original.max(captured).saturating_sub(fcs_bytes);
        Self { position, time_ns, captured: captured.min(original), original }
    }
}

/// Where one packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The first byte, counted from the start of the file.
    pub(super) position: usize,
    /// Nanoseconds since 1970.
    pub(super) time_ns: u64,
    /// Bytes in the file.
    pub(super) captured: u32,
    /// Bytes the packet had.
    pub(super) original: u32,
}

/// One packet of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapturedPacket<'a> {
    /// When it was captured, in nanoseconds since 1970. A packet without a stamp has that of the packet before it.
    pub time_ns: u64,
    /// The bytes that were captured, without the frame check sequence.
    pub data: &'a [u8],
    /// The bytes that the packet had; more than `data` where it was captured only in part.
    pub original_len: usize,
}

/// The format of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// pcap, of libpcap and tcpdump.
    Pcap,
    /// pcapng, of Wireshark.
    Pcapng,
}

/// A capture in memory. Every packet in it is whole.
#[derive(Debug)]
pub struct Capture {
    pub(super) bytes: Vec<u8>,
    pub(super) entries: Vec<Entry>,
    format: Format,
    cut_off: Option<CaptureError>,
}

impl Capture {
    /// Reads and checks a file. The open file is returned too: as long as it is, no port of any process opens it to write.
    ///
    /// # Errors
    /// All but a cut-off end, which [`cut_off`](Self::cut_off) tells.
    pub fn read(path: &Path) -> Result<(Self, File), CaptureError> {
        // Opening a named pipe would wait for its other end.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(CaptureError::NotAFile);
        }
        // A file system without locks does without.
        if matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            return Err(CaptureError::BeingWritten);
        }
        // The shortest record takes 16 bytes of the file, its index entry 24.
        let wanted = metadata.len().saturating_mul(5) / 2;
        match available_bytes() {
            Some(available) if wanted > available => {
                return Err(CaptureError::TooLarge { bytes: metadata.len(), available });
            }
            _ => {}
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        // No further than its length now: a file that somebody appends to would never end.
        (&file).take(metadata.len()).read_to_end(&mut bytes)?;
        Ok((Self::parse(bytes)?, file))
    }

    /// Checks the bytes of a file. Bounded by their number in time and memory, whatever they are.
    ///
    /// # Errors
    /// All but a cut-off end, which [`cut_off`](Self::cut_off) tells.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, CaptureError> {
        let mut entries = Vec::new();
        let (format, cut_off) = if let Some(ng) = Ng::recognise(&bytes) {
            let mut ng = ng;
            (Format::Pcapng, index(&mut entries, || ng.next(&bytes))?)
        } else if let Some(classic) = Classic::recognise(&bytes) {
            let mut classic = classic?;
            (Format::Pcap, index(&mut entries, || classic.next(&bytes))?)
        } else {
            return Err(unknown(&bytes));
        };
        Ok(Self { bytes, entries, format, cut_off })
    }

    /// The packets, in the order of the file.
    pub fn packets(&self) -> impl ExactSizeIterator<Item = CapturedPacket<'_>> {
        self.entries.iter().map(|entry| CapturedPacket {
            time_ns: entry.time_ns,
            data: &self.bytes[entry.position..entry.position + entry.captured as usize],
            original_len: entry.original as usize,
        })
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The format it was in.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Where the file was cut off; `None` where it was not.
    pub fn cut_off(&self) -> Option<&CaptureError> {
        self.cut_off.as_ref()
    }

    /// The same, and forgets it.
    pub(super) fn take_cut_off(&mut self) -> Option<CaptureError> {
        self.cut_off.take()
    }
}

/// Writes down where the packets are; a file that ends too early is returned, not an error, if it has packets.
fn index(
    entries: &mut Vec<Entry>,
    mut next: impl FnMut() -> Result<Option<Record>, CaptureError>,
) -> Result<Option<CaptureError>, CaptureError> {
    let mut last_ns = 0;
    loop {
        match next() {
            Ok(Some(Record { position, time_ns, captured, original })) => {
                last_ns = time_ns.unwrap_or(last_ns);
                entries.push(Entry { position, time_ns: last_ns, captured, original });
            }
            Ok(None) => return Ok(None),
            Err(error @ CaptureError::Truncated { whole: 1.., .. }) => return Ok(Some(error)),
            Err(error) => return Err(error),
        }
    }
}

fn unknown(bytes: &[u8]) -> CaptureError {
    match bytes {
        [] => CaptureError::Empty,
        [0x1F, 0x8B, ..] => CaptureError::Compressed("gzip"),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => CaptureError::Compressed("zstd"),
        [0x04, 0x22, 0x4D, 0x18, ..] => CaptureError::Compressed("lz4"),
        [0xFD, b'7', b'z', b'X', ..] => CaptureError::Compressed("xz"),
        _ => {
            let first: Vec<String> = bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
            CaptureError::UnknownFormat(first.join(" "))
        }
    }
}

/// Memory that can be had without swapping.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}
