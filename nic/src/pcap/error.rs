//! What can be wrong with a capture, where, and what to do about it.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;
use thiserror::Error;

/// Why a capture is not read. The text says what is wrong and where; [`advice`](Self::advice) says the way out.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The system refused.
    #[error("cannot read the capture ({0})")]
    Io(#[from] io::Error),
    /// A directory, a pipe, a device: reading it might never end.
    #[error("not a regular file")]
    NotAFile,
    /// A port is writing to it.
    #[error("another port is writing to the capture")]
    BeingWritten,
    /// Larger than the memory that is free.
    #[error("the capture has {bytes} bytes, which do not fit the {available} bytes of free memory")]
    TooLarge {
        /// Bytes of the file.
        bytes: u64,
        /// Bytes of memory that can be had.
        available: u64,
    },
    /// No bytes at all.
    #[error("the capture is an empty file")]
    Empty,
    /// A compressed file.
    #[error("the capture is compressed ({0})")]
    Compressed(&'static str),
    /// No magic number that is known; the first bytes in hexadecimal.
    #[error("neither pcap nor pcapng: it begins with the bytes {0}")]
    UnknownFormat(String),
    /// A packet of something else than Ethernet.
    #[error("link type {link_type} at byte {offset}, and only Ethernet (1) is read")]
    LinkType {
        /// The `LINKTYPE_` number of the pcap registry.
        link_type: u16,
        /// Where in the file the capture, or the interface, is described.
        offset: usize,
    },
    /// The file ends inside a record or block.
    #[error("the capture is cut off: {what} at byte {offset} needs {needed} bytes, {left} are left")]
    Truncated {
        /// What was being read: `packet 7`.
        what: String,
        /// Where it starts.
        offset: usize,
        /// Bytes it has by its own account (at least, where its length is cut off too).
        needed: usize,
        /// Bytes from its start to the end of the file.
        left: usize,
        /// Packets before it, all whole.
        whole: usize,
    },
    /// A number that cannot be.
    #[error("the capture is corrupt at byte {offset}, behind {whole} whole packets: {problem}")]
    Corrupt {
        /// Where the record or block starts.
        offset: usize,
        /// Packets before it, all whole.
        whole: usize,
        /// What cannot be.
        problem: String,
    },
}

impl CaptureError {
    /// The way out, in words that can be typed.
    pub fn advice(&self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                "give the path of a capture, or pcap:none?out=FILE to write only".into()
            }
            Self::Io(_) => format!("see \"ls -l {path}\""),
            Self::NotAFile => "give the path of a pcap or pcapng file".into(),
            Self::BeingWritten => "read it when that port is closed".into(),
            Self::TooLarge { .. } => format!("split it by \"editcap -c 1000000 {path} part.pcapng\""),
            Self::Empty => "capture again".into(),
            Self::Compressed(program) => {
                format!("unpack it first: \"{program} -dc {path} > unpacked.pcap\"")
            }
            Self::UnknownFormat(_) => {
                format!("if Wireshark reads it, convert it by \"editcap -F pcapng {path} new.pcapng\"")
            }
            Self::LinkType { .. } => "capture on an Ethernet interface, not on \"any\" or a tunnel".into(),
            Self::Truncated { whole: 0, .. } | Self::Corrupt { whole: 0, .. } => {
                "no packet is whole: capture again".into()
            }
            Self::Truncated { whole, .. } => {
                format!("add truncated=accept to use the {whole} whole packets before it")
            }
            Self::Corrupt { whole, .. } => {
                format!("keep those by \"editcap -r {path} whole.pcapng 1-{whole}\"")
            }
        }
    }
}
