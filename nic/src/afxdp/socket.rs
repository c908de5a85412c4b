//! One AF_XDP socket: one queue of one interface.
//!
//! The receive side, the transmit side, their doorbells and the port's control handle share it. Each side keeps the books
//! on its frames for itself while it lives and leaves them here when it goes; when the last one has gone, the socket
//! is closed, and only then, when the kernel can no longer write to them, do the frames go back to the pool.
#![forbid(unsafe_code)]

use super::device::Device;
use super::ledger::Ledger;
use super::options::Options;
use super::quiesce;
use super::release::{self, Prober};
use super::ring::{ConsumerRing, Hostile, ProducerRing};
use super::umem::{Kind, Registry};
use super::{abi, sys};
use crate::memory::Pool;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long to wait for a queue that the socket of a process may hold that has just ended. Less than [`release::LIMIT`]:
/// it may as well be in use for good, and then somebody waits for the message.
pub(super) const TAKEN_LIMIT: Duration = Duration::from_secs(4);
/// What the kernel has taken on a loaded machine must fit twice.
const _: () = assert!(TAKEN_LIMIT.as_millis() > 2 * release::SEEN.as_millis());

/// A socket that is open, and what its two sides tell each other and the control core.
pub(super) struct Socket {
    /// Closed first.
    fd: OwnedFd,
    /// The queue of the interface it is bound to.
    pub(super) queue: u32,
    /// Whether the NIC itself reads and writes the frames.
    pub(super) zero_copy: bool,
    /// Descriptors that one wake-up sends at most, where the kernel let us say so.
    pub(super) tx_budget: Option<u32>,
    /// The interface was seen down by the control core: the receive side is not to be woken at every turn.
    pub(super) link_down: AtomicBool,
    /// The interface is down: the transmit ring stands still.
    pub(super) down: AtomicBool,
    /// The interface is gone for good.
    pub(super) gone: AtomicBool,
    /// Packets that the kernel took from the transmit ring and the device then refused.
    pub(super) refused: AtomicU64,
    /// Taken while the kernel is made to send: see [`Socket::sending`].
    sending: Mutex<bool>,
    /// Frames that were with the kernel when a side went: after the descriptor is closed, in field order.
    parked: Mutex<Parked>,
    /// The frames' memory outlives the socket.
    _pool: Pool,
    /// The program outlives the sockets.
    pub(super) device: Arc<Device>,
}

/// The right to make the kernel send. One thread has it at a time, so that the one that closes the transmit side knows that no call is under
/// way when it settles the accounts.
pub(super) struct Sending<'a>(MutexGuard<'a, bool>);

impl Sending<'_> {
    /// True once the transmit side is closed.
    pub(super) fn is_over(&self) -> bool {
        *self.0
    }

    /// Closes it: nobody is to make the kernel send any more.
    pub(super) fn end(mut self) {
        *self.0 = true;
    }
}

/// Frames that wait for the kernel to let go of them.
struct Parked {
    rx: Vec<Ledger<()>>,
    tx: Vec<Ledger<u32>>,
    prober: Prober,
    pool: Pool,
}

impl Drop for Parked {
    fn drop(&mut self) {
        if !self.prober.wait() {
            let frames = self.rx.iter().map(Ledger::len).sum::<usize>()
                + self.tx.iter().map(Ledger::len).sum::<usize>();
            tracing::warn!(
                "the kernel still holds a closed AF_XDP queue: its {frames} frames stay out of use"
            );
            self.pool.withhold(frames);
            std::mem::forget((std::mem::take(&mut self.rx), std::mem::take(&mut self.tx)));
        }
    }
}

/// What to open.
pub(super) struct Wanted<'a> {
    pub(super) device: &'a Arc<Device>,
    pub(super) pool: &'a Pool,
    pub(super) options: &'a Options,
    pub(super) queue: u32,
    pub(super) rx: bool,
    pub(super) tx: bool,
    pub(super) zero_copy: bool,
    pub(super) multi_buffer: bool,
}

