//! pktgen: sends numbered packets on its ports and says what became of each.
//!
//! What is sent on a port is expected on its partner and the other way round: a cable, a switch or the forwarder under test
//! joins them. When everything has been sent it waits for stragglers, until nothing has come for 200 ms, at most for 2 s.
#![forbid(unsafe_code)]

use anyhow::bail;
use apps::pktgen::{Pktgen, Results, Senders, Traffic};
use clap::{ArgGroup, Parser};
use dataplane::{DataplaneArgs, Error, Plan, PortMap, Report};
use nic::spec::parse_number;
use nic::traffic::{MAX_FLOWS, Sizes};
use serde::Serialize;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// Sends numbered packets and reports loss, duplicates and reordering
#[derive(Parser)]
#[command(version, after_help = nic::drivers::help())]
#[command(group(ArgGroup::new("direction").args(["receive_only", "transmit_only"])))]
struct Args {
    #[command(flatten)]
    dataplane: DataplaneArgs,

    /// Packets a second of each port, such as 500k or 2M; 0 for as fast as the port takes them
    #[arg(long, value_name = "PPS", value_parser = parse_rate, default_value = "0", help_heading = "Traffic")]
    rate: u64,

    /// Frame size in bytes without the frame check sequence, a range such as 60-1514, or imix
    #[arg(long, value_name = "SIZE", default_value = "64", help_heading = "Traffic")]
    size: Sizes,

    /// Flows of each port, told apart by UDP source port
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_FLOWS as i64), default_value = "1", help_heading = "Traffic")]
    flows: u16,

    /// Packets that each port sends [default: until --duration is over]
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "Traffic")]
    count: Option<u64>,

    /// Fill in the UDP checksum, which is 0 otherwise
    #[arg(long, help_heading = "Traffic")]
    udp_checksum: bool,

    /// Pairs of ports that expect each other's packets, such as "(0,1)(2,3)" [default: neighbours; a port alone expects its own]
    #[arg(long, value_name = "PAIRS", help_heading = "Traffic")]
    portmap: Option<String>,

    /// Send nothing: count what another pktgen, started later, sends
    #[arg(long, help_heading = "Traffic")]
    receive_only: bool,

    /// Expect nothing back
    #[arg(long, help_heading = "Traffic")]
    transmit_only: bool,

    /// With --receive-only: count each flow from the first packet seen, for a sender that runs already
    #[arg(long, help_heading = "Traffic")]
    join: bool,

    /// End with status 1 if a packet was lost, or if none came
    #[arg(long, conflicts_with = "transmit_only", help_heading = "Traffic")]
    expect_no_loss: bool,
}

fn parse_rate(text: &str) -> Result<u64, String> {
    parse_number(text)
        .filter(|rate| *rate <= 1_000_000_000)
        .ok_or_else(|| "choose a whole number from 0 to 1000000000, such as 500k".into())
}

fn parse_count(text: &str) -> Result<u64, String> {
    parse_number(text)
        .filter(|count| *count > 0)
        .ok_or_else(|| "choose a whole number from 1 on, such as 10M".into())
}

/// The dataplane's report and ours.
#[derive(Serialize)]
struct FullReport<'a> {
    #[serde(flatten)]
    dataplane: &'a Report,
    traffic: &'a Results,
}

fn write_report(path: &Path, report: &FullReport<'_>) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    let written = std::fs::write(path, text + "\n");
    written.map_err(|source| Error::Report { path: path.display().to_string(), source }.into())
}

fn main() -> ExitCode {
    apps::run(|mut args: Args| {
        if args.join && !args.receive_only {
            let problem = "--join: a sender knows where its flows begin; add --receive-only, or leave it out";
            return Err(Error::Configuration(problem.into()).into());
        }
        let mut traffic = Traffic {
            sizes: args.size,
            flows: args.flows,
            rate_pps: args.rate,
            count: args.count,
            duration: None,
            udp_checksum: args.udp_checksum,
            send: !args.receive_only,
            join: args.join,
            // Never 0, which mem:gen has.
            run: std::process::id() as u8 | 1,
        };
        if traffic.send {
            // Sending stops then, receiving goes on for the stragglers.
            traffic.duration = args.dataplane.duration.take();
        }
        args.dataplane.promiscuous = true;
        let plan = Plan::check(&args.dataplane)?;
        let ports = plan.port_count();
        if ports > 256 {
            return Err(
                Error::Configuration(format!("{ports} ports are too many: choose at most 256")).into()
            );
        }
        let portmap = PortMap::new(args.portmap.as_deref(), ports)?;
        if traffic.send {
            plan.check_packet_len("--size", usize::from(args.size.largest()))?;
        }
        let dataplane = plan.open()?;
        let senders = Arc::new(Senders::default());
        let outcome = dataplane.run(|worker| Pktgen::new(worker, &traffic, &senders))?;
        let partner = Some(&portmap).filter(|_| !args.transmit_only);
        let results = Results::new(&outcome.applications, &traffic, ports, partner);
        if !args.dataplane.quiet {
            // A reader that went away (head, less) ends the output, not the run.
            let _ = write!(std::io::stdout(), "{results}");
        }
        if let Some(path) = &args.dataplane.report {
            write_report(path, &FullReport { dataplane: &outcome.report, traffic: &results })?;
        }
        if args.expect_no_loss && (results.lost > 0 || results.received == 0) {
            bail!("{} packets were lost, {} received", results.lost, results.received);
        }
        Ok(())
    })
}
