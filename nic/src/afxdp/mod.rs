//! `afxdp:` ports: a NIC's queues through AF_XDP, on any Linux interface.
//!
//! An XDP program of our own sends the packets of each queue that has a socket to that socket, and all others on to the kernel.
//! The socket's four rings carry frame addresses between the kernel and us. All ports of a process that work on the same
//! pool share its memory with the kernel as one UMEM, so that a packet moves from port to port by its address.
//!
//! What to know about interfaces without hardware: a veth peer hands over packets with partial checksums, which the NIC was to
//! complete that is not there. Forwarded by AF_XDP, they arrive with wrong checksums, unless the peer was told `ethtool -K
//! PEER tx off`.
//!
//! Accounting: what a peer sent is received, or `rx_ring_full`, or `rx_dropped`. What is to be sent is sent when its frames come
//! back, `tx_dropped` where the kernel took it and the device refused it, and held until then.

mod abi;
mod device;
mod doorbell;
mod filter;
mod index;
mod interface;
mod ledger;
mod open;
mod options;
mod port;
mod program;
mod quiesce;
mod quirks;
mod release;
mod ring;
mod rx;
mod socket;
mod stall;
mod sys;
mod tx;
mod umem;

pub(crate) use interface::Interface;
pub(crate) use open::open;
pub(crate) use options::Options;

use crate::drivers::Driver;
use crate::ethernet::ETHERNET_HEADER;
use crate::port::{OpenContext, OpenPort, PortError, PortPlan};
use crate::spec::PortSpec;

pub(crate) const DRIVER: Driver = Driver {
    name: "afxdp",
    summary: "a network interface through AF_XDP (root)",
    forms: &[
        (
            "afxdp:IFACE?queues=1&mode=auto|zerocopy|copy&bind=auto|drv|skb",
            "the first queues of an interface; zero-copy and native XDP where the driver can",
        ),
        (
            "afxdp:IFACE?rx_ring=8192&tx_ring=2048&frame=2048|4096&multibuffer=auto|on|off",
            "ring sizes, frame size, and packets in several frames (jumbo)",
        ),
        (
            "afxdp:IFACE?busy_poll=MICROSECONDS&busy_poll_budget=64&tx_budget=128&channels=N",
            "preferred busy polling, packets for each wake-up, and the number of channels to set",
        ),
        (
            "afxdp:IFACE?pass=arp,icmp,tcp:PORT,udp:PORT",
            "leaves these packets to the kernel: ICMP and ICMPv6, TCP and UDP to these ports",
        ),
    ],
    check,
};

struct AfxdpPlan {
    spec: PortSpec,
    options: Options,
    tx_queues: usize,
    mtu: usize,
}

fn check(spec: &PortSpec) -> Result<Box<dyn PortPlan>, PortError> {
    let mut options = Options::read(spec, &[])?;
    let interface = Interface::find(spec.target()).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => options::no_interface(spec),
        _ => spec.open_error(format!("cannot ask about {}: {error}", spec.target())),
    })?;
    options.check_interface(spec, &interface)?;
    let mtu = interface
        .mtu()
        .map_err(|error| spec.open_error(format!("cannot ask about {}: {error}", spec.target())))?;
    options.suit_driver(spec, &interface.driver(), mtu)?;
    let tx_queues = options.channels.unwrap_or(interface.queue_counts().tx) as usize;
    Ok(Box::new(AfxdpPlan { spec: spec.clone(), options, tx_queues, mtu }))
}

/// The frames that a port with these options keeps.
pub(crate) fn frames(options: &Options, tx_queues: usize) -> usize {
    options.fill_ring() as usize * tx_queues.max(options.queues as usize)
        + options.tx_ring as usize * tx_queues
}

impl PortPlan for AfxdpPlan {
    fn rx_queues(&self) -> usize {
        self.options.queues as usize
    }

    fn max_tx_queues(&self) -> usize {
        self.tx_queues
    }

    fn frames(&self, tx_queues: usize) -> usize {
        frames(&self.options, tx_queues)
    }

    fn min_frame_size(&self) -> usize {
        self.options.frame_bytes
    }

    fn max_packet_len(&self) -> Option<usize> {
        Some(self.mtu + ETHERNET_HEADER)
    }

    fn open(self: Box<Self>, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
        open(&self.spec, self.spec.target(), &self.options, context)
    }
}
