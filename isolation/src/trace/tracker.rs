//! From a CPU's events to the interruptions of its worker.
//!
//! The worker runs until an interrupt enters, or until another thread is switched to. An interrupt's soft interrupts, and the switch that it
//! leads to, belong to the same interruption; interrupts that hit other tasks while the worker is away do not hit the worker. Events may be
//! missing (a full ring, a start in the middle): each event says whose thread it hit, so the next one puts the picture right.
#![forbid(unsafe_code)]

use super::event::{Event, What};
use super::interruption::{Cause, Interruption, Totals, vector};
use super::names;

/// How soon after an interrupt a switch follows that it led to.
const JOIN_NS: u64 = 1_000_000;
/// An interrupt that goes on for longer has lost the record of its end.
const LONGEST_ENTRY_NS: u64 = 2_000_000;
/// Causes that one interruption lists at most.
const MOST_ALSO: usize = 16;

/// An interrupt under way, or one that has just ended and may go on as a soft interrupt or a switch.
#[derive(Debug)]
struct Entry {
    start_ns: u64,
    end_ns: u64,
    depth: u32,
    cause: Cause,
    also: Vec<Cause>,
    stack: Vec<u64>,
}

/// A task that has the CPU while the worker is away.
#[derive(Debug)]
struct Task {
    pid: i32,
    comm: String,
    ns: u64,
    work: Vec<u64>,
}

/// The worker is switched out.
#[derive(Debug)]
struct Away {
    start_ns: u64,
    /// Since when the last of `tasks` has the CPU.
    since_ns: u64,
    tasks: Vec<Task>,
    also: Vec<Cause>,
    sleeps: bool,
    known: bool,
    stack: Vec<u64>,
}

/// Follows one worker on its CPU.
#[derive(Debug)]
pub(super) struct Tracker {
    tid: i32,
    /// The kernel's own number of the thread, which a container does not see: learnt at its first switch.
    kernel_pid: i32,
    /// Whom the last switch that was seen gave the CPU to.
    running: Option<i32>,
    /// When the worker was last seen. Before that nothing is known of where it is.
    seen_ns: Option<u64>,
    entry: Option<Entry>,
    away: Option<Away>,
    pub(super) totals: Totals,
}

impl Tracker {
    pub(super) fn new(tid: i32) -> Self {
        Self {
            tid,
            kernel_pid: tid,
            running: None,
            seen_ns: None,
            entry: None,
            away: None,
            totals: Totals::default(),
        }
    }

    /// Since when the worker is away.
    pub(super) fn away_since(&self) -> Option<u64> {
        self.away.as_ref().map(|away| away.start_ns)
    }

    /// The next event of the CPU. `in_call` says whether a stack is that of a system call.
    pub(super) fn event(
        &mut self,
        event: Event,
        in_call: impl Fn(&[u64]) -> bool,
        out: &mut Vec<Interruption>,
    ) {
        let Event { time_ns, tid, what, stack } = event;
        let ours = tid == self.tid;
        if ours {
            self.seen_ns = Some(time_ns);
        }
        if ours && self.away.is_some() && !matches!(what, What::In | What::Lost(_)) {
            // It is back, and the switch was lost, or had another number.
            self.come_back(time_ns, out);
        }
        match what {
            What::VectorEntry(index) => {
                self.totals.irqs += 1;
                if ours {
                    self.enter(time_ns, vector(index), stack, out);
                }
            }
            What::IrqEntry { irq, name } => {
                self.totals.irqs += 1;
                if ours {
                    self.enter(time_ns, Cause::Irq { irq, name }, stack, out);
                }
            }
            What::SoftirqEntry(number) => {
                self.totals.softirqs += 1;
                let inside = self.entry.as_ref().is_some_and(|entry| entry.depth > 0);
                // The system call's own work is no interruption.
                if ours && (inside || !in_call(&stack)) {
                    self.enter(time_ns, Cause::Softirq(names::softirq(number)), stack, out);
                }
            }
            What::Exit | What::SoftirqExit => {
                // One that is over already ends no more: that is the end of a system call's own work, which began nothing.
                if ours && let Some(entry) = self.entry.as_mut().filter(|entry| entry.depth > 0) {
                    entry.depth -= 1;
                    entry.end_ns = time_ns;
                }
            }
            What::IrqWork => {
                self.totals.irqs += 1;
                if ours {
                    self.pass(time_ns, time_ns, Cause::Vector(names::IRQ_WORK), stack, out);
                }
            }
            What::Nmi { duration_ns } => {
                if ours {
                    self.pass(time_ns.saturating_sub(duration_ns), time_ns, Cause::Nmi, stack, out);
                }
            }
            What::Switch { prev_pid, prev_comm, sleeps, next_pid, next_comm } => {
                if self.running.replace(next_pid).is_some_and(|running| running != prev_pid) && !ours {
                    self.miss(time_ns, prev_pid, prev_comm, out);
                }
                if next_pid != 0 && next_pid != self.kernel_pid {
                    self.totals.threads += 1;
                }
                if ours {
                    self.kernel_pid = prev_pid;
                    self.leave(time_ns, sleeps, true, stack, out);
                }
                if next_pid == self.kernel_pid {
                    self.seen_ns = Some(time_ns);
                    self.come_back(time_ns, out);
                } else if let Some(away) = &mut self.away {
                    away.next(time_ns, next_pid, next_comm);
                }
            }
            What::Work { function } => {
                if let Some(task) = self.away.as_mut().and_then(|away| away.tasks.last_mut())
                    && task.work.len() < MOST_ALSO
                {
                    task.work.push(function);
                }
            }
            What::Out { preempted } => {
                if ours {
                    self.totals.threads += 1;
                    self.leave(time_ns, !preempted, false, stack, out);
                }
            }
            What::In => {
                if ours {
                    self.come_back(time_ns, out);
                }
            }
            What::Lost(records) => {
                self.totals.lost += records;
                // Whatever its end was: it is not waited for.
                self.finish_entry(out);
            }
            What::Send { .. } => {}
        }
    }

