//! The loop that serves clients: waits for all of them at once, and lets none have more than its share.
//!
//! Whatever clients do, this is all they get: so many connections, each with two buffers; a time for each request; and a fifth of the CPU, which
//! is the control core's. Where a connection too many comes, the one goes that has waited longest for its last answer: a client that asks at
//! once is served, however many hold connections and say nothing.
#![forbid(unsafe_code)]

use super::Endpoints;
use super::client::{Buffers, Client, Stream};
use super::view::View;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// What clients are kept to.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Connections at a time.
    pub(super) clients: usize,
    /// From one answer to the next: who needs longer is let go.
    pub(super) patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { clients: 64, patience: Duration::from_secs(30) }
    }
}

/// Connections of a kind that are taken before those that are there have a turn.
const ACCEPTED_A_TURN: usize = 8;
/// After a turn it sleeps this many times as long as that took.
const REST: u32 = 4;
/// A turn ends when it has taken so long; the next one begins with those it did not come to.
const TURN: Duration = Duration::from_millis(5);
/// Where no connection can be taken, for want of descriptors, it tries again after this time.
const RETRY: Duration = Duration::from_millis(50);

/// See the module.
pub(super) struct Server {
    endpoints: Endpoints,
    view: Arc<View>,
    /// Readable, or closed, when it is time to end.
    stopped: UnixStream,
    limits: Limits,
    clients: Vec<Client>,
    spare: Vec<Buffers>,
}

impl Server {
    /// With all the buffers it will use.
    pub(super) fn new(endpoints: Endpoints, view: Arc<View>, stopped: UnixStream, limits: Limits) -> Self {
        // The kernel enlarges a table of descriptors when the first beyond its end is wanted, and copies it: now, and not under way.
        let highest = i32::try_from(limits.clients).unwrap_or(i32::MAX).saturating_mul(2);
        if let Ok(descriptor) = fcntl(&stopped, FcntlArg::F_DUPFD_CLOEXEC(highest)) {
            let _ = nix::unistd::close(descriptor);
        }
        let spare = (0..limits.clients).map(|_| Buffers::new()).collect();
        Self { endpoints, view, stopped, limits, clients: Vec::with_capacity(limits.clients), spare }
    }

    /// Serves until it is told to end.
    pub(super) fn serve(&mut self) {
        loop {
            let Ok(ready) = self.wait() else { return };
            if ready.stop {
                return;
            }
            let start = Instant::now();
            let mut starved = false;
            if ready.listeners {
                starved = self.accept().is_err();
            }
            let within = |client: &mut Client| {
                client.turn(&self.view);
                start.elapsed() < TURN
            };
            let served = self.clients.iter_mut().map(within).take_while(|within| *within).count();
            let count = self.clients.len();
            self.clients.rotate_left((served + 1).min(count));
            self.let_go();
            thread::sleep(if starved { RETRY } else { start.elapsed() * REST });
        }
    }

    /// Sleeps until something can be done, or a client's time is over.
    fn wait(&self) -> io::Result<Ready> {
        let mut waited = Vec::with_capacity(self.clients.len() + 3);
        waited.push(PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN));
        waited.extend(self.clients.iter().map(|client| PollFd::new(client.descriptor(), client.interest())));
        let first_listener = waited.len();
        let ctl = self.endpoints.ctl.as_ref().map(|socket| socket.listener.as_fd());
        let metrics = self.endpoints.metrics.as_ref().map(AsFd::as_fd);
        waited.extend(ctl.into_iter().chain(metrics).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let timeout = if self.clients.iter().any(Client::has_request) {
            PollTimeout::ZERO
        } else {
            let first = self.clients.iter().map(|client| client.served).min();
            let left =
                first.map(|first| (first + self.limits.patience).saturating_duration_since(Instant::now()));
            // Rounded up, or it would spin for the last part of a millisecond.
            let left = left.map(|left| PollTimeout::try_from(left + Duration::from_millis(1)));
            left.map_or(PollTimeout::NONE, |left| left.unwrap_or(PollTimeout::MAX))
        };
        match poll(&mut waited, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        Ok(Ready { stop: is_ready(&waited[0]), listeners: waited[first_listener..].iter().any(is_ready) })
    }

    /// Takes connections; an error where there is none to be had.
    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..ACCEPTED_A_TURN.min(self.limits.clients / 2) {
            let ctl = self.endpoints.ctl.as_ref().map(|socket| {
                let (stream, _) = socket.listener.accept()?;
                stream.set_nonblocking(true).map(|()| Stream::Ctl(stream))
            });
            let ctl = taken(ctl)?.map(|stream| self.add(stream));
            let metrics = self.endpoints.metrics.as_ref().map(|listener| {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true).map(|()| Stream::Http(stream))
            });
            let metrics = taken(metrics)?.map(|stream| self.add(stream));
            if ctl.is_none() && metrics.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn add(&mut self, stream: Stream) {
        let buffers = match self.spare.pop() {
            Some(buffers) => Some(buffers),
            None => {
                let longest = self.clients.iter().enumerate().min_by_key(|(_, client)| client.served);
                longest.map(|(index, _)| index).map(|index| self.clients.swap_remove(index).into_buffers())
            }
        };
        let Some(buffers) = buffers else { return };
        // At once: what it has to ask is mostly here already, and many have gone again.
        let mut client = Client::new(stream, buffers);
        client.turn(&self.view);
        if client.is_closed() {
            self.spare.push(client.into_buffers());
        } else {
            self.clients.push(client);
        }
    }

    /// Closes what has ended, and what took too long.
    fn let_go(&mut self) {
        let mut index = 0;
        while let Some(client) = self.clients.get(index) {
            if client.is_closed() || client.served.elapsed() > self.limits.patience {
                self.spare.push(self.clients.swap_remove(index).into_buffers());
            } else {
                index += 1;
            }
        }
    }
}

struct Ready {
    stop: bool,
    listeners: bool,
}

/// A connection; none where there is none, or where it ended before it was taken.
fn taken(accepted: Option<io::Result<Stream>>) -> io::Result<Option<Stream>> {
    match accepted {
        None => Ok(None),
        Some(Ok(stream)) => Ok(Some(stream)),
        Some(Err(error)) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
