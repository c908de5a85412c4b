//! Word of rings that stand still because the kernel's index cannot be.
//!
//! Who polls a ring logs nothing; it leaves word, and the control core logs it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Left by one side of a queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Stall(Arc<AtomicBool>);

impl Stall {
    /// An index is out of range.
    #[cold]
    pub(super) fn report(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_reported(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The sides of a port's queues that have not left word yet.
#[derive(Debug, Default)]
pub(super) struct Stalls(Vec<(String, Stall)>);

impl Stalls {
    /// Watches a side, called such as "the receive side of queue 0".
    pub(super) fn watch(&mut self, side: String, stall: &Stall) {
        self.0.push((side, stall.clone()));
    }

    /// What to log: of each side once, however long it lasts and however often it comes back.
    pub(super) fn news(&mut self) -> Vec<String> {
        let mut news = Vec::new();
        self.0.retain(|(side, stall)| {
            if stall.is_reported() {
                news.push(format!(
                    "{side} stands still: the kernel's index of a ring is out of range; if it lasts, start again, and report the driver"
                ));
            }
            !stall.is_reported()
        });
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_is_named_once() {
        let (rx, tx) = (Stall::default(), Stall::default());
        let mut stalls = Stalls::default();
        stalls.watch("the receive side of queue 0".into(), &rx);
        stalls.watch("the transmit side of queue 0".into(), &tx);
        assert!(stalls.news().is_empty());
        rx.report();
        let news = stalls.news();
        assert!(
            news.len() == 1 && news[0].starts_with("the receive side of queue 0 stands still"),
            "{news:?}"
        );
        rx.report();
        assert!(stalls.news().is_empty());
        tx.report();
        assert_eq!(stalls.news().len(), 1);
    }
}
