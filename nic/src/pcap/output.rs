//! The file that transmitted packets go to, and the doorbell that takes them there.
//!
//! A transmit queue fills blocks of memory, and full and empty ones change hands through two lock-free queues. Only the doorbell
//! touches the file. A block holds whole packets, and after a write that failed half-way the file is shortened to where it was
//! before: it is a complete capture at any time.
#![forbid(unsafe_code)]

use super::writer;
use crate::port::{Doorbell, PortGone};
use crossbeam_queue::ArrayQueue;
use percpu::tsc;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of a block: at least one packet of the greatest length.
pub(super) const BLOCK_BYTES: usize = super::MAX_PACKET_BYTES + 64;
/// Blocks of one transmit queue: 2 MiB, what a disk takes in the time that another thread needs to ring the doorbell.
pub(super) const BLOCKS: usize = 8;

/// Packets in the output's format, on the way to the file or back.
pub(super) struct Block {
    pub(super) bytes: Box<[u8]>,
    /// Bytes that are filled.
    pub(super) used: usize,
    /// Packets in them.
    pub(super) packets: u64,
    /// Bytes of those packets.
    pub(super) packet_bytes: u64,
}

impl Block {
    fn new() -> Self {
        // Not zero: zeroed memory comes in pages that fault at the first write, in the worker.
        Self { bytes: vec![0xFF; BLOCK_BYTES].into(), used: 0, packets: 0, packet_bytes: 0 }
    }

    pub(super) fn clear(&mut self) {
        (self.used, self.packets, self.packet_bytes) = (0, 0, 0);
    }
}

/// The output file, shared by the transmit queues of a port.
pub(super) struct Output {
    port: String,
    path: PathBuf,
    sink: Mutex<Sink>,
    failure: OnceLock<String>,
    /// Nanoseconds from the counter's zero (by its measured frequency) to 1970, modulo 2^64.
    clock_offset_ns: AtomicU64,
}

struct Sink {
    file: File,
    /// Bytes of the file that are whole packets.
    written: u64,
}

impl Output {
    /// Creates the file, or empties it, and writes its header. No other port can open it as long as this one lives.
    ///
    /// # Errors
    /// The problem in words.
    pub(super) fn create(port: &str, path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let failed = |error: io::Error| format!("cannot write to {shown} ({error}): choose another out=FILE");
        // Emptied only when it is ours; a named pipe is not waited for.
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).custom_flags(libc::O_NONBLOCK);
        let mut file = options.open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_char_device() {
            return Err(format!("{shown} is not a regular file: choose another out=FILE"));
        }
        if kind.is_file() {
            if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
                return Err(format!("{shown} is in use by another port: choose another out=FILE"));
            }
            file.set_len(0).map_err(failed)?;
        }
        let header = writer::file_header();
        file.write_all(&header).map_err(failed)?;
        let output = Self {
            port: port.to_owned(),
            path: path.to_owned(),
            sink: Mutex::new(Sink { file, written: header.len() as u64 }),
            failure: OnceLock::new(),
            clock_offset_ns: AtomicU64::new(0),
        };
        output.set_clock();
        Ok(output)
    }

    /// Sets the clock of the time stamps by the system's.
    pub(super) fn set_clock(&self) {
        let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        self.clock_offset_ns.store(now_ns.wrapping_sub(tsc::to_ns(tsc::now())), Ordering::Relaxed);
    }

    /// Nanoseconds since 1970, without a system call whatever the kernel's clock source is.
    pub(super) fn now_ns(&self) -> u64 {
        self.clock_offset_ns.load(Ordering::Relaxed).wrapping_add(tsc::to_ns(tsc::now()))
    }

    /// Why nothing is written any more; `None` as long as all is well.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    fn write(&self, sink: &mut Sink, bytes: &[u8]) -> bool {
        match sink.file.write_all(bytes) {
            Ok(()) => sink.written += bytes.len() as u64,
            Err(error) => {
                let reason = format!("cannot write to {} ({error})", self.path.display());
                // Best effort: what stays behind is a packet that is cut off, which readers recognise.
                let _ = sink.file.set_len(sink.written);
                let _ = self.failure.set(reason);
            }
        }
        self.failure.get().is_none()
    }
}

/// The blocks of one transmit queue, and its doorbell.
pub(super) struct Channel {
    pub(super) output: Arc<Output>,
    pub(super) full: ArrayQueue<Block>,
    /// Blocks that came back. One that still counts packets was not written.
    pub(super) empty: ArrayQueue<Block>,
}

impl Channel {
    pub(super) fn new(output: Arc<Output>) -> Self {
        let (full, empty) = (ArrayQueue::new(BLOCKS), ArrayQueue::new(BLOCKS));
        while empty.push(Block::new()).is_ok() {}
        Self { output, full, empty }
    }
}

impl Doorbell for Channel {
    fn ring(&self) -> Result<(), PortGone> {
        // Blocks are taken under the lock, so that two threads that ring at a time keep the order.
        let mut sink = self.output.sink.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..BLOCKS {
            let Some(mut block) = self.full.pop() else {
                break;
            };
            if self.output.failure().is_none() && self.output.write(&mut sink, &block.bytes[..block.used]) {
                block.clear();
            }
            // There are as many places as blocks.
            let _ = self.empty.push(block);
        }
        match self.output.failure() {
            None => Ok(()),
            Some(reason) => Err(PortGone { port: self.output.port.clone(), reason: reason.to_owned() }),
        }
    }
}