    /// All events before `now_ns` were given.
    pub(super) fn flush(&mut self, now_ns: u64, out: &mut Vec<Interruption>) {
        if self.entry.as_ref().is_some_and(|entry| entry.depth == 0 && now_ns > entry.end_ns + JOIN_NS) {
            self.finish_entry(out);
        }
    }

    fn enter(&mut self, time_ns: u64, cause: Cause, stack: Vec<u64>, out: &mut Vec<Interruption>) {
        match &mut self.entry {
            // Within another, or what that one left to be done. One that seems to go on for so long has ended, and nobody heard of it.
            Some(entry)
                if entry.depth > 0 && time_ns < entry.end_ns.max(entry.start_ns) + LONGEST_ENTRY_NS
                    || matches!(cause, Cause::Softirq(_)) && time_ns < entry.end_ns + JOIN_NS =>
            {
                entry.depth += 1;
                entry.end_ns = time_ns;
                if entry.also.len() < MOST_ALSO {
                    entry.also.push(cause);
                }
            }
            _ => {
                self.finish_entry(out);
                let also = Vec::new();
                self.entry = Some(Entry { start_ns: time_ns, end_ns: time_ns, depth: 1, cause, also, stack });
            }
        }
    }

    /// An interrupt that is told of by one event.
    fn pass(
        &mut self,
        start_ns: u64,
        end_ns: u64,
        cause: Cause,
        stack: Vec<u64>,
        out: &mut Vec<Interruption>,
    ) {
        self.enter(start_ns, cause, stack, out);
        if let Some(entry) = &mut self.entry {
            entry.depth -= 1;
            entry.end_ns = entry.end_ns.max(end_ns);
        }
    }

    fn finish_entry(&mut self, out: &mut Vec<Interruption>) {
        if let Some(entry) = self.entry.take() {
            let Entry { start_ns, end_ns, cause, also, stack, .. } = entry;
            out.push(Interruption { start_ns, end_ns, cause, also, work: Vec::new(), stack, sender: None });
        }
    }

    /// The worker is switched out.
    fn leave(
        &mut self,
        time_ns: u64,
        sleeps: bool,
        known: bool,
        stack: Vec<u64>,
        out: &mut Vec<Interruption>,
    ) {
        if self.entry.as_ref().is_some_and(|entry| time_ns > entry.end_ns + JOIN_NS) {
            self.finish_entry(out);
        }
        let (mut start_ns, mut also) = (time_ns, Vec::new());
        if let Some(entry) = self.entry.take() {
            start_ns = entry.start_ns;
            also.push(entry.cause);
            also.extend(entry.also);
        }
        self.away = Some(Away { start_ns, since_ns: time_ns, tasks: Vec::new(), also, sleeps, known, stack });
    }

    /// A switch to this task was missed: while the kernel makes a record or a signal for the worker, it makes none of what else happens to
    /// it, and the worker may lose the CPU just then.
    fn miss(&mut self, time_ns: u64, pid: i32, comm: String, out: &mut Vec<Interruption>) {
        self.totals.threads += u64::from(pid != 0);
        let mut since_ns = time_ns;
        if self.away.is_none() {
            let Some(seen_ns) = self.seen_ns else { return };
            // Right after what the record or the signal was for.
            self.leave(seen_ns, false, true, Vec::new(), out);
            since_ns = seen_ns;
        }
        if let Some(away) = &mut self.away {
            away.next(since_ns, pid, comm);
        }
    }

