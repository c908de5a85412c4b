//! The time stamp counter: the cheapest clock there is, and the unit of every cost in this project.
//!
//! On x86-64 it is `rdtsc` (about 10 ns on a virtual machine, not serialising: the loop it times is far longer
//! than what the CPU reorders). Elsewhere it is the monotonic clock in nanoseconds.
#![allow(unsafe_code)]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Reads the counter.
#[inline(always)]
pub fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 CPU has RDTSC; it reads a register and touches no memory. A kernel that
        // forbids it to user space (CR4.TSD) ends the process by a signal, it does not corrupt it.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// Reads the counter when all that comes before has been done, and before anything that comes after: for what is so short that the CPU would
/// do it before or after its own measurement. Stores may still be on their way to memory.
#[inline(always)]
pub fn now_in_order() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        fence();
        let now = now();
        fence();
        now
    }
    #[cfg(not(target_arch = "x86_64"))]
    now()
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fence() {
    // SAFETY: LFENCE is of SSE2, which every x86-64 CPU has. It only waits.
    unsafe { core::arch::x86_64::_mm_lfence() }
}

/// Counter ticks a second, measured once a process against the monotonic clock (takes 20 ms).
pub fn frequency_hz() -> u64 {
    static FREQUENCY: OnceLock<u64> = OnceLock::new();
    *FREQUENCY.get_or_init(|| {
        if !cfg!(target_arch = "x86_64") {
            return 1_000_000_000;
        }
        // The median of several short windows: being scheduled out inside one spoils that one only.
        let mut samples: Vec<u64> = (0..5).map(|_| sample_frequency(Duration::from_millis(4))).collect();
        samples.sort_unstable();
        samples[samples.len() / 2].max(1)
    })
}

fn sample_frequency(window: Duration) -> u64 {
    let (start, start_tsc) = (Instant::now(), now());
    loop {
        let (elapsed, tsc) = (start.elapsed(), now());
        if elapsed >= window {
            return (u128::from(tsc - start_tsc) * 1_000_000_000 / elapsed.as_nanos()) as u64;
        }
        std::hint::spin_loop();
    }
}

/// Converts counter ticks to nanoseconds.
pub fn to_ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000 / u128::from(frequency_hz())) as u64
}

/// Converts nanoseconds to counter ticks.
pub fn from_ns(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(frequency_hz()) / 1_000_000_000) as u64
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of the kernel's own time stamps here.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec. It cannot fail: the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_keeps_time_with_the_monotonic_clock() {
        frequency_hz();
        let (start, start_tsc) = (Instant::now(), now());
        while start.elapsed() < Duration::from_millis(50) {}
        let (elapsed_ns, tsc_ns) = (start.elapsed().as_nanos() as f64, to_ns(now() - start_tsc) as f64);
        assert!((tsc_ns / elapsed_ns - 1.0).abs() < 0.02, "{tsc_ns} ns by TSC, {elapsed_ns} ns by clock");
        assert!(from_ns(to_ns(1_000_000)).abs_diff(1_000_000) < 10);
    }
}