/// The receive side's rings and books.
pub(super) struct RxSide {
    pub(super) ring: ConsumerRing<libc::xdp_desc>,
    pub(super) fill: ProducerRing<u64>,
    pub(super) ledger: Ledger<()>,
}

/// The transmit side's rings and books. A frame's note is its packet's length, with the frame that ends the packet.
pub(super) struct TxSide {
    pub(super) ring: ProducerRing<libc::xdp_desc>,
    pub(super) completion: ConsumerRing<u64>,
    pub(super) ledger: Ledger<u32>,
}

/// A socket with its two sides.
pub(super) struct Opened {
    pub(super) socket: Arc<Socket>,
    pub(super) rx: Option<RxSide>,
    pub(super) tx: Option<TxSide>,
    /// Whether it uses the UMEM that another socket registered.
    pub(super) shares: bool,
}

impl Drop for Opened {
    /// Sides that nobody took: a mapped ring keeps the socket bound, so the rings go first, and the frames wait for the
    /// kernel like those of a queue that has worked.
    fn drop(&mut self) {
        if let Some(RxSide { ring, fill, ledger }) = self.rx.take() {
            drop((ring, fill));
            self.socket.park_rx(ledger);
        }
        if let Some(TxSide { ring, completion, ledger }) = self.tx.take() {
            drop((ring, completion));
            self.socket.park_tx(ledger);
        }
    }
}

/// Which step of opening failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) step: Step,
    pub(super) error: io::Error,
}

/// The steps of opening a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Making the socket.
    Socket,
    /// Registering the pool's memory.
    Register,
    /// Setting up the rings.
    Rings,
    /// Getting frames for the fill ring.
    Frames,
    /// Setting up busy polling.
    BusyPoll,
    /// Binding to the queue.
    Bind,
    /// Sending the queue's packets to the socket.
    Redirect,
}

fn at(step: Step) -> impl Fn(io::Error) -> Failed {
    move |error| Failed { step, error }
}

impl Socket {
    /// Opens and binds one.
    pub(super) fn open(wanted: &Wanted<'_>) -> Result<Opened, Failed> {
        let Wanted { pool, options, .. } = *wanted;
        let fd = sys::socket(libc::AF_XDP, libc::SOCK_RAW, 0).map_err(at(Step::Socket))?;
        let kind = Kind::new(pool, wanted.zero_copy, wanted.multi_buffer);
        let mut registry = Registry::lock();
        let sharer = registry.sharer(kind);
        if sharer.is_none() {
            register(fd.as_fd(), pool).map_err(at(Step::Register))?;
        }
        let prober =
            Prober::new(pool, wanted.device.interface.index(), wanted.queue).map_err(at(Step::Register))?;
        let (fill, rx, tx) = rings(fd.as_fd(), wanted).map_err(at(Step::Rings))?;
        let mut fill = Fill { ring: fill, ledger: Ledger::new(pool) };
        // Where it is refused, the frames are missing, which is seen next.
        let _ = fill.top_up(pool);
        // Some drivers never look at a fill ring again that was empty once (agave#6836): begin with a full one.
        if fill.ledger.len() < fill.ring.size() as usize {
            return Err(at(Step::Frames)(io::Error::from_raw_os_error(libc::ENOMEM)));
        }
        busy_poll(fd.as_fd(), options).map_err(at(Step::BusyPoll))?;
        // Again and again with the same socket: what it has registered and the frames on its fill ring stay as they are.
        let bound = release::retry(TAKEN_LIMIT, || bind(fd.as_fd(), wanted, sharer.as_deref()));
        bound.map_err(at(Step::Bind))?;
        let zero_copy = sys::option::<libc::xdp_options>(fd.as_fd(), libc::SOL_XDP, libc::XDP_OPTIONS)
            .map_or(wanted.zero_copy, |live| live.flags & libc::XDP_OPTIONS_ZEROCOPY != 0);
        // Linux before 6.17 does not know it: then 32 it is.
        let tx_budget = (tx.is_some() && !zero_copy)
            .then(|| {
                sys::set_option(fd.as_fd(), libc::SOL_XDP, abi::XDP_MAX_TX_SKB_BUDGET, &options.tx_budget)
            })
            .and_then(|set| set.is_ok().then_some(options.tx_budget));
        let socket = Arc::new(Self {
            fd,
            queue: wanted.queue,
            zero_copy,
            tx_budget,
            link_down: AtomicBool::new(false),
            down: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            sending: Mutex::new(false),
            parked: Mutex::new(Parked { rx: Vec::new(), tx: Vec::new(), prober, pool: pool.clone() }),
            _pool: pool.clone(),
            device: wanted.device.clone(),
        });
        registry.add(kind, &socket);
        drop(registry);
        let Fill { ring: fill, ledger } = fill;
        let rx = match rx {
            Some(ring) => Some(RxSide { ring, fill, ledger }),
            None => {
                socket.park_rx(ledger);
                None
            }
        };
        let tx = tx.map(|(ring, completion)| TxSide { ring, completion, ledger: Ledger::new(pool) });
        let opened = Opened { socket, rx, tx, shares: sharer.is_some() };
        if opened.rx.is_some() {
            let Opened { socket, .. } = &opened;
            wanted.device.program.redirect(wanted.queue, socket.fd()).map_err(at(Step::Redirect))?;
        }
        Ok(opened)
    }

