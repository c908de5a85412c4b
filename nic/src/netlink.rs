//! As much of rtnetlink as ports need: making a veth pair, setting an interface up, reading its counters.
//!
//! A message is a header, a fixed part and attributes, each aligned to four bytes
//! ([`linux/netlink.h`](https://github.com/torvalds/linux/blob/master/include/uapi/linux/netlink.h)); written by hand, that is
//! less than what a crate for it would bring along.
#![forbid(unsafe_code)]

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// `IFLA_STATS_LINK_64` of `linux/if_link.h`.
const IFLA_STATS_LINK_64: u16 = 1;
/// `VETH_INFO_PEER` of `linux/veth.h`.
const VETH_INFO_PEER: u16 = 1;
const HEADER: usize = 16;
/// How long the kernel may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// A routing socket. It belongs to the network namespace of the thread that opened it, whoever uses it later.
#[derive(Debug)]
pub(crate) struct RouteSocket {
    fd: OwnedFd,
    /// The number of the last request.
    sequence: Mutex<u32>,
}

/// A request under construction.
struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        let mut request = Self { bytes };
        request.align();
        request
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.bytes.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.align();
        self
    }

    /// An attribute that holds what `inside` adds.
    fn nested(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self = inside(self.attribute(kind, &[]));
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn name(self, kind: u16, name: &str) -> Self {
        self.attribute(kind, format!("{name}\0").as_bytes())
    }

    fn fixed(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// `struct ifinfomsg` for the interface `index`; `change` says which of `flags` to set.
fn interface_message(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut message = [0; 16];
    message[4..8].copy_from_slice(&index.to_ne_bytes());
    message[8..12].copy_from_slice(&flags.to_ne_bytes());
    message[12..16].copy_from_slice(&change.to_ne_bytes());
    message
}

/// One end of a veth pair.
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) mtu: u32,
    pub(crate) rx_queues: u32,
    pub(crate) tx_queues: u32,
}

