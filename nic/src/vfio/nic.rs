//! What a device driver is: a line in the table of drivers, and how it opens a NIC.
//!
//! A driver gets a [`PciFunction`] that is bound, mapped and reset, and gives back queues and a [`Nic`], the control side. Everything about VFIO,
//! specifications and PCI stays outside.
#![forbid(unsafe_code)]

use super::dma::PoolMapping;
use super::function::PciFunction;
use super::gate::Gate;
use crate::memory::Pool;
use crate::port::{LinkState, MacAddress, PortId, RxQueue, TxQueue};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;

/// What is true of every driver here, said by its mode and in the log when it opens.
pub(crate) const NEVER_RUN_ON_SILICON: &str = "never run on silicon";

/// A device that a driver knows.
pub(crate) struct KnownDevice {
    /// PCI vendor.
    pub(crate) vendor: u16,
    /// PCI device.
    pub(crate) device: u16,
    /// The chip's name: `82576`.
    pub(crate) name: &'static str,
}

/// A driver for a family of NICs.
pub(crate) struct NicDriver {
    /// Its name: `igb`.
    pub(crate) name: &'static str,
    /// Every device it drives.
    pub(crate) devices: &'static [KnownDevice],
    /// The most receive and transmit queues that any of them has.
    pub(crate) max_queues: u16,
    /// Ring sizes it can have: least and most, and what they are multiples of (or powers of two, where a driver checks that in `open`).
    pub(crate) ring_sizes: (u16, u16, u16),
    /// The longest MTU.
    pub(crate) max_mtu: usize,
    /// Bytes of BAR 0 that it needs at least; 0 where it finds its registers otherwise.
    pub(crate) registers_bytes: usize,
    /// Keys of a specification that this driver takes besides the common ones.
    pub(crate) options: &'static [&'static str],
    /// Opens a NIC: queues are set up, and it receives when this returns.
    pub(crate) open: fn(&Arc<dyn PciFunction>, &NicConfig<'_>) -> Result<OpenNic, NicError>,
}

/// What the user and the worker threads want of a NIC. All numbers are within what the [`NicDriver`] says.
pub(crate) struct NicConfig<'a> {
    /// The port's name, for messages of the log.
    pub(crate) name: &'a str,
    /// Receive queues; more than one means RSS.
    pub(crate) rx_queues: u16,
    /// Transmit queues.
    pub(crate) tx_queues: u16,
    /// Descriptors of each receive ring.
    pub(crate) rx_ring: u16,
    /// Descriptors of each transmit ring.
    pub(crate) tx_ring: u16,
    /// Bytes behind the Ethernet header that a packet may have, VLAN tags not counted.
    pub(crate) mtu: usize,
    /// Receive packets for other stations too.
    pub(crate) promiscuous: bool,
    /// Let the device check (receive) and fill in (transmit) checksums.
    pub(crate) checksum: bool,
    /// VLANs whose packets are received; all where it is empty.
    pub(crate) vlans: &'a [u16],
    /// The frames to use, and where the device finds them.
    pub(crate) frames: &'a Arc<PoolMapping>,
    /// The number of the port, to be written into received packets.
    pub(crate) id: PortId,
    /// A driver's own options: key and value.
    pub(crate) options: &'a [(String, String)],
}

impl NicConfig<'_> {
    /// The frames to use.
    pub(crate) fn pool(&self) -> &Pool {
        self.frames.pool()
    }

    /// The longest packet, with the Ethernet header and two VLAN tags, without the frame check sequence.
    pub(crate) fn max_packet_len(&self) -> usize {
        self.mtu + 14 + 8
    }

    /// The value of one of the driver's own options.
    pub(crate) fn option(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

/// Why a NIC cannot be had; one line with the way out, without the port's name.
#[derive(Debug, Error)]
pub(crate) enum NicError {
    /// The specification asks for what this device has not.
    #[error("{0}")]
    Specification(String),
    /// The device does not do what it should.
    #[error("{0}")]
    Device(String),
    /// The system refused memory, a mapping, interrupts.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel answered.
        source: std::io::Error,
    },
}

