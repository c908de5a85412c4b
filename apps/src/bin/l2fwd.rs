//! l2fwd: forwards every packet that comes in by a port to the port's partner, as DPDK's l2fwd does.
//!
//! It sets the destination address to 02:00:00:00:00:PORT and the source to the sending port's own, unless told to leave
//! them. Without `--port` it runs on two in-memory ports with a generator: no NIC, no root.
#![forbid(unsafe_code)]

use clap::Parser;
use dataplane::{Application, DataplaneArgs, Outputs, Plan, PortMap, WorkerContext, ethernet};
use nic::{Batch, MacAddress, PortId};
use std::process::ExitCode;
use std::time::Duration;

/// Forwards packets between pairs of ports
#[derive(Parser)]
#[command(version, after_help = nic::drivers::help())]
struct Args {
    #[command(flatten)]
    dataplane: DataplaneArgs,

    /// Pairs of ports that forward to each other, such as "(0,1)(2,3)" [default: neighbours]
    #[arg(long, value_name = "PAIRS", help_heading = "Forwarding")]
    portmap: Option<String>,

    /// Leave the Ethernet addresses as they are; receives promiscuously, since the packets are for others
    #[arg(long, help_heading = "Forwarding")]
    no_mac_updating: bool,
}

/// What a packet gets when it leaves: where to, and the addresses.
#[derive(Clone, Copy)]
struct Route {
    to: PortId,
    destination: MacAddress,
    source: MacAddress,
}

struct L2Fwd {
    /// By the port a packet came in by.
    routes: Vec<Route>,
    mac_updating: bool,
}

impl L2Fwd {
    fn new(worker: &WorkerContext, portmap: &PortMap, mac_updating: bool) -> Self {
        let route = |from: PortId| {
            let to = portmap[from];
            let [high, low] = to.0.to_be_bytes();
            Route { to, destination: MacAddress([0x02, 0, 0, 0, high, low]), source: worker.port(to).mac }
        };
        Self { routes: worker.ports.iter().map(|port| route(port.id)).collect(), mac_updating }
    }
}

impl Application for L2Fwd {
    #[inline]
    fn process(&mut self, packets: &mut Batch, from: PortId, out: &mut Outputs) {
        let Route { to, destination, source } = self.routes[usize::from(from.0)];
        if self.mac_updating {
            for packet in packets.iter_mut() {
                ethernet::set_addresses(packet, destination, source);
            }
        }
        out.send(to, packets);
    }
}

fn main() -> ExitCode {
    apps::run(|| {
        let mut args = Args::parse();
        if args.dataplane.ports.is_empty() {
            args.dataplane.default_ports(&["mem:gen?rate=1M", "mem:gen?rate=1M"]);
            args.dataplane.duration.get_or_insert(Duration::from_secs(10));
        }
        args.dataplane.promiscuous |= args.no_mac_updating;
        let plan = Plan::check(&args.dataplane)?;
        let portmap = PortMap::new(args.portmap.as_deref(), plan.port_count())?;
        let dataplane = plan.routes(|from| portmap[from]).open()?;
        dataplane.run(|worker| L2Fwd::new(worker, &portmap, !args.no_mac_updating))?;
        Ok(())
    })
}
