//! A task that takes a CPU away from everybody: a process named `hog`, under SCHED_FIFO.
#![allow(dead_code, unreachable_pub, unsafe_code, clippy::unwrap_used)]

use nix::libc;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::time::{Duration, Instant};

/// The exit status that says: no real-time priority here.
const REFUSED: i32 = 77;
/// Above everything that is not urgent itself, below the kernel's own.
const PRIORITY: i32 = 40;

/// What it is to do, which is bounded: it ends by itself.
#[derive(Clone, Copy, Debug)]
pub struct Bursts {
    pub cpu: usize,
    pub count: u32,
    /// How long each takes the CPU; at most 50 ms, for nothing else runs there.
    pub length: Duration,
    /// How long it sleeps before each.
    pub pause: Duration,
}

/// It, running.
pub struct Hog(Pid);

impl Hog {
    /// Starts it.
    #[track_caller]
    pub fn start(bursts: Bursts) -> Self {
        assert!(bursts.length <= Duration::from_millis(50));
        let mut mask = CpuSet::new();
        mask.set(bursts.cpu).unwrap();
        // SAFETY: the child makes system calls and looks at the clock, and ends by _exit: it takes no lock and allocates nothing.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => Self(child),
            ForkResult::Child => {
                let status = if hog(&bursts, &mask).is_none() { REFUSED } else { 0 };
                // SAFETY: ends the child, without what the parent has registered for its own end.
                unsafe { libc::_exit(status) }
            }
        }
    }

    /// Its process number, by which the kernel's trace knows it.
    pub fn pid(&self) -> i32 {
        self.0.as_raw()
    }

    /// Waits for its end; false where the kernel gave it no real-time priority.
    #[track_caller]
    pub fn wait(self) -> bool {
        match waitpid(self.0, None).unwrap() {
            WaitStatus::Exited(_, 0) => true,
            WaitStatus::Exited(_, REFUSED) => false,
            other => panic!("the hog: {other:?}"),
        }
    }
}

fn hog(bursts: &Bursts, mask: &CpuSet) -> Option<()> {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: a name that ends in a zero; a live structure.
    let fifo = unsafe {
        libc::prctl(libc::PR_SET_NAME, c"hog".as_ptr());
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters)
    };
    if fifo != 0 || sched_setaffinity(Pid::from_raw(0), mask).is_err() {
        return None;
    }
    for _ in 0..bursts.count {
        std::thread::sleep(bursts.pause);
        let start = Instant::now();
        while start.elapsed() < bursts.length {
            std::hint::spin_loop();
        }
    }
    Some(())
}
