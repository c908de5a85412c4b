//! Exception ports in a configuration: which port has one, and which worker looks after it.
#![forbid(unsafe_code)]

use crate::assignment::WorkerQueues;
use crate::error::Error;
use nic::port::PortError;
use nic::{MacAddress, PortId, PortPlan, PortSpec, drivers};

/// Bytes of an Ethernet header, which the MTU does not count.
const ETHERNET_HEADER: usize = 14;
/// What a TAP can have.
const MTU: std::ops::RangeInclusive<usize> = 68..=9000;

/// An exception port that was asked for. Its number is behind those of all ports.
pub(crate) struct Exception {
    /// Whose it is.
    pub(crate) port: PortId,
    /// The name of the interface.
    pub(crate) interface: String,
    /// What is known before its port is open.
    pub(crate) plan: Box<dyn PortPlan>,
}

impl Exception {
    /// The plan with what is known now that its port is open: it carries that one's address and MTU.
    pub(crate) fn plan_for(
        &self,
        mac: MacAddress,
        max_packet_len: usize,
    ) -> Result<Box<dyn PortPlan>, PortError> {
        drivers::check(&specification(&self.interface, Some(mac), max_packet_len)?)
    }
}

fn specification(
    interface: &str,
    mac: Option<MacAddress>,
    max_packet_len: usize,
) -> Result<PortSpec, PortError> {
    let mtu = max_packet_len.saturating_sub(ETHERNET_HEADER).clamp(*MTU.start(), *MTU.end());
    let mac = mac.map(|mac| format!("&mac={mac}")).unwrap_or_default();
    format!("tap:{interface}?mtu={mtu}{mac}").parse()
}

/// Reads each `PORT=NAME`.
pub(crate) fn check(
    texts: &[String],
    ports: &[(PortSpec, Box<dyn PortPlan>)],
) -> Result<Vec<Exception>, Error> {
    let mut exceptions: Vec<Exception> = Vec::new();
    for text in texts {
        let wrong = |problem: String| Err(Error::Configuration(format!("--exception {text}: {problem}")));
        let Some((number, interface)) = text.split_once('=') else {
            return wrong("write PORT=NAME, such as 0=tap0".into());
        };
        let Some(index) = number.parse::<usize>().ok().filter(|index| *index < ports.len()) else {
            return wrong(format!("there is no port {number}: choose from 0 to {}", ports.len() - 1));
        };
        let port = PortId(index as u16);
        if exceptions.iter().any(|other| other.port == port) {
            return wrong(format!("port {port} has one already: give each port one"));
        }
        if exceptions.iter().any(|other| other.interface == interface) {
            return wrong(format!("{interface} is that of another port: choose another name"));
        }
        if interface.contains(['?', '&']) || interface.is_empty() {
            return wrong("write PORT=NAME, such as 0=tap0".into());
        }
        let longest = ports[index].1.max_packet_len().unwrap_or(usize::MAX);
        let plan = drivers::check(&specification(interface, None, longest)?)?;
        exceptions.push(Exception { port, interface: interface.to_owned(), plan });
    }
    Ok(exceptions)
}

/// Gives each worker that receives from a port a queue to its exception port, and the way back to a worker that sends to the port.
/// The first exception port has the number `ports`.
pub(crate) fn deal(exceptions: &[Exception], ports: usize, dealt: &mut [WorkerQueues]) -> Result<(), Error> {
    for (index, exception) in exceptions.iter().enumerate() {
        let (port, id) = (exception.port, PortId((ports + index) as u16));
        let receives = |worker: &WorkerQueues| worker.rx.iter().any(|(from, _)| *from == port);
        let sends = |worker: &WorkerQueues| worker.tx.iter().any(|(to, _)| *to == port);
        let mut queues = 0;
        for worker in dealt.iter_mut().filter(|worker| receives(worker)) {
            worker.tx.push((id, queues));
            queues += 1;
        }
        if queues > exception.plan.max_tx_queues() {
            return Err(Error::Configuration(format!(
                "{queues} workers receive from port {port}, and its exception port has {} queues: give fewer CPUs to --workers",
                exception.plan.max_tx_queues()
            )));
        }
        let back = dealt.iter().position(|worker| receives(worker) && sends(worker));
        let back = back.or_else(|| dealt.iter().position(sends)).or_else(|| dealt.iter().position(receives));
        let next = dealt.iter().filter(|worker| sends(worker)).count();
        if let Some(worker) = back.and_then(|back| dealt.get_mut(back)) {
            if !sends(worker) {
                worker.tx.push((port, next));
            }
            worker.rx.push((id, 0));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exception(port: u16) -> Exception {
        let plan = drivers::check(&"tap:t".parse().unwrap()).unwrap();
        Exception { port: PortId(port), interface: "t".into(), plan }
    }

    fn queues(rx: &[(u16, usize)], tx: &[(u16, usize)]) -> WorkerQueues {
        let ids = |list: &[(u16, usize)]| list.iter().map(|(port, queue)| (PortId(*port), *queue)).collect();
        WorkerQueues { rx: ids(rx), tx: ids(tx) }
    }

    #[test]
    fn the_way_back_takes_no_queue_that_the_port_may_not_have() {
        // Two workers that forward to each other's port: each punts, and the other one brings back.
        let mut dealt = [queues(&[(0, 0)], &[(1, 0)]), queues(&[(1, 0)], &[(0, 0)])];
        deal(&[exception(0), exception(1)], 2, &mut dealt).unwrap();
        assert_eq!(
            dealt,
            [queues(&[(0, 0), (3, 0)], &[(1, 0), (2, 0)]), queues(&[(1, 0), (2, 0)], &[(0, 0), (3, 0)])]
        );
        // Nobody sends to the port: then the worker that receives from it does.
        let mut dealt = [queues(&[(1, 0)], &[(1, 0)]), queues(&[(0, 0)], &[(1, 1)])];
        deal(&[exception(0)], 2, &mut dealt).unwrap();
        assert_eq!(dealt[1], queues(&[(0, 0), (2, 0)], &[(1, 1), (2, 0), (0, 0)]));
        // Two queues of one port: a way there for each worker, one way back.
        let mut dealt = [queues(&[(0, 0)], &[(0, 0)]), queues(&[(0, 1)], &[(0, 1)])];
        deal(&[exception(0)], 1, &mut dealt).unwrap();
        assert_eq!(
            dealt,
            [queues(&[(0, 0), (1, 0)], &[(0, 0), (1, 0)]), queues(&[(0, 1)], &[(0, 1), (1, 1)])]
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_way_out() {
        let ports: Vec<(PortSpec, Box<dyn PortPlan>)> = ["mem:null", "mem:null"]
            .iter()
            .map(|text| {
                let spec: PortSpec = text.parse().unwrap();
                let plan = drivers::check(&spec).unwrap();
                (spec, plan)
            })
            .collect();
        let said = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            check(&texts, &ports).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(said(&["0=tap0", "1=tap1"]), "");
        for (texts, words) in [
            (&["tap0"][..], "such as 0=tap0"),
            (&["0="], "such as 0=tap0"),
            (&["0=tap0?up=off"], "such as 0=tap0"),
            (&["2=tap0"], "choose from 0 to 1"),
            (&["x=tap0"], "choose from 0 to 1"),
            (&["0=tap0", "0=tap1"], "has one already"),
            (&["0=tap0", "1=tap0"], "choose another name"),
            (&["0=a/b"], "up to 15"),
        ] {
            assert!(said(texts).contains(words), "{texts:?}: {}", said(texts));
        }
    }
}
