//! Making the pair, opening one end, and telling the user how to reach the other.
#![forbid(unsafe_code)]

use super::{OWN_END, VethPlan, namespace};
use crate::afxdp::{self, Interface};
use crate::netlink::{RouteSocket, VethEnd};
use crate::port::{LinkState, MacAddress, OpenContext, OpenPort, Port, PortError, PortGone};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// How long the kernel may take to notice that both ends of a pair are up; some milliseconds are usual.
const CARRIER_LIMIT: Duration = Duration::from_secs(2);

pub(super) fn open(plan: &VethPlan, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
    let spec = &plan.spec;
    let own_end = format!("{OWN_END}{}", spec.target());
    let made = namespace::create(|| {
        make_pair(plan, &own_end, context).map_err(|error| refused(plan, &error))?;
        afxdp::open(spec, &own_end, &plan.options, context)
    });
    let (namespace, port) = made.map_err(|error| refused(plan, &error))?;
    let OpenPort { port, rx, tx } = port?;
    let port = VethPort { inner: port, end: spec.target().to_owned(), namespace };
    tracing::info!("{}: the other end is {}; to use it: {} COMMAND", spec.name(), port.end, port.way_in());
    Ok(OpenPort { port: Box::new(port), rx, tx })
}

fn refused(plan: &VethPlan, error: &io::Error) -> PortError {
    let way_out = match error.raw_os_error() {
        Some(libc::EPERM) => ": run as root, or grant CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF",
        Some(libc::EOPNOTSUPP) => ": this kernel is built without veth (CONFIG_VETH)",
        _ => "",
    };
    plan.spec
        .open_error(format!("cannot make a veth pair in a network namespace of its own ({error}){way_out}"))
}

/// Makes the pair in the namespace we are in, and sets both ends up.
fn make_pair(plan: &VethPlan, own_end: &str, context: &OpenContext<'_>) -> io::Result<()> {
    let name = plan.spec.target();
    let (queues, tx_queues) = (plan.options.queues, plan.options.queues.max(context.tx_queues as u32));
    let route = RouteSocket::open()?;
    // As many transmit queues at the far end as there are sockets at ours: packets of any other would be the kernel's.
    route.create_veth(
        &VethEnd { name, mtu: plan.mtu, rx_queues: tx_queues, tx_queues: queues },
        &VethEnd { name: own_end, mtu: plan.mtu, rx_queues: queues.max(tx_queues), tx_queues },
    )?;
    // The kernel has nothing to say on our end: no neighbour discovery. Without IPv6 there is nothing to switch off.
    drop(std::fs::write(format!("/proc/sys/net/ipv6/conf/{own_end}/disable_ipv6"), "1"));
    let (far, near) = (Interface::find(name)?, Interface::find(own_end)?);
    // There is no hardware to complete a partial checksum.
    far.disable_tx_checksum_offload()?;
    for interface in [&Interface::find("lo")?, &near, &far] {
        route.set_up(interface.index())?;
    }
    // Both ends are up, but the kernel reports a carrier only when its link watch has come round, a moment later.
    if !(near.wait_for_carrier(CARRIER_LIMIT) && far.wait_for_carrier(CARRIER_LIMIT)) {
        tracing::debug!("{}: no carrier after {CARRIER_LIMIT:?}", plan.spec.name());
    }
    for address in &plan.addresses {
        route.add_address(far.index(), address.address, address.prefix)?;
    }
    Ok(())
}

/// An AF_XDP port with the namespace it lives in.
struct VethPort {
    inner: Box<dyn Port>,
    /// The far end's name.
    end: String,
    namespace: OwnedFd,
}

impl VethPort {
    /// The command that runs another one beside the far end.
    fn way_in(&self) -> String {
        format!("nsenter --net=/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }
}

impl Port for VethPort {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn driver(&self) -> &'static str {
        "veth"
    }

    fn mode(&self) -> String {
        format!("{}; {}", self.inner.mode(), self.way_in())
    }

    fn mac(&self) -> MacAddress {
        self.inner.mac()
    }

    fn max_packet_len(&self) -> usize {
        self.inner.max_packet_len()
    }

    fn link(&mut self) -> LinkState {
        self.inner.link()
    }

    fn refresh(&mut self) {
        self.inner.refresh();
    }

    fn lost_output(&self) -> Option<PortGone> {
        self.inner.lost_output()
    }

    fn refresh_drops(&mut self) {
        self.inner.refresh_drops();
    }

    fn extra_counters(&self) -> Vec<(String, u64)> {
        self.inner.extra_counters()
    }
}
