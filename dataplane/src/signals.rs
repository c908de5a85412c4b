//! SIGINT and SIGTERM, and the one pipe the control core sleeps on.
//!
//! The first signal asks for an orderly end, the second ends the process at once. Workers write to the same pipe when they end, so that the
//! control core needs no polling to notice.
#![forbid(unsafe_code)]

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{SigId, flag, low_level};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) struct Signals {
    asked_to_stop: Arc<AtomicBool>,
    wake: UnixStream,
    waker: UnixStream,
    handlers: Vec<SigId>,
}

/// Wakes the control core.
pub(crate) struct Waker(UnixStream);

impl Waker {
    pub(crate) fn wake(&self) {
        // A full pipe wakes as well as one byte more would.
        let _ = (&self.0).write(&[0]);
    }
}

impl Signals {
    pub(crate) fn install() -> io::Result<Self> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let mut this = Self { asked_to_stop: Arc::default(), wake, waker, handlers: Vec::new() };
        for signal in [SIGINT, SIGTERM] {
            // Handlers run in this order: the second signal finds the flag set and ends the process.
            this.handlers.push(flag::register_conditional_shutdown(
                signal,
                128 + signal,
                Arc::clone(&this.asked_to_stop),
            )?);
            this.handlers.push(flag::register(signal, Arc::clone(&this.asked_to_stop))?);
            this.handlers.push(low_level::pipe::register(signal, this.waker.try_clone()?)?);
        }
        Ok(this)
    }

    pub(crate) fn waker(&self) -> io::Result<Waker> {
        self.waker.try_clone().map(Waker)
    }

    /// True once a signal has asked for the end.
    pub(crate) fn asked_to_stop(&self) -> bool {
        self.asked_to_stop.load(Ordering::Relaxed)
    }

    /// Sleeps until something wakes, one of `events` is readable (then true), or the time is over.
    pub(crate) fn wait(&mut self, timeout: Duration, events: &[BorrowedFd<'_>]) -> bool {
        // Rounded up: a timeout of 0 ms for the last half millisecond would spin.
        let milliseconds = u16::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        let all = [self.wake.as_fd()].into_iter().chain(events.iter().copied());
        let mut descriptors: Vec<PollFd<'_>> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let ready = poll(&mut descriptors, PollTimeout::from(milliseconds)).is_ok_and(|ready| ready > 0);
        let ready = |fd: &PollFd<'_>| ready && fd.any() == Some(true);
        let (woken, told) = (ready(&descriptors[0]), descriptors[1..].iter().any(ready));
        if woken {
            let mut bytes = [0; 64];
            while matches!(self.wake.read(&mut bytes), Ok(count) if count == bytes.len()) {}
        }
        told
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            low_level::unregister(handler);
        }
    }
}
