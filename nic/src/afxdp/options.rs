//! What can be said behind the question mark of `afxdp:IFACE?...`, and all that can be checked of it without opening anything.
#![forbid(unsafe_code)]

use super::abi::XDP_PACKET_HEADROOM;
use super::filter::Filter;
use super::interface::Interface;
use super::quirks;
use crate::port::PortError;
use crate::spec::PortSpec;

/// An Ethernet header and two VLAN tags.
pub(super) const HEADERS: usize = 14 + 8;
/// The larger of the two sizes of a frame.
pub(super) const LARGE_FRAME: usize = 4096;

/// How packets get between the frames and the NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copying {
    /// Zero-copy where the driver can, else copy.
    Auto,
    /// Zero-copy or an error.
    Never,
    /// Copy.
    Always,
}

/// Where to attach the XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    /// In the driver where it can, else behind it.
    Auto,
    /// In the driver or an error.
    Driver,
    /// Behind the driver.
    Generic,
}

/// Whether packets may lie in several frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MultiBuffer {
    /// Where the MTU needs it.
    Auto,
    /// Yes, or an error.
    On,
    /// No, or an error where the MTU needs it.
    Off,
}

/// The options, with their defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Receive queues.
    pub(crate) queues: u32,
    pub(crate) copying: Copying,
    pub(crate) binding: Binding,
    pub(crate) multi_buffer: MultiBuffer,
    /// Microseconds to busy-poll at each doorbell; 0 for none.
    pub(crate) busy_poll_us: u32,
    /// Packets one busy poll takes at most.
    pub(crate) busy_poll_budget: u32,
    /// Bytes of a frame, at least.
    pub(crate) frame_bytes: usize,
    /// Entries of a receive ring.
    pub(crate) rx_ring: u32,
    /// Entries of a transmit ring.
    pub(crate) tx_ring: u32,
    /// Descriptors one wake-up sends at most in copy mode.
    pub(crate) tx_budget: u32,
    /// The number of channels to set the interface to.
    pub(crate) channels: Option<u32>,
    /// What is left to the kernel.
    pub(crate) filter: Filter,
}

/// The keys, for those who pass them on.
const KEYS: &[&str] = &[
    "queues",
    "mode",
    "bind",
    "multibuffer",
    "busy_poll",
    "busy_poll_budget",
    "frame",
    "rx_ring",
    "tx_ring",
    "tx_budget",
    "channels",
    "pass",
];

impl Options {
    /// Reads them; `more` are keys that belong to somebody else.
    pub(crate) fn read(spec: &PortSpec, more: &[&str]) -> Result<Self, PortError> {
        spec.check_keys(&[KEYS, more].concat())?;
        let ring = |key, default| {
            let size = spec.number(key, 64..=32768, default)? as u32;
            if size.is_power_of_two() {
                return Ok(size);
            }
            let (below, above) = (size.next_power_of_two() / 2, size.next_power_of_two());
            Err(spec.error(format!(
                "{key}={size}: a ring has a power of two of entries: choose {below} or {above}"
            )))
        };
        let frame_bytes = spec.choice("frame", &[("2048", 2048), ("4096", LARGE_FRAME)], 2048)?;
        let tx_ring = ring("tx_ring", 2048)?;
        let channels = spec.number("channels", 0..=1024, 0)? as u32;
        Ok(Self {
            queues: spec.number("queues", 1..=1024, 1)? as u32,
            copying: spec.choice(
                "mode",
                &[("auto", Copying::Auto), ("zerocopy", Copying::Never), ("copy", Copying::Always)],
                Copying::Auto,
            )?,
            binding: spec.choice(
                "bind",
                &[("auto", Binding::Auto), ("drv", Binding::Driver), ("skb", Binding::Generic)],
                Binding::Auto,
            )?,
            multi_buffer: spec.choice(
                "multibuffer",
                &[("auto", MultiBuffer::Auto), ("on", MultiBuffer::On), ("off", MultiBuffer::Off)],
                MultiBuffer::Auto,
            )?,
            busy_poll_us: spec.number("busy_poll", 0..=100_000, 0)? as u32,
            busy_poll_budget: spec.number("busy_poll_budget", 8..=1024, 64)? as u32,
            frame_bytes,
            // At 0.5 Mpps 16 ms, four ticks of a scheduler that gives the CPU to somebody else; 2048 lose packets there.
            rx_ring: ring("rx_ring", 8192)?,
            tx_ring,
            tx_budget: spec.number("tx_budget", 32..=u64::from(tx_ring), u64::from(tx_ring.min(128)))? as u32,
            channels: (channels > 0).then_some(channels),
            filter: Filter::read(spec)?,
        })
    }

    /// Entries of a fill ring: twice the receive ring, so that an overrun shows as a full receive ring, not as one
    /// that ran out of frames.
    pub(crate) fn fill_ring(&self) -> u32 {
        self.rx_ring * 2
    }

