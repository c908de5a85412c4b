//! The network interface below a port: what it is, what it can, how it fares.
//!
//! All requests go through one socket, which keeps to the network namespace it was opened in: the port's owner may
//! be in another one by now. For the same reason nothing is read from `/sys`, which shows one namespace only.
#![forbid(unsafe_code)]

use super::{abi, sys};
use crate::netlink::RouteSocket;
use crate::port::{LinkState, MacAddress};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
/// The kernel's name for a speed that is not known.
const SPEED_UNKNOWN: u32 = u32::MAX;

/// An interface, known by its number: it may be renamed.
#[derive(Debug)]
pub(crate) struct Interface {
    route: RouteSocket,
    index: u32,
}

/// How many receive and transmit queues there are now, and could be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueCounts {
    pub(crate) rx: u32,
    pub(crate) tx: u32,
    pub(crate) max: u32,
}

impl Interface {
    /// Finds it by name in the calling thread's network namespace.
    pub(crate) fn find(name: &str) -> io::Result<Self> {
        let route = RouteSocket::open()?;
        let mut argument = sys::interface_argument(name)?;
        sys::interface_request(route.fd(), libc::SIOCGIFINDEX, &mut argument)?;
        Ok(Self { index: sys::argument_number(&argument) as u32, route })
    }

