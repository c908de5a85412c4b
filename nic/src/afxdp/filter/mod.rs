//! `pass=arp,icmp,tcp:22`: what the XDP program leaves to the kernel.
//!
//! The filter looks at untagged Ethernet frames of ARP, of IPv4 with or without options, and of IPv6 without extension headers.
//! What it does not understand is the socket's, so a strange packet is the application's and never slips by.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use crate::port::PortError;
use crate::spec::PortSpec;
use percpu::bpf::instruction::{Arithmetic, Assembler, Condition, Label, Register, Size};

/// Ports of TCP and of UDP that can be named at most.
const MOST_PORTS: usize = 16;
/// Where `struct xdp_md` has the start and the end of the packet.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
/// Bytes of an Ethernet header; where it has the type.
const ETHERNET: i16 = 14;
const ETHERTYPE: i16 = 12;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ICMP: i32 = 1;
const TCP: i32 = 6;
const UDP: i32 = 17;
const ICMPV6: i32 = 58;
/// Bytes of the shortest IPv4 header; where it has flags and fragment offset, and the protocol.
const IPV4_HEADER: i16 = 20;
const IPV4_FRAGMENT: i16 = 6;
const IPV4_PROTOCOL: i16 = 9;
/// The bits of the fragment offset.
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// Bytes of an IPv6 header; where it has the next one's type.
const IPV6_HEADER: i16 = 40;
const IPV6_NEXT: i16 = 6;
/// Bytes of both ports, and where the destination's is.
const PORTS: i32 = 4;
const DESTINATION_PORT: i16 = 2;

/// What is left to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    arp: bool,
    /// ICMP and ICMPv6, neighbour discovery with it.
    icmp: bool,
    /// Destination ports.
    tcp: Vec<u16>,
    udp: Vec<u16>,
}

/// A number as a load finds it where the packet has it in network order.
fn wire(number: u16) -> i32 {
    i32::from(number.to_be())
}

impl Filter {
    /// Reads the option `pass`.
    pub(super) fn read(spec: &PortSpec) -> Result<Self, PortError> {
        let mut filter = Self::default();
        let Some(text) = spec.text("pass") else { return Ok(filter) };
        for word in text.split(',') {
            let wrong = || {
                spec.error(format!(
                    "pass={text}: \"{word}\": choose arp, icmp, tcp:PORT, udp:PORT, commas between"
                ))
            };
            let port = |number: &str| number.parse().ok().filter(|port| *port > 0).ok_or_else(wrong);
            match word.split_once(':') {
                None if word == "arp" => filter.arp = true,
                None if word == "icmp" => filter.icmp = true,
                Some(("tcp", number)) => filter.tcp.push(port(number)?),
                Some(("udp", number)) => filter.udp.push(port(number)?),
                _ => return Err(wrong()),
            }
        }
        if filter.tcp.len() > MOST_PORTS || filter.udp.len() > MOST_PORTS {
            return Err(spec.error(format!("pass=: more than {MOST_PORTS} ports of a kind: name fewer")));
        }
        Ok(filter)
    }

    /// True where all packets are the socket's.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Writes the tests: `context` and r0 to r5 are at its disposal, `context` is kept. It goes to `pass`, to `redirect`, or on
    /// with the next instruction, which is for `redirect` too.
    pub(super) fn emit(
        &self,
        mut assembler: Assembler,
        context: Register,
        pass: Label,
        redirect: Label,
    ) -> Assembler {
        use Arithmetic::{Add, And, ShiftLeft};
        use Condition::{Equal, Greater, Less, NotEqual};
        use Register::{R0, R2, R3, R4, R5};
        let (ipv6, transport, udp) = (assembler.label(), assembler.label(), assembler.label());
        assembler = assembler
            .load(Size::Word, R2, context, DATA)
            .load(Size::Word, R3, context, DATA_END)
            .move_register(R4, R2)
            .constant(Add, R4, i32::from(ETHERNET))
            .jump_if_register(R4, Greater, R3, redirect)
            .load(Size::Half, R5, R2, ETHERTYPE);
        if self.arp {
            assembler = assembler.jump_if(R5, Equal, wire(ARP), pass);
        }
        // r0 becomes the address of the transport header, r5 its protocol.
        assembler = assembler
            .jump_if(R5, Equal, wire(IPV6), ipv6)
            .jump_if(R5, NotEqual, wire(IPV4), redirect)
            .move_register(R4, R2)
            .constant(Add, R4, i32::from(ETHERNET + IPV4_HEADER))
            .jump_if_register(R4, Greater, R3, redirect)
            .load(Size::Byte, R0, R2, ETHERNET)
            .move_register(R4, R0)
            .constant(And, R4, 0xf0)
            .jump_if(R4, NotEqual, 0x40, redirect)
            .constant(And, R0, 0x0f)
            .constant(ShiftLeft, R0, 2)
            .jump_if(R0, Less, i32::from(IPV4_HEADER), redirect)
            .load(Size::Byte, R5, R2, ETHERNET + IPV4_PROTOCOL);
        if self.icmp {
            // Every fragment of it.
            assembler = assembler.jump_if(R5, Equal, ICMP, pass);
        }
        assembler = assembler
            .load(Size::Half, R4, R2, ETHERNET + IPV4_FRAGMENT)
            .constant(And, R4, wire(FRAGMENT_OFFSET))
            .jump_if(R4, NotEqual, 0, redirect)
            .register(Add, R0, R2)
            .constant(Add, R0, i32::from(ETHERNET))
            .jump(transport)
            .place(ipv6)
            .move_register(R4, R2)
            .constant(Add, R4, i32::from(ETHERNET + IPV6_HEADER))
            .jump_if_register(R4, Greater, R3, redirect)
            .load(Size::Byte, R5, R2, ETHERNET + IPV6_NEXT);
        if self.icmp {
            assembler = assembler.jump_if(R5, Equal, ICMPV6, pass);
        }
        assembler = assembler
            .move_register(R0, R2)
            .constant(Add, R0, i32::from(ETHERNET + IPV6_HEADER))
            .place(transport)
            .move_register(R4, R0)
            .constant(Add, R4, PORTS)
            .jump_if_register(R4, Greater, R3, redirect)
            .load(Size::Half, R4, R0, DESTINATION_PORT)
            .jump_if(R5, Equal, UDP, udp)
            .jump_if(R5, NotEqual, TCP, redirect);
        for port in &self.tcp {
            assembler = assembler.jump_if(R4, Equal, wire(*port), pass);
        }
        assembler = assembler.jump(redirect).place(udp);
        for port in &self.udp {
            assembler = assembler.jump_if(R4, Equal, wire(*port), pass);
        }
        assembler
    }

    /// In words, for the port's mode; `None` where it is empty.
    pub(super) fn describe(&self) -> Option<String> {
        let words = [("arp", self.arp), ("icmp", self.icmp)].into_iter();
        let mut words: Vec<String> =
            words.filter(|(_, named)| *named).map(|(word, _)| word.to_owned()).collect();
        words.extend(self.tcp.iter().map(|port| format!("tcp:{port}")));
        words.extend(self.udp.iter().map(|port| format!("udp:{port}")));
        (!self.is_empty()).then(|| format!("{} left to the kernel", words.join(" ")))
    }
}
