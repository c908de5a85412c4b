//! The live table and the totals, for people at a terminal.
//!
//! On a terminal the table is redrawn in place, in colour; into a file or a pipe, or with `--no-color`, one follows the other.
#![forbid(unsafe_code)]

use crate::arguments::DataplaneArgs;
use crate::registry::{PortSample, Registry, WorkerSample};
use crate::report::Report;
use nic::port::LinkState;
use percpu::tsc;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(crate) struct Table {
    quiet: bool,
    redraw: bool,
    colour: bool,
    lines: usize,
    last: Option<(Duration, Vec<PortSample>, Vec<WorkerSample>)>,
}

/// Ethernet's preamble, start delimiter, frame check sequence and gap: what a packet takes on the wire beyond its bytes.
const WIRE_OVERHEAD: u64 = 24;

impl Table {
    pub(crate) fn new(args: &DataplaneArgs) -> Self {
        let terminal = io::stdout().is_terminal() && !args.no_color;
        Self {
            quiet: args.quiet,
            redraw: terminal,
            colour: terminal && std::env::var_os("NO_COLOR").is_none(),
            lines: 0,
            last: None,
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Draws what happened since the last time.
    pub(crate) fn draw(&mut self, registry: &Registry, elapsed: Duration) {
        let ports: Vec<PortSample> = registry.ports.iter().map(|entry| entry.sample()).collect();
        let workers: Vec<WorkerSample> = registry.workers.iter().map(|entry| entry.sample()).collect();
        let (before, old_ports, old_workers) = self.last.take().unwrap_or_else(|| {
            (
                Duration::ZERO,
                vec![PortSample::default(); ports.len()],
                vec![WorkerSample::default(); workers.len()],
            )
        });
        let seconds = (elapsed - before).as_secs_f64().max(1e-9);
        let width = registry.ports.iter().map(|entry| entry.port.name().len()).max().unwrap_or(0).max(8);
        let mut text = String::new();
        let head = format!(
            "{:>7.1} s  {:<width$}  {:>9} {:>9}  {:>9} {:>9}  {:>11}",
            elapsed.as_secs_f64(),
            "port",
            "rx pps",
            "rx bit/s",
            "tx pps",
            "tx bit/s",
            "dropped/s"
        );
        let _ = writeln!(text, "{}", self.paint("1", &head));
        for (index, ((entry, new), old)) in registry.ports.iter().zip(&ports).zip(&old_ports).enumerate() {
            // A port takes packets back from "sent" when it learns that they were not.
            let pps = |new: u64, old: u64| rate_text(new.saturating_sub(old) as f64 / seconds);
            let bits = |bytes: u64, packets: u64| {
                rate_text((bytes + packets * WIRE_OVERHEAD) as f64 * 8.0 / seconds)
            };
            let dropped = (new.dropped().saturating_sub(old.dropped())) as f64 / seconds;
            let drops = format!("{dropped:>11.0}");
            let _ = write!(
                text,
                "{index:>9}  {:<width$}  {:>9} {:>9}  {:>9} {:>9}  {}",
                entry.port.name(),
                pps(new.rx_packets, old.rx_packets),
                bits(
                    new.rx_bytes.saturating_sub(old.rx_bytes),
                    new.rx_packets.saturating_sub(old.rx_packets)
                ),
                pps(new.tx_packets, old.tx_packets),
                bits(
                    new.tx_bytes.saturating_sub(old.tx_bytes),
                    new.tx_packets.saturating_sub(old.tx_packets)
                ),
                if dropped > 0.0 { self.paint("31", &drops) } else { drops },
            );
            let _ = match &entry.link {
                _ if entry.down.load(Ordering::Relaxed) => {
                    writeln!(text, "  {}", self.paint("33", "set down"))
                }
                LinkState::Up { .. } => writeln!(text),
                LinkState::Down => writeln!(text, "  {}", self.paint("33", "link down")),
                LinkState::Gone(_) => writeln!(text, "  {}", self.paint("31", "gone")),
            };
        }
        for (index, ((entry, new), old)) in
            registry.workers.iter().zip(&workers).zip(&old_workers).enumerate()
        {
            let packets = new.packets - old.packets;
            let per_packet = if packets == 0 {
                "idle".into()
            } else {
                format!("{:.1} tsc/packet", (new.busy_tsc - old.busy_tsc) as f64 / packets as f64)
            };
            let line = format!(
                "worker {index} on CPU {}: {per_packet}, longest gap {}",
                entry.cpu,
                duration_text(tsc::to_ns(new.longest_gap_tsc))
            );
            let _ = writeln!(text, "           {}", self.paint("2", &line));
        }
        self.last = Some((elapsed, ports, workers));
        self.print(&text);
    }

    fn print(&mut self, text: &str) {
        let mut out = io::stdout().lock();
        if self.redraw && self.lines > 0 {
            // Up to the table's first line, and clear from there.
            let _ = write!(out, "\x1b[{}A\x1b[J", self.lines);
        }
        self.lines = text.lines().count();
        // A reader that went away (head, less) ends the output, not the run.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Prints what the whole run counted.
    pub(crate) fn totals(&mut self, report: &Report, times_ns: &TimesNs) {
        if self.quiet {
            return;
        }
        let mut text = String::new();
        let _ = writeln!(text, "\n{}", self.paint("1", &format!("Totals after {:.2} s", report.duration_s)));
        for (index, port) in report.ports.iter().enumerate() {
            let _ = writeln!(text, "  port {index}  {} ({})", port.name, port.mode);
            let _ =
                writeln!(text, "    received {:>14} packets {:>17} bytes", port.rx_packets, port.rx_bytes);
            let _ =
                writeln!(text, "    sent     {:>14} packets {:>17} bytes", port.tx_packets, port.tx_bytes);
            for (reason, count) in &port.drops {
                let _ = writeln!(text, "    {} {count:>14} packets  {reason}", self.paint("31", "dropped "));
            }
            // Zeroes say something only of what else happened: they are in the JSON report.
            let extra: Vec<String> = port
                .extra
                .iter()
                .filter(|(_, value)| **value > 0)
                .map(|(name, value)| format!("{name} {value}"))
                .collect();
            if !extra.is_empty() {
                let _ = writeln!(text, "    {}", self.paint("2", &extra.join(", ")));
            }
        }
        let _ = writeln!(
            text,
            "  {}",
            self.paint(
                "1",
                &format!(
                    "{:<18} {:>12} {:>8}  {:>9} {:>9} {:>9} {:>9} {:>9}",
                    "loop gap", "packets", "tsc/pkt", "p50", "p99", "p99.9", "p99.99", "max"
                )
            )
        );
        for (index, worker) in report.workers.iter().enumerate() {
            let gap = &worker.loop_gap_ns;
            let cost = worker.tsc_per_packet.map_or("-".into(), |cost| format!("{cost:.2}"));
            let _ = write!(
                text,
                "  {:<18} {:>12} {cost:>8} ",
                format!("worker {index} on CPU {}", worker.cpu),
                worker.packets
            );
            for ns in [gap.p50, gap.p99, gap.p999, gap.p9999, gap.max] {
                let _ = write!(text, " {:>9}", duration_text(ns));
            }
            let _ = writeln!(text);
            if worker.affinity_changes > 0 {
                let changes = format!("affinity changed from outside, {} times", worker.affinity_changes);
                let _ = writeln!(text, "    {}", self.paint("31", &changes));
            }
        }
        self.isolation(report, times_ns, &mut text);
        let pool = &report.pool;
        let leaked = format!("{} leaked", pool.leaked);
        let leaked = if pool.leaked > 0 { self.paint("31", &leaked) } else { leaked };
        let _ = writeln!(
            text,
            "  pool: {} frames, {} free, {} held, {leaked}",
            pool.frames, pool.free, pool.held
        );
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// Causes that the totals list, those that took longest first.
const MOST_CAUSES: usize = 8;

/// How long violations took, by cause: altogether, and the longest, in nanoseconds.
type TimesNs = BTreeMap<String, (u64, u64)>;

impl Table {
    /// What came of keeping the kernel away.
    fn isolation(&self, report: &Report, times_ns: &TimesNs, text: &mut String) {
        let isolation = &report.isolation;
        if isolation.mode == "off" {
            return;
        }
        let total: u64 = report.violations.values().sum();
        let summary = format!("{total} violations");
        let summary = if total > 0 { self.paint("31", &summary) } else { summary };
        let took_ns: u64 = times_ns.values().map(|(total_ns, _)| total_ns).sum();
        let _ = writeln!(
            text,
            "  isolation {} ({}): {summary}, which took {} and cost {} packets; {} dropped for other reasons",
            isolation.mode,
            isolation.signal,
            duration_text(took_ns),
            isolation.dropped,
            isolation.dropped_without_violation
        );
        let time = |cause: &String| times_ns.get(cause).copied().unwrap_or_default();
        let mut causes: Vec<(&String, &u64)> = report.violations.iter().collect();
        causes.sort_by(|a, b| (time(b.0), b.1).cmp(&(time(a.0), a.1)).then(a.0.cmp(b.0)));
        for (cause, count) in causes.iter().take(MOST_CAUSES) {
            let (total_ns, longest_ns) = time(cause);
            let _ = match total_ns {
                0 => writeln!(text, "    {count:>10}  {cause}"),
                _ => writeln!(
                    text,
                    "    {count:>10}  {cause:<28} {:>9}, longest {}",
                    duration_text(total_ns),
                    duration_text(longest_ns)
                ),
            };
        }
        if causes.len() > MOST_CAUSES {
            let rest: u64 = causes[MOST_CAUSES..].iter().map(|(_, count)| **count).sum();
            let _ = writeln!(text, "    {rest:>10}  {} other causes", causes.len() - MOST_CAUSES);
        }
        if isolation.unexplained_gaps > 0 {
            let _ = writeln!(
                text,
                "    {:>10}  long gaps with no event of this kernel in them (hypervisor, SMI, or long turns), up to {}",
                isolation.unexplained_gaps,
                duration_text(isolation.unexplained_longest_ns)
            );
        }
    }
}

/// A rate in four digits, so that ten packets a second show as well as ten million: `10`, `4.51 k`, `14.20 M`.
fn rate_text(per_second: f64) -> String {
    let scaled = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    match scaled.iter().find(|(unit, _)| per_second >= 0.9995 * unit) {
        Some((unit, letter)) => {
            let value = per_second / unit;
            let decimals = if value < 99.95 { 2 } else { 1 };
            format!("{value:.decimals$} {letter}")
        }
        None => format!("{per_second:.0}"),
    }
}

/// A duration with three digits and the unit that fits.
fn duration_text(ns: u64) -> String {
    let scaled = |value: f64, unit: &str| match value {
        v if v < 10.0 => format!("{v:.2} {unit}"),
        v if v < 100.0 => format!("{v:.1} {unit}"),
        v => format!("{v:.0} {unit}"),
    };
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => scaled(ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => scaled(ns as f64 / 1e6, "ms"),
        _ => scaled(ns as f64 / 1e9, "s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_a_unit_that_fits() {
        let texts = [0.0, 9.6, 999.4, 999.6, 4_512.0, 99_949.0, 99_951.0, 14_204_000.0, 25e9].map(rate_text);
        let right = ["0", "10", "999", "1.00 k", "4.51 k", "99.95 k", "100.0 k", "14.20 M", "25.00 G"];
        assert_eq!(texts, right);
    }

    #[test]
    fn durations_have_three_digits() {
        let texts = [7, 999, 1_234, 45_678, 999_000, 1_000_000, 2_500_000_000].map(duration_text);
        assert_eq!(texts, ["7 ns", "999 ns", "1.23 us", "45.7 us", "999 us", "1.00 ms", "2.50 s"]);
    }
}
