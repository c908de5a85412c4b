//! What the kernel says of one thread of this process, from outside and without disturbing it: `proc(5)` and its CPU clock.
#![forbid(unsafe_code)]

use nix::time::{ClockId, clock_gettime};
use std::fs;
use std::time::Duration;

/// `CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED`, include/linux/posix-timers.h: the clock of one thread is made of this and its number.
const THREAD_CLOCK: i32 = 4 | 2;

/// How long a thread of this process has run. To the moment, where `schedstat` is as old as the last tick.
pub(super) fn cpu_time(tid: i32) -> Option<Duration> {
    let clock = ClockId::from_raw((!tid << 3) | THREAD_CLOCK);
    clock_gettime(clock).ok().map(Duration::from)
}

/// Its state, by one letter (`proc_pid_stat(5)`); `None` where it has ended.
pub(super) fn state(tid: i32) -> Option<char> {
    status(tid, "State:")?.chars().next()
}

/// Whether it blocks this signal; also where that cannot be known.
pub(super) fn blocks(tid: i32, signal: i32) -> bool {
    let mask = status(tid, "SigBlk:").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    mask.is_none_or(|mask| mask & 1 << (signal - 1) != 0)
}

/// The debugger that is attached to it, by its process number.
pub(super) fn tracer(tid: i32) -> Option<u32> {
    status(tid, "TracerPid:")?.parse().ok().filter(|tracer| *tracer != 0)
}

fn status(tid: i32, key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/self/task/{tid}/status")).ok()?;
    Some(text.lines().find_map(|line| line.strip_prefix(key))?.trim().to_owned())
}

/// The system call it is in, by its number, with the stack pointer and the instruction pointer it came with.
pub(super) fn system_call(tid: i32) -> Option<(i64, u64, u64)> {
    parse_system_call(&fs::read_to_string(format!("/proc/self/task/{tid}/syscall")).ok()?)
}

fn parse_system_call(text: &str) -> Option<(i64, u64, u64)> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let hex = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    match words[..] {
        [number, .., sp, ip] => Some((number.parse().ok()?, hex(sp)?, hex(ip)?)),
        _ => None,
    }
}

/// Its stack in the kernel, innermost first: empty where it runs in user space; an error in words where this process may not know.
pub(super) fn kernel_stack(tid: i32) -> Result<Vec<String>, String> {
    let text = fs::read_to_string(format!("/proc/self/task/{tid}/stack"))
        .map_err(|error| format!("cannot be had without root: {error}"))?;
    Ok(parse_kernel_stack(&text))
}

/// Lines are `[<0>] function+0x12/0x34`.
fn parse_kernel_stack(text: &str) -> Vec<String> {
    let function = |line: &str| Some(line.split_once("] ")?.1.split('/').next()?.trim().to_owned());
    text.lines().filter_map(function).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_thread_that_computes_has_cpu_time_and_runs() {
        let tid = nix::unistd::gettid().as_raw();
        let before = cpu_time(tid).unwrap();
        let start = Instant::now();
        while cpu_time(tid).unwrap() < before + Duration::from_millis(5) {
            assert!(start.elapsed() < Duration::from_secs(30));
        }
        assert_eq!((state(tid), tracer(tid)), (Some('R'), None));
        assert!(!blocks(tid, libc::SIGWINCH));
        // Above the largest number there can be (PID_MAX_LIMIT).
        let nobody = 1 << 23;
        assert_eq!((state(nobody), cpu_time(nobody)), (None, None));
        assert!(blocks(nobody, libc::SIGWINCH));
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(
            parse_system_call("7 0x1 0x2 0x3 0x4 0x5 0x6 0x7ffc10 0x7f0012\n"),
            Some((7, 0x7f_fc10, 0x7f_0012))
        );
        for none in ["running\n", "", "-1 0x1", "7 1 2"] {
            assert_eq!(parse_system_call(none), None, "{none}");
        }
        let stack = "[<0>] do_nanosleep+0x67/0x190\n[<0>] 0xffffffff81\nno stack\n";
        assert_eq!(parse_kernel_stack(stack), ["do_nanosleep+0x67", "0xffffffff81"]);
    }
}