impl RouteSocket {
    /// Opens one in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let fd = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        let limit = TimeVal::seconds(ANSWER_LIMIT.as_secs() as i64);
        socket::setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
        Ok(Self { fd, sequence: Mutex::new(0) })
    }

    /// The descriptor; interface requests (`ioctl(2)`) act on its namespace too.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sends a request and gives the answer to it. Others are passed over: that to a request whose asker did not wait.
    fn ask(&self, request: Request) -> io::Result<Vec<u8>> {
        // Locked to the end, or one asker would pass over the answer of another.
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        *sequence = sequence.wrapping_add(1);
        socket::send(self.fd.as_raw_fd(), &request.finish(*sequence), MsgFlags::empty())?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        let answer = loop {
            let mut answer = vec![0; 16 << 10];
            let length = socket::recv(self.fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            answer.truncate(length);
            if number32(&answer, 8) == Some(*sequence) {
                break answer;
            }
            if Instant::now() >= deadline {
                return Err(Errno::EAGAIN.into());
            }
        };
        let code = answer.get(HEADER..HEADER + 4).and_then(|code| code.try_into().ok());
        if number16(&answer, 4) == Some(libc::NLMSG_ERROR as u16) {
            match code.map(i32::from_ne_bytes) {
                Some(0) => {}
                Some(code) => return Err(io::Error::from_raw_os_error(-code)),
                None => return Err(Errno::EPROTO.into()),
            }
        }
        Ok(answer)
    }

    fn change(&self, request: Request) -> io::Result<()> {
        self.ask(request).map(drop)
    }

    /// Makes a veth pair, both ends down.
    pub(crate) fn create_veth(&self, one: &VethEnd<'_>, other: &VethEnd<'_>) -> io::Result<()> {
        let describe = |request: Request, end: &VethEnd<'_>| {
            request
                .name(libc::IFLA_IFNAME, end.name)
                .attribute(libc::IFLA_MTU, &end.mtu.to_ne_bytes())
                .attribute(libc::IFLA_NUM_TX_QUEUES, &end.tx_queues.to_ne_bytes())
                .attribute(libc::IFLA_NUM_RX_QUEUES, &end.rx_queues.to_ne_bytes())
        };
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let request = Request::new(libc::RTM_NEWLINK, flags, &interface_message(0, 0, 0));
        let request = describe(request, one).nested(libc::IFLA_LINKINFO, |info| {
            info.name(libc::IFLA_INFO_KIND, "veth").nested(libc::IFLA_INFO_DATA, |data| {
                data.nested(VETH_INFO_PEER, |peer| describe(peer.fixed(&interface_message(0, 0, 0)), other))
            })
        });
        self.change(request)
    }

    /// Sets an interface up.
    pub(crate) fn set_up(&self, index: u32) -> io::Result<()> {
        let up = libc::IFF_UP as u32;
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        self.change(Request::new(libc::RTM_NEWLINK, flags, &interface_message(index, up, up)))
    }

    /// Sets an interface's Ethernet address, where one is given, and its MTU.
    pub(crate) fn set_link(&self, index: u32, mac: Option<[u8; 6]>, mtu: u32) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let mut request = Request::new(libc::RTM_NEWLINK, flags, &interface_message(index, 0, 0))
            .attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
        if let Some(mac) = mac {
            request = request.attribute(libc::IFLA_ADDRESS, &mac);
        }
        self.change(request)
    }

    /// Gives an interface an address of `prefix` network bits.
    pub(crate) fn add_address(&self, index: u32, address: std::net::IpAddr, prefix: u8) -> io::Result<()> {
        let (family, bytes) = match address {
            std::net::IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
            std::net::IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
        };
        // struct ifaddrmsg: family, prefix length, flags, scope, index. Without duplicate address detection an IPv6
        // address can be used at once.
        let mut message = [family as u8, prefix, libc::IFA_F_NODAD as u8, 0, 0, 0, 0, 0];
        message[4..8].copy_from_slice(&index.to_ne_bytes());
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let request = Request::new(libc::RTM_NEWADDR, flags, &message)
            .attribute(libc::IFA_LOCAL, &bytes)
            .attribute(libc::IFA_ADDRESS, &bytes);
        self.change(request)
    }

    /// The counters of `struct rtnl_link_stats64`, in its order.
    pub(crate) fn link_counters(&self, index: u32) -> io::Result<Vec<u64>> {
        // struct if_stats_msg: family, padding, index, filter.
        let mut message = [0; 12];
        message[4..8].copy_from_slice(&index.to_ne_bytes());
        message[8..12].copy_from_slice(&(1_u32 << (IFLA_STATS_LINK_64 - 1)).to_ne_bytes());
        let answer = self.ask(Request::new(libc::RTM_GETSTATS, libc::NLM_F_REQUEST, &message))?;
        let mut at = HEADER + message.len();
        while let (Some(length), Some(kind)) = (number16(&answer, at), number16(&answer, at + 2)) {
            let end = at + usize::from(length);
            if length < 4 || end > answer.len() {
                break;
            }
            if kind == IFLA_STATS_LINK_64 {
                let (words, _) = answer[at + 4..end].as_chunks::<8>();
                return Ok(words.iter().map(|word| u64::from_ne_bytes(*word)).collect());
            }
            at = end.next_multiple_of(4);
        }
        Err(Errno::ENODATA.into())
    }
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_belongs_to_another_request_is_passed_over() {
        let route = RouteSocket::open().unwrap();
        // Nobody waits for the answer to this one: an error, for there is no such interface.
        let mut message = [0; 12];
        message[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        let stray = Request::new(libc::RTM_GETSTATS, libc::NLM_F_REQUEST, &message).finish(4711);
        socket::send(route.fd.as_raw_fd(), &stray, MsgFlags::empty()).unwrap();
        // The loopback interface is number 1 in every namespace.
        assert!(route.link_counters(1).unwrap().len() > 20);
        let error = route.link_counters(i32::MAX as u32).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
