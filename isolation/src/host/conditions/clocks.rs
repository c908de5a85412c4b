//! Clocks, and what runs by them on every CPU: moved timers, watchdogs, polls.
#![forbid(unsafe_code)]

use super::super::finding::BootWord;
use super::super::{Finding, Host, Unread, mask, values};
use super::boot::tickless;
use percpu::CpuList;

const CLOCKSOURCE: &str = "/sys/devices/system/clocksource/clocksource0";
const CPUINFO: &str = "/proc/cpuinfo";

/// What user space reads without a system call (arch/*/include/asm/vdso).
const IN_VDSO: &[&str] = &["tsc", "hyperv_clocksource_tsc_page", "arch_sys_counter"];

pub(super) fn timer_migration(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let wanted = values::timer_migration(tickless(host)?.as_ref(), cpus);
    let found: u8 = host.number(values::TIMER_MIGRATION)?;
    Ok(match (wanted, found) {
        (1, 1) => Finding::ok("timers armed on a tickless CPU move away"),
        (0, 0) => Finding::ok("idle CPUs' timers stay where they are"),
        (1, _) => Finding::costs("timers that a worker's CPU armed fire there").prepare(),
        _ => Finding::costs("timers of idle CPUs: they move to CPUs that never rest, as a polling worker's")
            .prepare(),
    })
}

pub(super) fn clocksource(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    let current = host.word(&format!("{CLOCKSOURCE}/current_clocksource"))?;
    if IN_VDSO.contains(&current.as_str()) {
        return Ok(Finding::ok(format!("{current}: the time is read without a system call")));
    }
    let finding = match current.as_str() {
        "kvm-clock" => Finding::unknown("kvm-clock: a system call where the hypervisor calls it unstable"),
        name => Finding::costs(format!("a system call each time a worker asks for the time ({name})")),
    };
    let available = host.word(&format!("{CLOCKSOURCE}/available_clocksource"))?;
    Ok(match available.split_whitespace().find(|name| IN_VDSO.contains(name)) {
        Some(name) => finding.command(format!("echo {name} > {CLOCKSOURCE}/current_clocksource")),
        None => finding,
    })
}

/// The kernel compares the TSC with another clock twice a second, on one CPU after the other, unless it trusts it
/// (arch/x86/kernel/tsc.c, `tsc_clocksource_watchdog_disabled`).
pub(super) fn watchdog(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    let current = host.word(&format!("{CLOCKSOURCE}/current_clocksource"))?;
    if current != "tsc" {
        return Ok(Finding::ok(format!("{current} is not watched")));
    }
    if host.command_line()?.iter().any(|word| ["tsc=reliable", "tsc=nowatchdog"].contains(&word.as_str())) {
        return Ok(Finding::ok("off by the command line"));
    }
    let cpuinfo = host.text(CPUINFO)?;
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    let flags: Vec<&str> = flags.unwrap_or_default().split_whitespace().collect();
    let has = |flag| flags.contains(&flag);
    if flags.is_empty() {
        return Ok(Finding::unknown("/proc/cpuinfo names no flags"));
    }
    let trusted = has("constant_tsc") && has("nonstop_tsc") && has("tsc_adjust");
    // Older kernels trust nobody; newer ones the clocks of two sockets, and the newest those of four.
    let trusted = trusted && !host.is_older_than(5, 17)?;
    let sockets = cpuinfo.lines().filter(|line| line.starts_with("physical id"));
    let sockets: std::collections::BTreeSet<&str> = sockets.collect();
    Ok(if has("tsc_reliable") || (trusted && sockets.len() <= 2) {
        Finding::ok("the TSC is trusted")
    } else if trusted && sockets.len() <= 4 {
        Finding::unknown("not every kernel trusts the TSC of so many sockets")
            .boot(BootWord::Word("tsc=reliable"))
    } else {
        Finding::costs("a timer interrupt twice a second, on one CPU after the other")
            .boot(BootWord::Word("tsc=reliable"))
    })
}

pub(super) fn softlockup(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    match host.number::<u8>("/proc/sys/kernel/watchdog") {
        Ok(0) => return Ok(Finding::ok("off")),
        Ok(_) => (),
        Err(error) if error.is_missing() && host.has("/proc/sys/kernel/osrelease") => {
            return Ok(Finding::ok("this kernel has none"));
        }
        Err(error) => return Err(error),
    }
    let watched = mask::both(cpus, &host.list(values::WATCHDOG_CPUS)?);
    Ok(if watched.is_empty() {
        Finding::ok("it watches other CPUs")
    } else {
        Finding::costs(format!(
            "a timer and a thread that preempts, every few seconds, on {}",
            mask::words(&watched)
        ))
        .prepare()
    })
}

pub(super) fn nmi_watchdog(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    match host.number::<u8>("/proc/sys/kernel/nmi_watchdog") {
        Ok(0) => return Ok(Finding::ok("off")),
        Ok(_) => (),
        Err(error) if error.is_missing() && host.has("/proc/sys/kernel/osrelease") => {
            return Ok(Finding::ok("this kernel has none"));
        }
        Err(error) => return Err(error),
    }
    Ok(if mask::both(cpus, &host.list(values::WATCHDOG_CPUS)?).is_empty() {
        Finding::ok("it watches other CPUs")
    } else {
        Finding::costs("a non-maskable interrupt every 10 s, and a performance counter")
            .command("sysctl -w kernel.nmi_watchdog=0")
    })
}

pub(super) fn machine_check(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let folder = "/sys/devices/system/machinecheck";
    let mut polled = Vec::new();
    for cpu in cpus.iter() {
        match host.word(&format!("{folder}/machinecheck{cpu}/check_interval")) {
            Ok(word) if word == "0" => (),
            // Seconds, in decimal or hexadecimal by the kernel's age.
            Ok(word) if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                polled.push(cpu)
            }
            Ok(word) => return Ok(Finding::unknown(format!("{folder} says {word:?}"))),
            Err(error) if error.is_missing() && host.has("/sys/devices/system/cpu/online") => (),
            Err(error) => return Err(error),
        }
    }
    Ok(match polled.first() {
        None => Finding::ok("not polled"),
        Some(cpu) => Finding::costs("a timer interrupt every few minutes that polls for machine checks")
            .command(format!("echo 0 > {folder}/machinecheck{cpu}/check_interval")),
    })
}
