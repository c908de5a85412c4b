//! The control core: what is not moving packets, on a CPU of its own.
//!
//! It watches the links and the workers' affinity, brings counters up to date, draws the table, and ends the run when the time is over, a signal asks for it, every
//! worker has ended, or every port is gone.
#![forbid(unsafe_code)]

use crate::arguments::DataplaneArgs;
use crate::error::Error;
use crate::registry::Registry;
use crate::signals::Signals;
use crate::table::Table;
use crate::violations::{LOOK_PERIOD, Watcher};
use crate::worker::RunState;
use nic::port::{LinkState, PortGone};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long the control core sleeps at most: link changes are noticed this soon.
const CONTROL_PERIOD: Duration = Duration::from_millis(100);
/// How often the ports' counters are brought up to date, drawn or not, and the workers' affinity is looked at.
const REFRESH_PERIOD: Duration = Duration::from_secs(1);

/// Runs until the end; gives the port whose loss ended the run, if that is what did.
pub(crate) fn run(
    registry: &mut Registry,
    signals: &mut Signals,
    state: &RunState,
    args: &DataplaneArgs,
    table: &mut Table,
    watcher: &mut Watcher,
    workers_are_finished: impl Fn() -> bool,
) -> Result<Option<PortGone>, Error> {
    let start = Instant::now();
    let mut next_table = args.stats_period;
    let mut next_check = Duration::ZERO;
    let mut next_refresh = REFRESH_PERIOD;
    let ended = loop {
        let elapsed = start.elapsed();
        if elapsed >= next_check {
            next_check = elapsed + CONTROL_PERIOD;
            watch_links(registry, state);
            if let Some(gone) = all_gone(registry) {
                break Some(gone);
            }
        }
        watcher.look(registry);
        let draw = !args.stats_period.is_zero() && elapsed >= next_table;
        if draw || elapsed >= next_refresh {
            next_refresh = elapsed + REFRESH_PERIOD;
            registry.ports.iter_mut().for_each(|entry| entry.port.refresh());
            watch_affinity(registry);
            recall_frames(state);
        }
        if draw {
            table.draw(registry, elapsed);
            next_table += args.stats_period;
            if next_table < elapsed {
                // We were away for longer than a period: do not catch up by drawing several.
                next_table = elapsed + args.stats_period;
            }
        }
        if signals.asked_to_stop()
            || workers_are_finished()
            || args.duration.is_some_and(|duration| elapsed >= duration)
        {
            break None;
        }
        let mut until = next_check.min(next_refresh);
        if !args.stats_period.is_zero() {
            until = until.min(next_table);
        }
        if let Some(duration) = args.duration {
            until = until.min(duration);
        }
        if watcher.is_on() {
            until = until.min(elapsed + LOOK_PERIOD);
        }
        signals.wait(until.saturating_sub(start.elapsed()));
    };
    // As long as the workers are there.
    watch_affinity(registry);
    state.stop.store(true, Ordering::Relaxed);
    // What happened since the last look; the workers may have ended because of it.
    watch_links(registry, state);
    Ok(ended.or_else(|| all_gone(registry)))
}

/// Looks at the links a last time, when the queues have gone: a file takes its last packets when its queue is dropped. Gives
/// the first port whose output is lost.
pub(crate) fn last_look(registry: &mut Registry, state: &RunState) -> Option<PortGone> {
    watch_links(registry, state);
    registry.ports.iter().find_map(|entry| entry.port.lost_output())
}

fn watch_links(registry: &mut Registry, state: &RunState) {
    while let Some((port, gone)) = state.events.pop() {
        if let Some(entry) = registry.ports.get_mut(usize::from(port.0))
            && !matches!(entry.link, LinkState::Gone(_))
        {
            tracing::error!("{gone}");
            entry.link = LinkState::Gone(gone.reason);
        }
    }
    for entry in registry.ports.iter_mut().filter(|entry| !matches!(entry.link, LinkState::Gone(_))) {
        let link = entry.port.link();
        if link == entry.link {
            continue;
        }
        match &link {
            LinkState::Up { .. } => tracing::info!("{} is up", entry.port.name()),
            LinkState::Down => tracing::warn!("{} is down", entry.port.name()),
            LinkState::Gone(reason) => tracing::error!("{} has stopped: {reason}", entry.port.name()),
        }
        entry.link = link;
    }
}

/// A worker makes no system calls, so it is asked after from here. It goes on wherever it is: what it loses is its CPU.
fn watch_affinity(registry: &mut Registry) {
    for (index, worker) in registry.workers.iter_mut().enumerate() {
        let Some(watch) = &worker.watch else { continue };
        let result = watch.check();
        worker.affinity_changes = watch.changes();
        match result {
            Ok(None) => {}
            Ok(Some(outsider)) => tracing::warn!("worker {index}: {outsider}"),
            Err(error) => {
                tracing::warn!("worker {index}: its affinity cannot be watched any more: {error}");
                worker.watch = None;
            }
        }
    }
}

/// Takes back free frames from CPUs that no worker can run on any more.
fn recall_frames(state: &RunState) {
    match state.pool.drain_stranded() {
        Ok(0) => {}
        Ok(frames) => tracing::info!("{frames} free frames taken back from CPUs that no thread can run on"),
        Err(error) => tracing::debug!("cannot look for frames on lost CPUs: {error}"),
    }
}

/// The last of the ports to go, when none is left.
fn all_gone(registry: &Registry) -> Option<PortGone> {
    let mut last = None;
    for entry in &registry.ports {
        match &entry.link {
            LinkState::Gone(reason) => {
                last = Some(PortGone { port: entry.port.name().to_owned(), reason: reason.clone() })
            }
            _ => return None,
        }
    }
    last
}