    fn come_back(&mut self, time_ns: u64, out: &mut Vec<Interruption>) {
        let Some(mut away) = self.away.take() else { return };
        away.credit(time_ns);
        let Away { start_ns, mut tasks, mut also, sleeps, known, stack, .. } = away;
        tasks.sort_by_key(|task| std::cmp::Reverse(task.ns));
        let mut tasks = tasks.into_iter().filter(|task| task.pid != 0);
        let longest = tasks.next();
        let (longest, work) =
            longest.map_or((None, Vec::new()), |task| (Some((task.pid, task.comm)), task.work));
        let cause = match longest {
            _ if sleeps => Cause::Blocked,
            Some((pid, comm)) => Cause::Task { pid, comm },
            None if known => Cause::Task { pid: 0, comm: "idle".into() },
            None => Cause::Preempted,
        };
        also.extend(tasks.map(|task| Cause::Task { pid: task.pid, comm: task.comm }));
        also.truncate(MOST_ALSO);
        out.push(Interruption { start_ns, end_ns: time_ns, cause, also, work, stack, sender: None });
    }
}

impl Away {
    fn credit(&mut self, time_ns: u64) {
        if let Some(task) = self.tasks.last_mut() {
            task.ns += time_ns.saturating_sub(self.since_ns);
        }
        self.since_ns = time_ns;
    }

