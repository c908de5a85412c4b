//! The names of what interrupts: vectors that the kernel traces, and soft interrupts.
#![forbid(unsafe_code)]

/// Interrupt vectors with trace events of their own on x86 (`events/irq_vectors`). Not every kernel has each.
pub(super) const VECTORS: [&str; 10] = [
    "local_timer",
    "reschedule",
    "call_function",
    "call_function_single",
    "x86_platform_ipi",
    "error_apic",
    "spurious_apic",
    "thermal_apic",
    "threshold_apic",
    "deferred_error_apic",
];

/// The vector whose exit cannot be sampled, since perf's own wake-ups come by it: only that it came is known, not for how long.
pub(super) const IRQ_WORK: &str = "irq_work";

/// `enum` of `linux/interrupt.h`: HI_SOFTIRQ and so on.
const SOFTIRQS: [&str; 10] =
    ["hi", "timer", "net_tx", "net_rx", "block", "irq_poll", "tasklet", "sched", "hrtimer", "rcu"];

pub(super) fn softirq(vector: u32) -> &'static str {
    SOFTIRQS.get(vector as usize).copied().unwrap_or("unknown")
}
