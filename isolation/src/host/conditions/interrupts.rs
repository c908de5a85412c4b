//! Device interrupts: which of them come to a worker's CPU, and which of these can be sent elsewhere.
#![forbid(unsafe_code)]

use super::super::finding::BootWord;
use super::super::irq::{Irq, Movable};
use super::super::{Finding, Host, Unread, mask, values};
use super::boot::isolates_managed_irqs;
use super::tasks::whole_machine;
use percpu::CpuList;

/// How many are named.
const NAMED: usize = 3;

/// The IRQs that come to these CPUs.
fn there(host: &Host, cpus: &CpuList) -> Result<Vec<Irq>, Unread> {
    let mut found = Irq::all(host)?;
    found.retain(|irq| !mask::both(&irq.effective, cpus).is_empty());
    Ok(found)
}

/// How many may come to these CPUs, and go elsewhere now.
fn may_come(host: &Host, cpus: &CpuList) -> Result<usize, Unread> {
    let mut irqs = Irq::all(host)?;
    irqs.retain(|irq| irq.movable != Movable::No && !mask::both(&irq.allowed, cpus).is_empty());
    Ok(irqs.len())
}

/// `3 IRQs (24 eth0-rx-0, ...)`.
fn named(irqs: &[&Irq]) -> String {
    let names: Vec<String> = irqs.iter().take(NAMED).map(|irq| irq.to_string()).collect();
    let (count, more) = (irqs.len(), if irqs.len() > NAMED { ", ..." } else { "" });
    format!("{count} IRQ{} ({}{more})", if count == 1 { "" } else { "s" }, names.join(", "))
}

pub(super) fn affinity(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let irqs = there(host, cpus)?;
    let movable = irqs.iter().filter(|irq| irq.movable != Movable::No);
    let (stay, leave): (Vec<&Irq>, Vec<&Irq>) =
        movable.partition(|irq| !mask::both(&irq.allowed, cpus).is_empty());
    Ok(match (&stay[..], &leave[..]) {
        ([], []) => Finding::ok(match may_come(host, cpus)? {
            0 => format!("none that may be moved comes to {}", mask::words(cpus)),
            some => format!("none goes to {} now; {some} may: prepare keeps them away", mask::words(cpus)),
        }),
        ([], leave) => Finding::ok(format!("{}: gone after the next interrupt", named(leave))),
        (stay, _) => Finding::costs(format!("{}: some µs at each interrupt", named(stay))).prepare(),
    })
}

pub(super) fn managed(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let irqs = there(host, cpus)?;
    let fixed: Vec<&Irq> = irqs.iter().filter(|irq| irq.movable == Movable::No).collect();
    if !fixed.is_empty() {
        let finding = Finding::costs(format!("{}, which only their driver may move", named(&fixed)));
        // The kernel does what it can for that word: an interrupt without another CPU stays.
        return Ok(if isolates_managed_irqs(host)? {
            finding.command("give the device fewer queues: \"ethtool -L\", or an option of its driver")
        } else {
            finding.boot(BootWord::IsolateManaged)
        });
    }
    let unsure = irqs.iter().filter(|irq| irq.movable == Movable::Unknown);
    let unsure: Vec<&Irq> = unsure.filter(|irq| !mask::both(&irq.allowed, cpus).is_empty()).collect();
    Ok(if unsure.is_empty() {
        Finding::ok(format!("none comes to {}", mask::words(cpus)))
    } else {
        Finding::unknown(format!(
            "{}: on this kernel only a write shows whether they may be moved",
            named(&unsure)
        ))
        .prepare()
    })
}

pub(super) fn default_affinity(host: &Host, cpus: &CpuList) -> Result<Finding, Unread> {
    let open = mask::both(cpus, &host.mask(values::DEFAULT_IRQ_AFFINITY)?);
    Ok(if open.is_empty() {
        Finding::ok("new interrupts go elsewhere")
    } else {
        Finding::costs(format!("interrupts of devices yet to come, on {}", mask::words(&open))).prepare()
    })
}

pub(super) fn irqbalance(host: &Host, _: &CpuList) -> Result<Finding, Unread> {
    for process in host.numbers("/proc")? {
        // It may have ended meanwhile.
        if host.word(&format!("/proc/{process}/comm")).is_ok_and(|name| name == "irqbalance") {
            return Ok(Finding::costs("irqbalance moves interrupts back every 10 s")
                .command("systemctl stop irqbalance"));
        }
    }
    Ok(if whole_machine(host) {
        Finding::ok("not running")
    } else {
        Finding::unknown("this process sees only the processes of its container")
    })
}
