//! The system calls that keep a queue going.
//!
//! In copy mode the call *is* the sending: the kernel copies and sends, about a microsecond a packet, before it returns.
//! What it answers is mostly no error: it says how far it came, or that the interface is down for now.
#![forbid(unsafe_code)]

use super::socket::Socket;
use super::sys;
use crate::port::{Doorbell, PortGone};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// While the interface is down, a doorbell is rung this seldom, to see whether it is back.
const TURNS_BETWEEN_TRIES: u32 = 1024;
/// Calls one ring makes at most: each refused packet ends a call.
const MAX_CALLS: usize = 64;

/// Keeps a queue whose interface is down from ringing at every loop turn.
#[derive(Default)]
pub(super) struct Brake(u32);

impl Brake {
    /// Whether the doorbell is to be rung at this turn.
    #[inline]
    pub(super) fn lets_ring(&mut self, down: bool) -> bool {
        if down {
            self.0 = (self.0 + 1) % TURNS_BETWEEN_TRIES;
        }
        !down || self.0 == 0
    }
}

/// Puts off a wake-up for a loop turn while full batches follow each other: in copy mode a call costs the same for one packet as for
/// all that it may send.
#[derive(Default)]
pub(super) struct Gather {
    /// Descriptors that are sent at once in any case.
    enough: u32,
    more: bool,
    put_off: bool,
}

impl Gather {
    /// As many as one call sends are `enough`; with one, nothing is put off.
    pub(super) fn new(enough: u32) -> Self {
        Self { enough, ..Self::default() }
    }

    /// A batch went on the ring. Where it was a full one, another is likely to follow.
    #[inline(always)]
    pub(super) fn more_follows(&mut self, more: bool) {
        self.more = more;
    }

    /// Whether to make the call for so many descriptors. Asked again before another batch came, it no longer waits for one.
    #[inline(always)]
    pub(super) fn is_worth_a_call(&mut self, count: u32) -> bool {
        let waits = std::mem::take(&mut self.more);
        let worth = count >= if waits { self.enough } else { 1 };
        self.put_off = waits && !worth;
        worth
    }

    /// Whether the call was put off at this turn.
    pub(super) fn has_put_off(&self) -> bool {
        self.put_off
    }
}

/// Wakes the transmit side.
pub(super) struct TxDoorbell {
    pub(super) socket: Arc<Socket>,
    pub(super) port: String,
}

/// Wakes the receive side, or lets it busy-poll.
pub(super) struct RxDoorbell {
    pub(super) socket: Arc<Socket>,
    pub(super) port: String,
}

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Go on.
    Fine,
    /// In copy mode: one packet was taken, and the device refused it.
    Refused,
    /// The interface is down.
    Down,
    /// The socket is bound to nothing: the interface is gone, or being reset.
    Unbound,
}

fn answer(result: io::Result<()>) -> Answer {
    match result.map_err(|error| error.raw_os_error()) {
        Err(Some(libc::EBUSY)) => Answer::Refused,
        Err(Some(libc::ENETDOWN)) => Answer::Down,
        Err(Some(libc::ENXIO | libc::ENODEV)) => Answer::Unbound,
        // EAGAIN: the budget is used up, or no room for completions. ENOBUFS, ENOMEM: no memory now. All come again.
        _ => Answer::Fine,
    }
}

impl Socket {
    /// An error where the interface is gone.
    fn check_gone(&self, port: &str) -> Result<(), PortGone> {
        if self.device.interface.name().is_ok() {
            return Ok(());
        }
        self.gone.store(true, Ordering::Relaxed);
        Err(PortGone { port: port.to_owned(), reason: "its interface was removed".into() })
    }

    /// Takes note of how the interface fares; an error where it is gone.
    fn note(&self, answer: &Answer, port: &str) -> Result<(), PortGone> {
        let unbound = *answer == Answer::Unbound;
        if unbound {
            self.check_gone(port)?;
        }
        // Drivers answer like that while they are reset, too.
        let down = unbound || *answer == Answer::Down;
        if down != self.down.load(Ordering::Relaxed) {
            self.down.store(down, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Doorbell for TxDoorbell {
    fn ring(&self) -> Result<(), PortGone> {
        let sending = self.socket.sending();
        if sending.is_over() {
            return Ok(());
        }
        for _ in 0..MAX_CALLS {
            let answer = answer(sys::wake_tx(self.socket.fd()));
            if answer != Answer::Refused || self.socket.zero_copy {
                return self.socket.note(&answer, &self.port);
            }
            self.socket.refused.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Doorbell for RxDoorbell {
    fn ring(&self) -> Result<(), PortGone> {
        match answer(sys::wake_rx(self.socket.fd())) {
            // Whether it is down matters to the transmit side, which finds out for itself.
            Answer::Unbound => self.socket.check_gone(&self.port),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_batch_waits_for_the_next_one_but_one_turn_only() {
        let mut gather = Gather::new(128);
        gather.more_follows(true);
        let ask = |gather: &mut Gather, count| (gather.is_worth_a_call(count), gather.has_put_off());
        assert_eq!(ask(&mut gather, 64), (false, true));
        assert_eq!(ask(&mut gather, 64), (true, false));
        assert_eq!(ask(&mut gather, 0), (false, false));
        gather.more_follows(true);
        assert!(gather.is_worth_a_call(128));
        // A short one waits for nobody.
        gather.more_follows(true);
        gather.more_follows(false);
        assert!(gather.is_worth_a_call(65));
        let mut none = Gather::new(1);
        none.more_follows(true);
        assert!(none.is_worth_a_call(1));
    }

    #[test]
    fn answers_that_mean_try_again_are_no_errors() {
        for code in [libc::EAGAIN, libc::ENOBUFS, libc::ENOMEM, libc::EINTR] {
            assert_eq!(answer(Err(io::Error::from_raw_os_error(code))), Answer::Fine);
        }
        assert_eq!(answer(Err(io::Error::from_raw_os_error(libc::ENXIO))), Answer::Unbound);
    }
}
