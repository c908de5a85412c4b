//! The command-line options that every application has.
#![forbid(unsafe_code)]

use crate::idle::Idle;
use crate::isolation_args::IsolationArgs;
use crate::punt::PuntLimits;
use clap::{Args, ValueEnum, builder::ArgPredicate};
use isolation::Signals;
use nic::PortSpec;
use nic::memory::PageChoice;
use percpu::CpuList;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Who makes the system calls that keep a worker's queues going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kick {
    /// A thread on the control core's CPU: the worker makes no system call
    Control,
    /// The worker: fastest where there are few CPUs
    Worker,
}

impl Kick {
    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Worker => "worker",
        }
    }
}

/// Options of the dataplane, to be flattened into an application's own.
#[derive(Args, Clone, Debug)]
pub struct DataplaneArgs {
    /// A port, as DRIVER:TARGET?KEY=VALUE&...; repeat for more, they are numbered from 0
    #[arg(long = "port", value_name = "SPEC", help_heading = "Ports")]
    pub ports: Vec<String>,

    /// Receive packets for other stations too (always set where MAC addresses are left alone)
    #[arg(long, help_heading = "Ports")]
    pub promiscuous: bool,

    /// Gives a port an interface of the kernel, NAME, for what is the kernel's business there (ARP, ping, ssh); repeat for more
    #[arg(long = "exception", value_name = "PORT=NAME", help_heading = "Ports")]
    pub exceptions: Vec<String>,

    /// Packets a second that a worker hands to such an interface at most [default: arp=1000,icmp=1000,tcp=50k,other=2k]
    #[arg(long, value_name = "CLASS=PPS,...", help_heading = "Ports")]
    pub punt_limit: Option<PuntLimits>,

    /// CPUs for the workers, one each, such as 1-3,5 [default: one for each receive queue of a port, from the second CPU on]
    #[arg(long, value_name = "CPULIST", help_heading = "CPUs")]
    pub workers: Option<CpuList>,

    /// CPU for the control core [default: the first that no worker has]
    #[arg(long, value_name = "CPU", help_heading = "CPUs")]
    pub control: Option<usize>,

    /// Receive queues one worker polls [default: spread evenly over the workers]
    #[arg(long, value_name = "N", help_heading = "CPUs")]
    pub queues_per_worker: Option<usize>,

    /// Who wakes the kernel for the workers' queues [default: control where system calls are signalled, else worker]
    #[arg(long, value_enum, value_name = "WHO", help_heading = "CPUs")]
    pub kick: Option<Kick>,

    /// What a worker does when there is nothing to do
    #[arg(long, value_enum, value_name = "HOW", default_value = "poll", help_heading = "CPUs")]
    pub idle: Idle,

    /// Frames of packet memory [default: what the ports' rings need and some more]
    #[arg(long, value_name = "N", help_heading = "Packet memory")]
    pub frames: Option<usize>,

    /// Bytes of one frame: 2048 or 4096 [default: the smallest that all ports can work with]
    #[arg(long, value_name = "BYTES", help_heading = "Packet memory")]
    pub frame_size: Option<usize>,

    /// Pages of packet memory: auto, 4K, 2M or 1G
    #[arg(long, value_name = "SIZE", default_value = "auto", help_heading = "Packet memory")]
    pub pages: PageChoice,

    /// Stop after so many seconds [default: run until Ctrl-C, or until every input has ended]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, allow_negative_numbers = true, help_heading = "Run")]
    pub duration: Option<Duration>,

    /// Report a worker that has not come round for so many milliseconds; 0 for never
    #[arg(long, value_name = "MILLISECONDS", value_parser = parse_watchdog, default_value = "1000", help_heading = "Run")]
    pub watchdog: Duration,

    /// Seconds between two statistics tables; 0 for none
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "1", default_value_if("quiet", ArgPredicate::IsPresent, "0"), help_heading = "Run")]
    pub stats_period: Duration,

    /// Print no tables and no totals
    #[arg(long, help_heading = "Run")]
    pub quiet: bool,

    /// Write a report of the run as JSON
    #[arg(long, value_name = "FILE.json", help_heading = "Run")]
    pub report: Option<PathBuf>,

    /// Answer "isoplane ctl" on this unix socket
    #[arg(long, value_name = "SOCKET", help_heading = "Run")]
    pub ctl: Option<PathBuf>,

    /// Serve Prometheus at http://ADDRESS:PORT/metrics
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_address, help_heading = "Run")]
    pub metrics: Option<SocketAddr>,

    /// No colours and no redrawing of the table
    #[arg(long, help_heading = "Run")]
    pub no_color: bool,

    /// How workers are isolated
    #[command(flatten)]
    pub isolation: IsolationArgs,
}

impl DataplaneArgs {
    /// Uses these ports where the user named none.
    pub fn default_ports(&mut self, specs: &[&str]) {
        if self.ports.is_empty() {
            self.ports = specs.iter().map(|spec| (*spec).to_owned()).collect();
        }
    }

    /// Who wakes the kernel, asked for or not.
    pub(crate) fn kick(&self) -> Kick {
        self.kick.unwrap_or(match self.isolation.config() {
            Some(config) if config.signals.contains(Signals::SYSCALLS) => Kick::Control,
            _ => Kick::Worker,
        })
    }

    pub(crate) fn port_specs(&self) -> Result<Vec<PortSpec>, nic::PortError> {
        self.ports.iter().map(|text| text.parse()).collect()
    }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "\"{text}\" is no address and port: write 127.0.0.1:9100, [::1]:9100, or 0.0.0.0:9100 for all"
        )
    })
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 =
        text.parse().map_err(|_| format!("\"{text}\" is no number of seconds: write 10 or 0.5"))?;
    // A year is longer than anyone means, and far from where the clock arithmetic could overflow.
    if !(0.0..=31_536_000.0).contains(&seconds) {
        return Err(format!("{text} seconds: choose from 0 to 31536000"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn parse_watchdog(text: &str) -> Result<Duration, String> {
    let milliseconds: u64 = text
        .parse()
        .map_err(|_| format!("\"{text}\" is no number of milliseconds: write 1000, or 0 for never"))?;
    // Shorter ones are the scheduler's, and not worth a line each; a day is longer than anyone means.
    if milliseconds != 0 && !(10..=86_400_000).contains(&milliseconds) {
        return Err(format!("{text} milliseconds: choose 0 or from 10 to 86400000"));
    }
    Ok(Duration::from_millis(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_have_bounds() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "x", "-1", "NaN", "inf", "1e300"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_watchdog_waits_long_enough_or_is_off() {
        assert_eq!(parse_watchdog("0"), Ok(Duration::ZERO));
        assert_eq!(parse_watchdog("10"), Ok(Duration::from_millis(10)));
        for wrong in ["", "x", "-1", "9", "86400001", "1.5", "99999999999999999999"] {
            assert!(parse_watchdog(wrong).is_err(), "{wrong}");
        }
    }
}
