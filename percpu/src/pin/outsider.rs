//! What was found: plain data, and one line for a log.
#![forbid(unsafe_code)]

use crate::CpuList;
use std::fmt;

/// Somebody other than the guard changed a pinned thread's affinity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outsider {
    /// The thread's number, as `taskset -p` takes it.
    pub tid: i32,
    /// The CPU it was pinned to.
    pub cpu_pinned: usize,
    /// The mask as it was last seen.
    pub mask_before: CpuList,
    /// The mask now.
    pub mask_now: CpuList,
    /// Where the thread runs, if not on its CPU any more.
    pub moved_to: Option<usize>,
}

impl fmt::Display for Outsider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tid, cpu_pinned, mask_before, mask_now, moved_to } = self;
        write!(f, "affinity was changed from outside: {mask_before} -> {mask_now}, ")?;
        match moved_to {
            Some(cpu) => write!(f, "moved from CPU {cpu_pinned} to CPU {cpu}")?,
            None => write!(f, "now on CPU {cpu_pinned}")?,
        }
        if mask_now.iter().eq([*cpu_pinned]) {
            return Ok(());
        }
        write!(f, ": \"taskset -pc {cpu_pinned} {tid}\" puts it back")
    }
}

impl std::error::Error for Outsider {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_both_masks_and_the_way_back() {
        let list = |text: &str| text.parse().unwrap();
        let mut outsider = Outsider {
            tid: 77,
            cpu_pinned: 1,
            mask_before: list("1"),
            mask_now: list("0-1"),
            moved_to: None,
        };
        assert_eq!(
            outsider.to_string(),
            "affinity was changed from outside: 1 -> 0-1, now on CPU 1: \"taskset -pc 1 77\" puts it back"
        );
        outsider.moved_to = Some(0);
        assert!(outsider.to_string().contains("1 -> 0-1, moved from CPU 1 to CPU 0: "), "{outsider}");
        (outsider.mask_before, outsider.mask_now, outsider.moved_to) = (list("0-1"), list("1"), None);
        assert_eq!(outsider.to_string(), "affinity was changed from outside: 0-1 -> 1, now on CPU 1");
    }
}
