//! What is told of violations: a line for people, an object of JSON for programs, counts for the report.
#![forbid(unsafe_code)]

use super::drop_join::{Joined, Losses};
use crate::error::Error;
use isolation::Violation;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Lines a second; the others are counted, and are in the file.
const LINES_A_SECOND: u32 = 20;
/// How long a line waits for others to be written with.
const WRITE_OUT_PERIOD: Duration = Duration::from_secs(1);
/// Functions of a stack that a line has.
const LINE_FRAMES: usize = 4;

/// One violation as `--violations` writes it, one line each. The keys are stable.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    /// RFC 3339.
    time: String,
    worker: usize,
    cpu: usize,
    cause: &'a str,
    detail: &'a str,
    duration_ns: Option<u64>,
    address: Option<String>,
    user_stack: &'a [String],
    kernel_stack: &'a [String],
    /// Where most of the lost packets were lost.
    port: Option<&'a str>,
    queue: Option<usize>,
    dropped: BTreeMap<&'static str, u64>,
}

/// Where violations go.
pub(crate) struct ViolationLog {
    file: Option<(PathBuf, BufWriter<File>)>,
    /// By cause.
    pub(crate) counts: BTreeMap<String, u64>,
    /// Packets that they cost.
    pub(crate) dropped: u64,
    /// How long they took, as far as that is known: altogether and the longest, by cause.
    pub(crate) times_ns: BTreeMap<String, (u64, u64)>,
    second: Instant,
    lines: u32,
    suppressed: u64,
    written_out: Instant,
}

impl ViolationLog {
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Error> {
        let open = |path: &Path| {
            let file = File::create(path).map_err(|source| wrong(path, source))?;
            Ok::<_, Error>((path.to_owned(), BufWriter::new(file)))
        };
        Ok(Self {
            file: path.map(open).transpose()?,
            counts: BTreeMap::new(),
            dropped: 0,
            times_ns: BTreeMap::new(),
            second: Instant::now(),
            lines: 0,
            suppressed: 0,
            written_out: Instant::now(),
        })
    }

    /// Tells of one. `place` names the port and the queue of a number that losses go by.
    pub(crate) fn tell(&mut self, joined: &Joined, place: impl Fn(usize) -> (String, usize)) {
        let Joined { violation, losses } = joined;
        *self.counts.entry(violation.cause.clone()).or_default() += 1;
        let (total_ns, longest_ns) = self.times_ns.entry(violation.cause.clone()).or_default();
        let ns = violation.duration_ns.unwrap_or(0);
        (*total_ns, *longest_ns) = (*total_ns + ns, ns.max(*longest_ns));
        let mut dropped: BTreeMap<&'static str, u64> = BTreeMap::new();
        let mut by_queue: BTreeMap<usize, u64> = BTreeMap::new();
        for ((queue, reason), count) in losses {
            *dropped.entry(reason.name()).or_default() += count;
            *by_queue.entry(*queue).or_default() += count;
        }
        self.dropped += total(losses);
        let worst = by_queue.into_iter().max_by_key(|(_, count)| *count).map(|(queue, _)| place(queue));
        if self.may_print() {
            tracing::warn!("{}", line(violation, &dropped, worst.as_ref()));
        }
        let entry = Entry {
            time: time_text(violation.time_unix_ns),
            worker: violation.worker,
            cpu: violation.cpu,
            cause: &violation.cause,
            detail: &violation.detail,
            duration_ns: violation.duration_ns,
            address: violation.address.map(|address| format!("{address:#x}")),
            user_stack: &violation.user_stack,
            kernel_stack: &violation.kernel_stack,
            port: worst.as_ref().map(|(port, _)| port.as_str()),
            queue: worst.as_ref().map(|(_, queue)| *queue),
            dropped,
        };
        self.write(&entry);
    }

    fn write(&mut self, entry: &Entry<'_>) {
        let Some((path, file)) = &mut self.file else { return };
        let written = serde_json::to_writer(&mut *file, entry).map_err(std::io::Error::from);
        if let Err(source) = written.and_then(|()| file.write_all(b"\n")) {
            let error = wrong(path, source);
            self.give_up(&error);
        }
    }

    /// The run is worth more than its log.
    fn give_up(&mut self, error: &Error) {
        tracing::error!("{error}; no more is written there");
        self.file = None;
    }

    /// Once a second, what was told of is in the file: somebody may be reading it.
    pub(crate) fn write_out(&mut self) {
        if self.written_out.elapsed() < WRITE_OUT_PERIOD {
            return;
        }
        self.written_out = Instant::now();
        if let Some((path, file)) = &mut self.file
            && let Err(source) = file.flush()
        {
            let error = wrong(path, source);
            self.give_up(&error);
        }
    }

    fn may_print(&mut self) -> bool {
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.say_suppressed();
            // A process that is killed keeps all but its last second.
            if let Some((_, file)) = &mut self.file {
                let _ = file.flush();
            }
            (self.second, self.lines) = (Instant::now(), 0);
        }
        self.lines += 1;
        let may = self.lines <= LINES_A_SECOND;
        self.suppressed += u64::from(!may);
        may
    }

    fn say_suppressed(&mut self) {
        let suppressed = std::mem::take(&mut self.suppressed);
        if suppressed > 0 {
            let whole = if self.file.is_some() { "" } else { " (--violations FILE.jsonl keeps them all)" };
            tracing::warn!("isolation lost {suppressed} times more in that second, not shown{whole}");
        }
    }

    /// Writes out what is buffered.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.say_suppressed();
        match &mut self.file {
            Some((path, file)) => file.flush().map_err(|source| wrong(path, source)),
            None => Ok(()),
        }
    }
}

