//! A signal to the pinned thread at the moment it is migrated: the other answer that the authors of `pin_on_cpu` discussed.
//!
//! A perf event counts the thread's migrations and sends SIGTRAP for each (`attr.sigtrap`, Linux 5.13), on the new CPU, before the
//! thread's next instruction there. The handler only counts and raises a flag, which the thread or any other reads
//! when it likes. A mask that is widened without a move sends nothing: that is what [`Watch`](super::Watch) is for.
//!
//! Migrations happen inside the kernel, so the event must count there: CAP_PERFMON.
#![forbid(unsafe_code)]

use super::sys;
use std::io;
use std::os::fd::OwnedFd;
use thiserror::Error;

/// Why there is no signal.
#[derive(Debug, Error)]
pub enum SignalError {
    /// Who may not observe the kernel may not learn of migrations.
    #[error(
        "a signal on migration takes CAP_PERFMON: run as root, or \"setcap cap_perfmon+ep PROGRAM\", or \"sysctl kernel.perf_event_paranoid=1\""
    )]
    Privilege,
    /// The kernel does not know `attr.sigtrap`.
    #[error("this kernel sends no signal on migration: it takes Linux 5.13 or later with CONFIG_PERF_EVENTS")]
    Unsupported,
    /// The thread does not exist, or is of another process.
    #[error("there is no thread {tid} to send a signal on migration to")]
    NoThread {
        /// The number given.
        tid: i32,
    },
    /// All places are taken.
    #[error("{} threads have a signal on migration already: close one first", sys::SLOTS)]
    Full,
    /// The kernel refused for another reason.
    #[error("cannot have a signal on migration: {0}")]
    Refused(#[source] io::Error),
}

/// Sends SIGTRAP to a thread whenever it is migrated, until dropped; counts the signals.
///
/// The first one installs a handler for SIGTRAP in the process, which passes on what is not meant for it to the handler
/// that was there before.
#[derive(Debug)]
pub struct MigrationSignal {
    /// Closed before the slot is given back.
    _event: OwnedFd,
    slot: sys::Slot,
}

impl MigrationSignal {
    /// For the calling thread. Unblocks SIGTRAP in it.
    pub fn on_this_thread() -> Result<Self, SignalError> {
        let mut trap = nix::sys::signal::SigSet::empty();
        trap.add(nix::sys::signal::SIGTRAP);
        trap.thread_unblock().map_err(|errno| SignalError::Refused(errno.into()))?;
        Self::open(nix::unistd::gettid().as_raw())
    }

    /// For another thread of this process, which must not block SIGTRAP: then the signal would come late.
    pub fn on_thread(tid: i32) -> Result<Self, SignalError> {
        // A thread of this process: the handler is here.
        let ours = tid > 0 && std::path::Path::new(&format!("/proc/self/task/{tid}")).exists();
        if ours { Self::open(tid) } else { Err(SignalError::NoThread { tid }) }
    }

    fn open(tid: i32) -> Result<Self, SignalError> {
        sys::install_handler().map_err(SignalError::Refused)?;
        let slot = sys::Slot::take().ok_or(SignalError::Full)?;
        let event = sys::open_migrations(tid, slot.key()).map_err(|source| match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => SignalError::Privilege,
            Some(libc::ENOSYS | libc::EINVAL | libc::E2BIG) => SignalError::Unsupported,
            Some(libc::ESRCH) => SignalError::NoThread { tid },
            _ => SignalError::Refused(source),
        })?;
        Ok(Self { _event: event, slot })
    }

    /// Signals so far.
    pub fn count(&self) -> u64 {
        self.slot.count()
    }

    /// True where there was a signal since the last call. An atomic load where there was none.
    #[inline]
    pub fn take(&self) -> bool {
        self.slot.take_flag()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CpuList, Topology, sys as affinity};
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    /// Waits for something, for 10 s at most.
    #[track_caller]
    fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(10), "{what}: not within 10 s");
            thread::yield_now();
        }
    }

    #[test]
    fn namespace_each_migration_is_one_signal() {
        const TEST: &str = "namespace_each_migration_is_one_signal";
        let cpus: Vec<usize> = Topology::read().unwrap().allowed.iter().take(2).collect();
        if cpus.len() < 2 {
            eprintln!("SKIPPED {TEST}: needs a second CPU");
            return;
        }
        let stop = AtomicBool::new(false);
        let tid = AtomicI32::new(0);
        let (one, other) = (CpuList::from_iter([cpus[0]]), CpuList::from_iter([cpus[1]]));
        thread::scope(|scope| {
            scope.spawn(|| {
                affinity::set_affinity(&one).unwrap();
                tid.store(nix::unistd::gettid().as_raw(), Ordering::Release);
                let start = Instant::now();
                while !stop.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(60) {
                    thread::yield_now();
                }
            });
            wait_until("the thread", || tid.load(Ordering::Acquire) != 0);
            let tid = tid.load(Ordering::Acquire);
            let signal = MigrationSignal::on_thread(tid);
            if let Ok(signal) = &signal {
                assert!(!signal.take());
                for flip in 1..=20 {
                    let to = if flip % 2 == 1 { &other } else { &one };
                    affinity::set_affinity_of(tid, to).unwrap();
                    wait_until("the signal", || signal.count() >= flip);
                    assert_eq!(signal.count(), flip, "more signals than migrations");
                    assert!(signal.take() && !signal.take());
                }
            }
            stop.store(true, Ordering::Relaxed);
            match signal {
                Err(SignalError::Privilege) if !nix::unistd::geteuid().is_root() => {
                    eprintln!("SKIPPED {TEST}: needs root (or CAP_PERFMON)");
                }
                signal => drop(signal.unwrap()),
            }
        });
    }

    #[test]
    fn a_thread_that_is_not_ours_is_refused_in_words() {
        let tid = i32::MAX;
        let error = MigrationSignal::on_thread(tid).unwrap_err();
        assert!(error.to_string().contains(&format!("no thread {tid}")), "{error}");
        assert!(matches!(MigrationSignal::on_thread(1), Err(SignalError::NoThread { tid: 1 })));
    }

    #[test]
    fn a_late_signal_finds_no_counter_of_another_event() {
        let first = sys::Slot::take().unwrap();
        let key = first.key();
        drop(first);
        let second = sys::Slot::take().unwrap();
        assert_ne!(second.key(), key);
    }

    #[test]
    fn the_missing_privilege_is_one_line_with_the_way_out() {
        let text = SignalError::Privilege.to_string();
        assert!(!text.contains('\n') && text.contains("setcap cap_perfmon+ep"), "{text}");
    }
}
