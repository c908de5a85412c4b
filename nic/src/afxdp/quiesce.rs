//! Waiting until nothing is under way to a queue any more.
//!
//! An XDP program that looked into the socket map before the socket was taken out still puts its packets on the ring. It runs
//! inside an RCU read-side section, so a grace period later it has ended. User space can have one in two ways; where it
//! gets neither, the ring itself is watched until it stands still.
#![forbid(unsafe_code)]

use super::sys;
use std::io;
use std::time::{Duration, Instant};

/// A ring that has not moved for so long has nothing under way: longer than a NIC's poll takes, which is what puts packets there.
const STILL: Duration = Duration::from_millis(10);
/// How long to watch a ring at most: a hostile kernel's never stands still.
const LIMIT: Duration = Duration::from_millis(100);

#[cfg(test)]
std::thread_local! {
    /// Whether the kernel gives this thread no grace period.
    pub(super) static REFUSED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Waits for an RCU grace period.
pub(super) fn grace_period() -> io::Result<()> {
    #[cfg(test)]
    if REFUSED.get() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    either(sys::membarrier_global, close_packet_socket)
}

/// The first that works.
fn either(first: impl FnOnce() -> io::Result<()>, second: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    first().or_else(|_| second())
}

/// The kernel closes a packet socket only when nobody can be delivering to it any more: `packet_release` waits for a grace
/// period (`synchronize_net`), on `nohz_full` kernels too. It needs CAP_NET_RAW.
fn close_packet_socket() -> io::Result<()> {
    sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map(drop)
}

/// Waits until nothing is under way to the ring whose producer stands at `position()`. True where that is certain, false
/// where the ring never stood still.
pub(super) fn wait<P: PartialEq>(
    grace_period: impl FnOnce() -> io::Result<()>,
    mut position: impl FnMut() -> P,
) -> bool {
    if grace_period().is_ok() {
        return true;
    }
    let deadline = Instant::now() + LIMIT;
    let (mut last, mut since) = (position(), Instant::now());
    loop {
        std::thread::sleep(Duration::from_millis(1));
        let now = Instant::now();
        let current = position();
        if current != last {
            (last, since) = (current, now);
        } else if now - since >= STILL {
            return true;
        }
        if now >= deadline {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn refused() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    }

    #[test]
    fn a_kernel_that_refuses_the_first_way_is_asked_the_second() {
        let asked = Cell::new(0);
        let ask = |result: io::Result<()>| {
            asked.set(asked.get() + 1);
            result
        };
        assert!(either(|| ask(Ok(())), || ask(Ok(()))).is_ok());
        assert_eq!(asked.get(), 1, "the first way is enough");
        assert!(either(|| ask(refused()), || ask(Ok(()))).is_ok());
        assert!(either(|| ask(refused()), || ask(refused())).is_err());
        assert_eq!(asked.get(), 5);
    }

    #[test]
    fn without_a_grace_period_a_ring_is_watched_until_it_stands_still() {
        // A producer that puts an entry on at every look, up to the thirtieth.
        let looks = Cell::new(0_u32);
        let moving = |last: u32| {
            looks.set(looks.get() + 1);
            looks.get().min(last)
        };
        assert!(wait(|| Ok(()), || moving(30)));
        assert_eq!(looks.get(), 0, "after a grace period there is nothing to watch");
        let started = Instant::now();
        assert!(wait(refused, || moving(30)));
        assert!(looks.get() > 30 && started.elapsed() >= STILL, "{} looks", looks.get());
        looks.set(0);
        let started = Instant::now();
        assert!(!wait(refused, || moving(u32::MAX)));
        assert!(started.elapsed() >= LIMIT);
    }

    #[test]
    fn namespace_a_packet_socket_is_closed_after_a_grace_period() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("SKIPPED namespace_a_packet_socket_is_closed_after_a_grace_period: needs root");
        }
        // It takes milliseconds, or far less where somebody holds the network's lock and it is expedited: then once more.
        let waits = || {
            let started = Instant::now();
            close_packet_socket().unwrap();
            started.elapsed() > Duration::from_millis(1)
        };
        assert!((0..50).any(|_| waits()), "it never waited");
    }
}
