//! What a slow path is made of: threads, slots, classes.
#![forbid(unsafe_code)]

use crate::error::Error;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A class of jobs: what shares a weight, a cap and a bound.
#[derive(Clone, Debug)]
pub struct ClassConfig {
    /// Its name, in reports and in the log.
    pub name: &'static str,
    /// Its share of the slots' CPU time where others want it too, in relation to their weights.
    pub weight: u32,
    /// The most CPU time that it gets, in CPUs: 0.2 is a fifth of one. `None` for no bound.
    pub cap: Option<f64>,
    /// The most threads that its jobs have at once; jobs that never return keep theirs.
    pub threads: usize,
    /// A job that takes longer is told of in the log, and counted as overdue.
    pub report_after: Duration,
}

impl ClassConfig {
    /// A class of weight 100, without a cap, with as many threads as there are, and a bound of 10 s.
    pub fn new(name: &'static str) -> Self {
        Self { name, weight: 100, cap: None, threads: usize::MAX, report_after: Duration::from_secs(10) }
    }
}

/// How the slow path finds out that a job blocks in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// By the kernel's records of switches where it gives them, else as with `Wrapped`.
    Trace,
    /// By [`blocking`](super::blocking), and for what is not wrapped by a look about every millisecond.
    Wrapped,
}

/// A slow path.
#[derive(Clone, Debug)]
pub struct SlowPathConfig {
    /// Threads: so many jobs are under way at once, most of them blocked.
    pub threads: usize,
    /// Of these so many run at once; 0 for one on each housekeeping CPU.
    pub slots: usize,
    /// Jobs of one submitter that are on their way; further ones are refused.
    pub capacity: usize,
    /// Fibers of all classes together, at the most; further ones are refused.
    pub fibers: usize,
    /// The stack of each fiber, in bytes, in pages. Below it is a page that ends the process when it is touched.
    pub fiber_stack_bytes: usize,
    /// How it sees that jobs block.
    pub detection: Detection,
    /// The classes; [`Class`](super::Class) is the place in this list.
    pub classes: Vec<ClassConfig>,
}

impl Default for SlowPathConfig {
    fn default() -> Self {
        Self {
            threads: 64,
            slots: 0,
            capacity: 256,
            fibers: 10_000,
            fiber_stack_bytes: 64 << 10,
            detection: Detection::Trace,
            classes: vec![ClassConfig::new("default")],
        }
    }
}

/// Bounds that keep descriptors and memory in bounds.
const MOST_THREADS: usize = 1024;
const MOST_CAPACITY: usize = 1 << 16;
const MOST_CLASSES: usize = 64;
/// Each fiber's stack takes two of the memory maps that a process may have (65530, `vm.max_map_count`).
const MOST_FIBERS: usize = 30_000;
const STACK_BYTES: RangeInclusive<usize> = 16 << 10..=8 << 20;

impl SlowPathConfig {
    /// Says what is wrong, in words.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |why: String| Err(Error::Configuration(format!("slow path: {why}")));
        if !(1..=MOST_THREADS).contains(&self.threads) || self.slots > self.threads {
            return refuse(format!(
                "{} slots over {} threads: choose 1 to {MOST_THREADS} threads, and no more slots than threads",
                self.slots, self.threads
            ));
        }
        if !(1..=MOST_CAPACITY).contains(&self.capacity) {
            return refuse(format!("capacity {}: choose from 1 to {MOST_CAPACITY}", self.capacity));
        }
        if !(1..=MOST_CLASSES).contains(&self.classes.len()) {
            return refuse(format!("{} classes: choose 1 to {MOST_CLASSES}", self.classes.len()));
        }
        if self.fibers > MOST_FIBERS || !STACK_BYTES.contains(&self.fiber_stack_bytes) {
            return refuse(format!(
                "{} fibers with stacks of {} bytes: choose at most {MOST_FIBERS}, and {} to {} bytes",
                self.fibers,
                self.fiber_stack_bytes,
                STACK_BYTES.start(),
                STACK_BYTES.end()
            ));
        }
        for class in &self.classes {
            let cap_is_right = class.cap.is_none_or(|cap| cap.is_finite() && (0.001..=1024.0).contains(&cap));
            if !(1..=10_000).contains(&class.weight) || class.threads == 0 || !cap_is_right {
                return refuse(format!(
                    "class {}: weights are 1 to 10000, caps 0.001 CPUs and more, and it needs a thread",
                    class.name
                ));
            }
        }
        Ok(())
    }
}
