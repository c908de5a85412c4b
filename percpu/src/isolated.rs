//! Which CPUs must not be interrupted: work on their data is asked for, not done.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const WORDS: usize = 65_536 / 64;
static MARKS: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Marks `cpu` as isolated, for as long as the mark is kept: nobody drains its stacks by an interrupt, its own threads do when asked.
///
/// A CPU is marked once at a time; `None` where it is already, or there is no such number.
pub fn mark_isolated(cpu: usize) -> Option<IsolatedMark> {
    let bit = 1 << (cpu % 64);
    let before = MARKS.get(cpu / 64)?.fetch_or(bit, Ordering::SeqCst);
    (before & bit == 0).then(|| {
        COUNT.fetch_add(1, Ordering::SeqCst);
        IsolatedMark { cpu }
    })
}

/// A CPU's mark; dropping it ends it.
#[derive(Debug)]
pub struct IsolatedMark {
    cpu: usize,
}

impl Drop for IsolatedMark {
    fn drop(&mut self) {
        MARKS[self.cpu / 64].fetch_and(!(1 << (self.cpu % 64)), Ordering::SeqCst);
        COUNT.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether this CPU is marked.
pub fn is_isolated(cpu: usize) -> bool {
    MARKS.get(cpu / 64).is_some_and(|word| word.load(Ordering::SeqCst) & (1 << (cpu % 64)) != 0)
}

/// Whether any is.
pub(crate) fn any() -> bool {
    COUNT.load(Ordering::SeqCst) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_lasts_as_long_as_it_is_kept() {
        let mark = mark_isolated(4097).unwrap();
        assert!(is_isolated(4097) && any() && mark_isolated(4097).is_none());
        assert!(!is_isolated(4096) && !is_isolated(usize::MAX) && mark_isolated(usize::MAX).is_none());
        drop(mark);
        assert!(!is_isolated(4097));
    }
}
