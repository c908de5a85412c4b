//! What keeps a worker: its own code, another task on its CPU, or the kernel; and where it is.
//!
//! Which one it is, the thread's CPU time tells: it has not turned, so what it ran meanwhile is one turn's. Its stack can be had by a signal while
//! it runs, and from the kernel while a system call holds it. One that waits for its CPU keeps its registers in the kernel.
#![forbid(unsafe_code)]

use super::occupant::{Occupant, occupant};
use super::sys::{self, Sample};
use super::thread;
use isolation::user_stack::UserStacks;
use std::fmt;
use std::time::Duration;

/// Who ran for so long within a turn, or half of the time, is held up by its own code.
const OWN_CODE: Duration = Duration::from_millis(10);
/// How often a thread is asked for its state, and how long between: one that can run for a moment is not one that waits for its CPU.
const STATES: usize = 3;
const BETWEEN: Duration = Duration::from_millis(1);
/// Samples of a thread that runs, until one can be unwound.
const SAMPLES: usize = 5;

/// Finds causes. Unwind information is read when it is needed first.
#[derive(Default)]
pub(super) struct Finder(Option<UserStacks>);

#[derive(Debug, PartialEq, Eq)]
enum Cause {
    OwnCode(Option<Duration>),
    Waits(Option<Occupant>),
    Blocked { state: char, call: Option<i64> },
    Stopped { tracer: Option<u32> },
    Unknown,
}

/// What was found, in words.
#[derive(Debug)]
pub(super) struct Found {
    cause: Cause,
    user_stack: Result<Vec<String>, String>,
    kernel_stack: Result<Vec<String>, String>,
}

impl Finder {
    /// Why a thread has not turned for so long; `before` is its CPU time when it last did.
    pub(super) fn find(&mut self, tid: i32, cpu: usize, still: Duration, before: Option<Duration>) -> Found {
        let ran = thread::cpu_time(tid).zip(before).map(|(now, before)| now.saturating_sub(before));
        let mut states = [None; STATES];
        for (index, state) in states.iter_mut().enumerate() {
            if index > 0 {
                std::thread::sleep(BETWEEN);
            }
            *state = thread::state(tid);
        }
        let cause = Self::cause(tid, cpu, still, ran, states);
        let kernel_stack = thread::kernel_stack(tid);
        let user_stack = match &cause {
            Cause::OwnCode(_) => self.running(tid),
            Cause::Blocked { .. } => self.blocked(tid),
            Cause::Waits(_) => Err("cannot be had while it waits for its CPU".into()),
            Cause::Stopped { .. } | Cause::Unknown => Err("cannot be had".into()),
        };
        Found { cause, user_stack, kernel_stack }
    }

    fn cause(
        tid: i32,
        cpu: usize,
        still: Duration,
        ran: Option<Duration>,
        states: [Option<char>; STATES],
    ) -> Cause {
        if states.iter().any(|state| matches!(state, Some('T' | 't'))) {
            return Cause::Stopped { tracer: thread::tracer(tid) };
        }
        if ran.is_some_and(|ran| ran >= OWN_CODE || ran >= still / 2) {
            return Cause::OwnCode(ran);
        }
        match states.iter().flatten().find(|state| **state != 'R') {
            Some(&state) => {
                let call = thread::system_call(tid).map(|(number, ..)| number).filter(|number| *number >= 0);
                Cause::Blocked { state, call }
            }
            None if states.contains(&None) => Cause::Unknown,
            None => Cause::Waits(occupant(cpu, tid)),
        }
    }

    fn running(&mut self, tid: i32) -> Result<Vec<String>, String> {
        let mut frames = self.frames(&sys::sample(tid)?)?;
        // In code that is in no file, such as the clock's in the vDSO: it is elsewhere the next time.
        for _ in 1..SAMPLES {
            if frames.len() > 1 {
                break;
            }
            std::thread::sleep(BETWEEN);
            frames = self.frames(&sys::sample(tid)?)?;
        }
        Ok(frames)
    }

    /// A thread in a system call does not change its stack.
    fn blocked(&mut self, tid: i32) -> Result<Vec<String>, String> {
        let (_, sp, ip) =
            thread::system_call(tid).ok_or("cannot be had: the kernel does not say where it is")?;
        let stack = sys::read_memory(sp, sys::STACK_BYTES);
        self.frames(&Sample { ip, sp, bp: 0, stack })
    }

    fn frames(&mut self, sample: &Sample) -> Result<Vec<String>, String> {
        let stacks = match &mut self.0 {
            Some(stacks) => stacks,
            none => none.insert(UserStacks::read().map_err(|error| format!("cannot be read: {error}"))?),
        };
        let frames = stacks.frames_at(sample.ip, sample.sp, sample.bp, &sample.stack);
        if frames.is_empty() { Ok(vec![stacks.name(sample.ip)]) } else { Ok(frames) }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnCode(ran) => {
                formatter.write_str("its own code does not come back")?;
                ran.map_or(Ok(()), |ran| write!(formatter, " (it ran for {} ms of them)", ran.as_millis()))
            }
            Self::Waits(Some(occupant)) => write!(formatter, "another task has its CPU: {occupant}"),
            Self::Waits(None) => {
                formatter.write_str("another task has its CPU, which cannot be seen from here")
            }
            Self::Blocked { state, call: Some(number) } => {
                write!(formatter, "blocked in the kernel (state {state}), by system call {number}")
            }
            Self::Blocked { state, call: None } => {
                write!(formatter, "blocked in the kernel (state {state})")
            }
            Self::Stopped { tracer: Some(tracer) } => {
                write!(formatter, "stopped by a debugger (process {tracer})")
            }
            Self::Stopped { tracer: None } => formatter.write_str("stopped by a signal"),
            Self::Unknown => formatter.write_str("nobody says why"),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |stack: &Result<Vec<String>, String>| match stack {
            Ok(frames) if frames.is_empty() => "none".to_owned(),
            Ok(frames) => frames.join("<"),
            Err(why) => why.clone(),
        };
        write!(
            formatter,
            "{}; user_stack={} kernel_stack={}",
            self.cause,
            words(&self.user_stack),
            words(&self.kernel_stack)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread number that is nobody's.
    const NOBODY: i32 = 1 << 23;

    #[test]
    fn cpu_time_and_states_tell_the_causes_apart() {
        let second = Duration::from_secs(1);
        let cause = |ran_ms: u64, states: &str| {
            let mut letters = states.chars();
            let states = std::array::from_fn(|_| letters.next());
            Finder::cause(NOBODY, usize::MAX, second, Some(Duration::from_millis(ran_ms)), states)
        };
        assert_eq!(cause(900, "RRR"), Cause::OwnCode(Some(Duration::from_millis(900))));
        assert_eq!(cause(10, "SRS"), Cause::OwnCode(Some(Duration::from_millis(10))));
        assert_eq!(cause(9, "RRR"), Cause::Waits(None));
        assert_eq!(cause(0, "RSR"), Cause::Blocked { state: 'S', call: None });
        assert_eq!(cause(0, "DDD"), Cause::Blocked { state: 'D', call: None });
        assert_eq!(cause(900, "RRT"), Cause::Stopped { tracer: None });
        assert_eq!(cause(0, ""), Cause::Unknown);
        // A short limit: half of it is its own code.
        let short = Finder::cause(
            NOBODY,
            usize::MAX,
            Duration::from_millis(12),
            Some(Duration::from_millis(6)),
            [Some('R'); 3],
        );
        assert!(matches!(short, Cause::OwnCode(_)));
    }
}
