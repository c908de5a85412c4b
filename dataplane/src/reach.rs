//! Which ports the workers can send to: what routes that change while a run goes on are held to.
//!
//! A transmit queue has one owner, and a worker gets its own before the run begins. By a route to a port it has none of, every packet would be lost.
#![forbid(unsafe_code)]

use crate::assignment::WorkerQueues;
use crate::error::Error;
use nic::PortId;
use std::sync::Arc;

/// See the module. Clones know the same.
#[derive(Clone, Debug)]
pub struct Reach {
    workers: Arc<[WorkerQueues]>,
    /// The ports' names, without exception ports.
    ports: Arc<[String]>,
}

impl Reach {
    pub(crate) fn new(dealt: &[WorkerQueues], ports: impl Iterator<Item = String>) -> Self {
        Self { workers: dealt.into(), ports: ports.collect() }
    }

    /// Refuses routes by which a worker would have to send to a port it has no transmit queue of; `to` says where packets go that come in by a port.
    pub fn check(&self, to: impl Fn(PortId) -> PortId) -> Result<(), Error> {
        for (index, worker) in self.workers.iter().enumerate() {
            let from = worker.rx.iter().map(|(port, _)| *port);
            for from in from.filter(|port| usize::from(port.0) < self.ports.len()) {
                let to = to(from);
                if worker.tx.iter().any(|(port, _)| *port == to) {
                    continue;
                }
                let name = self.ports.get(usize::from(to.0)).map_or("not open", String::as_str);
                return Err(Error::Configuration(format!(
                    "packets of port {from} cannot go to port {to} ({name}): worker {index}, which receives them, has no transmit queue of it; start the run with queues={} for that port, or with fewer CPUs to --workers",
                    self.workers.len()
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::placement::Placement;
    use crate::plan::Plan;

    #[test]
    fn only_where_a_worker_has_a_queue_packets_can_go() {
        let ids = |list: &[u16]| list.iter().map(|port| (PortId(*port), 0)).collect();
        let worker = |rx: &[u16], tx: &[u16]| WorkerQueues { rx: ids(rx), tx: ids(tx) };
        // Port 3 is an exception port: where its packets go is not the application's to say.
        let dealt = [worker(&[0], &[1]), worker(&[1, 2, 3], &[0, 2])];
        let reach = Reach::new(&dealt, ["a", "b", "c"].map(str::to_owned).into_iter());
        let check = |to: [u16; 3]| reach.check(|from| PortId(to[usize::from(from.0)]));
        check([1, 0, 2]).unwrap();
        check([1, 2, 0]).unwrap();
        let error = check([1, 1, 2]).unwrap_err().to_string();
        assert!(
            error.contains("port 1 cannot go to port 1 (b): worker 1") && error.contains("queues=2"),
            "{error}"
        );
        assert!(check([2, 0, 2]).unwrap_err().to_string().contains("worker 0"));
        assert!(check([9, 0, 2]).unwrap_err().to_string().contains("port 9 (not open)"));
    }

    #[derive(clap::Parser)]
    struct Args {
        #[command(flatten)]
        dataplane: crate::DataplaneArgs,
    }

    /// Two workers, of which one receives from 0 and 1 and the other from 2 and 3; 0 and 1 have a queue for each worker, 2 and 3 have one each.
    fn neighbours(ctl: &[&str]) -> Reach {
        const PORTS: [&str; 4] = ["mem:gen", "mem:gen", "mem:cable", "mem:cable"];
        let args = ["test"].iter().chain(ctl).copied().chain(PORTS.iter().flat_map(|port| ["--port", port]));
        let args: Args = clap::Parser::parse_from(args);
        let mut plan = Plan::check(&args.dataplane).unwrap();
        plan.placement = Placement { control: 0, workers: vec![1, 2] };
        let dealt = plan.routes(|from| PortId(from.0 ^ 1)).deal().unwrap();
        Reach::new(&dealt, PORTS.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn with_live_control_each_worker_reaches_every_port_that_has_queues_enough() {
        let check = |ctl: &[&str], to: [u16; 4]| {
            let checked = neighbours(ctl).check(|from| PortId(to[usize::from(from.0)]));
            checked.map_err(|error| error.to_string()).err().unwrap_or_default()
        };
        let ctl = ["--ctl", "/tmp/unused"];
        assert_eq!(check(&ctl, [1, 0, 3, 2]), "");
        assert_eq!(check(&ctl, [1, 0, 0, 1]), "");
        assert!(check(&ctl, [2, 3, 0, 1]).contains("port 2 (mem:cable): worker 0"));
        assert_eq!(check(&[], [1, 0, 3, 2]), "");
        assert!(check(&[], [1, 0, 0, 1]).contains("port 0 (mem:gen): worker 1"));
    }
}