    /// The descriptor.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether it is still bound to a queue.
    pub(super) fn is_bound(&self) -> bool {
        !self.gone.load(Ordering::Relaxed) && self.device.interface.name().is_ok()
    }

    /// Makes the queue's packets the kernel's again, and waits until those under way are on the ring, whose producer
    /// stands at `position()`. Where that is refused (the privilege is gone), packets go on coming until the ring is full.
    pub(super) fn stop_receiving<P: PartialEq>(&self, position: impl FnMut() -> P) {
        if self.device.program.stop_redirect(self.queue).is_ok()
            && !quiesce::wait(quiesce::grace_period, position)
        {
            tracing::warn!(
                "queue {}: packets still come in after it was closed: they are not counted",
                self.queue
            );
        }
    }

    /// The kernel's counters.
    pub(super) fn statistics(&self) -> io::Result<libc::xdp_statistics> {
        sys::option(self.fd(), libc::SOL_XDP, libc::XDP_STATISTICS)
    }

    /// Keeps a receive side's frames until the socket is closed.
    pub(super) fn park_rx(&self, ledger: Ledger<()>) {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).rx.push(ledger);
    }

    /// The right to make the kernel send; where another thread has it, waits for its call.
    pub(super) fn sending(&self) -> Sending<'_> {
        Sending(self.sending.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps a transmit side's frames until the socket is closed.
    pub(super) fn park_tx(&self, ledger: Ledger<u32>) {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).tx.push(ledger);
    }
}

/// A fill ring with its books.
struct Fill {
    ring: ProducerRing<u64>,
    ledger: Ledger<()>,
}

impl Fill {
    fn top_up(&mut self, pool: &Pool) -> Result<(), Hostile> {
        top_up(&mut self.ring, &mut self.ledger, pool)
    }
}

/// Puts frames of the pool on a fill ring until it has as many with the kernel as it has entries, or until the pool is empty. An error
/// where the kernel's index cannot be.
#[inline(always)]
pub(super) fn top_up(
    ring: &mut ProducerRing<u64>,
    ledger: &mut Ledger<()>,
    pool: &Pool,
) -> Result<(), Hostile> {
    loop {
        let missing =
            (ring.size() as usize).saturating_sub(ledger.len()).min(crate::memory::BATCH_SIZE) as u32;
        // A frame on the receive ring counts as with the kernel, so there is always room for what is missing.
        let free = ring.free(missing)?;
        let wanted = missing.min(free);
        if wanted == 0 {
            return Ok(());
        }
        let mut written = 0;
        pool.allocate_frames(wanted as usize, |frame| match ledger.enter(frame, ()) {
            Ok(address) => {
                ring.write(written, address);
                written += 1;
            }
            // Not to be: it is this pool's. Nothing may be freed in here, so the frame is given up.
            Err(frame) => std::mem::forget(frame),
        });
        ring.submit(written);
        if written < wanted {
            return Ok(());
        }
    }
}

