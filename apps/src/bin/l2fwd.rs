//! l2fwd: forwards every packet that comes in by a port to the port's partner, as DPDK's l2fwd does.
//!
//! It sets the destination address to 02:00:00:00:00:PORT and the source to the sending port's own, unless told to leave
//! them. Without `--port` it runs on two in-memory ports with a generator: no NIC, no root.
#![forbid(unsafe_code)]

use clap::Parser;
use dataplane::{
    Application, DataplaneArgs, Outputs, Plan, PortInfo, PortMap, Shared, ethernet::Addresses, punt::Local,
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

/// By the port a packet came in by: where it goes, and the addresses it gets (`None` to leave its own).
type Routes = Vec<(PortId, Option<Addresses>)>;

fn routes(ports: &[PortInfo], portmap: &PortMap, mac_updating: bool) -> Routes {
    let route = |from: &PortInfo| {
        let to = portmap[from.id];
        let [high, low] = to.0.to_be_bytes();
        let destination = MacAddress([0x02, 0, 0, 0, high, low]);
        (to, mac_updating.then(|| Addresses::new(destination, ports[usize::from(to.0)].mac)))
    };
    ports.iter().map(route).collect()
}

struct L2Fwd {
    /// `isoplane ctl set portmap` replaces them.
    routes: Shared<Routes>,
    /// By port, what is for the port itself (`--exception`), to be handed to the kernel.
    local: Vec<Option<Local>>,
}

impl Application for L2Fwd {
    #[inline]
    fn process(&mut self, packets: &mut Batch, from: PortId, out: &mut Outputs) {
        let from = usize::from(from.0);
        if let Some(local) = &self.local[from] {
            local.punt(packets, out);
        }
        let (to, addresses) = out.read(&self.routes)[from];
        if let Some(addresses) = addresses {
            packets.iter_mut().for_each(|packet| addresses.write(packet));
        }
        out.send(to, packets);
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
        let mut dataplane = plan.routes(|from| portmap[from]).open()?;
        for port in dataplane.ports() {
            match portmap[port.id] {
                to if to == port.id => {
                    tracing::warn!("port {to} has no partner: it sends back what it receives")
                }
                to => tracing::info!("port {} forwards to port {to}", port.id),
            }
        }
        let (ports, reach) = (dataplane.ports().to_vec(), dataplane.reach());
        let setting = ("portmap", "all pairs of ports, such as (0,1)(2,3)");
        let published = dataplane.publish_setting(setting, &portmap.to_string(), move |text| {
            let portmap = PortMap::new(Some(text), ports.len())?;
            reach.check(|from| portmap[from])?;
            Ok(routes(&ports, &portmap, !args.no_mac_updating))
        })?;
        dataplane.run(|worker| L2Fwd {
            routes: published.shared(),
            local: worker.ports.iter().map(|port| port.local.clone()).collect(),
        })?;
        Ok(())
    })
}
