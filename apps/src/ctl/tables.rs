//! Answers in columns, for people.
#![forbid(unsafe_code)]

use dataplane::telemetry::protocol::{
    Answer, Drops, IsolationStatus, PoolStatus, PortStatus, SettingStatus, WorkerStatus,
};
use std::time::Duration;

/// The lines to print.
pub(super) fn text(answer: &Answer) -> String {
    match answer {
        Answer::Ports(ports) => show_ports(ports),
        Answer::Workers(workers) => show_workers(workers),
        Answer::Drops(drops) if drops.is_empty() => "nothing was dropped\n".into(),
        Answer::Drops(drops) => show_drops(drops),
        Answer::Violations(isolation) => show_violations(isolation),
        Answer::Pool(pool) => show_pool(pool),
        Answer::Settings(settings) if settings.is_empty() => "this application has no settings\n".into(),
        Answer::Settings(settings) => show_settings(settings),
        Answer::Done(words) | Answer::Error(words) => format!("{}\n", plain(words)),
    }
}

/// Whoever listens at the path, the terminal is not its to control.
fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// Rows of cells under a head, each column as wide as its widest cell. A column whose name ends with a colon has text, and stands left.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let length = |text: &str| text.chars().count();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| length(cell));
        cells.chain([length(head[column].trim_end_matches(':'))]).max().unwrap_or_default()
    };
    let names = head.iter().map(|name| name.trim_end_matches(':').to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&names).chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let blank = " ".repeat(width(column).saturating_sub(length(cell)));
            let (before, behind) = if head[column].ends_with(':') { ("", &*blank) } else { (&*blank, "") };
            line += &format!("{before}{cell}{behind}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn show_ports(ports: &[PortStatus]) -> String {
    let row = |port: &PortStatus| {
        let counts = &port.counts;
        let state = if port.enabled { &port.link } else { "set down" };
        let dropped: u64 = counts.drops.values().sum();
        let numbers = [counts.rx_packets, counts.rx_bytes, counts.tx_packets, counts.tx_bytes, dropped];
        let texts = [port.number.to_string(), plain(&counts.name), plain(state)];
        texts.into_iter().chain(numbers.map(|number| number.to_string())).collect()
    };
    let rows: Vec<Vec<String>> = ports.iter().map(row).collect();
    let head = ["port", "name:", "state:", "rx packets", "rx bytes", "tx packets", "tx bytes", "dropped"];
    table(&head, &rows)
}

fn show_workers(workers: &[WorkerStatus]) -> String {
    let row = |worker: &WorkerStatus| {
        vec![
            worker.number.to_string(),
            worker.cpu.to_string(),
            worker.packets.to_string(),
            worker.tsc_per_packet.map_or("-".into(), |ticks| format!("{ticks:.2}")),
            duration(worker.busy_ns),
            duration(worker.longest_gap_ns),
            worker.affinity_changes.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = workers.iter().map(row).collect();
    table(&["worker", "CPU", "packets", "tsc/packet", "busy", "longest gap", "affinity changes"], &rows)
}

fn show_drops(drops: &[Drops]) -> String {
    let row = |drop: &Drops| {
        let texts = [&drop.name, &drop.reason].map(|text| plain(text));
        let [name, reason] = texts;
        vec![drop.port.to_string(), name, drop.packets.to_string(), reason, plain(&drop.meaning)]
    };
    let rows: Vec<Vec<String>> = drops.iter().map(row).collect();
    table(&["port", "name:", "packets", "reason:", "meaning:"], &rows)
}

fn show_violations(isolation: &IsolationStatus) -> String {
    if isolation.mode == "off" {
        return "the workers are not isolated: --isolation off\n".into();
    }
    if isolation.causes.is_empty() {
        return format!("no violation (--isolation {})\n", plain(&isolation.mode));
    }
    let mut causes: Vec<_> = isolation.causes.iter().collect();
    // Those that took longest first, as in the totals.
    causes.sort_by_key(|(_, violations)| std::cmp::Reverse((violations.total_ns, violations.count)));
    let row = |(cause, violations): (&String, &dataplane::telemetry::protocol::Violations)| {
        vec![
            plain(cause),
            violations.count.to_string(),
            duration(violations.total_ns),
            duration(violations.longest_ns),
        ]
    };
    let rows: Vec<Vec<String>> = causes.into_iter().map(row).collect();
    table(&["cause:", "count", "took", "longest"], &rows)
}

fn show_pool(pool: &PoolStatus) -> String {
    let used = pool.frames.saturating_sub(pool.free);
    let numbers = [pool.frames, pool.free, used, pool.frame_bytes].map(|number| number.to_string());
    table(&["frames", "free", "used", "bytes each"], &[numbers.to_vec()])
}

fn show_settings(settings: &[SettingStatus]) -> String {
    let row = |setting: &SettingStatus| {
        [&setting.name, &setting.text, &setting.takes].map(|text| plain(text)).to_vec()
    };
    let rows: Vec<Vec<String>> = settings.iter().map(row).collect();
    table(&["setting:", "is:", "takes:"], &rows)
}

fn duration(ns: u64) -> String {
    format!("{:.3?}", Duration::from_nanos(ns)).replace('µ', "u")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_texts_left() {
        let rows =
            [vec!["1".into(), "mem:gen".into(), "12345".into()], vec!["10".into(), "x".into(), "7".into()]];
        let text = table(&["port", "name:", "packets"], &rows);
        assert_eq!(text, "port  name     packets\n   1  mem:gen    12345\n  10  x              7\n");
    }

    #[test]
    fn a_terminal_is_not_the_answers_to_control() {
        let drops = Drops {
            port: 0,
            name: "a\x1b[2Jb".into(),
            reason: "c\n".into(),
            packets: 1,
            meaning: "\r".into(),
        };
        let text = text(&Answer::Drops(vec![drops]));
        assert!(text.contains("a?[2Jb") && !text.contains('\x1b') && text.lines().count() == 2, "{text}");
    }

    #[test]
    fn isolation_that_is_off_or_undisturbed_says_so() {
        let mut isolation = IsolationStatus { mode: "off".into(), ..IsolationStatus::default() };
        assert!(show_violations(&isolation).contains("not isolated"));
        isolation.mode = "soft".into();
        assert_eq!(show_violations(&isolation), "no violation (--isolation soft)\n");
        let violations =
            dataplane::telemetry::protocol::Violations { count: 2, total_ns: 1_500, longest_ns: 1_000 };
        isolation.causes.insert("irq:x".into(), violations);
        assert_eq!(
            show_violations(&isolation),
            "cause  count     took  longest\nirq:x      2  1.500us  1.000us\n"
        );
    }
}
