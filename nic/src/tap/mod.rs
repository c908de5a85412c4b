//! `tap:` ports: an Ethernet interface of the kernel whose wire is this process.
//!
//! What the kernel sends by the interface is received here, and what is sent here the kernel receives: for the traffic that is the
//! kernel's business (ARP, ping, ssh) on a NIC that bypasses it, and for tests without a NIC. The interface goes with its
//! descriptor, however the process ends.
//!
//! A queue makes no system call: packets wait in a bounded ring, and `read(2)` and `write(2)` happen in the doorbell. Nobody says
//! when the kernel has something to read, so the receive queue asks for its doorbell by the clock, often while packets come and
//! seldom when none do.
//!
//! Accounting: what the kernel sent is received, or still waits in the interface, or was dropped there (`rx_dropped`). What is to
//! be sent is sent when the kernel has taken it, else `tx_dropped` or `tx_port_down`.

mod open;
mod port;
mod rx;
mod sys;
mod tx;

use crate::drivers::Driver;
use crate::ethernet::ETHERNET_HEADER;
use crate::port::{MacAddress, OpenContext, OpenPort, PortError, PortGone, PortPlan};
use crate::spec::PortSpec;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of two VLAN tags.
const VLAN_TAGS: usize = 8;
/// The kernel's limit for a name, with its final zero.
const MAX_NAME: usize = libc::IFNAMSIZ - 1;
/// Bytes that a frame of any pool has room for.
const LEAST_ROOM: usize = 1526;
/// Segments of the longest packet.
const MAX_SEGMENTS: usize = 8;
/// Received packets that wait for the worker at most.
const RX_RING: usize = 512;
/// Packets that wait to be written at most.
const TX_RING: usize = 1024;
/// Transmit queues a port can have, one for each worker.
const MAX_TX_QUEUES: usize = 64;

pub(crate) const DRIVER: Driver = Driver {
    name: "tap",
    summary: "an interface of the kernel whose wire is this process (root)",
    forms: &[(
        "tap:NAME?mac=02:00:00:00:00:01&mtu=1500&up=on|off",
        "makes the interface NAME: what the kernel sends by it is received, what is sent the kernel receives; \
         up=off leaves setting it up to somebody else",
    )],
    check,
};

struct TapPlan {
    spec: PortSpec,
    mac: Option<MacAddress>,
    mtu: usize,
    up: bool,
}

fn check(spec: &PortSpec) -> Result<Box<dyn PortPlan>, PortError> {
    spec.check_keys(&["mac", "mtu", "up"])?;
    let name = spec.target();
    let fits = name.len() <= MAX_NAME
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && name.bytes().any(|byte| byte != b'.');
    if !fits {
        return Err(spec.error(format!(
            "\"{name}\" is no name for an interface: choose one of up to {MAX_NAME} letters and digits"
        )));
    }
    let mac = spec.text("mac").map(|text| text.parse::<MacAddress>().map_err(|problem| spec.error(problem)));
    let mac = mac.transpose()?;
    if let Some(mac) = mac
        && (mac.0[0] & 1 != 0 || mac == MacAddress::default())
    {
        return Err(
            spec.error(format!("mac={mac} is no address of a station: choose one such as 02:00:00:00:00:01"))
        );
    }
    Ok(Box::new(TapPlan {
        spec: spec.clone(),
        mac,
        mtu: spec.number("mtu", 68..=9000, 1500)? as usize,
        up: spec.switch("up", true)?,
    }))
}

/// Room for the longest packet, and a byte more, by which a longer one shows.
fn room(mtu: usize) -> usize {
    mtu + ETHERNET_HEADER + VLAN_TAGS + 1
}

impl PortPlan for TapPlan {
    fn rx_queues(&self) -> usize {
        1
    }

    fn max_tx_queues(&self) -> usize {
        MAX_TX_QUEUES
    }

    fn tx_queues_follow(&self) -> bool {
        false
    }

    fn frames(&self, tx_queues: usize) -> usize {
        let segments = room(self.mtu).div_ceil(LEAST_ROOM);
        (RX_RING + 1 + TX_RING * tx_queues) * segments
    }

    fn max_packet_len(&self) -> Option<usize> {
        Some(self.mtu + ETHERNET_HEADER)
    }

    fn open(self: Box<Self>, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
        open::open(&self, context)
    }
}

/// The descriptor that the interface lives by.
struct Tap {
    port: String,
    file: File,
    gone: AtomicBool,
}

impl Tap {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Says, of an error of `read(2)` or `write(2)`, that the interface has been removed.
    fn is_removal(&self, error: &io::Error) -> bool {
        let removed = matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV));
        if removed {
            self.gone.store(true, Ordering::Relaxed);
        }
        removed
    }

    /// What the doorbells answer.
    fn state(&self) -> Result<(), PortGone> {
        match self.is_gone() {
            false => Ok(()),
            true => Err(PortGone { port: self.port.clone(), reason: "its interface was removed".to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_with_the_way_out() {
        let error = |text: &str| {
            check(&text.parse().unwrap()).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(error("tap:dp0?mac=02:00:00:00:00:01&mtu=9000&up=off"), "");
        for (text, words) in [
            ("tap:a-name-of-16-bytes", "up to 15"),
            ("tap:a/b", "up to 15"),
            ("tap:dp%d", "up to 15"),
            ("tap:..", "up to 15"),
            ("tap:dp0?mac=2", "six pairs"),
            ("tap:dp0?mac=01:00:5e:00:00:01", "no address of a station"),
            ("tap:dp0?mac=00:00:00:00:00:00", "no address of a station"),
            ("tap:dp0?mtu=67", "from 68 to 9000"),
            ("tap:dp0?up=maybe", "on, off"),
            ("tap:dp0?queues=2", "unknown option"),
        ] {
            assert!(error(text).contains(words), "{text}: {}", error(text));
        }
    }

    #[test]
    fn the_longest_packet_fits_a_chain() {
        assert_eq!(room(1500).div_ceil(LEAST_ROOM), 1);
        assert!(room(9000).div_ceil(LEAST_ROOM) <= MAX_SEGMENTS);
    }
}