    fn next(&mut self, time_ns: u64, pid: i32, comm: String) {
        self.credit(time_ns);
        // To the end, where the running one is.
        match self.tasks.iter().position(|task| task.pid == pid) {
            Some(index) => {
                let task = self.tasks.remove(index);
                self.tasks.push(task);
            }
            None if self.tasks.len() < MOST_ALSO => {
                self.tasks.push(Task { pid, comm, ns: 0, work: Vec::new() })
            }
            // What they take is not told apart any more, only that they do.
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: i32 = 100;
    const HOG: i32 = 200;

    struct Scene {
        tracker: Tracker,
        out: Vec<Interruption>,
    }

    impl Scene {
        fn new() -> Self {
            Self { tracker: Tracker::new(WORKER), out: Vec::new() }
        }

        fn at(mut self, time_us: u64, tid: i32, what: What) -> Self {
            let event = Event { time_ns: time_us * 1000, tid, what, stack: vec![time_us] };
            self.tracker.event(event, |stack| stack == [666], &mut self.out);
            self
        }

        fn flush(mut self, time_us: u64) -> Vec<Interruption> {
            self.tracker.flush(time_us * 1000, &mut self.out);
            self.out
        }
    }

    fn switch(prev: i32, sleeps: bool, next: i32, comm: &str) -> What {
        let prev_comm = if prev == HOG { "hog" } else { "another" }.into();
        What::Switch { prev_pid: prev, prev_comm, sleeps, next_pid: next, next_comm: comm.into() }
    }

    fn spans(found: &[Interruption]) -> Vec<(u64, u64, String)> {
        found.iter().map(|one| (one.start_ns / 1000, one.end_ns / 1000, one.cause.to_string())).collect()
    }

    #[test]
    fn a_tick_and_its_soft_interrupts_are_one_interruption() {
        let found = Scene::new()
            .at(10, WORKER, What::VectorEntry(0))
            .at(14, WORKER, What::Exit)
            .at(15, WORKER, What::SoftirqEntry(1))
            .at(18, WORKER, What::SoftirqExit)
            .at(4010, WORKER, What::VectorEntry(0))
            .at(4012, WORKER, What::Exit)
            .flush(6000);
        assert_eq!(
            spans(&found),
            [(10, 18, "irq:local_timer".into()), (4010, 4012, "irq:local_timer".into())]
        );
        assert_eq!(found[0].also, [Cause::Softirq("timer")]);
        assert_eq!(found[0].stack, [10]);
    }

    #[test]
    fn an_interrupt_within_an_interrupt_is_part_of_it() {
        let found = Scene::new()
            .at(10, WORKER, What::IrqEntry { irq: 5, name: "eth0".into() })
            .at(12, WORKER, What::VectorEntry(1))
            .at(13, WORKER, What::Exit)
            .at(15, WORKER, What::Exit)
            .flush(2000);
        assert_eq!(spans(&found), [(10, 15, "irq:eth0".into())]);
        assert_eq!(found[0].also, [Cause::Vector("reschedule")]);
    }

    #[test]
    fn a_hog_is_one_interruption_with_the_interrupt_that_brought_it() {
        let scene = Scene::new()
            .at(10, WORKER, What::VectorEntry(1))
            .at(12, WORKER, What::Exit)
            .at(14, WORKER, switch(WORKER, false, HOG, "hog"))
            // Ticks, and a work queue's thread in between, hit the hog.
            .at(500, HOG, What::VectorEntry(0))
            .at(505, HOG, What::Exit)
            .at(600, HOG, switch(HOG, false, 300, "kworker/1:0"))
            .at(610, 300, What::Work { function: 42 })
            .at(700, 300, switch(300, true, HOG, "hog"));
        assert_eq!(scene.tracker.away_since(), Some(10_000));
        let scene = scene.at(20_014, HOG, switch(HOG, true, WORKER, "worker-0"));
        assert_eq!(scene.tracker.totals, Totals { irqs: 2, softirqs: 0, threads: 3, lost: 0 });
        let found = scene.flush(30_000);
        assert_eq!(spans(&found), [(10, 20_014, "task:hog".into())]);
        let kworker = Cause::Task { pid: 300, comm: "kworker/1:0".into() };
        assert_eq!(found[0].also, [Cause::Vector("reschedule"), kworker]);
        assert_eq!(found[0].cause, Cause::Task { pid: HOG, comm: "hog".into() });
    }

    #[test]
    fn a_sleep_is_the_threads_own_and_the_softirq_of_a_call_is_none() {
        let found = Scene::new()
            .at(666, WORKER, What::SoftirqEntry(3))
            .at(670, WORKER, What::SoftirqExit)
            .at(700, WORKER, switch(WORKER, true, 0, "swapper/1"))
            .at(900, 0, switch(0, false, WORKER, "worker-0"))
            .flush(5000);
        assert_eq!(spans(&found), [(700, 900, "blocked".into())]);
    }

    #[test]
    fn the_softirqs_of_calls_after_a_tick_do_not_make_it_longer() {
        let mut scene = Scene::new().at(10, WORKER, What::VectorEntry(0)).at(14, WORKER, What::Exit);
        for call in 1..=10 {
            scene.tracker.flush((call * 300 - 5) * 1000, &mut scene.out);
            let event =
                Event { time_ns: call * 300_000, tid: WORKER, what: What::SoftirqEntry(3), stack: vec![666] };
            scene.tracker.event(event, |stack| stack == [666], &mut scene.out);
            scene = scene.at(call * 300 + 40, WORKER, What::SoftirqExit);
        }
        assert_eq!(spans(&scene.flush(9000)), [(10, 14, "irq:local_timer".into())]);
    }

    #[test]
    fn an_end_that_is_lost_silences_nothing() {
        let mut scene = Scene::new().at(10, WORKER, What::VectorEntry(0)).at(15, WORKER, What::Lost(1));
        for tick in 1..=5 {
            scene = scene.at(tick * 4000, WORKER, What::VectorEntry(0));
            if tick != 3 {
                scene = scene.at(tick * 4000 + 3, WORKER, What::Exit);
            }
        }
        assert_eq!(spans(&scene.flush(90_000)).len(), 6);
    }

    #[test]
    fn a_lost_return_is_put_right_by_the_next_event() {
        let found = Scene::new()
            .at(10, WORKER, switch(WORKER, false, HOG, "hog"))
            .at(50, WORKER, What::VectorEntry(0))
            .at(51, WORKER, What::Exit)
            .flush(3000);
        assert_eq!(spans(&found), [(10, 50, "task:hog".into()), (50, 51, "irq:local_timer".into())]);
    }

    #[test]
    fn a_lost_departure_is_known_by_the_return() {
        let scene = Scene::new()
            .at(5, 0, switch(0, false, WORKER, "worker-0"))
            .at(10, WORKER, What::VectorEntry(1))
            .at(12, WORKER, What::Exit)
            .at(20_000, HOG, switch(HOG, true, WORKER, "worker-0"));
        assert_eq!(scene.tracker.totals, Totals { irqs: 1, softirqs: 0, threads: 1, lost: 0 });
        let found = scene.flush(30_000);
        assert_eq!(spans(&found), [(10, 20_000, "task:hog".into())]);
        assert_eq!(found[0].also, [Cause::Vector("reschedule")]);
    }

    #[test]
    fn a_worker_that_was_not_seen_yet_is_not_away() {
        let found = Scene::new()
            .at(10, 0, switch(0, false, HOG, "hog"))
            .at(20, 300, switch(300, true, HOG, "hog"))
            .at(30, HOG, switch(HOG, true, WORKER, "worker-0"))
            .flush(3000);
        assert_eq!(found, []);
    }

    #[test]
    fn without_privilege_the_culprit_is_unknown() {
        let found = Scene::new()
            .at(10, WORKER, What::Out { preempted: true })
            .at(30, WORKER, What::In)
            .at(40, WORKER, What::Out { preempted: false })
            .at(60, WORKER, What::In)
            .flush(3000);
        assert_eq!(spans(&found), [(10, 30, "task:unknown".into()), (40, 60, "blocked".into())]);
    }
}
