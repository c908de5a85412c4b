//! Counters that one thread writes and any thread reads, and the names of every way a packet can be lost.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread adds to and any thread reads. Adding is a plain load and store, not a locked operation.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only ever call it from one thread at a time: simultaneous additions can get lost.
    #[inline(always)]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Sets the value, for numbers that are counted elsewhere (by the kernel, by a device) or that go down.
    #[inline(always)]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(usize)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The name in tables, logs and reports.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// What it means, in one sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

drop_reasons! {
    /// The receive ring was full: the worker did not come round in time (counted by the kernel or the device).
    RxRingFull = "rx_ring_full",
    /// The device had no buffer for it: it was lost before any program saw it (the interface's `rx_missed_errors`).
    RxMissed = "rx_missed",
    /// The kernel or the device dropped it before the ring: mostly the fill ring was empty, or the frame too long.
    RxDropped = "rx_dropped",
    /// A ring entry named a frame, an offset or a length that cannot be: the entry was not used.
    RxInvalidDescriptor = "rx_invalid_descriptor",
    /// The pool had no free frame to receive into.
    RxNoFrame = "rx_no_frame",
    /// Longer than the frames (or the chain of frames) of the pool.
    RxOversize = "rx_oversize",
    /// Only a part of the packet was captured.
    RxTruncated = "rx_truncated",
    /// The device found it damaged: its frame check sequence is wrong, or its end is missing.
    RxDamaged = "rx_damaged",
    /// Received by the kernel or the device, but not yet read by a worker when the port was closed, or its device reset.
    RxUnread = "rx_unread",
    /// The transmit ring was full: the port takes packets more slowly than they come.
    TxRingFull = "tx_ring_full",
    /// The kernel or the device refused the transmit descriptor.
    TxInvalidDescriptor = "tx_invalid_descriptor",
    /// Longer than the port's MTU, or in more segments than it can send.
    TxOversize = "tx_oversize",
    /// Shorter than an Ethernet header.
    TxUndersize = "tx_undersize",
    /// The device was to fill in its checksum and cannot: behind an extension header of IPv6, or where headers are not whole in the first segment.
    TxChecksum = "tx_checksum",
    /// The kernel took it for transmission, and the device refused it: its queue was full, or it has no carrier.
    TxDropped = "tx_dropped",
    /// The port is down or has vanished.
    TxPortDown = "tx_port_down",
    /// The packet's frame is of a pool that the port cannot send from, and there was no frame to copy it to.
    TxForeignPool = "tx_foreign_pool",
    /// Taken for transmission, but not yet sent when the port was closed, or its device reset.
    TxUnsent = "tx_unsent",
    /// The application sent it to a port that this worker has no transmit queue of.
    NoTxQueue = "no_tx_queue",
    /// More packets of its class came for the exception port than `--punt-limit` lets through.
    PuntRate = "punt_rate",
    /// The application handed it to the kernel, and the port it came in by has no exception port.
    NoExceptionPort = "no_exception_port",
    /// It came in by a port, or was sent to one, that had been set down (`isoplane ctl set port N down`).
    AdminDown = "admin_down",
    /// The application dropped it: left it in the batch, or said so.
    Application = "application",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The counters of one receive or transmit queue. One writer for each: the worker for what it sees, the control
/// core for the reasons that the kernel or the device counts.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct QueueCounters {
    /// Packets given to or taken from the application's side.
    pub packets: Counter,
    /// Their bytes, without the frame check sequence.
    pub bytes: Counter,
    /// Frames that are on this queue's rings now.
    pub held: Counter,
    /// Of the received ones, those that were handed to the port's exception port.
    pub punted: Counter,
    /// Times the kernel had to be woken.
    pub doorbells: Counter,
    drops: [Counter; DropReason::ALL.len()],
}

impl QueueCounters {
    /// The counter of one reason.
    #[inline(always)]
    pub fn drops(&self, reason: DropReason) -> &Counter {
        &self.drops[reason as usize]
    }

    /// Each reason with its count.
    pub fn all_drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|reason| (*reason, self.drops(*reason).get()))
    }
}
