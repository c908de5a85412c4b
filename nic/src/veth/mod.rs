//! `veth:` ports: real kernel traffic without hardware.
//!
//! Each port has a network namespace of its own with a veth pair in it. One end is the port, opened through AF_XDP; the other end
//! is an ordinary interface with an address, for `ping` and everything else that speaks to a network. The namespace has no name:
//! a descriptor of this process holds it, so it goes with the process, however that ends.
#![forbid(unsafe_code)]

mod namespace;
mod open;

use crate::afxdp::{self, Options};
use crate::drivers::Driver;
use crate::ethernet::ETHERNET_HEADER;
use crate::port::{OpenContext, OpenPort, PortError, PortPlan};
use crate::spec::PortSpec;
use std::net::IpAddr;

/// What stands before the name of the port's own end; with it, a name still fits the kernel's 15 bytes.
const OWN_END: &str = "dp-";
const MAX_NAME: usize = 15 - OWN_END.len();
/// Transmit queues a port can have, one for each worker.
const MAX_TX_QUEUES: usize = 64;

pub(crate) const DRIVER: Driver = Driver {
    name: "veth",
    summary: "a veth pair in a private network namespace: kernel traffic without hardware (root)",
    forms: &[(
        "veth:NAME?address=10.0.0.1/24&mtu=1500",
        "the interface NAME with these addresses (commas between them) is the other end; takes the options of afxdp: too",
    )],
    check,
};

/// An address with the bits of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address {
    address: IpAddr,
    prefix: u8,
}

struct VethPlan {
    spec: PortSpec,
    options: Options,
    mtu: u32,
    addresses: Vec<Address>,
}

fn check(spec: &PortSpec) -> Result<Box<dyn PortPlan>, PortError> {
    let options = Options::read(spec, &["mtu", "address"])?;
    let name = spec.target();
    let fits = name.len() <= MAX_NAME
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && name.bytes().any(|byte| byte != b'.')
        && name != "lo";
    if !fits {
        return Err(spec.error(format!(
            "\"{name}\" is no name for an interface here: choose one of up to {MAX_NAME} letters and digits, not lo"
        )));
    }
    if options.channels.is_some() {
        return Err(
            spec.error("a veth pair is made with the queues it needs: leave channels= out, pass queues=N")
        );
    }
    let mtu = spec.number("mtu", 68..=9000, 1500)? as u32;
    let addresses = match spec.text("address") {
        None => Vec::new(),
        Some(text) => text.split(',').map(|text| address(spec, text)).collect::<Result<_, _>>()?,
    };
    options.check_mtu(spec, mtu as usize)?;
    options.check_driver(spec, "veth")?;
    Ok(Box::new(VethPlan { spec: spec.clone(), options, mtu, addresses }))
}

fn address(spec: &PortSpec, text: &str) -> Result<Address, PortError> {
    let read = || {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix) = (address.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?);
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(Address { address, prefix })
    };
    read().ok_or_else(|| {
        spec.error(format!("address={text}: write an address and its network's bits, such as 10.0.0.1/24"))
    })
}

impl PortPlan for VethPlan {
    fn rx_queues(&self) -> usize {
        self.options.queues as usize
    }

    fn max_tx_queues(&self) -> usize {
        MAX_TX_QUEUES
    }

    fn tx_queues_follow(&self) -> bool {
        false
    }

    fn frames(&self, tx_queues: usize) -> usize {
        afxdp::frames(&self.options, tx_queues)
    }

    fn min_frame_size(&self) -> usize {
        self.options.frame_bytes
    }

    fn max_packet_len(&self) -> Option<usize> {
        Some(self.mtu as usize + ETHERNET_HEADER)
    }

    fn open(self: Box<Self>, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
        open::open(&self, context)
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
        assert_eq!(error("veth:a?address=10.0.0.1/24,fd00::1/64&mtu=9000"), "");
        for (text, words) in [
            ("veth:a-name-too-long", "up to 12"),
            ("veth:a/b", "up to 12"),
            ("veth:lo", "not lo"),
            ("veth:a?address=10.0.0.1", "10.0.0.1/24"),
            ("veth:a?address=10.0.0.1/33", "10.0.0.1/24"),
            ("veth:a?mtu=65536", "from 68 to 9000"),
            ("veth:a?mtu=9000&multibuffer=off", "multibuffer=auto"),
            ("veth:a?mode=zerocopy", "pass mode=auto"),
            ("veth:a?channels=2", "queues=N"),
            ("veth:a?rx_ring=1000", "choose 512 or 1024"),
            ("veth:a?colour=red", "unknown option"),
        ] {
            assert!(error(text).contains(words), "{text}: {}", error(text));
        }
    }
}
