//! A flood, or a steady stream, made in the kernel; and a count of what arrives.
//!
//! `xdpgen --interface q0 --sink q1 --rate 300000 --seconds 10` sends out of q0, counts what comes in at q1, and prints one
//! line of JSON. What is between them (a forwarder on the other ends of two veth pairs) is what is measured.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use bench::xdp::{Generator, InterfaceCounters, Sink};
use clap::Parser;
use nic::MacAddress;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// Sends packets out of an interface by XDP live frames, counts those that come in at another, and prints JSON.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The interface to send out of; on a veth, the other end must have native XDP or GRO
    #[arg(long, value_name = "NAME")]
    interface: String,
    /// The interface to count and drop at
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    /// Packets a second; 0 is as fast as the kernel can
    #[arg(long, value_name = "PPS", default_value_t = 0)]
    rate: u32,
    /// How long to send
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Bytes of a packet, without the frame check sequence
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    size: usize,
    /// The Ethernet address to send to
    #[arg(long, value_name = "MAC", default_value = "02:00:00:00:00:00")]
    destination: MacAddress,
    /// The CPU to send from; any by default
    #[arg(long)]
    cpu: Option<usize>,
}

fn main() -> ExitCode {
    match generate(&Args::parse()) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn generate(args: &Args) -> Result<Value> {
    ensure!(
        args.seconds > 0.0 && args.seconds <= 86_400.0,
        "--seconds {}: choose a number above 0 and up to 86400",
        args.seconds
    );
    let _pinned = args.cpu.map(percpu::pin_on_cpu).transpose()?;
    let sink = args.sink.as_deref().map(Sink::attach).transpose()?;
    let generator = Generator::new(&args.interface, args.size, args.destination)?;
    run(args, &generator, sink.as_ref())
}

fn run(args: &Args, generator: &Generator, sink: Option<&Sink>) -> Result<Value> {
    let before = InterfaceCounters::read(&args.interface)?;
    let duration = Duration::from_secs_f64(args.seconds);
    let sent = match args.rate {
        0 => generator.flood(duration)?,
        rate => generator.paced(rate, duration)?,
    };
    let received_meanwhile = sink.map(Sink::received).transpose()?.map(|received| received.packets);
    let received =
        sink.map(|sink| sink.settle(Duration::from_millis(200), Duration::from_secs(5))).transpose()?;
    let interface = InterfaceCounters::read(&args.interface)?.since(&before);
    let pps = |packets: u64| (packets as f64 / sent.duration.as_secs_f64()).round();
    Ok(json!({
        "interface": args.interface,
        "sink": args.sink,
        "size_bytes": args.size,
        "seconds": sent.duration.as_secs_f64(),
        "sent": sent.packets,
        "sent_pps": pps(sent.packets),
        "stalls": sent.stalls,
        "tx_packets": interface.tx_packets,
        "tx_dropped": interface.tx_dropped,
        "received": received.map(|received| received.packets),
        "received_pps": received_meanwhile.map(pps),
        "received_other": received.map(|received| received.other),
    }))
}
