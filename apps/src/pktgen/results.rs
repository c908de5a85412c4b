//! What became of the packets, for people and as JSON.
#![forbid(unsafe_code)]

use super::{Pktgen, Traffic};
use dataplane::PortMap;
use nic::PortId;
use nic::traffic::Totals;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The numbers of a run; the key `traffic` of the report. Its keys are stable.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Results {
    /// False where the run was cut short: then what was on its way counts as `in_flight` and not as lost.
    pub complete: bool,
    /// Packets that ports took for sending.
    pub sent: u64,
    /// Different packets that came where they were expected.
    pub received: u64,
    /// Packets that did not.
    pub lost: u64,
    /// Packets on their way when the run was cut short.
    pub in_flight: u64,
    /// Packets that came again.
    pub duplicate: u64,
    /// Received packets that came after a later one.
    pub reordered: u64,
    /// Packets so far behind that nobody can tell whether they are new; they stay lost.
    pub late: u64,
    /// Damaged packets; they are lost too.
    pub corrupt: u64,
    /// Test packets of another sender than the port's partner.
    pub unexpected: u64,
    /// Packets that are no test packets.
    pub foreign: u64,
    /// Test packets of more flows than there were books for.
    pub untracked: u64,
    /// The same by way.
    pub streams: Vec<Stream>,
}

/// The way from one port to another.
#[derive(Clone, Debug, Serialize)]
pub struct Stream {
    /// The port that sent; `null` where another process did.
    pub from: Option<u16>,
    /// The port that received.
    pub to: u16,
    /// Packets that the port took for sending; `null` where another process sent.
    pub sent: Option<u64>,
    /// Different packets that came.
    pub received: u64,
    /// Packets that did not.
    pub lost: u64,
    /// Packets that came again.
    pub duplicate: u64,
    /// Received packets that came after a later one.
    pub reordered: u64,
    /// Packets too far behind to tell.
    pub late: u64,
}

/// One flow, over all workers.
#[derive(Clone, Copy, Default)]
struct Flow {
    sent: u64,
    received: u64,
    passed_over: u64,
}

impl Results {
    /// Adds up what the workers saw. `partner` says where a port's packets are expected; `None` where they are not.
    pub fn new(applications: &[Pktgen], traffic: &Traffic, ports: usize, partner: Option<&PortMap>) -> Self {
        let mut results = Self { complete: !traffic.send, ..Self::default() };
        results.complete |= applications.iter().all(Pktgen::has_finished);
        let mut totals = Totals::default();
        applications.iter().flat_map(Pktgen::trackers).for_each(|tracker| totals.add(tracker.totals()));
        (results.corrupt, results.foreign, results.untracked) =
            (totals.corrupt, totals.foreign, totals.untracked);
        for from in (0..ports).map(|port| PortId(port as u16)).filter(|_| traffic.send) {
            let to = partner.map(|partner| partner[from]);
            results.add_sent(applications, traffic, from, to);
        }
        for to in 0..ports {
            let expected = partner.filter(|_| traffic.send).map(|partner| {
                (0..ports)
                    .map(|port| PortId(port as u16))
                    .filter(|from| usize::from(partner[*from].0) == to)
                    .map(|from| traffic.sender(from))
                    .collect::<Vec<u16>>()
            });
            results.add_others(applications, to, expected.unwrap_or_default().as_slice(), traffic.send);
        }
        results
    }

    fn add_sent(&mut self, applications: &[Pktgen], traffic: &Traffic, from: PortId, to: Option<PortId>) {
        let mut flows: BTreeMap<u16, Flow> = BTreeMap::new();
        for (_, flow, sent) in applications.iter().flat_map(Pktgen::sent).filter(|(port, _, _)| *port == from)
        {
            flows.entry(flow).or_default().sent += sent;
        }
        let sent = flows.values().map(|flow| flow.sent).sum();
        self.sent += sent;
        let Some(to) = to else { return };
        let mut stream = Stream::empty(Some(from.0), to.0);
        for report in
            applications.iter().flat_map(|application| application.trackers()[usize::from(to.0)].flows())
        {
            if report.source == traffic.sender(from) {
                let flow = flows.entry(report.flow).or_default();
                flow.received += report.received;
                flow.passed_over += report.lost;
                stream.duplicate += report.duplicate;
                stream.reordered += report.reordered;
                stream.late += report.late;
            }
        }
        stream.sent = Some(sent);
        for flow in flows.values() {
            let missing = flow.sent.saturating_sub(flow.received);
            let lost = if self.complete { missing } else { flow.passed_over.min(missing) };
            stream.received += flow.received;
            stream.lost += lost;
            self.in_flight += missing - lost;
        }
        self.add(stream);
    }

    /// What came in from elsewhere: unexpected where this run sends, the very thing where it does not.
    fn add_others(&mut self, applications: &[Pktgen], to: usize, expected: &[u16], sends: bool) {
        let mut stream = Stream::empty(None, to as u16);
        for report in applications.iter().flat_map(|application| application.trackers()[to].flows()) {
            if sends {
                let came = report.received + report.duplicate + report.late;
                self.unexpected += if expected.contains(&report.source) { 0 } else { came };
                continue;
            }
            stream.received += report.received;
            stream.lost += report.lost;
            stream.duplicate += report.duplicate;
            stream.reordered += report.reordered;
            stream.late += report.late;
        }
        if !sends {
            self.add(stream);
        }
    }

    fn add(&mut self, stream: Stream) {
        self.received += stream.received;
        self.lost += stream.lost;
        self.duplicate += stream.duplicate;
        self.reordered += stream.reordered;
        self.late += stream.late;
        self.streams.push(stream);
    }
}

impl Stream {
    fn empty(from: Option<u16>, to: u16) -> Self {
        Self { from, to, sent: None, received: 0, lost: 0, duplicate: 0, reordered: 0, late: 0 }
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.complete { "" } else { " (cut short)" };
        writeln!(f, "  traffic{state}")?;
        for stream in &self.streams {
            match (stream.from, stream.sent) {
                (Some(from), Some(sent)) => {
                    write!(f, "    port {from} to port {}: sent {sent}, ", stream.to)?
                }
                _ => write!(f, "    to port {}: ", stream.to)?,
            }
            writeln!(
                f,
                "received {}, lost {}, duplicate {}, reordered {}, late {}",
                stream.received, stream.lost, stream.duplicate, stream.reordered, stream.late
            )?;
        }
        if self.streams.is_empty() {
            writeln!(f, "    sent {}", self.sent)?;
        }
        for (name, count) in [
            ("on their way", self.in_flight),
            ("corrupt", self.corrupt),
            ("unexpected", self.unexpected),
            ("foreign", self.foreign),
            ("untracked", self.untracked),
        ] {
            if count > 0 {
                writeln!(f, "    {name}: {count}")?;
            }
        }
        Ok(())
    }
}
