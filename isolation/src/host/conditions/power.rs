//! How the hardware saves power, and what it shares: sleep, clock rates, cores of two threads.
#![forbid(unsafe_code)]

use super::super::{Finding, Host, Unread, mask, values};
use percpu::CpuList;

/// A CPU that wakes within this time is as good as awake.
const AWAKE_US: u32 = 2;

pub(super) fn smt_sibling(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let mut siblings = CpuList::default();
    for cpu in cpus.iter() {
        let folder = format!("/sys/devices/system/cpu/cpu{cpu}/topology");
        match host.list(&format!("{folder}/thread_siblings_list")) {
            Ok(list) => {
                siblings = mask::either(&siblings, &mask::without(&list, &[cpu].into_iter().collect()))
            }
            // Of a CPU that is off line.
            Err(error) if error.is_missing() && host.has("/sys/devices/system/cpu/online") => (),
            Err(error) => return Err(error),
        }
    }
    let siblings = mask::both(&siblings, &host.list("/sys/devices/system/cpu/online")?);
    if siblings.is_empty() {
        return Ok(Finding::ok("none on line"));
    }
    let words = format!("half the core, by what runs on {}", mask::words(&siblings));
    Ok(siblings.iter().filter(|cpu| !cpus.contains(*cpu)).fold(Finding::costs(words), |finding, cpu| {
        finding.command(format!("echo 0 > /sys/devices/system/cpu/cpu{cpu}/online"))
    }))
}

pub(super) fn cpuidle(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let mut deepest = (0, String::new());
    for cpu in cpus.iter() {
        let folder = format!("/sys/devices/system/cpu/cpu{cpu}/cpuidle");
        // What may be slept at most: 0 for any, "n/a" for not at all.
        let limit = match host.word(&values::resume_latency(cpu)) {
            Ok(word) if word == "n/a" => continue,
            Ok(_) => match host.number::<u32>(&values::resume_latency(cpu))? {
                0 => u32::MAX,
                limit => limit,
            },
            Err(error) if error.is_missing() => u32::MAX,
            Err(error) => return Err(error),
        };
        let states = match host.names(&folder) {
            Ok(names) => names,
            // No driver for it.
            Err(error) if error.is_missing() && host.has("/sys/devices/system/cpu/online") => continue,
            Err(error) => return Err(error),
        };
        for state in states.iter().filter(|name| name.starts_with("state")) {
            let latency_us: u32 = host.number(&format!("{folder}/{state}/latency"))?;
            if latency_us > deepest.0 && latency_us <= limit {
                deepest = (latency_us, host.word(&format!("{folder}/{state}/name"))?);
            }
        }
    }
    // Somebody who holds this file open forbids sleep to all CPUs; only root may read it.
    let held = host.bytes("/dev/cpu_dma_latency", 4).ok().and_then(|bytes| bytes.try_into().ok());
    let held_us = held.map_or(i32::MAX, i32::from_ne_bytes);
    Ok(if deepest.0 <= AWAKE_US || held_us <= AWAKE_US as i32 {
        Finding::ok(format!("wakes within {AWAKE_US} µs"))
    } else {
        let governor = host.word("/sys/devices/system/cpu/cpuidle/current_governor");
        let governor = governor.map_or_else(|_| String::new(), |name| format!(" (governor {name})"));
        let (latency_us, state) = deepest;
        Finding::costs(format!("{latency_us} µs to wake from {state}, where a worker sleeps{governor}"))
            .prepare()
    })
}

pub(super) fn frequency(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let mut slow = Vec::new();
    for cpu in cpus.iter() {
        match host.word(&format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor")) {
            Ok(name) if name == "performance" => (),
            Ok(_) => slow.push(cpu),
            Err(error) if error.is_missing() && host.has("/sys/devices/system/cpu/online") => (),
            Err(error) => return Err(error),
        }
    }
    Ok(if slow.is_empty() {
        Finding::ok("the kernel does not lower it")
    } else {
        let cpus: CpuList = slow.into_iter().collect();
        Finding::costs(format!("a lower clock rate at first, on {}", mask::words(&cpus)))
            .command(format!("cpupower -c {cpus} frequency-set -g performance"))
    })
}
