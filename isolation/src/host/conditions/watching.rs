//! What it takes to see, signal and name an interruption.
#![forbid(unsafe_code)]

use super::super::{Finding, Host, Unread};
use percpu::CpuList;

/// Numbers of `CAP_SYS_ADMIN` and `CAP_PERFMON`.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;

pub(super) fn lockdown(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    let level = match host.chosen("/sys/kernel/security/lockdown") {
        Ok(level) => level,
        Err(error) if error.is_missing() && host.mounted("securityfs")?.is_some() => {
            return Ok(Finding::ok("this kernel has none"));
        }
        Err(error) if error.is_missing() => {
            return Ok(Finding::unknown("securityfs is not mounted")
                .command("mount -t securityfs none /sys/kernel/security"));
        }
        Err(error) => return Err(error),
    };
    Ok(match level.as_str() {
        "none" => Finding::ok("none"),
        "integrity" => Finding::costs("debugfs is closed: fair_server can be neither read nor changed")
            .command("boot without lockdown=, or turn secure boot off"),
        "confidentiality" => Finding::costs("debugfs, trace points and BPF: no interruption has a name")
            .command("boot without lockdown=, or turn secure boot off"),
        other => Finding::unknown(format!("lockdown is {other:?}")),
    })
}

pub(super) fn perf_events(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    if host.has_capability(CAP_PERFMON)? || host.has_capability(CAP_SYS_ADMIN)? {
        return Ok(Finding::ok("trace points may be opened: CAP_PERFMON"));
    }
    // include/linux/perf_event.h: below 0 trace points, up to 2 a thread's own user space; more is Debian's.
    let level: i32 = host.number("/proc/sys/kernel/perf_event_paranoid")?;
    Ok(match level {
        ..=-1 => Finding::ok(format!("trace points may be opened: perf_event_paranoid={level}")),
        0..=2 => {
            Finding::costs("the cause of an interruption: no trace points, only faults and system calls")
                .command("sysctl -w kernel.perf_event_paranoid=-1  (or run as root)")
        }
        _ => Finding::costs("the cause of an interruption: only system calls are seen")
            .command("sysctl -w kernel.perf_event_paranoid=-1  (or run as root)"),
    })
}

pub(super) fn tracefs(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    for folder in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
        match host.names(&format!("{folder}/events")) {
            Ok(_) => return Ok(Finding::ok(folder)),
            Err(error) if error.is_missing() => (),
            Err(error) => return Err(error),
        }
    }
    if !host.has("/sys/kernel/tracing") && host.mounted("sysfs")?.is_none() {
        return Ok(Finding::unknown("sysfs is not mounted"));
    }
    Ok(Finding::costs(
        "the names of causes, to a process without CAP_SYS_ADMIN, which cannot mount it for itself",
    )
    .command("mount -t tracefs none /sys/kernel/tracing  (or run as root)"))
}

pub(super) fn btf(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    let path = "/sys/kernel/btf/vmlinux";
    match host.bytes(path, 4) {
        // Its magic number (include/uapi/linux/btf.h), in either byte order.
        Ok(head) if head.starts_with(&[0x9f, 0xeb]) || head.starts_with(&[0xeb, 0x9f]) => {
            Ok(Finding::ok("the kernel describes its types"))
        }
        Ok(_) => Ok(Finding::unknown(format!("{path} is no BTF"))),
        Err(error) if error.is_missing() && host.has("/sys/kernel") => {
            Ok(Finding::costs("details of a cause, and the veto of affinity changes: the kernel has no BTF")
                .command("a kernel with CONFIG_DEBUG_INFO_BTF=y"))
        }
        Err(error) => Err(error),
    }
}
