//! The names of what interrupts: vectors that the kernel traces, and soft interrupts.
#![forbid(unsafe_code)]

/// The vector whose exit cannot be sampled, since perf's own wake-ups come by it: only that it came is known, not for how long.
pub(super) const IRQ_WORK: &str = "irq_work";

/// `enum` of `linux/interrupt.h`: HI_SOFTIRQ and so on.
const SOFTIRQS: [&str; 10] =
    ["hi", "timer", "net_tx", "net_rx", "block", "irq_poll", "tasklet", "sched", "hrtimer", "rcu"];

pub(super) fn softirq(vector: u32) -> &'static str {
    SOFTIRQS.get(vector as usize).copied().unwrap_or("unknown")
}