    /// Its number in its namespace.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Its name now; `ENODEV` where it is gone.
    pub(crate) fn name(&self) -> io::Result<String> {
        let mut argument = sys::interface_argument("")?;
        sys::set_argument_number(&mut argument, self.index as i32);
        sys::interface_request(self.route.fd(), libc::SIOCGIFNAME, &mut argument)?;
        Ok(argument.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8 as char).collect())
    }

    fn request(&self, request: libc::c_ulong) -> io::Result<libc::ifreq> {
        let mut argument = sys::interface_argument(&self.name()?)?;
        sys::interface_request(self.route.fd(), request, &mut argument)?;
        Ok(argument)
    }

    /// The longest payload of a frame, in bytes.
    pub(crate) fn mtu(&self) -> io::Result<usize> {
        Ok(sys::argument_number(&self.request(libc::SIOCGIFMTU)?).max(0) as usize)
    }

    /// Its Ethernet address; `None` where it is no Ethernet.
    pub(crate) fn mac(&self) -> io::Result<Option<MacAddress>> {
        let (kind, address) = sys::argument_address(&self.request(libc::SIOCGIFHWADDR)?);
        Ok(matches!(kind, ARPHRD_ETHER | ARPHRD_LOOPBACK).then_some(MacAddress(address)))
    }

    /// Whether it is set up, and whether it is set up and has a carrier.
    pub(crate) fn is_up(&self) -> io::Result<(bool, bool)> {
        let flags = sys::argument_flags(&self.request(libc::SIOCGIFFLAGS)?);
        let up = flags & libc::IFF_UP != 0;
        Ok((up, up && flags & libc::IFF_RUNNING != 0))
    }

    /// Whether packets can pass now.
    pub(crate) fn link(&self) -> LinkState {
        match self.is_up() {
            Ok((_, true)) => LinkState::Up { speed_mbps: self.speed_mbps() },
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                LinkState::Gone("its interface was removed".into())
            }
            _ => LinkState::Down,
        }
    }

    fn speed_mbps(&self) -> Option<u32> {
        let mut settings =
            abi::EthtoolSettings { command: abi::ETHTOOL_GSET, ..abi::EthtoolSettings::default() };
        sys::ethtool(self.route.fd(), &self.name().ok()?, &mut settings).ok()?;
        let speed = u32::from(settings.speed) | u32::from(settings.speed_high) << 16;
        (speed != 0 && speed != SPEED_UNKNOWN && speed != 0xFFFF).then_some(speed)
    }

    /// The driver's name; empty where it has none to tell.
    pub(crate) fn driver(&self) -> String {
        let ask = || {
            let mut info = abi::DriverInfo {
                command: abi::ETHTOOL_GDRVINFO,
                driver: [0; 32],
                version: [0; 32],
                firmware: [0; 32],
                bus: [0; 32],
                rom: [0; 32],
                reserved: [0; 12],
                private_flags: 0,
                statistics: 0,
                tests: 0,
                eeprom_length: 0,
                register_length: 0,
            };
            sys::ethtool(self.route.fd(), &self.name()?, &mut info)?;
            Ok::<_, io::Error>(text(&info.driver))
        };
        ask().unwrap_or_default()
    }

    fn channels(&self) -> io::Result<abi::Channels> {
        let mut channels = abi::Channels { command: abi::ETHTOOL_GCHANNELS, ..abi::Channels::default() };
        sys::ethtool(self.route.fd(), &self.name()?, &mut channels)?;
        Ok(channels)
    }

    /// How many queues there are; one of each where the driver cannot tell.
    pub(crate) fn queue_counts(&self) -> QueueCounts {
        match self.channels() {
            Ok(channels) => QueueCounts {
                rx: (channels.combined + channels.rx).max(1),
                tx: (channels.combined + channels.tx).max(1),
                max: (channels.max_combined + channels.max_rx.min(channels.max_tx)).max(1),
            },
            Err(_) => QueueCounts { rx: 1, tx: 1, max: 1 },
        }
    }

    /// What `ethtool -L` calls the queues of this driver.
    pub(crate) fn channel_word(&self) -> &'static str {
        match self.channels() {
            Ok(channels) if channels.max_combined == 0 => "rx N tx",
            _ => "combined",
        }
    }

    /// Sets the number of queues to `count`, and returns what it was before; `None` where it was that already.
    pub(crate) fn set_channels(&self, count: u32) -> io::Result<Option<abi::Channels>> {
        let before = self.channels()?;
        let mut after = before;
        after.command = abi::ETHTOOL_SCHANNELS;
        if before.max_combined > 0 {
            (after.combined, after.rx, after.tx) = (count, 0, 0);
        } else {
            (after.rx, after.tx) = (count, count);
        }
        if (after.combined, after.rx, after.tx) == (before.combined, before.rx, before.tx) {
            return Ok(None);
        }
        sys::ethtool(self.route.fd(), &self.name()?, &mut after)?;
        Ok(Some(before))
    }

    /// Puts the number of queues back to what [`set_channels`](Self::set_channels) returned.
    pub(crate) fn restore_channels(&self, mut before: abi::Channels) -> io::Result<()> {
        before.command = abi::ETHTOOL_SCHANNELS;
        sys::ethtool(self.route.fd(), &self.name()?, &mut before)
    }

    /// Switches checksum offload for sent packets off (segmentation offload goes with it).
    pub(crate) fn disable_tx_checksum_offload(&self) -> io::Result<()> {
        let mut value = abi::EthtoolValue { command: abi::ETHTOOL_STXCSUM, data: 0 };
        sys::ethtool(self.route.fd(), &self.name()?, &mut value)
    }

    /// Receives packets for other stations too, for as long as the descriptor is open.
    pub(crate) fn promiscuous(&self) -> io::Result<OwnedFd> {
        let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        let membership = libc::packet_mreq {
            mr_ifindex: self.index as i32,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        sys::set_option(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
        Ok(socket)
    }

    /// Waits until it has a carrier, at most for `limit`: attaching a program resets some NICs. False where it has none.
    pub(crate) fn wait_for_carrier(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            match self.is_up() {
                Ok((_, true)) => return true,
                Ok(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                _ => return false,
            }
        }
    }

    /// The counters of the link and of the driver that are not zero.
    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        let link = self.route.link_counters(self.index).unwrap_or_default();
        let mut counters: Vec<(String, u64)> =
            LINK_COUNTERS.iter().zip(link).map(|(name, value)| (format!("link_{name}"), value)).collect();
        counters.extend(self.driver_counters().unwrap_or_default());
        counters.retain(|(_, value)| *value > 0);
        counters
    }

    /// `ethtool -S`: the driver's own names and numbers.
    fn driver_counters(&self) -> io::Result<Vec<(String, u64)>> {
        const NAME_BYTES: usize = 32;
        /// `ETH_SS_STATS`: the set of names that belongs to ETHTOOL_GSTATS.
        const SET: u64 = 1;
        let name = self.name()?;
        let mut info = [0_u64; 5];
        // ETHTOOL_GSSET_INFO: command, reserved, mask of sets, then a count for each set in the mask.
        info[0] = 0x37;
        info[1] = 1 << SET;
        sys::ethtool_long(self.route.fd(), &name, &mut info)?;
        let count = (info[2] & u64::from(u32::MAX)) as usize;
        if info[1] == 0 || count == 0 || count > 1 << 16 {
            return Ok(Vec::new());
        }
        // The kernel writes as many as the driver has by then, not as many as there is room for.
        let room = count * 4 + 4096;
        let mut names = vec![0_u64; 2 + room * NAME_BYTES / 8];
        // struct ethtool_gstrings: command, set, count, then the names.
        names[0] = u64::from(abi::ETHTOOL_GSTRINGS) | SET << 32;
        names[1] = count as u64;
        sys::ethtool_long(self.route.fd(), &name, &mut names)?;
        let mut values = vec![0_u64; 1 + room];
        // struct ethtool_stats: command, count, then the values.
        values[0] = u64::from(abi::ETHTOOL_GSTATS) | (count as u64) << 32;
        sys::ethtool_long(self.route.fd(), &name, &mut values)?;
        // The names begin four bytes into the second word.
        let bytes: Vec<u8> = names.iter().flat_map(|word| word.to_le_bytes()).skip(12).collect();
        Ok(bytes
            .chunks(NAME_BYTES)
            .zip(&values[1..])
            .take(count)
            .map(|(name, value)| (format!("driver_{}", text(name)), *value))
            .collect())
    }
}

/// The first fields of `struct rtnl_link_stats64`.
const LINK_COUNTERS: &[&str] = &[
    "rx_packets",
    "tx_packets",
    "rx_bytes",
    "tx_bytes",
    "rx_errors",
    "tx_errors",
    "rx_dropped",
    "tx_dropped",
    "multicast",
    "collisions",
    "rx_length_errors",
    "rx_over_errors",
    "rx_crc_errors",
    "rx_frame_errors",
    "rx_fifo_errors",
    "rx_missed_errors",
    "tx_aborted_errors",
    "tx_carrier_errors",
    "tx_fifo_errors",
    "tx_heartbeat_errors",
    "tx_window_errors",
    "rx_compressed",
    "tx_compressed",
    "rx_nohandler",
];

/// The text of a NUL-padded field.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}
