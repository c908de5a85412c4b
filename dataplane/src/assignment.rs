//! Which worker polls which receive queue, and which transmit queue of a port is whose.
//!
//! Receive queues are dealt in the order queue 0 of every port, queue 1 of every port, ...: where the ports have as many queues as there are
//! workers, worker i gets queue i of each, and a flow stays on one CPU all the way. A transmit queue has one owner; a port needs one for each
//! worker that may send to it.
#![forbid(unsafe_code)]

use crate::error::Error;
use nic::PortId;

/// A queue by its port and its number.
pub(crate) type QueueId = (PortId, usize);

/// The queues of one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WorkerQueues {
    pub(crate) rx: Vec<QueueId>,
    pub(crate) tx: Vec<QueueId>,
}

/// Deals the receive queues (`rx_queues[port]` each) to `workers` workers, and gives each worker a transmit queue of every port that
/// `reaches(from, to)` says it may send to.
pub(crate) fn deal(
    rx_queues: &[usize],
    workers: usize,
    queues_per_worker: Option<usize>,
    reaches: impl Fn(PortId, PortId) -> bool,
) -> Result<Vec<WorkerQueues>, Error> {
    let rounds = rx_queues.iter().copied().max().unwrap_or(0);
    let ports = || (0..rx_queues.len()).map(|port| PortId(port as u16));
    let all: Vec<QueueId> = (0..rounds)
        .flat_map(|queue| ports().map(move |port| (port, queue)))
        .filter(|(port, queue)| *queue < rx_queues[usize::from(port.0)])
        .collect();
    if workers > all.len().max(1) {
        return Err(Error::Configuration(format!(
            "{workers} workers for {} receive queues: give {} to --workers, or ports with more queues",
            all.len(),
            if all.len() == 1 { "one CPU".into() } else { format!("at most {} CPUs", all.len()) },
        )));
    }
    let share = queues_per_worker.unwrap_or_else(|| all.len().div_ceil(workers)).max(1);
    if share * workers < all.len() {
        return Err(Error::Configuration(format!(
            "{} receive queues, {share} a worker, need {} workers, and there are {workers}: raise --queues-per-worker to {} or name more CPUs in --workers",
            all.len(),
            all.len().div_ceil(share),
            all.len().div_ceil(workers),
        )));
    }
    // A worker without a queue sends what its application makes, and never knows when to end.
    let busy = all.len().div_ceil(share);
    if queues_per_worker.is_some() && workers > busy.max(1) {
        return Err(Error::Configuration(format!(
            "--queues-per-worker {share}: {} receive queues are enough for {busy} of {workers} workers, and one without a queue would wait for ever: give {} to --workers, or leave --queues-per-worker out",
            all.len(),
            if busy == 1 { "one CPU".into() } else { format!("{busy} CPUs") },
        )));
    }
    // Without a fixed share the first workers get one queue more than the last, and none gets nothing.
    let mut dealt: Vec<WorkerQueues> = vec![WorkerQueues::default(); workers];
    let mut rest = all.as_slice();
    for (index, worker) in dealt.iter_mut().enumerate() {
        let count = match queues_per_worker {
            Some(share) => share.min(rest.len()),
            None => rest.len().div_ceil(workers - index),
        };
        let (mine, others) = rest.split_at(count);
        worker.rx = mine.to_vec();
        rest = others;
    }
    let mut next_tx = vec![0; rx_queues.len()];
    for worker in &mut dealt {
        for to in ports() {
            if worker.rx.iter().any(|(from, _)| reaches(*from, to)) || worker.rx.is_empty() {
                worker.tx.push((to, next_tx[usize::from(to.0)]));
                next_tx[usize::from(to.0)] += 1;
            }
        }
    }
    Ok(dealt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(list: &[(u16, usize)]) -> Vec<QueueId> {
        list.iter().map(|(port, queue)| (PortId(*port), *queue)).collect()
    }

    fn partner(from: PortId, to: PortId) -> bool {
        from.0 ^ 1 == to.0
    }

    #[test]
    fn one_worker_polls_everything() {
        let dealt = deal(&[1, 1], 1, None, |_, _| true).unwrap();
        assert_eq!(dealt, [WorkerQueues { rx: ids(&[(0, 0), (1, 0)]), tx: ids(&[(0, 0), (1, 0)]) }]);
    }

    #[test]
    fn a_worker_has_the_same_queue_of_every_port() {
        let dealt = deal(&[2, 2], 2, None, |_, _| true).unwrap();
        assert_eq!(dealt[1], WorkerQueues { rx: ids(&[(0, 1), (1, 1)]), tx: ids(&[(0, 1), (1, 1)]) });
    }

    #[test]
    fn partners_on_two_workers_need_one_transmit_queue_each() {
        let dealt = deal(&[1, 1], 2, None, partner).unwrap();
        assert_eq!(dealt[0], WorkerQueues { rx: ids(&[(0, 0)]), tx: ids(&[(1, 0)]) });
        assert_eq!(dealt[1], WorkerQueues { rx: ids(&[(1, 0)]), tx: ids(&[(0, 0)]) });
    }

    #[test]
    fn nobody_gets_nothing_and_nothing_gets_nobody() {
        for queues in 1..12 {
            for workers in 1..=queues {
                let dealt = deal(&[queues], workers, None, |_, _| true).unwrap();
                assert!(dealt.iter().all(|worker| !worker.rx.is_empty()));
                assert_eq!(dealt.iter().map(|worker| worker.rx.len()).sum::<usize>(), queues);
                for share in 1..=queues {
                    // Dealt whole with no worker idle, or refused.
                    if let Ok(dealt) = deal(&[queues], workers, Some(share), |_, _| true) {
                        assert!(dealt.iter().all(|worker| (1..=share).contains(&worker.rx.len())));
                        assert_eq!(dealt.iter().map(|worker| worker.rx.len()).sum::<usize>(), queues);
                    }
                }
                // What the default number of workers comes to is never refused.
                let share = queues.div_ceil(workers);
                assert!(deal(&[queues], queues.div_ceil(share), Some(share), |_, _| true).is_ok());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_in_words() {
        let error = |workers, share| deal(&[1, 1], workers, share, |_, _| true).unwrap_err().to_string();
        assert!(error(3, None).contains("3 workers for 2 receive queues"));
        assert!(error(1, Some(1)).contains("need 2 workers"));
        let idle = error(2, Some(2));
        assert!(
            idle.contains("enough for 1 of 2 workers") && idle.contains("give one CPU to --workers"),
            "{idle}"
        );
    }
}
