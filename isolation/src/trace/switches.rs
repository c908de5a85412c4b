//! When threads of our own leave a CPU and come back, as the kernel notes it: who blocks in it, and who is awake again.
//!
//! `PERF_RECORD_SWITCH` of `perf_event_open(2)` for threads of one's own needs no privilege. There is a ring for each CPU, to which all
//! threads' records on that CPU go; nobody is woken. Threads that are not named here pay nothing for it.
#![forbid(unsafe_code)]

use super::event::{self, What};
use super::ring::{Peek, Ring};
use super::sys;
use percpu::CpuList;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Bytes of one CPU's ring: some thousand switches.
const RING_BYTES: usize = 128 << 10;

/// What happened to a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchKind {
    /// It got a CPU.
    In,
    /// It gave its CPU up, and waits for something in the kernel.
    Blocked,
    /// It was taken off its CPU, and could go on.
    Preempted,
}

/// One switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The thread.
    pub tid: i32,
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// What happened to it.
    pub kind: SwitchKind,
}

/// The switches of some threads on some CPUs.
#[derive(Debug)]
pub struct Switches {
    rings: Vec<Ring>,
    _events: Vec<OwnedFd>,
    lost: u64,
}

impl Switches {
    /// Listens to these threads. Takes a descriptor for each thread and CPU.
    pub fn open(tids: &[i32], cpus: &CpuList) -> io::Result<Self> {
        let (mut rings, mut events) = (Vec::new(), Vec::new());
        for cpu in cpus.iter() {
            let mut first: Option<usize> = None;
            for &tid in tids {
                let event = sys::open_switches_on_cpu(tid, cpu)?;
                match first {
                    None => {
                        rings.push(Ring::new(event.as_fd(), RING_BYTES)?);
                        first = Some(events.len());
                    }
                    Some(first) => sys::redirect(event.as_fd(), OwnedFd::as_fd(&events[first]))?,
                }
                events.push(event);
            }
        }
        events.iter().try_for_each(|event| sys::enable(event.as_fd()))?;
        Ok(Self { rings, _events: events, lost: 0 })
    }

    /// For other threads: whether there is anything to read.
    pub fn peeks(&self) -> Vec<Peek> {
        self.rings.iter().map(Ring::peek).collect()
    }

    /// Appends what there is to `found`, each CPU's in order; the caller sorts. Does not allocate: what `found` has no room for is lost.
    pub fn read(&mut self, found: &mut Vec<Switch>) {
        for ring in &mut self.rings {
            ring.read(|raw| {
                let Some(event) = event::decode(raw, |_| None) else { return };
                let kind = match event.what {
                    What::In => SwitchKind::In,
                    What::Out { preempted: false } => SwitchKind::Blocked,
                    What::Out { preempted: true } => SwitchKind::Preempted,
                    What::Lost(count) => {
                        self.lost += count;
                        return;
                    }
                    _ => return,
                };
                if found.len() == found.capacity() {
                    self.lost += 1;
                } else {
                    found.push(Switch { tid: event.tid, time_ns: event.time_ns, kind });
                }
            });
        }
    }

    /// Records that there was no room for.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use percpu::Topology;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_thread_that_sleeps_is_seen_to_block_and_to_come_back() {
        let (tell, told) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let sleeper = thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = may_go.recv();
            (0..5).for_each(|_| thread::sleep(Duration::from_millis(2)));
        });
        let tid = told.recv().unwrap();
        let mut switches = match Switches::open(&[tid], &Topology::read().unwrap().allowed) {
            Ok(switches) => switches,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                eprintln!("SKIPPED a_thread_that_sleeps_is_seen_to_block: needs root");
                return;
            }
        };
        drop(go);
        sleeper.join().unwrap();
        assert!(switches.peeks().iter().any(Peek::has_more));
        let mut found = Vec::with_capacity(1000);
        switches.read(&mut found);
        found.sort_by_key(|switch| switch.time_ns);
        assert!(found.iter().all(|switch| switch.tid == tid));
        let count = |kind| found.iter().filter(|switch| switch.kind == kind).count();
        assert!(count(SwitchKind::Blocked) >= 5 && count(SwitchKind::In) >= 5, "{found:?}");
        assert!(!switches.peeks().iter().any(Peek::has_more));
    }
}