/// Registers the pool's memory with the socket, for it and for those who will share it.
fn register(fd: BorrowedFd<'_>, pool: &Pool) -> io::Result<()> {
    let registration = libc::xdp_umem_reg {
        addr: pool.region().base().as_ptr() as u64,
        len: (pool.frames() * pool.frame_size()) as u64,
        chunk_size: pool.frame_size() as u32,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    sys::set_option(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)
}

type TxRings = (ProducerRing<libc::xdp_desc>, ConsumerRing<u64>);
type Rings = (ProducerRing<u64>, Option<ConsumerRing<libc::xdp_desc>>, Option<TxRings>);

/// Makes and maps the rings.
fn rings(fd: BorrowedFd<'_>, wanted: &Wanted<'_>) -> io::Result<Rings> {
    let options = wanted.options;
    let make = |ring, size: u32| sys::set_option(fd, libc::SOL_XDP, ring, &size);
    make(libc::XDP_UMEM_FILL_RING, options.fill_ring())?;
    make(libc::XDP_UMEM_COMPLETION_RING, options.tx_ring)?;
    if wanted.rx {
        make(libc::XDP_RX_RING, options.rx_ring)?;
    }
    if wanted.tx {
        make(libc::XDP_TX_RING, options.tx_ring)?;
    }
    let offsets: libc::xdp_mmap_offsets = sys::option(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)?;
    let fill_page = libc::XDP_UMEM_PGOFF_FILL_RING as i64;
    let completion_page = libc::XDP_UMEM_PGOFF_COMPLETION_RING as i64;
    let fill = ProducerRing::map(fd, options.fill_ring(), fill_page, &offsets.fr)?;
    let rx = wanted
        .rx
        .then(|| ConsumerRing::map(fd, options.rx_ring, libc::XDP_PGOFF_RX_RING, &offsets.rx))
        .transpose()?;
    let tx = wanted
        .tx
        .then(|| {
            Ok::<_, io::Error>((
                ProducerRing::map(fd, options.tx_ring, libc::XDP_PGOFF_TX_RING, &offsets.tx)?,
                ConsumerRing::map(fd, options.tx_ring, completion_page, &offsets.cr)?,
            ))
        })
        .transpose()?;
    Ok((fill, rx, tx))
}

/// Makes the doorbells poll the device themselves, in preference to its interrupts.
fn busy_poll(fd: BorrowedFd<'_>, options: &Options) -> io::Result<()> {
    if options.busy_poll_us == 0 {
        return Ok(());
    }
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, &1_i32)?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, &options.busy_poll_us)?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, &options.busy_poll_budget)
}

fn bind(fd: BorrowedFd<'_>, wanted: &Wanted<'_>, sharer: Option<&Socket>) -> io::Result<()> {
    let mut address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: 0,
        sxdp_ifindex: wanted.device.interface.index(),
        sxdp_queue_id: wanted.queue,
        sxdp_shared_umem_fd: 0,
    };
    match sharer {
        // The other flags are the first socket's.
        Some(sharer) => {
            address.sxdp_flags = libc::XDP_SHARED_UMEM;
            address.sxdp_shared_umem_fd = sharer.fd.as_raw_fd() as u32;
        }
        None => {
            let copying = if wanted.zero_copy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
            let several = if wanted.multi_buffer { libc::XDP_USE_SG } else { 0 };
            address.sxdp_flags = copying | several | libc::XDP_USE_NEED_WAKEUP;
        }
    }
    sys::bind_xdp(fd, &address)
}
