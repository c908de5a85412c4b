//! The run-to-completion loop: poll, process, transmit, ring, and round again.
//!
//! It allocates nothing, locks nothing, and makes no system call but the doorbells it rings.
#![forbid(unsafe_code)]

use crate::application::Application;
use crate::loop_gap::LoopGap;
use crate::outputs::Outputs;
use crossbeam_queue::ArrayQueue;
use nic::port::{Doorbell, PortGone, RxQueue};
use nic::{Batch, Counter, Pool, PortId, QueueCounters};
use percpu::tsc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// The longest loop gap since the control core last looked, in ticks.
    pub(crate) longest_gap_tsc: Counter,
    /// Set by the control core when it has looked.
    pub(crate) gap_seen: AtomicBool,
}

/// The orders and events of a run, shared by all.
pub(crate) struct RunState {
    pub(crate) stop: AtomicBool,
    pub(crate) events: ArrayQueue<(PortId, PortGone)>,
    pub(crate) pool: Pool,
}

struct Input {
    queue: Box<dyn RxQueue>,
    port: PortId,
    counters: Arc<QueueCounters>,
    doorbell: Option<Arc<dyn Doorbell>>,
}

/// One worker with all it needs, ready to run.
pub(crate) struct Worker<A> {
    inputs: Vec<Input>,
    outputs: Outputs,
    application: A,
    counters: Arc<WorkerCounters>,
    state: Arc<RunState>,
    gap: LoopGap,
}

impl<A: Application> Worker<A> {
    pub(crate) fn new(
        rx: Vec<(PortId, Box<dyn RxQueue>)>,
        outputs: Outputs,
        application: A,
        counters: Arc<WorkerCounters>,
        state: Arc<RunState>,
    ) -> Self {
        let inputs = rx
            .into_iter()
            .map(|(port, queue)| Input {
                counters: Arc::clone(queue.counters()),
                doorbell: queue.doorbell(),
                queue,
                port,
            })
            .collect();
        Self { inputs, outputs, application, counters, state, gap: LoopGap::new() }
    }

    /// Runs until told to stop, or until there is nothing left to do. Gives the application back.
    pub(crate) fn run(mut self) -> (A, LoopGap) {
        let mut batch = Batch::new();
        let mut last = tsc::now();
        let mut moved = 0;
        while !self.state.stop.load(Ordering::Relaxed) {
            let now = tsc::now();
            self.account(now.wrapping_sub(last), moved);
            last = now;
            moved = 0;
            let mut open = false;
            self.application.poll(&mut self.outputs);
            for (index, input) in self.inputs.iter_mut().enumerate() {
                input.queue.receive(&mut batch);
                if batch.is_empty() {
                    open |= !input.queue.is_finished();
                } else {
                    open = true;
                    moved += batch.len() as u64;
                    self.outputs.set_source(index);
                    self.application.process(&mut batch, input.port, &mut self.outputs);
                    if !batch.is_empty() {
                        self.outputs.discard(&mut batch, nic::DropReason::Application);
                    }
                }
                if input.queue.needs_doorbell() {
                    input.ring(&self.state);
                }
            }
            self.outputs.end_of_turn();
            self.state.pool.serve();
            if let Some(gone) = self.outputs.take_gone() {
                // A full queue of events means that the control core has plenty to say already.
                let _ = self.state.events.push(gone);
            }
            let ended = !open && !self.inputs.is_empty() && !self.application.is_sending();
            if ended || self.application.is_finished() {
                break;
            }
        }
        self.account(tsc::now().wrapping_sub(last), moved);
        self.application.stop();
        (self.application, self.gap)
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
        if gap > counters.longest_gap_tsc.get() {
            counters.longest_gap_tsc.set(gap);
        } else if counters.gap_seen.load(Ordering::Relaxed) {
            counters.gap_seen.store(false, Ordering::Relaxed);
            counters.longest_gap_tsc.set(0);
        }
    }
}

impl Input {
    #[cold]
    fn ring(&mut self, state: &RunState) {
        if let Some(doorbell) = &self.doorbell {
            self.counters.doorbells.add(1);
            if let Err(gone) = doorbell.ring() {
                let _ = state.events.push((self.port, gone));
            }
        }
    }
}
