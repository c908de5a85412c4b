//! What a worker does when there is nothing to do: poll on, or sleep until a packet comes.
//!
//! It sleeps only when every input has been empty for a while, and never for long. Inputs that the kernel can tell of (AF_XDP sockets) wake it; beside
//! others it naps.
//!
//! By poll(2), which asks to be woken for as long as it waits. An epoll set asks for good: then the kernel looks it up at each packet that a socket
//! receives or has sent, which took 15 % of the rate from a worker that never slept.
#![forbid(unsafe_code)]

use clap::ValueEnum;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use percpu::tsc;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::Duration;

/// How a worker waits for packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Idle {
    /// It polls, whatever comes: the shortest latency, and all of a CPU
    #[default]
    Poll,
    /// It polls, and sleeps when nothing has come for 200 us
    Adaptive,
    /// It sleeps whenever there is nothing
    Interrupt,
}

/// Without a packet for so long, an adaptive worker sleeps.
const AWAKE_NS: u64 = 200_000;
/// How long it sleeps at most, where the kernel wakes it: what the worker is asked by others, it is asked at its turns.
const LIMIT_MS: u8 = 2;
/// Inputs that a sleeping worker waits for at most; with more it naps.
const MOST_INPUTS: usize = 64;
/// How long, where nobody does.
const NAP: Duration = Duration::from_micros(100);

/// Puts a worker to sleep.
pub(crate) struct Sleeper {
    /// Idle ticks after which it sleeps.
    after: u64,
    idle_since: u64,
}

impl Sleeper {
    pub(crate) fn new(idle: Idle) -> Self {
        let after = match idle {
            Idle::Poll => u64::MAX,
            Idle::Adaptive => tsc::from_ns(AWAKE_NS),
            Idle::Interrupt => 0,
        };
        Self { after, idle_since: tsc::now() }
    }

    /// Whether to sleep after a turn that began at `now`, and in which there was something to do or not.
    #[inline(always)]
    pub(crate) fn is_due(&mut self, now: u64, busy: bool) -> bool {
        if busy {
            self.idle_since = now;
        }
        now.wrapping_sub(self.idle_since) > self.after
    }
}

/// Sleeps until a packet comes by one of the inputs of this readiness ([`RxQueue::readiness`](nic::port::RxQueue::readiness)), 2 ms at most.
#[cold]
pub(crate) fn sleep<'a>(inputs: impl Iterator<Item = Option<BorrowedFd<'a>>> + Clone) {
    let count = inputs.clone().count();
    let (Some(Some(first)), true) = (inputs.clone().next(), count <= MOST_INPUTS) else {
        return thread::sleep(NAP);
    };
    // In place: a worker does not allocate.
    let mut waits = [const { None }; MOST_INPUTS];
    for (wait, input) in waits.iter_mut().zip(inputs) {
        let Some(input) = input else { return thread::sleep(NAP) };
        *wait = Some(PollFd::new(input, PollFlags::POLLIN));
    }
    let mut waits = waits.map(|wait| wait.unwrap_or(PollFd::new(first, PollFlags::empty())));
    // An answer that is an error comes at once, and the next turn looks.
    let _ = poll(&mut waits[..count], PollTimeout::from(LIMIT_MS));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    #[test]
    fn who_polls_never_sleeps_and_who_waits_for_interrupts_always_does() {
        let (mut polls, mut waits) = (Sleeper::new(Idle::Poll), Sleeper::new(Idle::Interrupt));
        let later = tsc::now() + tsc::from_ns(60_000_000_000);
        assert!(!polls.is_due(later, false));
        assert!(waits.is_due(later, false) && !waits.is_due(later, true) && waits.is_due(later + 1, false));
    }

    #[test]
    fn adaptive_is_after_a_while_without_packets() {
        let mut sleeper = Sleeper::new(Idle::Adaptive);
        let (start, awake) = (tsc::now(), tsc::from_ns(AWAKE_NS));
        assert!(!sleeper.is_due(start, true));
        assert!(!sleeper.is_due(start + awake, false) && sleeper.is_due(start + awake + 1, false));
        assert!(!sleeper.is_due(start + 2 * awake, true) && !sleeper.is_due(start + 3 * awake, false));
    }

    #[test]
    fn a_packet_wakes_and_so_does_the_limit() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let slept = |inputs: &[Option<&UnixStream>]| {
            let start = Instant::now();
            sleep(inputs.iter().map(|input| input.map(AsFd::as_fd)));
            start.elapsed()
        };
        let waits = [Some(&ours)];
        assert!(slept(&waits) >= Duration::from_millis(1));
        theirs.write_all(&[1]).unwrap();
        // A machine may be slow, but not each time.
        assert!((0..100).any(|_| slept(&waits) < Duration::from_millis(1)));
        // Beside an input that tells nothing it naps.
        let naps = [None, Some(&theirs)];
        assert!((0..100).any(|_| (NAP..Duration::from_millis(2)).contains(&slept(&naps))));
    }
}
