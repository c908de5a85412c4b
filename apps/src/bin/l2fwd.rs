//! l2fwd: forwards every packet that comes in by a port to the port's partner, as DPDK's l2fwd does.
//!
//! It sets the destination address to 02:00:00:00:00:PORT and the source to the sending port's own, unless told to leave
//! them. Without `--port` it runs on two in-memory ports with a generator: no NIC, no root.
#![forbid(unsafe_code)]

use clap::Parser;
use dataplane::{
    Application, DataplaneArgs, Outputs, Plan, PortMap, WorkerContext, ethernet::Addresses, punt::Local,
};
use nic::{Batch, MacAddress, PortId};
use std::process::ExitCode;
use std::time::Duration;

/// Forwards packets between pairs of ports; without --port, for 10 s between two in-memory generators
#[derive(Parser)]
#[command(version, after_help = nic::drivers::help())]
struct Args {
    #[command(flatten)]
    dataplane: DataplaneArgs,

    /// Pairs of ports that forward to each other, such as "(0,1)(2,3)" [default: neighbours; a last odd port with itself]
    #[arg(long, value_name = "PAIRS", help_heading = "Forwarding")]
    portmap: Option<String>,

    /// Leave the Ethernet addresses as they are; receives promiscuously, since the packets are for others
    #[arg(long, help_heading = "Forwarding")]
    no_mac_updating: bool,
}

/// By the port a packet came in by: where it goes, the addresses it gets (`None` to leave its own), and what is for the port
/// itself (`--exception`), to be handed to the kernel.
struct L2Fwd(Vec<(PortId, Option<Addresses>, Option<Local>)>);

impl L2Fwd {
    fn new(worker: &WorkerContext, portmap: &PortMap, mac_updating: bool) -> Self {
        let route = |from: PortId| {
            let to = portmap[from];
            let [high, low] = to.0.to_be_bytes();
            let destination = MacAddress([0x02, 0, 0, 0, high, low]);
            let addresses = mac_updating.then(|| Addresses::new(destination, worker.port(to).mac));
            (to, addresses, worker.port(from).local.clone())
        };
        Self(worker.ports.iter().map(|port| route(port.id)).collect())
    }
}

impl Application for L2Fwd {
    #[inline]
    fn process(&mut self, packets: &mut Batch, from: PortId, out: &mut Outputs) {
        let (to, addresses, local) = &self.0[usize::from(from.0)];
        if let Some(local) = local {
            local.punt(packets, out);
        }
        if let Some(addresses) = addresses {
            packets.iter_mut().for_each(|packet| addresses.write(packet));
        }
        out.send(*to, packets);
    }
}

fn main() -> ExitCode {
    apps::run(|mut args: Args| {
        if args.dataplane.ports.is_empty() {
            args.dataplane.default_ports(&["mem:gen", "mem:gen"]);
            args.dataplane.duration.get_or_insert(Duration::from_secs(10));
        }
        args.dataplane.promiscuous |= args.no_mac_updating;
        let plan = Plan::check(&args.dataplane)?;
        let portmap = PortMap::new(args.portmap.as_deref(), plan.port_count())?;
        let dataplane = plan.routes(|from| portmap[from]).open()?;
        for port in dataplane.ports() {
            match portmap[port.id] {
                to if to == port.id => {
                    tracing::warn!("port {to} has no partner: it sends back what it receives")
                }
                to => tracing::info!("port {} forwards to port {to}", port.id),
            }
        }
        dataplane.run(|worker| L2Fwd::new(worker, &portmap, !args.no_mac_updating))?;
        Ok(())
    })
}
