//! Old tables of the applications': the control core frees what nobody reads any more, and says so where a worker does not let go.
#![forbid(unsafe_code)]

use percpu::qsbr::Domain;
use std::time::Duration;

/// A worker that holds an old table for longer than this is named.
const LONG: Duration = Duration::from_secs(1);

/// Since when which worker has not let go of old tables.
#[derive(Default)]
pub(crate) struct RetiredTables {
    held: Option<(usize, Duration)>,
    told: bool,
}

impl RetiredTables {
    /// Frees what can be freed; `now` is the time of the run.
    pub(crate) fn look(&mut self, readers: &Domain, now: Duration) {
        let held = readers.collect();
        let Some(by) = held.and_then(|held| held.by) else {
            if std::mem::take(&mut self.told) {
                tracing::info!("old tables are freed again");
            }
            self.held = None;
            return;
        };
        let since = match self.held {
            Some((worker, since)) if worker == by => since,
            _ => now,
        };
        self.held = Some((by, since));
        if !self.told && now.saturating_sub(since) >= LONG {
            self.told = true;
            let tables = held.map_or(0, |held| held.tables);
            tracing::warn!("worker {by} does not end its turn: {tables} old tables are kept for it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use percpu::qsbr::Published;

    #[test]
    fn a_worker_that_does_not_let_go_is_told_of_once() {
        let (domain, mut retired) = (Domain::new(), RetiredTables::default());
        let published = Published::new(&domain, 0);
        let mut reader = domain.reader(3);
        reader.begin();
        published.publish(1, Duration::ZERO).unwrap();
        let told = [0, 500, 999, 1000, 1100].map(|ms| {
            retired.look(&domain, Duration::from_millis(ms));
            retired.told
        });
        assert_eq!(told, [false, false, false, true, true]);
        reader.quiescent();
        retired.look(&domain, Duration::from_millis(1200));
        assert!(!retired.told && retired.held.is_none());
        // It holds another one later: the time counts anew.
        published.publish(2, Duration::ZERO).unwrap();
        retired.look(&domain, Duration::from_millis(5000));
        assert!(!retired.told && retired.held == Some((3, Duration::from_millis(5000))));
    }
}