    /// The longest packet that fits one frame of `frame_bytes`.
    pub(crate) fn single_buffer_len(frame_bytes: usize) -> usize {
        frame_bytes - XDP_PACKET_HEADROOM
    }

    /// Whether packets of an interface of this MTU are to lie in several frames.
    pub(crate) fn wants_multi_buffer(&self, mtu: usize, frame_bytes: usize) -> bool {
        let needs = mtu + HEADERS > Self::single_buffer_len(frame_bytes);
        self.multi_buffer == MultiBuffer::On || (self.multi_buffer == MultiBuffer::Auto && needs)
    }

    /// Checks them against the interface as it is now.
    pub(crate) fn check_interface(&self, spec: &PortSpec, interface: &Interface) -> Result<(), PortError> {
        let name = spec.target();
        let system = |error: std::io::Error| spec.open_error(format!("cannot ask about {name}: {error}"));
        if interface.mac().map_err(system)?.is_none() {
            return Err(spec.error(format!(
                "{name} is no Ethernet interface, and packets without Ethernet headers cannot be forwarded: choose another"
            )));
        }
        let counts = interface.queue_counts();
        let available = self.channels.unwrap_or(counts.rx);
        if self.channels.is_some_and(|channels| channels > counts.max) {
            return Err(spec.error(format!(
                "{name} can have {most} channels, channels={available} asks for more: choose from 1 to {most}",
                most = counts.max
            )));
        }
        if self.queues > available {
            let s = if available == 1 { "" } else { "s" };
            let asked = self.queues;
            return Err(spec.error(if counts.max >= asked {
                format!(
                    "{name} has {available} queue{s}, asked for {asked}: run \"ethtool -L {name} {} {asked}\", or pass channels={asked} or queues={available}",
                    interface.channel_word()
                )
            } else {
                format!("{name} has {available} queue{s} and can have {}, asked for {asked}: pass queues={available}", counts.max)
            }));
        }
        self.check_mtu(spec, interface.mtu().map_err(system)?)?;
        self.check_driver(spec, &interface.driver())
    }

    /// Checks that packets of an interface with this MTU fit.
    pub(crate) fn check_mtu(&self, spec: &PortSpec, mtu: usize) -> Result<(), PortError> {
        let most = Self::single_buffer_len(self.frame_bytes);
        if self.multi_buffer == MultiBuffer::Off && mtu + HEADERS > most {
            return Err(spec.error(format!(
                "the MTU is {mtu}, and such a packet does not fit a frame of {} bytes: pass multibuffer=auto{}, or set the MTU to {} or less (ip link set IFACE mtu N)",
                self.frame_bytes,
                if self.frame_bytes == 2048 { " or frame=4096" } else { "" },
                most - HEADERS
            )));
        }
        Ok(())
    }

    /// Takes larger frames where the driver needs them for zero-copy and nobody has said which ones to take.
    pub(crate) fn suit_driver(&mut self, spec: &PortSpec, driver: &str, mtu: usize) -> Result<(), PortError> {
        let quirk = quirks::of(driver);
        let fits = |frame_bytes| quirk.zero_copy_fits(mtu, frame_bytes);
        let may_zero_copy = self.copying != Copying::Always
            && self.binding != Binding::Generic
            && quirk.no_zero_copy.is_none();
        if !may_zero_copy || fits(self.frame_bytes) {
            return Ok(());
        }
        if fits(LARGE_FRAME) && spec.text("frame").is_none() {
            self.frame_bytes = LARGE_FRAME;
            return Ok(());
        }
        match self.copying {
            Copying::Never => Err(spec.error(format!(
                "in zero-copy mode the driver {driver} cuts packets of an interface whose MTU is {mtu}, where a frame has {} bytes: pass {}mode=auto",
                self.frame_bytes,
                if fits(LARGE_FRAME) { "frame=4096 or " } else { "" }
            ))),
            // Copy mode it will be.
            _ => Ok(()),
        }
    }

    /// Checks what is known of a driver.
    pub(crate) fn check_driver(&self, spec: &PortSpec, driver: &str) -> Result<(), PortError> {
        if self.copying != Copying::Never {
            return Ok(());
        }
        if self.binding == Binding::Generic {
            return Err(spec.error("zero-copy needs the driver's own XDP: pass mode=copy, or bind=drv"));
        }
        match quirks::of(driver).no_zero_copy {
            Some(reason) => {
                Err(spec.error(format!("no zero-copy with the driver {driver}: {reason}: pass mode=auto")))
            }
            None => Ok(()),
        }
    }
}

/// What there is to choose from, for somebody who named an interface that does not exist.
pub(crate) fn no_interface(spec: &PortSpec) -> PortError {
    let name = spec.target();
    let names: Vec<String> = nix::net::if_::if_nameindex()
        .map(|list| list.iter().map(|entry| entry.name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    spec.error(format!("no interface \"{name}\" in this network namespace: choose from {}", names.join(", ")))
}
