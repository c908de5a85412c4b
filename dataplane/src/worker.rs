//! The run-to-completion loop: poll, process, transmit, ring, and round again.
//!
//! It allocates nothing, locks nothing, and makes no system call; with `--kick worker` but for the doorbells it rings, in isolation too:
//! those are meant, and go through a window.
#![forbid(unsafe_code)]

use crate::application::Application;
use crate::bell::Bell;
use crate::idle::{self, Sleeper};
use crate::isolation_args::OnViolation;
use crate::loop_gap::Gaps;
use crate::loop_gap::LoopGap;
use crate::outputs::Outputs;
use crossbeam_queue::ArrayQueue;
use isolation::{Gap, Isolated, Turn, Window};
use nic::port::{PortGone, RxQueue};
use nic::{Batch, Counter, Pool, PortId};
use percpu::{qsbr, tsc};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// What a worker and the control core share. The worker writes the counters, the control core reads them.
#[derive(Default)]
#[repr(align(64))]
pub(crate) struct WorkerCounters {
    /// Packets received by this worker.
    pub(crate) packets: Counter,
    /// Ticks of the loop turns in which packets moved.
    pub(crate) busy_tsc: Counter,
    /// Loop turns.
    pub(crate) turns: Counter,
    /// Times it slept for want of packets.
    pub(crate) sleeps: Counter,
    /// The longest loop gap since the control core last looked, in ticks.
    pub(crate) longest_gap_tsc: Counter,
    /// The longest of the whole run.
    pub(crate) longest_of_all_tsc: Counter,
    /// Set by the control core when it has looked.
    pub(crate) gap_seen: AtomicBool,
}

/// The orders and events of a run, shared by all.
pub(crate) struct RunState {
    pub(crate) stop: AtomicBool,
    pub(crate) events: ArrayQueue<(PortId, PortGone)>,
    pub(crate) pool: Pool,
    pub(crate) on_violation: OnViolation,
    /// Who reads published tables: each worker, by its number, while its loop runs.
    pub(crate) readers: Arc<qsbr::Domain>,
    /// The worker whose violation ended the run; `usize::MAX` for none.
    interrupted: AtomicUsize,
    /// Workers that are in isolation.
    isolated: AtomicUsize,
    /// Workers whose inputs have not ended.
    at_work: AtomicUsize,
    /// The queues of workers that have ended.
    retired: Mutex<Vec<(Outputs, Vec<Input>)>>,
}

/// One worker among [`RunState::at_work`]; that ends also where it panics.
struct AtWork(Arc<RunState>);

