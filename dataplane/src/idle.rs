//! What a worker does when there is nothing to do: poll on, or sleep until a packet comes.
//!
//! It sleeps only when every input has been empty for a while, and never for long. Inputs that the kernel can tell of (AF_XDP sockets) wake it; beside
//! others it naps.
#![forbid(unsafe_code)]

use crate::error::Error;
use clap::ValueEnum;
use nic::port::RxQueue;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use percpu::tsc;
use std::io;
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
const LIMIT_MS: u8 = 10;
/// How long, where nobody does.
const NAP: Duration = Duration::from_micros(100);

/// Puts a worker to sleep.
pub(crate) struct Sleeper {
    /// Idle ticks after which it sleeps.
    after: u64,
    idle_since: u64,
    inputs: Option<Epoll>,
}

impl Sleeper {
    /// For a worker with these inputs.
    pub(crate) fn new<'a>(idle: Idle, inputs: impl Iterator<Item = &'a dyn RxQueue>) -> Result<Self, Error> {
        let failed = |errno: Errno| Error::system("cannot wait for packets")(io::Error::from(errno));
        let after = match idle {
            Idle::Poll => u64::MAX,
            Idle::Adaptive => tsc::from_ns(AWAKE_NS),
            Idle::Interrupt => 0,
        };
        let mut sleeper = Self { after, idle_since: tsc::now(), inputs: None };
        if idle != Idle::Poll {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
            let mut tells = true;
            for queue in inputs {
                match queue.readiness() {
                    Some(descriptor) => {
                        epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, 0)).map_err(failed)?;
                    }
                    None => tells = false,
                }
            }
            sleeper.inputs = tells.then_some(epoll);
        }
        Ok(sleeper)
    }

    /// Whether to sleep after a turn that began at `now` and moved so many packets.
    #[inline(always)]
    pub(crate) fn is_due(&mut self, now: u64, moved: u64) -> bool {
        if moved > 0 {
            self.idle_since = now;
        }
        now.wrapping_sub(self.idle_since) > self.after
    }

    /// Sleeps until a packet comes, 10 ms at most.
    #[cold]
    pub(crate) fn sleep(&self) {
        // An answer that is an error comes at once, and the next turn looks.
        match &self.inputs {
            Some(inputs) => drop(inputs.wait(&mut [EpollEvent::empty()], EpollTimeout::from(LIMIT_MS))),
            None => thread::sleep(NAP),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nic::{Batch, QueueCounters};
    use std::io::Write;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::time::Instant;

    struct Queue(Option<UnixStream>, Arc<QueueCounters>);

    impl RxQueue for Queue {
        fn receive(&mut self, _: &mut Batch) {}

        fn readiness(&self) -> Option<BorrowedFd<'_>> {
            self.0.as_ref().map(AsFd::as_fd)
        }

        fn counters(&self) -> &Arc<QueueCounters> {
            &self.1
        }
    }

    fn sleeper(idle: Idle, queues: &[Queue]) -> Sleeper {
        Sleeper::new(idle, queues.iter().map(|queue| queue as &dyn RxQueue)).unwrap()
    }

    #[test]
    fn who_polls_never_sleeps_and_who_waits_for_interrupts_always_does() {
        let (mut polls, mut waits) = (sleeper(Idle::Poll, &[]), sleeper(Idle::Interrupt, &[]));
        let later = tsc::now() + tsc::from_ns(60_000_000_000);
        assert!(!polls.is_due(later, 0));
        assert!(waits.is_due(later, 0) && !waits.is_due(later, 1) && waits.is_due(later + 1, 0));
    }

    #[test]
    fn adaptive_is_after_a_while_without_packets() {
        let mut sleeper = sleeper(Idle::Adaptive, &[]);
        let (start, awake) = (tsc::now(), tsc::from_ns(AWAKE_NS));
        assert!(!sleeper.is_due(start, 1));
        assert!(!sleeper.is_due(start + awake, 0) && sleeper.is_due(start + awake + 1, 0));
        assert!(!sleeper.is_due(start + 2 * awake, 5) && !sleeper.is_due(start + 3 * awake, 0));
    }

    #[test]
    fn a_packet_wakes_and_so_does_the_limit() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let queues = [Queue(Some(ours), Arc::default())];
        let waits = sleeper(Idle::Interrupt, &queues);
        let slept = |sleeper: &Sleeper| {
            let start = Instant::now();
            sleeper.sleep();
            start.elapsed()
        };
        assert!(slept(&waits) >= Duration::from_millis(9));
        theirs.write_all(&[1]).unwrap();
        // A machine may be slow, but not each time.
        assert!((0..100).any(|_| slept(&waits) < Duration::from_millis(5)));
        // Beside an input that tells nothing it naps.
        let queues = [Queue(None, Arc::default()), Queue(Some(theirs), Arc::default())];
        let naps = sleeper(Idle::Interrupt, &queues);
        assert!((0..100).any(|_| (NAP..Duration::from_millis(5)).contains(&slept(&naps))));
    }
}
