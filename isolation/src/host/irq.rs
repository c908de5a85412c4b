//! The machine's IRQs: where each is delivered, and whether it may be sent elsewhere.
#![forbid(unsafe_code)]

use super::{Host, Unread};
use percpu::CpuList;
use std::fmt;

/// Whether an IRQ may be sent to other CPUs by writing to its `smp_affinity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Movable {
    /// It may, as far as one can see.
    Yes,
    /// Its driver manages it, or its controller cannot.
    No,
    /// Only a write would show: EPERM, or EIO on older kernels.
    Unknown,
}

/// One IRQ.
#[derive(Clone, Debug)]
pub(crate) struct Irq {
    pub(crate) number: u64,
    /// Who handles it, as `/proc/interrupts` says.
    pub(crate) actions: String,
    /// Where it goes now.
    pub(crate) effective: CpuList,
    /// Where it may go. Some only move when they next occur.
    pub(crate) allowed: CpuList,
    pub(crate) movable: Movable,
}

impl Irq {
    /// Every IRQ that somebody handles. One that vanishes meanwhile is left out.
    pub(crate) fn all(host: &Host) -> Result<Vec<Self>, Unread> {
        let numbers = host.numbers("/proc/irq")?;
        // Recent kernels take the write permission from files that refuse every write. Where one is without it, this is such a kernel,
        // and the others may be written to.
        let writable: Vec<_> =
            numbers.iter().map(|number| host.is_writable(&smp_affinity(*number))).collect();
        let modes_tell = writable.contains(&Some(false));
        let mut all = Vec::new();
        for (number, writable) in numbers.into_iter().zip(writable) {
            let Some(writable) = writable else { continue };
            let read = || -> Result<_, Unread> {
                let allowed = host.list(&format!("/proc/irq/{number}/smp_affinity_list"))?;
                match host.list(&format!("/proc/irq/{number}/effective_affinity_list")) {
                    // Some controllers have none: then it goes wherever it may.
                    Err(error) if error.is_missing() => Ok((allowed.clone(), allowed)),
                    effective => Ok((effective?, allowed)),
                }
            };
            let (effective, allowed) = match read() {
                Ok(read) => read,
                Err(error) if error.is_missing() => continue,
                Err(error) => return Err(error),
            };
            let actions = host.word(&format!("/sys/kernel/irq/{number}/actions")).unwrap_or_default();
            let managed = host.text(&format!("/sys/kernel/debug/irq/irqs/{number}"));
            let movable = match managed {
                _ if !writable => Movable::No,
                Ok(text) if text.contains("IRQD_AFFINITY_MANAGED") => Movable::No,
                Ok(_) => Movable::Yes,
                Err(_) if modes_tell => Movable::Yes,
                Err(_) => Movable::Unknown,
            };
            all.push(Self { number, actions, effective, allowed, movable });
        }
        Ok(all)
    }
}

impl fmt::Display for Irq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number)?;
        if self.actions.is_empty() { Ok(()) } else { write!(f, " {}", self.actions) }
    }
}

/// The file that says where an IRQ may go.
pub(crate) fn smp_affinity(number: u64) -> String {
    format!("/proc/irq/{number}/smp_affinity")
}
