//! The test's side of two NICs of a guest: sends numbered frames into each, and says what came out of the other.
//!
//! It keeps few frames in flight: QEMU's models of NICs, as NICs do, drop what they have no room for, and then a loss would say nothing
//! about the driver in the guest.
#![forbid(unsafe_code)]

mod frame;
mod lane;

pub use lane::Tally;

use frame::{Identity, Read};
use lane::Lane;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// So often nothing must have come for so long until nobody sends any more.
const MOST_SILENCES: u32 = 2;
/// How long it waits at once.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// How often a first frame is sent until one comes through.
const PROBE: Duration = Duration::from_millis(20);
/// The flow of such frames.
const PROBE_FLOW: u16 = u16::MAX;

/// The test's end of the wire of a NIC.
#[derive(Debug)]
pub(super) struct End {
    socket: OwnedFd,
    /// The NIC's address.
    mac: [u8; 6],
}

impl End {
    /// A socket of which each message is a frame.
    pub(super) fn new(socket: OwnedFd, mac: [u8; 6]) -> Self {
        Self { socket, mac }
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, mac: self.mac })
    }

    /// False where there is no room now.
    fn send(&self, frame: &[u8]) -> io::Result<bool> {
        match send(self.socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// `None` where there is no frame now.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Ok(Some(length)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// What to send.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Frames in each direction.
    pub frames: u64,
    /// Bytes of a frame, without its check sequence: 60 to 9018. All lengths in between occur, the first two frames have the ends.
    pub sizes: RangeInclusive<usize>,
    /// UDP flows, each with numbers of its own.
    pub flows: u16,
    /// Frames in flight at most, in each direction.
    pub in_flight: u64,
    /// Whether to send from the second NIC to the first, too.
    pub both_ways: bool,
    /// So long nothing must have come until what is in flight counts as lost: the machine may be busy.
    pub silence: Duration,
    /// When to stop in any case.
    pub limit: Duration,
}

impl Default for Traffic {
    /// 20 000 frames of 60 to 1514 bytes each way, in 8 flows.
    fn default() -> Self {
        Self {
            frames: 20_000,
            sizes: 60..=1514,
            flows: 8,
            in_flight: 64,
            both_ways: true,
            silence: Duration::from_secs(8),
            limit: Duration::from_secs(60),
        }
    }
}

impl Traffic {
    /// The length of a direction's frame `place`.
    fn length(&self, place: u64) -> usize {
        let least = (*self.sizes.start()).clamp(frame::SHORTEST, frame::LONGEST);
        let most = (*self.sizes.end()).clamp(least, frame::LONGEST);
        match place {
            0 => least,
            1 => most,
            // A step without a common divisor with most numbers of lengths, so that neighbours differ much.
            _ => least + (place.wrapping_mul(7919) % (most - least + 1) as u64) as usize,
        }
    }
}

/// What became of the frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tallies {
    /// From the first NIC to the second.
    pub there: Tally,
    /// And back.
    pub back: Tally,
    /// Received frames that the test did not send: the guest's own.
    pub strangers: u64,
}

impl Tallies {
    /// Whether this many frames went each way (back only where `both_ways`), and came as they were sent, once and in order.
    pub fn is_perfect(&self, frames: u64, both_ways: bool) -> bool {
        let perfect = |sent| Tally { sent, received: sent, ..Tally::default() };
        self.there == perfect(frames) && self.back == perfect(if both_ways { frames } else { 0 })
    }
}

/// The test's side of two NICs between which something in the guest forwards.
#[derive(Debug)]
pub struct Wire {
    ends: [End; 2],
}

/// Two numbers for a run, so that a frame that comes late is known, and one that comes back.
fn new_run() -> [u16; 2] {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let there = NEXT.fetch_add(2, Ordering::Relaxed);
    [there, there + 1]
}

impl Wire {
    pub(super) fn new(first: End, second: End) -> Self {
        Self { ends: [first, second] }
    }