pub(super) fn total(losses: &Losses) -> u64 {
    losses.values().sum()
}

fn wrong(path: &Path, source: std::io::Error) -> Error {
    Error::ViolationLog { path: path.display().to_string(), source }
}

fn time_text(unix_ns: u64) -> String {
    humantime::format_rfc3339_nanos(SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_ns)).to_string()
}

/// In quotes where it would be several: a task may have any name.
fn one_word(text: &str) -> String {
    if text.contains([' ', '"']) { format!("{text:?}") } else { text.to_owned() }
}

/// `isolation lost worker=1 cpu=3 cause=irq:local_timer duration_us=18.4 port=afxdp:eth0 queue=0 dropped=117 (rx_ring_full=117) stack=a<b`
fn line(
    violation: &Violation,
    dropped: &BTreeMap<&'static str, u64>,
    worst: Option<&(String, usize)>,
) -> String {
    let mut line = format!(
        "isolation lost worker={} cpu={} cause={}",
        violation.worker,
        violation.cpu,
        one_word(&violation.cause)
    );
    if let Some(ns) = violation.duration_ns {
        line += &format!(" duration_us={:.1}", ns as f64 / 1000.0);
    }
    if let Some(address) = violation.address {
        line += &format!(" address={address:#x}");
    }
    if let Some((port, queue)) = worst {
        line += &format!(" port={} queue={queue}", one_word(port));
    }
    let lost: u64 = dropped.values().sum();
    line += &format!(" dropped={lost}");
    if lost > 0 {
        let reasons: Vec<String> =
            dropped.iter().map(|(reason, count)| format!("{reason}={count}")).collect();
        line += &format!(" ({})", reasons.join(" "));
    }
    if !violation.detail.is_empty() {
        line += &format!(" detail=\"{}\"", violation.detail);
    }
    // The kernel's where it says more than that it was entered; the worker's own otherwise.
    let stack =
        if violation.kernel_stack.is_empty() { &violation.user_stack } else { &violation.kernel_stack };
    if !stack.is_empty() {
        let frames: Vec<&str> = stack.iter().take(LINE_FRAMES).map(String::as_str).collect();
        line += &format!(" stack={}", frames.join("<"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use nic::DropReason;

    fn joined() -> Joined {
        let violation = Violation {
            time_unix_ns: 1_700_000_000_000_000_001,
            worker: 1,
            cpu: 3,
            cause: "irq:local_timer".into(),
            detail: "with softirq:timer".into(),
            duration_ns: Some(18_400),
            kernel_stack: ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec(),
            ..Violation::default()
        };
        let losses = Losses::from([((0, DropReason::RxRingFull), 100), ((1, DropReason::RxRingFull), 17)]);
        Joined { violation, losses }
    }

    #[test]
    fn a_violation_is_one_line_and_one_object() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("violations.jsonl");
        let mut log = ViolationLog::open(Some(&path)).unwrap();
        log.tell(&joined(), |queue| ("afxdp:eth0".into(), queue));
        log.flush().unwrap();
        assert_eq!((log.counts["irq:local_timer"], log.dropped), (1, 117));
        let text = std::fs::read_to_string(&path).unwrap();
        let entry: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(entry["time"], "2023-11-14T22:13:20.000000001Z");
        assert_eq!((&entry["port"], &entry["queue"]), (&"afxdp:eth0".into(), &0.into()));
        assert_eq!(entry["dropped"]["rx_ring_full"], 117);
        assert_eq!(entry["kernel_stack"].as_array().unwrap().len(), 5);
        let keys: Vec<&str> = entry.as_object().unwrap().keys().map(String::as_str).collect();
        let mut known = [
            "time",
            "worker",
            "cpu",
            "cause",
            "detail",
            "duration_ns",
            "address",
            "user_stack",
            "kernel_stack",
            "port",
            "queue",
            "dropped",
        ];
        known.sort_unstable();
        assert_eq!(keys, known);
        let worst = ("afxdp:eth0".to_owned(), 0);
        assert_eq!(
            line(&joined().violation, &BTreeMap::from([("rx_ring_full", 117)]), Some(&worst)),
            "isolation lost worker=1 cpu=3 cause=irq:local_timer duration_us=18.4 port=afxdp:eth0 queue=0 \
             dropped=117 (rx_ring_full=117) detail=\"with softirq:timer\" stack=a<b<c<d"
        );
    }

    #[test]
    fn lines_are_limited_and_counts_are_not() {
        let mut log = ViolationLog::open(None).unwrap();
        for _ in 0..1000 {
            log.tell(&joined(), |queue| (String::new(), queue));
        }
        assert_eq!(log.counts["irq:local_timer"], 1000);
        assert!(log.suppressed >= 1000 - 2 * u64::from(LINES_A_SECOND));
    }
}
