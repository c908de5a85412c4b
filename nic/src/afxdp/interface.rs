//! The network interface below a port: what it is, what it can, how it fares.
//!
//! All requests go through one socket, which keeps to the network namespace it was opened in: the port's owner may
//! be in another one by now. For the same reason nothing is read from `/sys`, which shows one namespace only,
//! but advice.
#![forbid(unsafe_code)]

use super::{abi, sys};
use crate::netlink::RouteSocket;
use crate::port::{LinkState, MacAddress};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
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
        Ok(sys::argument_name(&self.named()?).to_string_lossy().into_owned())
    }

    /// A request with its name now, in the bytes that the kernel wrote: they need not be text.
    fn named(&self) -> io::Result<libc::ifreq> {
        let mut argument = sys::interface_argument("")?;
        sys::set_argument_number(&mut argument, self.index as i32);
        sys::interface_request(self.route.fd(), libc::SIOCGIFNAME, &mut argument)?;
        Ok(argument)
    }

    fn request(&self, request: libc::c_ulong) -> io::Result<libc::ifreq> {
        let mut argument = self.named()?;
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
        sys::ethtool(self.route.fd(), self.named().ok()?, &mut settings).ok()?;
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
            sys::ethtool(self.route.fd(), self.named()?, &mut info)?;
            Ok::<_, io::Error>(text(&info.driver))
        };
        ask().unwrap_or_default()
    }

    fn channels(&self) -> io::Result<abi::Channels> {
        let mut channels = abi::Channels { command: abi::ETHTOOL_GCHANNELS, ..abi::Channels::default() };
        sys::ethtool(self.route.fd(), self.named()?, &mut channels)?;
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
        sys::ethtool(self.route.fd(), self.named()?, &mut after)?;
        Ok(Some(before))
    }

    /// Puts the number of queues back to what [`set_channels`](Self::set_channels) returned.
    pub(crate) fn restore_channels(&self, mut before: abi::Channels) -> io::Result<()> {
        before.command = abi::ETHTOOL_SCHANNELS;
        sys::ethtool(self.route.fd(), self.named()?, &mut before)
    }

    /// Switches checksum offload for sent packets off (segmentation offload goes with it).
    pub(crate) fn disable_tx_checksum_offload(&self) -> io::Result<()> {
        let mut value = abi::EthtoolValue { command: abi::ETHTOOL_STXCSUM, data: 0 };
        sys::ethtool(self.route.fd(), self.named()?, &mut value)
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

    /// The settings that preferred busy polling needs and that are 0, in a folder like `/sys/class/net`; `None` where
    /// it shows no such interface: `/sys` shows the namespace it was mounted in, and the port's may be another one.
    pub(crate) fn busy_poll_lacks(&self, folder: &Path) -> Option<Vec<PathBuf>> {
        let folder = folder.join(sys::argument_name(&self.named().ok()?));
        let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
        let address = std::fs::read_to_string(folder.join("address")).ok()?;
        let ours = self.mac().ok()??.to_string();
        if number("ifindex")? != u64::from(self.index) || address.trim() != ours {
            return None;
        }
        let settings = ["napi_defer_hard_irqs", "gro_flush_timeout"].into_iter();
        let zero = settings.filter(|setting| number(setting) == Some(0));
        Some(zero.map(|setting| folder.join(setting)).collect())
    }

    /// Watches for the carrier to go, at most for `limit`: some NICs are reset only a moment after a program was attached.
    /// True where it went.
    pub(crate) fn wait_for_drop(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            match self.is_up() {
                Ok((_, true)) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Ok((_, up)) => return !up,
                Err(_) => return true,
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
        let named = self.named()?;
        let mut info = [0_u64; 5];
        // ETHTOOL_GSSET_INFO: command, reserved, mask of sets, then a count for each set in the mask.
        info[0] = 0x37;
        info[1] = 1 << SET;
        sys::ethtool_long(self.route.fd(), named, &mut info)?;
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
        sys::ethtool_long(self.route.fd(), named, &mut names)?;
        let mut values = vec![0_u64; 1 + room];
        // struct ethtool_stats: command, count, then the values.
        values[0] = u64::from(abi::ETHTOOL_GSTATS) | (count as u64) << 32;
        sys::ethtool_long(self.route.fd(), named, &mut values)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::VethEnd;
    use nix::sched::{CloneFlags, unshare};
    use std::process::Command;
    use std::thread;

    /// Runs `test` in a thread with a network namespace of its own, which goes with it.
    fn in_namespace(name: &'static str, test: impl FnOnce() + Send + 'static) {
        let run = move || {
            // A mount namespace too, for those who mount.
            if unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).is_err() {
                return eprintln!("SKIPPED {name}: no network namespace of its own (run as root)");
            }
            test();
        };
        thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    fn run(command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success(), "{command}");
    }

    /// Makes a pair whose first end is set up, and the second not: there is no carrier.
    fn half_up(name: &str, other: &str) -> Interface {
        let route = RouteSocket::open().unwrap();
        let end = |name| VethEnd { name, mtu: 1500, rx_queues: 1, tx_queues: 1 };
        route.create_veth(&end(name), &end(other)).unwrap();
        let interface = Interface::find(name).unwrap();
        route.set_up(interface.index()).unwrap();
        interface
    }

    #[test]
    fn namespace_a_carrier_is_waited_for_as_long_as_agreed() {
        in_namespace("namespace_a_carrier_is_waited_for_as_long_as_agreed", || {
            const SHORT: Duration = Duration::from_millis(100);
            const LONG: Duration = Duration::from_secs(20);
            let interface = half_up("a0", "a1");
            let within = |limit, wait: &dyn Fn(Duration) -> bool| {
                let started = Instant::now();
                (wait(limit), started.elapsed())
            };
            // Until the kernel's link watch has come round the state is unknown, which counts as up.
            assert!(interface.wait_for_drop(LONG));
            // There is no carrier, and none comes.
            let (there, took) = within(SHORT, &|limit| interface.wait_for_carrier(limit));
            assert!(!there && took >= SHORT, "{took:?}");
            // It comes while we wait, and goes while we wait.
            for (command, wait) in [
                ("ip link set a1 up", &(|limit| interface.wait_for_carrier(limit)) as &dyn Fn(_) -> _),
                ("ip link set a1 down", &|limit| interface.wait_for_drop(limit)),
            ] {
                let before = interface.is_up().unwrap();
                let started = Instant::now();
                let came = thread::scope(|scope| {
                    scope.spawn(|| {
                        thread::sleep(SHORT);
                        run(command);
                    });
                    wait(LONG)
                });
                let took = started.elapsed();
                assert!(came && took >= SHORT && took < LONG, "{command}: {took:?}");
                assert_ne!(interface.is_up().unwrap(), before, "{command}");
            }
            run("ip link set a1 up");
            assert!(interface.wait_for_carrier(LONG));
            // It is there, and stays.
            let (gone, took) = within(SHORT, &|limit| interface.wait_for_drop(limit));
            assert!(!gone && took >= SHORT, "{took:?}");
            // Gone for good: nothing to wait for.
            run("ip link del a0");
            let (there, took) = within(LONG, &|limit| interface.wait_for_carrier(limit));
            assert!(!there && took < LONG, "{took:?}");
        });
    }

    #[test]
    fn namespace_a_name_that_is_not_ascii_is_asked_about() {
        in_namespace("namespace_a_name_that_is_not_ascii_is_asked_about", || {
            let interface = half_up("n\u{e4}he0", "ferne0");
            assert_eq!(interface.name().unwrap(), "n\u{e4}he0");
            assert_eq!((interface.mtu().unwrap(), interface.driver().as_str()), (1500, "veth"));
            assert!(interface.mac().unwrap().is_some() && interface.is_up().unwrap().0);
            assert_eq!(interface.queue_counts().rx, 1);
            interface.driver_counters().unwrap();
        });
    }

    #[test]
    fn namespace_settings_that_busy_polling_lacks_are_named() {
        in_namespace("namespace_settings_that_busy_polling_lacks_are_named", || {
            let interface = half_up("a0", "a1");
            // The host's /sys knows nothing of it.
            assert_eq!(interface.busy_poll_lacks(Path::new("/sys/class/net")), None);
            let folder = tempfile::tempdir().unwrap();
            run("mount --make-rprivate /");
            run(&format!("mount -t sysfs none {}", folder.path().display()));
            let net = folder.path().join("class/net");
            let settings =
                ["napi_defer_hard_irqs", "gro_flush_timeout"].map(|name| net.join("a0").join(name));
            assert_eq!(interface.busy_poll_lacks(&net).unwrap(), settings);
            std::fs::write(&settings[0], "2").unwrap();
            assert_eq!(interface.busy_poll_lacks(&net).unwrap(), settings[1..]);
            std::fs::write(&settings[1], "200000").unwrap();
            assert!(interface.busy_poll_lacks(&net).unwrap().is_empty());
            run(&format!("umount {}", folder.path().display()));
        });
    }
}
