//! The control core: what is not moving packets, on a CPU of its own.
//!
//! It watches the links and the workers' affinity, brings counters up to date, draws the table, and ends the run when the time is over, a signal asks for it, every
//! worker has ended, or every port is gone.
#![forbid(unsafe_code)]

use crate::arguments::DataplaneArgs;
use crate::error::Error;
use crate::link_pace::{CONTROL_PERIOD, LinkPace};
use crate::punt;
use crate::registry::Registry;
use crate::retired_tables::RetiredTables;
use crate::signals::Signals;
use crate::table::Table;
use crate::violations::{LOOK_PERIOD, Watcher};
use crate::watchdog::Watchdog;
use crate::worker::RunState;
use nic::Pool;
use nic::port::{LinkState, PortGone};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often the ports' counters are brought up to date, drawn or not, and the workers' affinity is looked at.
const REFRESH_PERIOD: Duration = Duration::from_secs(1);
/// Between two of them at least, however often the table is drawn: what counts them takes each for about a second.
const LEAST_REFRESH_PERIOD: Duration = Duration::from_millis(500);
/// A worker ends within one turn of its loop.
const LONG_END: Duration = Duration::from_secs(2);

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
    let mut pace = LinkPace::default();
    let mut next_refresh = REFRESH_PERIOD;
    let mut watchdog = Watchdog::new(args.watchdog, registry);
    let mut retired = RetiredTables::default();
    let ended = loop {
        let elapsed = start.elapsed();
        if pace.is_due(elapsed) {
            watch_links(registry, state);
            punt::refresh(registry);
            if let Some(gone) = all_gone(registry) {
                break Some(gone);
            }
            state.pool.serve_requests();
            registry.publish(watcher);
            retired.look(&state.readers, elapsed);
        }
        watchdog.look(registry, &state.readers, elapsed);
        watcher.look(registry);
        let draw = !args.stats_period.is_zero() && elapsed >= next_table;
        let due = next_refresh - if draw { REFRESH_PERIOD - LEAST_REFRESH_PERIOD } else { Duration::ZERO };
        if elapsed >= due {
            next_refresh = elapsed + REFRESH_PERIOD;
            registry.ports.iter_mut().for_each(|entry| entry.port.refresh());
            watch_affinity(registry);
            recall_frames(&state.pool);
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
            || state.nobody_is_at_work()
            || args.duration.is_some_and(|duration| elapsed >= duration)
        {
            break None;
        }
        let mut until = pace.next().min(next_refresh).min(watchdog.next());
        if !args.stats_period.is_zero() {
            until = until.min(next_table);
        }
        if let Some(duration) = args.duration {
            until = until.min(duration);
        }
        if watcher.is_on() {
            until = until.min(elapsed + LOOK_PERIOD);
        }
        let alive = registry.ports.iter().filter(|entry| !matches!(entry.link, LinkState::Gone(_)));
        let events = alive.filter(|_| pace.listens()).flat_map(|entry| entry.port.events());
        if signals.wait(until.saturating_sub(start.elapsed()), &events.collect::<Vec<_>>()) {
            pace.interrupt();
        }
    };
    // As long as the workers are there.
    watch_affinity(registry);
    state.stop.store(true, Ordering::Relaxed);
    // One that does not come round to see that is told of, by the watchdog and by name.
    let stop = start.elapsed();
    let mut told = false;
    while !workers_are_finished() {
        let elapsed = start.elapsed();
        watchdog.look(registry, &state.readers, elapsed);
        watcher.look(registry);
        if !told && elapsed > stop + LONG_END {
            told = true;
            let names =
                registry.workers.iter().enumerate().filter(|(index, _)| state.readers.is_inside(*index));
            let names: Vec<String> = names.map(|(index, _)| index.to_string()).collect();
            tracing::error!(
                "worker {} has not ended {} s after it was asked to: Ctrl-C, twice where the time was over, ends the process",
                names.join(", "),
                LONG_END.as_secs()
            );
        }
        let period = if watcher.is_on() { LOOK_PERIOD } else { CONTROL_PERIOD };
        signals.wait(period.min(watchdog.next().saturating_sub(elapsed)), &[]);
    }
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

/// Takes back free frames from CPUs that no worker can run on any more, and says how many.
fn recall_frames(pool: &Pool) -> usize {
    let frames = pool.drain_stranded().unwrap_or_else(|error| {
        tracing::debug!("cannot look for frames on lost CPUs: {error}");
        0
    });
    if frames > 0 {
        tracing::info!("{frames} free frames taken back from CPUs that no thread can run on");
    }
    frames
}

/// The last of the ports to go, when none is left but exception ports.
fn all_gone(registry: &Registry) -> Option<PortGone> {
    let mut last = None;
    for entry in registry.ports.iter().filter(|entry| entry.exception.is_none()) {
        match &entry.link {
            LinkState::Gone(reason) => {
                last = Some(PortGone { port: entry.port.name().to_owned(), reason: reason.clone() })
            }
            _ => return None,
        }
    }
    last
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use nic::PoolConfig;
    use percpu::{CpuList, Topology, pin_on_cpu};
    use std::process::Command;
    use std::{env, fs, thread};

    const TEST: &str = "frames_on_a_cpu_that_no_thread_can_run_on_are_recalled";
    const ALONE: &str = "ISOPLANE_TEST_ALONE";

    /// In a process of its own: every thread of it loses a CPU.
    #[test]
    fn frames_on_a_cpu_that_no_thread_can_run_on_are_recalled() {
        let allowed: Vec<usize> = Topology::read().unwrap().allowed.iter().collect();
        let [kept, .., lost] = allowed[..] else {
            return eprintln!("SKIPPED {TEST}: needs a second CPU");
        };
        if env::var_os(ALONE).is_some() {
            return recalled(kept, lost);
        }
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", &format!("control::tests::{TEST}"), "--test-threads=1"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && text.contains("1 passed"), "{text}");
    }

    fn recalled(kept: usize, lost: usize) {
        let pool = Pool::new(&PoolConfig { frames: 1024, ..PoolConfig::default() }).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let _pinned = pin_on_cpu(lost).unwrap();
                drop((0..100).map(|_| pool.allocate(60).unwrap()).collect::<Vec<_>>());
            });
        });
        assert_eq!(recall_frames(&pool), 0, "taken from a CPU that can be used");
        for task in fs::read_dir("/proc/self/task").unwrap() {
            let tid = task.unwrap().file_name().to_str().unwrap().parse().unwrap();
            let mut set = nix::sched::CpuSet::new();
            set.set(kept).unwrap();
            let result = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(tid), &set);
            assert!(matches!(result, Ok(()) | Err(nix::errno::Errno::ESRCH)), "{result:?}");
        }
        assert_eq!(Topology::read().unwrap().allowed, CpuList::from_iter([kept]));
        // A thread that has been joined may still be on its way out, and have both CPUs.
        let (start, mut recalled) = (Instant::now(), 0);
        while recalled == 0 && start.elapsed() < Duration::from_secs(10) {
            recalled = recall_frames(&pool);
        }
        assert!(recalled >= 100, "{recalled} of at least 100 frames");
        assert_eq!((recall_frames(&pool), pool.audit().free), (0, 1024));
    }
}
