//! The interrupt vectors that Linux traces on x86: `events/irq_vectors` of tracefs. Not every kernel has each.
//!
//! `irq_work` is none of them: perf's own wake-ups come by it. Kernels before 6.11 send its signals so, which would then signal each
//! other for ever, and no kernel lets its exit be sampled.
#![forbid(unsafe_code)]

/// Their names.
pub(crate) const VECTORS: [&str; 10] = [
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
