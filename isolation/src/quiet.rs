//! Whether a CPU is quiet: its timer interrupts, counted by the kernel.
//!
//! A thread that is about to be isolated first gives the kernel time for what it has put off on this CPU, then sees that the tick has
//! stopped. Nothing is flushed on other CPUs: those may have isolated workers too.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// A tick comes at least every 10 ms (HZ=100): one that is not stopped shows several times in this.
const WINDOW: Duration = Duration::from_millis(50);
/// What a tickless CPU may still take in a window: the tick that once a second is left to it on some kernels.
const TOLERATED: u64 = 1;

/// A CPU that did not become quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Restless {
    pub(crate) waited: Duration,
    pub(crate) interrupts: u64,
    pub(crate) window: Duration,
}

/// Timer interrupts of `cpu` since the boot: the row LOC of `/proc/interrupts`.
pub fn timer_interrupts(cpu: usize) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/interrupts")?;
    row(&text, "LOC", cpu).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The number of a row and a CPU. CPUs that are off line have no column.
fn row(text: &str, name: &str, cpu: usize) -> Option<u64> {
    let column =
        text.lines().next()?.split_ascii_whitespace().position(|head| head == format!("CPU{cpu}"))?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().nth(column)?.parse().ok()
}

/// Gives deferred work of this CPU its time: it runs when we do not.
pub(crate) fn let_deferred_work_run() {
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits, running, until the tick of `cpu` (the calling thread's) has stopped, at most for `limit`.
pub(crate) fn wait_for_quiet(cpu: usize, limit: Duration) -> io::Result<Result<(), Restless>> {
    let start = Instant::now();
    loop {
        let before = timer_interrupts(cpu)?;
        let window = Instant::now();
        while window.elapsed() < WINDOW {
            std::hint::spin_loop();
        }
        let interrupts = timer_interrupts(cpu)?.saturating_sub(before);
        if interrupts <= TOLERATED {
            return Ok(Ok(()));
        }
        let waited = start.elapsed();
        if waited >= limit {
            return Ok(Err(Restless { waited, interrupts, window: WINDOW }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_and_the_column_are_found() {
        let text = "           CPU0       CPU2       \n  1:   5   6  IO-APIC  2-edge  timer\nNMI:   7   8   Non-maskable\nLOC:   900   1000   Local timer interrupts\nERR:   0\n";
        assert_eq!(row(text, "LOC", 0), Some(900));
        assert_eq!(row(text, "LOC", 2), Some(1000));
        assert_eq!(row(text, "LOC", 1), None);
        assert_eq!(row(text, "CAL", 0), None);
        assert_eq!(row("", "LOC", 0), None);
    }

    #[test]
    fn a_cpu_that_ticks_is_not_quiet() {
        let cpu = percpu::Topology::read().unwrap().allowed.iter().next().unwrap();
        if crate::KernelIsolation::read().nohz_full.contains(cpu) {
            eprintln!("SKIPPED a_cpu_that_ticks_is_not_quiet: CPU {cpu} is tickless");
            return;
        }
        let _pinned = percpu::pin_on_cpu(cpu).unwrap();
        let restless = wait_for_quiet(cpu, Duration::ZERO).unwrap().unwrap_err();
        assert!(restless.interrupts >= 4, "{restless:?}");
    }
}