/// An open NIC.
pub(crate) struct OpenNic {
    /// The control side.
    pub(crate) nic: Box<dyn Nic>,
    /// As many as were asked for.
    pub(crate) rx: Vec<Box<dyn RxQueue>>,
    /// As many as were asked for.
    pub(crate) tx: Vec<Box<dyn TxQueue>>,
}

/// The control side of an open NIC. Used by the control thread: it may take microseconds, and never blocks.
pub(crate) trait Nic: Send {
    /// How it runs, in a few words: `82576, 2 queues, RSS`.
    fn mode(&self) -> String;

    /// Its own Ethernet address.
    fn mac(&self) -> MacAddress;

    /// The link; [`LinkState::Gone`] where the device answers no more.
    fn link(&mut self) -> LinkState;

    /// The eventfds of interrupts that tell of the link or of other causes: whenever one counts, it is reset and [`link`](Self::link) is called.
    fn events(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// No interrupt from now on: it could not be kept from the workers' CPUs. The device is told; its vectors stay as they are, for without MSI-X it would
    /// use its interrupt line, which others may share.
    fn silence(&mut self) {}

    /// Reads the device's statistics into the queues' drop counters and its own; looks for a hang, and takes the next step of a recovery.
    fn refresh(&mut self);

    /// The drop counters alone, with few registers read: about a thousand times a second while somebody looks for what lost packets.
    fn refresh_drops(&mut self) {}

    /// Numbers of the device, for the report: data-sheet names in lower case.
    fn extra_counters(&self) -> Vec<(String, u64)>;
}

/// How long a worker may take to come round for a recovery.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Stops the device once and for all, before the first of its frames or rings is freed. Every queue and the [`Nic`] have it; each calls
/// [`halt`](Self::halt) when it is dropped, before it gives back its frames.
pub(crate) struct Halt {
    function: Arc<dyn PciFunction>,
    /// Whether it was halted for good. Held while the device is stopped, so that whoever comes second frees nothing before it is.
    state: Mutex<bool>,
    halted: AtomicBool,
    /// When the queues were asked for empty rings.
    asked: Mutex<Option<Instant>>,
    /// Every queue's gate, for a recovery.
    pub(crate) gates: Vec<Arc<Gate>>,
}

impl Halt {
    /// For a NIC of so many queues of both kinds.
    pub(crate) fn new(function: Arc<dyn PciFunction>, queues: usize) -> Arc<Self> {
        Arc::new(Self {
            function,
            state: Mutex::new(false),
            halted: AtomicBool::new(false),
            asked: Mutex::default(),
            gates: (0..queues).map(|_| Arc::default()).collect(),
        })
    }

    /// Ends all its memory accesses, for good: when this returns, none is under way, whoever was the first to call it.
    pub(crate) fn halt(&self) {
        let mut halted = self.lock();
        if !*halted {
            self.function.set_bus_master(false);
            *halted = true;
            self.halted.store(true, Ordering::Release);
        }
    }

    /// Ends its memory accesses until [`resume`](Self::resume), for a recovery.
    pub(crate) fn pause(&self) {
        let _halted = self.lock();
        self.function.set_bus_master(false);
    }

    /// Lets it access memory again; false, and it is not let, where it was halted meanwhile: its rings may be gone.
    #[must_use]
    pub(crate) fn resume(&self) -> bool {
        let halted = self.lock();
        if !*halted {
            self.function.set_bus_master(true);
        }
        !*halted
    }

    /// Asks every queue for an empty ring; the device is paused.
    pub(crate) fn ask(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.gates.iter().for_each(|gate| gate.ask());
    }

    /// Whether all have answered.
    pub(crate) fn is_ready(&self) -> bool {
        self.gates.iter().all(|gate| gate.is_ready())
    }

    /// Whether a worker has not come round for so long that it is not waited for any more.
    pub(crate) fn asked_in_vain(&self) -> bool {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.is_some_and(|asked| asked.elapsed() > ANSWER_LIMIT) && !self.is_ready()
    }

    /// True once it has been halted for good.
    pub(crate) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Acquire)
    }

    /// The function, for a recovery.
    pub(crate) fn function(&self) -> &Arc<dyn PciFunction> {
        &self.function
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