    /// Waits until a frame passes both ways: false where none does within `limit`. Nothing is to be said about losses before.
    pub fn wait_until_passing(&self, limit: Duration) -> io::Result<bool> {
        let run = new_run();
        let (mut buffer, mut scratch) = (vec![0; 1 << 16], Vec::new());
        let deadline = Instant::now() + limit;
        let mut passed = [false; 2];
        let mut number = 0;
        let mut due = Instant::now();
        while Instant::now() < deadline {
            if Instant::now() >= due {
                due = Instant::now() + PROBE;
                for ((end, passed), run) in self.ends.iter().zip(passed).zip(run) {
                    let mut frame = [0; frame::SHORTEST];
                    frame::write(&mut frame, Identity { run, flow: PROBE_FLOW, number }, end.mac);
                    if !passed {
                        // Where there is no room, the next one may find some.
                        end.send(&frame)?;
                    }
                }
                number += 1;
            }
            self.wait([false; 2], due)?;
            for (to, end) in self.ends.iter().enumerate() {
                while let Some(length) = end.receive(&mut buffer)? {
                    if let Read::Whole(identity) = frame::read(&buffer[..length], &mut scratch)
                        && identity.run == run[1 - to]
                    {
                        passed[1 - to] = true;
                    }
                }
            }
            if passed == [true; 2] {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sends traffic, and waits for it on the other side: until all of it has come, nothing more comes, or time is up.
    pub fn run(&self, traffic: &Traffic) -> io::Result<Tallies> {
        self.run_while(traffic, |_| true)
    }

    /// The same, for as long as `goes_on`: it is asked often, and told how many frames have come so far.
    pub fn run_while(&self, traffic: &Traffic, mut goes_on: impl FnMut(u64) -> bool) -> io::Result<Tallies> {
        let run = new_run();
        let mut lanes = run.map(|run| Lane::new(run, traffic));
        let wanted = [traffic.frames, if traffic.both_ways { traffic.frames } else { 0 }];
        let (mut buffer, mut scratch) = (vec![0; 1 << 16], Vec::new());
        let deadline = Instant::now() + traffic.limit;
        let (mut last_news, mut silences, mut strangers) = (Instant::now(), 0, 0);
        loop {
            let mut room = [true; 2];
            for ((end, lane), (wanted, room)) in
                self.ends.iter().zip(&mut lanes).zip(wanted.into_iter().zip(&mut room))
            {
                while *room && lane.sent() < wanted && lane.in_flight() < traffic.in_flight {
                    let length = traffic.length(lane.sent());
                    frame::write(&mut buffer[..length], lane.next_identity(), end.mac);
                    *room = end.send(&buffer[..length])?;
                    if *room {
                        lane.note_sent();
                    }
                }
            }
            let mut any = false;
            for (to, end) in self.ends.iter().enumerate() {
                let lane = &mut lanes[1 - to];
                while let Some(length) = end.receive(&mut buffer)? {
                    let ours = match frame::read(&buffer[..length], &mut scratch) {
                        Read::Whole(identity) => lane.note_received(identity),
                        Read::Corrupt(identity) if identity.run == lane.run() => {
                            lane.note_corrupt();
                            true
                        }
                        _ => false,
                    };
                    any = true;
                    if ours {
                        (last_news, silences) = (Instant::now(), 0);
                    } else {
                        strangers += 1;
                    }
                }
            }
            let all_sent = lanes.iter().zip(wanted).all(|(lane, wanted)| lane.sent() == wanted);
            let come = lanes.iter().map(|lane| lane.tally().received).sum();
            if all_sent && lanes.iter().all(Lane::is_complete) || Instant::now() >= deadline || !goes_on(come)
            {
                break;
            }
            if last_news.elapsed() > traffic.silence {
                silences += 1;
                if silences == MOST_SILENCES || all_sent {
                    break;
                }
                lanes.iter_mut().for_each(Lane::give_up_in_flight);
                last_news = Instant::now();
            }
            // What has come has made room for more.
            if !any {
                self.wait(room.map(|room| !room), deadline.min(last_news + traffic.silence))?;
            }
        }
        Ok(Tallies { there: lanes[0].tally(), back: lanes[1].tally(), strangers })
    }

    /// Waits until a frame can be received, or sent where that is wanted, until `deadline` at the latest.
    fn wait(&self, for_room: [bool; 2], deadline: Instant) -> io::Result<()> {
        let mut polled = [0, 1].map(|index: usize| {
            let room = if for_room[index] { PollFlags::POLLOUT } else { PollFlags::empty() };
            PollFd::new(self.ends[index].socket.as_fd(), PollFlags::POLLIN | room)
        });
        let left = deadline.saturating_duration_since(Instant::now()).min(LONGEST_WAIT).as_millis();
        match poll(&mut polled, PollTimeout::from(left as u16 + 1)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::thread::{self, JoinHandle};

    /// A wire whose two NICs are sockets, between which a thread carries each frame that `carry` lets pass, as often as it says.
    struct Guest {
        wire: Wire,
        ended: Arc<AtomicBool>,
        carriers: Vec<JoinHandle<()>>,
    }

    fn guest(carry: impl Fn(usize, &mut [u8]) -> usize + Clone + Send + 'static) -> Guest {
        let (a, a_guest) = UnixDatagram::pair().unwrap();
        let (b, b_guest) = UnixDatagram::pair().unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let ways = [(a_guest.try_clone().unwrap(), b_guest.try_clone().unwrap()), (b_guest, a_guest)];
        let carriers = ways.map(|(from, to)| {
            let (ended, carry) = (ended.clone(), carry.clone());
            from.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            thread::spawn(move || {
                let (mut buffer, mut number) = (vec![0; 1 << 16], 0);
                while !ended.load(Ordering::Relaxed) {
                    let Ok(length) = from.recv(&mut buffer) else { continue };
                    for _ in 0..carry(number, &mut buffer[..length]) {
                        to.send(&buffer[..length]).unwrap();
                    }
                    number += 1;
                }
            })
        });
        let wire = Wire::new(End::new(a.into(), [2; 6]), End::new(b.into(), [4; 6]));
        Guest { wire, ended, carriers: carriers.into() }
    }

    impl Drop for Guest {
        fn drop(&mut self) {
            self.ended.store(true, Ordering::Relaxed);
            self.carriers.drain(..).for_each(|carrier| carrier.join().unwrap());
        }
    }

    #[test]
    fn a_good_forwarder_is_perfect_both_ways_and_one_way() {
        let guest = guest(|_, _| 1);
        assert!(guest.wire.wait_until_passing(Duration::from_secs(20)).unwrap());
        for both_ways in [true, false] {
            let traffic = Traffic { frames: 3000, both_ways, ..Traffic::default() };
            let tallies = guest.wire.run(&traffic).unwrap();
            assert!(tallies.is_perfect(3000, both_ways), "{tallies:?}");
        }
    }

    #[test]
    fn loss_duplication_and_damage_are_told_of() {
        // The first is lost, the second comes twice, the third is damaged: of each direction.
        let guest = guest(|number, frame| match number {
            0 => 0,
            1 => 2,
            2 => {
                frame[50] ^= 1;
                1
            }
            _ => 1,
        });
        let traffic = Traffic { frames: 100, silence: Duration::from_secs(2), ..Traffic::default() };
        let tallies = guest.wire.run(&traffic).unwrap();
        for tally in [tallies.there, tallies.back] {
            assert_eq!((tally.sent, tally.received, tally.lost), (100, 98, 2), "{tallies:?}");
            assert_eq!((tally.duplicated, tally.corrupt), (1, 1), "{tallies:?}");
        }
        assert!(!tallies.is_perfect(100, true));
    }

    #[test]
    fn traffic_ends_when_it_is_told_to() {
        let guest = guest(|_, _| 1);
        let traffic = Traffic { frames: u64::MAX, ..Traffic::default() };
        let tallies = guest.wire.run_while(&traffic, |come| come < 500).unwrap();
        let come = tallies.there.received + tallies.back.received;
        assert!(come >= 500 && tallies.there.sent < 100_000, "{tallies:?}");
    }

    #[test]
    fn nothing_passes_and_nobody_waits_forever() {
        let guest = guest(|_, _| 0);
        assert!(!guest.wire.wait_until_passing(Duration::from_millis(50)).unwrap());
        let limit = Duration::from_millis(100);
        let tallies = guest.wire.run(&Traffic { limit, ..Traffic::default() }).unwrap();
        // No more than may be in flight.
        assert_eq!((tallies.there.sent, tallies.there.lost), (64, 64));
    }

    #[test]
    fn sizes_are_mixed_and_within_bounds() {
        let traffic = Traffic::default();
        let lengths: std::collections::BTreeSet<usize> =
            (0..20_000).map(|place| traffic.length(place)).collect();
        assert_eq!(lengths.len(), 1514 - 60 + 1);
        let odd = Traffic { sizes: 1..=100_000, ..Traffic::default() };
        assert!((0..100).all(|place| (60..=9018).contains(&odd.length(place))));
    }
}