impl AtWork {
    fn begin(state: &Arc<RunState>) -> Self {
        state.at_work.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.at_work.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One worker's stay among [`RunState::isolated`]; it ends also where the worker panics.
struct Stay(Arc<RunState>);

impl Stay {
    fn begin(state: &Arc<RunState>) -> Self {
        state.isolated.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }

    /// Waits until the others have left too: what a worker does when it ends (closing queues, giving its stack back) would interrupt
    /// those that are still isolated.
    fn end(self) {
        let state = Arc::clone(&self.0);
        drop(self);
        while state.isolated.load(Ordering::Relaxed) > 0 {
            thread::sleep(LEAVE_PERIOD);
        }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.0.isolated.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RunState {
    pub(crate) fn new(pool: Pool, on_violation: OnViolation) -> Self {
        let interrupted = AtomicUsize::new(usize::MAX);
        Self {
            stop: AtomicBool::new(false),
            events: ArrayQueue::new(16),
            pool,
            on_violation,
            readers: qsbr::Domain::new(),
            interrupted,
            isolated: AtomicUsize::new(0),
            at_work: AtomicUsize::new(0),
            retired: Mutex::default(),
        }
    }

    /// Closes the queues of the workers, which have all ended: what closes one of a device's queues may stop the others.
    pub(crate) fn close_queues(&self) {
        let retired = std::mem::take(&mut *self.retired.lock().unwrap_or_else(PoisonError::into_inner));
        // First those that may still have packets to send.
        let (outputs, inputs): (Vec<Outputs>, Vec<Vec<Input>>) = retired.into_iter().unzip();
        drop(outputs);
        drop(inputs);
    }

    /// Whether the inputs of all workers have ended.
    pub(crate) fn nobody_is_at_work(&self) -> bool {
        self.at_work.load(Ordering::Relaxed) == 0
    }

    /// For the readers of tables that were published before the run.
    pub(crate) fn with_readers(mut self, readers: &Arc<qsbr::Domain>) -> Self {
        self.readers = Arc::clone(readers);
        self
    }

    /// The worker whose violation ended the run.
    pub(crate) fn interrupted(&self) -> Option<usize> {
        Some(self.interrupted.load(Ordering::Relaxed)).filter(|worker| *worker != usize::MAX)
    }
}

/// Longer gaps of an isolated worker's loop are looked into, in nanoseconds.
const LONG_GAP_NS: u64 = 20_000;
/// So many in a second are too many to be looked into: the limit doubles.
const MANY_GAPS: u64 = 1000;

/// How often a worker that has left looks whether the others have.
const LEAVE_PERIOD: Duration = Duration::from_millis(1);

/// A receive queue of a worker.
pub(crate) struct Input {
    pub(crate) queue: Box<dyn RxQueue>,
    pub(crate) port: PortId,
    pub(crate) bell: Option<Bell>,
    /// Whether a sleeping worker may have the kernel tell of its packets.
    pub(crate) wakes: bool,
    /// Where it is an exception port's: what the kernel sends by it goes out by this port, and the run does not wait for it.
    pub(crate) exception_of: Option<PortId>,
    /// Set by who takes the port out of use.
    pub(crate) down: Arc<AtomicBool>,
}

/// What the framework gives a worker.
pub(crate) struct Parts {
    pub(crate) index: usize,
    pub(crate) inputs: Vec<Input>,
    pub(crate) outputs: Outputs,
    pub(crate) counters: Arc<WorkerCounters>,
    pub(crate) gaps: Arc<Gaps>,
    pub(crate) sleeper: Sleeper,
}

/// One worker with all it needs, ready to run.
pub(crate) struct Worker<A> {
    index: usize,
    inputs: Vec<Input>,
    outputs: Outputs,
    application: A,
    counters: Arc<WorkerCounters>,
    state: Arc<RunState>,
    /// Until its inputs have ended.
    at_work: Option<AtWork>,
    gap: LoopGap,
    gaps: Arc<Gaps>,
    sleeper: Sleeper,
    /// Gaps longer than this, in ticks, are told of.
    long_gap: u64,
    long_gaps: u64,
    /// When the last [`MANY_GAPS`] began.
    many_gaps_ago: u64,
}

impl<A: Application> Worker<A> {
    pub(crate) fn new(parts: Parts, application: A, state: Arc<RunState>) -> Self {
        let Parts { index, inputs, outputs, counters, gaps, sleeper } = parts;
        let gap = LoopGap::new();
        let at_work = Some(AtWork::begin(&state));
        Self {
            index,
            inputs,
            outputs,
            application,
            counters,
            state,
            at_work,
            gap,
            gaps,
            sleeper,
            long_gap: u64::MAX,
            long_gaps: 0,
            many_gaps_ago: 0,
        }
    }

    /// Runs until told to stop, or until there is nothing left to do, in isolation where it is given. Gives the application back.
    pub(crate) fn run(mut self, mut isolated: Option<Isolated>) -> (A, LoopGap) {
        let mut batch = Batch::new();
        let receives = self.inputs.iter().any(|input| input.exception_of.is_none());
        // What the kernel sends goes on as long as any worker does.
        let brings_back = self.inputs.iter().any(|input| input.exception_of.is_some());
        let window = isolated.as_ref().and_then(Isolated::window);
        self.set_window(window.as_ref());
        let stay = isolated.as_ref().map(|_| Stay::begin(&self.state));
        if isolated.is_some() {
            self.long_gap = tsc::from_ns(LONG_GAP_NS);
        }
        self.outputs.turns.begin();
        let mut last = tsc::now();
        let mut moved = 0;
        while !self.state.stop.load(Ordering::Relaxed) {
            let now = tsc::now();
            self.account(now.wrapping_sub(last), moved);
            if now.wrapping_sub(last) > self.long_gap {
                self.tell_gap(last, now);
            }
            last = now;
            if let Some(isolated) = &mut isolated {
                match isolated.turn() {
                    Turn::Undisturbed | Turn::Entered => {}
                    turn => self.violated(isolated, turn),
                }
            }
            moved = 0;
            let mut open = false;
            self.application.poll(&mut self.outputs);
            for (index, input) in self.inputs.iter_mut().enumerate() {
                input.queue.receive(&mut batch);
                if batch.is_empty() {
                    open |= input.exception_of.is_none() && !input.queue.is_finished();
                } else {
                    open |= input.exception_of.is_none();
                    moved += batch.len() as u64;
                    self.outputs.set_source(index);
                    if input.down.load(Ordering::Relaxed) {
                        self.outputs.discard(&mut batch, nic::DropReason::AdminDown);
                    } else if let Some(port) = input.exception_of {
                        self.outputs.send(port, &mut batch);
                    } else {
                        self.application.process(&mut batch, input.port, &mut self.outputs);
                    }
                    if !batch.is_empty() {
                        self.outputs.discard(&mut batch, nic::DropReason::Application);
                    }
                }
                if input.queue.needs_doorbell() {
                    input.ring(&self.state);
                }
            }
            let rings = self.outputs.end_of_turn();
            self.state.pool.serve();
            if let Some(gone) = self.outputs.take_gone() {
                // A full queue of events means that the control core has plenty to say already.
                let _ = self.state.events.push(gone);
            }
            let ended = !open && receives && !self.application.is_sending();
            if ended {
                self.at_work = None;
            }
            if ended && !brings_back || self.application.is_finished() {
                break;
            }
            if self.sleeper.is_due(now, moved > 0 || rings)
                && !self.application.is_sending()
                && !self.outputs.are_gathering()
            {
                idle::sleep(self.inputs.iter().map(Input::readiness));
                self.counters.sleeps.add(1);
                // Sleep is no gap.
                last = tsc::now();
            }
        }
        // Or those that bring back would wait for it, and it for them.
        self.at_work = None;
        self.outputs.turns.end();
        self.account(tsc::now().wrapping_sub(last), moved);
        // What the end takes is no violation.
        self.set_window(None);
        drop((window, isolated));
        self.application.stop();
        if let Some(stay) = stay {
            stay.end();
        }
        let Self { inputs, outputs, state, application, gap, .. } = self;
        state.retired.lock().unwrap_or_else(PoisonError::into_inner).push((outputs, inputs));
        (application, gap)
    }

    /// By which doorbells leave isolation.
    fn set_window(&mut self, window: Option<&Window>) {
        self.outputs.set_window(window);
        self.inputs.iter_mut().flat_map(|input| &mut input.bell).for_each(|bell| bell.set_window(window));
    }

    /// A gap that somebody may have to answer for. A function of its own, which bench/isolation/instructions.py leaves out.
    #[cold]
    #[inline(never)]
    fn tell_gap(&mut self, from: u64, to: u64) {
        // Where there is no room, the control core is behind; nothing hangs on it.
        let _ = self.gaps.push(Gap { from, to, limit: self.long_gap });
        self.long_gaps += 1;
        if self.long_gaps.is_multiple_of(MANY_GAPS) {
            if to.wrapping_sub(self.many_gaps_ago) < tsc::from_ns(1_000_000_000) {
                // So many are the application's own turns.
                self.long_gap *= 2;
            }
            self.many_gaps_ago = to;
        }
    }

    /// Something was signalled since the last turn.
    #[cold]
    fn violated(&mut self, isolated: &mut Isolated, turn: Turn) {
        self.application.on_violation(turn);
        match self.state.on_violation {
            OnViolation::Exit => {
                // The first is who did it.
                let _ = self.state.interrupted.compare_exchange(
                    usize::MAX,
                    self.index,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                self.state.stop.store(true, Ordering::Relaxed);
            }
            OnViolation::Rearm if matches!(turn, Turn::Ended(_)) => {
                // Off its CPU it stays as it is: the control core has told of that.
                let _ = isolated.enter_again();
            }
            _ => {}
        }
    }

    #[inline(always)]
    fn account(&mut self, gap: u64, moved: u64) {
        self.gap.record(gap);
        let counters = &*self.counters;
        counters.turns.add(1);
        if moved > 0 {
            counters.packets.add(moved);
            counters.busy_tsc.add(gap);
        }
        // The longest so far was seen: what was longer meanwhile was not.
        if gap > counters.longest_gap_tsc.get() || counters.gap_seen.load(Ordering::Relaxed) {
            counters.gap_seen.store(false, Ordering::Relaxed);
            counters.longest_gap_tsc.set(gap);
            counters.longest_of_all_tsc.set(gap.max(counters.longest_of_all_tsc.get()));
        }
    }
}

impl Input {
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.queue.readiness().filter(|_| self.wakes)
    }

    #[cold]
    fn ring(&mut self, state: &RunState) {
        if let Some(gone) = self.bell.as_ref().and_then(Bell::ring) {
            // A full queue of events means that the control core has plenty to say already.
            let _ = state.events.push(gone);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
