//! The sending end: frames made in the kernel and sent out of an interface.
//!
//! On a veth they arrive at the other end, which must have native XDP (an AF_XDP socket) or GRO (`ethtool -K`): without it
//! the interface has no ring to take them, and drops them.
#![forbid(unsafe_code)]

use super::interface::{self, InterfaceCounters, XdpError};
use super::program::{self, DESTINATION, Numbers, Pace, SOURCE};
use super::{abi, sys};
use nic::MacAddress;
use percpu::bpf::ProgramType;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Ethernet, IPv4 and UDP headers.
pub const MIN_SIZE_BYTES: usize = 14 + 20 + 8;
/// What fits one page beside the kernel's head and tail room.
pub const MAX_SIZE_BYTES: usize = 3392;

/// Frames in one go of the kernel, after which interrupts are served.
const BATCH: u32 = 64;
/// The longest burst of a paced stream, a quarter of a veth's ring: after a stall it goes on from there, and does not make up
/// for it by a flood.
const BURST: i32 = 64;
/// How long to wait for what should have ended by now.
const SLACK: Duration = Duration::from_millis(20);
/// One call is to last until it is interrupted: beginning and ending one costs some 20 ms in which nothing is sent.
const REPEAT: u32 = 1 << 31;

/// Sends copies of one packet out of an interface.
#[derive(Debug)]
pub struct Generator {
    interface: String,
    ifindex: u32,
    frame: Vec<u8>,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Frames handed to the interface.
    pub packets: u64,
    /// Those of them that the interface refused (its `tx_dropped`): on a veth, the ring to the other end was full, and
    /// nothing there has seen them. Whatever else was refused meanwhile is in it too.
    pub refused: u64,
    /// Times that the generator did not get the CPU in time and forgot what was overdue.
    pub stalls: u64,
    /// How long it took.
    pub duration: Duration,
}

impl Generator {
    /// Gets ready to send packets of `size` bytes (without the frame check sequence) to `destination`.
    pub fn new(interface: &str, size: usize, destination: MacAddress) -> Result<Self, XdpError> {
        if !(MIN_SIZE_BYTES..=MAX_SIZE_BYTES).contains(&size) {
            return Err(XdpError::Size(size));
        }
        let ifindex = interface::index(interface)?;
        Ok(Self { interface: interface.to_owned(), ifindex, frame: frame(size, destination) })
    }

    /// Sends as fast as it can.
    pub fn flood(&self, duration: Duration) -> Result<Sent, XdpError> {
        self.run(None, duration)
    }

    /// Sends exactly `rate_pps * duration` packets, `rate_pps` of them a second. Where the machine does not give it the
    /// CPU it takes longer, and after twice the time it sends fewer.
    pub fn paced(&self, rate_pps: u32, duration: Duration) -> Result<Sent, XdpError> {
        let total = (f64::from(rate_pps) * duration.as_secs_f64()).round();
        // The program multiplies by 10^9 in 64 bits.
        let rate = i32::try_from(rate_pps).ok().filter(|rate| *rate > 0 && total < 1.8e10 / 3.0);
        let Some(rate_pps) = rate else { return Err(XdpError::Pace { rate_pps, duration }) };
        self.run(Some(Pace { rate_pps, total: total as u64, burst: BURST }), duration)
    }

    /// Runs the program on this thread, in one call where nothing disturbs it, until all is sent or the time is over.
    fn run(&self, pace: Option<Pace>, duration: Duration) -> Result<Sent, XdpError> {
        let numbers = Numbers::new().map_err(XdpError::Load)?;
        let instructions = program::generator(&numbers, self.ifindex.cast_signed(), pace)
            .map_err(|error| XdpError::Load(io::Error::other(error)))?;
        let program = program::load(ProgramType::Xdp, &instructions).map_err(XdpError::Load)?;
        let refused = |source| XdpError::Run { interface: self.interface.clone(), source };
        let alarm = sys::Alarm::new().map_err(refused)?;
        let limit = if pace.is_some() { duration * 2 + Duration::from_secs(1) } else { duration };
        let before = InterfaceCounters::read(&self.interface)?;
        let start = Instant::now();
        // A paced stream that was held up has a rest to send in another call.
        let mut left = if pace.is_some() { duration + SLACK } else { duration };
        let [packets, first_ns, last_ns, stalls, _] = loop {
            alarm.start(left.max(SLACK), SLACK).map_err(refused)?;
            match sys::test_run(program.as_fd(), &self.frame, REPEAT, BATCH, abi::BPF_F_TEST_XDP_LIVE_FRAMES)
            {
                Err(error) if error.raw_os_error() != Some(libc::EINTR) => return Err(refused(error)),
                _ => {}
            }
            let numbers = numbers
                .read()
                .map_err(|source| XdpError::Read { what: "the generator's counters".into(), source })?;
            let elapsed = start.elapsed();
            match pace {
                _ if elapsed >= limit => break numbers,
                Some(pace) if numbers[0] >= pace.total => break numbers,
                Some(pace) => {
                    let rest = (pace.total - numbers[0]) as f64 / f64::from(pace.rate_pps);
                    left = (Duration::from_secs_f64(rest) + SLACK).min(limit - elapsed);
                }
                None => left = limit - elapsed,
            }
        };
        let duration = match pace {
            None => start.elapsed(),
            Some(_) => Duration::from_nanos(last_ns.saturating_sub(first_ns)),
        };
        let refused = InterfaceCounters::read(&self.interface)?.since(&before).tx_dropped;
        Ok(Sent { packets, refused, stalls, duration })
    }
}

/// A UDP packet to the discard port, with a right IPv4 checksum, and a payload that counts up.
fn frame(size: usize, destination: MacAddress) -> Vec<u8> {
    let mut frame = Vec::with_capacity(size);
    frame.extend(destination.0);
    frame.extend([0x02, 0x49, 0x50, 0xff, 0, 1]);
    frame.extend([0x08, 0x00]);
    let ip_length = ((size - 14) as u16).to_be_bytes();
    frame.extend([0x45, 0, ip_length[0], ip_length[1], 0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(SOURCE.octets());
    frame.extend(DESTINATION.octets());
    let sum: u32 =
        frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let checksum = !((sum + (sum >> 16)) as u16);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    let udp_length = ((size - 34) as u16).to_be_bytes();
    frame.extend([0x04, 0x00, 0, 9, udp_length[0], udp_length[1], 0, 0]);
    frame.extend((0..size - MIN_SIZE_BYTES).map(|index| index as u8));
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_a_right_udp_packet() {
        for size in [MIN_SIZE_BYTES, 64, 1514, MAX_SIZE_BYTES] {
            let frame = frame(size, MacAddress([2, 0, 0, 0, 0, 1]));
            assert_eq!(frame.len(), size);
            let words = frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
            let sum: u32 = words.sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the checksum of a right header");
            assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), size - 14);
            assert_eq!(frame[30..34], DESTINATION.octets());
        }
    }

    #[test]
    fn impossible_sizes_and_names_are_refused_in_words() {
        for (interface, size, word) in
            [("lo", 41, "from 42"), ("lo", 4000, "to 3392"), ("no-such-if", 64, "ip link")]
        {
            let error = Generator::new(interface, size, MacAddress::default()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
