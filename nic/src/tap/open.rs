//! Making the interface, and what to say where that fails.
#![forbid(unsafe_code)]

use super::port::TapPort;
use super::rx::TapRx;
use super::tx::TapTx;
use super::{ETHERNET_HEADER, Tap, TapPlan, room, sys};
use crate::afxdp::Interface;
use crate::netlink::RouteSocket;
use crate::port::{OpenContext, OpenPort, PortError, RxQueue, TxQueue};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const DEVICE: &str = "/dev/net/tun";

/// Makes it in the calling thread's network namespace.
pub(super) fn open(plan: &TapPlan, context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
    let (spec, name) = (&plan.spec, plan.spec.target());
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE);
    let file = device.map_err(|error| {
        let way_out = match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                "load the driver by \"modprobe tun\"; in a container, pass it the device"
            }
            _ => "run as root, or grant access to it",
        };
        spec.open_error(format!("cannot open {DEVICE} ({error}): {way_out}"))
    })?;
    sys::create_interface(&file, name).map_err(|error| {
        let way_out = match error.raw_os_error() {
            Some(libc::EPERM) => "run as root, or grant CAP_NET_ADMIN".to_owned(),
            Some(libc::EBUSY | libc::EINVAL | libc::EEXIST) => {
                format!("there is an interface of this name: choose another, or \"ip link del {name}\"")
            }
            _ => "see \"dmesg\"".to_owned(),
        };
        spec.open_error(format!("cannot make the interface {name} ({error}): {way_out}"))
    })?;
    let failed = |what: &'static str| {
        move |error: io::Error| spec.open_error(format!("cannot {what} the interface {name}: {error}"))
    };
    let interface = Interface::find(name).map_err(failed("find"))?;
    let route = RouteSocket::open().map_err(failed("ask about"))?;
    route
        .set_link(interface.index(), plan.mac.map(|mac| mac.0), plan.mtu as u32)
        .map_err(failed("set the address and the MTU of"))?;
    if plan.up {
        route.set_up(interface.index()).map_err(failed("set up"))?;
    }
    let mac = interface.mac().map_err(failed("ask about"))?.unwrap_or_default();
    let max_packet_len = plan.mtu + ETHERNET_HEADER;
    let tap = Arc::new(Tap { port: spec.name(), file, gone: AtomicBool::new(false) });
    let rx = TapRx::new(&tap, context.pool, context.id, room(plan.mtu));
    let tx: Vec<Box<dyn TxQueue>> = (0..context.tx_queues)
        .map(|_| -> Box<dyn TxQueue> { Box::new(TapTx::new(&tap, max_packet_len)) })
        .collect();
    let port =
        TapPort { tap, interface, mac, max_packet_len, rx: Arc::clone(rx.counters()), counters: Vec::new() };
    Ok(OpenPort { port: Box::new(port), rx: vec![Box::new(rx)], tx })
}
