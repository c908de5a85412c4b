//! Where an application sends packets: one transmit queue for each port its worker may reach.
#![forbid(unsafe_code)]

use crate::bell::Bell;
use crate::punt::Punting;
use isolation::Window;
use nic::counters::{DropReason, QueueCounters};
use nic::port::{PortGone, TxQueue};
use nic::{Batch, Packet, PortId};
use percpu::qsbr::{Reader, Shared};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The transmit queues of one worker.
pub struct Outputs {
    /// By port number; `None` where this worker has no queue of the port.
    queues: Vec<Option<Output>>,
    /// The counters of the worker's receive queues. A drop that no transmit queue is to blame for is counted where
    /// the packets came in.
    sources: Vec<Arc<QueueCounters>>,
    current: usize,
    gone: Option<(PortId, PortGone)>,
    punting: Punting,
    /// The worker's turns, as published tables know them.
    pub(crate) turns: Reader,
}

struct Output {
    queue: Box<dyn TxQueue>,
    counters: Arc<QueueCounters>,
    bell: Option<Bell>,
    down: Arc<AtomicBool>,
    /// Packets sent one by one, until the batch is full or the loop turn ends.
    pending: Batch,
}

impl Output {
    /// Moves packets to the ring; where it is full, rings the doorbell and tries once more.
    #[inline(always)]
    fn transmit(&mut self, packets: &mut Batch, gone: &mut Option<(PortId, PortGone)>) {
        if self.down.load(Ordering::Relaxed) {
            return self.refuse(packets);
        }
        self.queue.transmit(packets);
        if !packets.is_empty() && self.queue.needs_doorbell() {
            self.ring(gone);
            self.queue.transmit(packets);
        }
    }

    #[cold]
    fn ring(&mut self, gone: &mut Option<(PortId, PortGone)>) {
        if let Some(error) = self.bell.as_ref().and_then(Bell::ring) {
            gone.get_or_insert(error);
        }
    }

    /// The port is out of use.
    #[cold]
    fn refuse(&self, packets: &mut Batch) {
        self.counters.drops(DropReason::AdminDown).add(packets.len() as u64);
        packets.clear();
    }

    #[inline]
    fn flush_pending(&mut self, gone: &mut Option<(PortId, PortGone)>) {
        let mut pending = std::mem::take(&mut self.pending);
        self.transmit(&mut pending, gone);
        self.counters.drops(DropReason::TxRingFull).add(pending.len() as u64);
    }
}

impl Outputs {
    /// For a worker with these receive queues, at least one.
    pub(crate) fn new(ports: usize, sources: Vec<Arc<QueueCounters>>, turns: Reader) -> Self {
        Self {
            queues: (0..ports).map(|_| None).collect(),
            sources,
            current: 0,
            gone: None,
            punting: Punting::default(),
            turns,
        }
    }

    /// A table that the control core may replace while it is read, as it is now ([`Dataplane::publish`](crate::Dataplane::publish)): a load of
    /// a pointer. It stays whole and as it is for as long as the reference is kept, which is this call of the application at the most.
    ///
    /// ```compile_fail,E0502
    /// # use dataplane::{Outputs, Shared};
    /// # use nic::{Packet, PortId};
    /// fn send(routes: &Shared<Vec<u16>>, packet: Packet, out: &mut Outputs) {
    ///     let table = out.read(routes);
    ///     out.send_one(PortId(table[0]), packet);
    ///     println!("{}", table[1]); // Look up first, send then.
    /// }
    /// ```
    ///
    /// # Panics
    /// Where the table was published by another dataplane.
    #[inline(always)]
    pub fn read<'a, T: Send + Sync>(&'a self, table: &'a Shared<T>) -> &'a T {
        table.get(&self.turns)
    }

    /// From now on doorbells are rung through this window.
    pub(crate) fn set_window(&mut self, window: Option<&Window>) {
        let bells = self.queues.iter_mut().flatten().filter_map(|output| output.bell.as_mut());
        bells.for_each(|bell| bell.set_window(window));
    }

    fn blame_source(&self, reason: DropReason, packets: usize) {
        if let Some(counters) = self.sources.get(self.current) {
            counters.drops(reason).add(packets as u64);
        }
    }

    pub(crate) fn add(
        &mut self,
        to: PortId,
        queue: Box<dyn TxQueue>,
        bell: Option<Bell>,
        down: Arc<AtomicBool>,
    ) {
        let counters = Arc::clone(queue.counters());
        self.queues[usize::from(to.0)] = Some(Output { queue, counters, bell, down, pending: Batch::new() });
    }

    /// Sends all packets of the batch, in order; what the port cannot take is dropped and counted at it.
    #[inline(always)]
    pub fn send(&mut self, to: PortId, packets: &mut Batch) {
        self.try_send(to, packets);
        if !packets.is_empty() {
            self.drop_unsent(to, packets);
        }
    }

    /// Sends packets from the front of the batch, in order, and leaves in it what the port cannot take now.
    #[inline(always)]
    pub fn try_send(&mut self, to: PortId, packets: &mut Batch) {
        if let Some(Some(output)) = self.queues.get_mut(usize::from(to.0)) {
            if !output.pending.is_empty() {
                output.flush_pending(&mut self.gone);
            }
            output.transmit(packets, &mut self.gone);
        }
    }

    /// Sends one packet: it goes out with others when 64 are together, or at the end of the loop turn.
    #[inline]
    pub fn send_one(&mut self, to: PortId, packet: Packet) {
        let Some(Some(output)) = self.queues.get_mut(usize::from(to.0)) else {
            return self.blame_source(DropReason::NoTxQueue, 1);
        };
        if let Err(packet) = output.pending.push(packet) {
            output.flush_pending(&mut self.gone);
            // The batch was just emptied.
            let _ = output.pending.push(packet);
        }
    }

    /// Hands a packet to the kernel, by the exception port of the port it came in by; where that has none or the limit is reached,
    /// drops it and counts that at the port.
    pub fn punt(&mut self, packet: Packet) {
        match self.punting.admit(&packet) {
            Ok(exception) => {
                if let Some(counters) = self.sources.get(self.current) {
                    counters.punted.add(1);
                }
                self.send_one(exception, packet);
            }
            Err(reason) => self.discard_one(packet, reason),
        }
    }

    /// The same for all packets of a batch.
    pub fn punt_all(&mut self, packets: &mut Batch) {
        packets.drain_front(packets.len(), |packet| self.punt(packet));
    }

    /// From now on packets are punted by these rules.
    pub(crate) fn set_punting(&mut self, punting: Punting) {
        self.punting = punting;
    }

    /// Drops the packets of the batch, counted under this reason at the port they came in by.
    pub fn discard(&mut self, packets: &mut Batch, reason: DropReason) {
        self.blame_source(reason, packets.len());
        packets.clear();
    }

    /// Drops one packet, counted under this reason at the port that the batch in hand came in by.
    #[inline]
    pub fn discard_one(&mut self, packet: Packet, reason: DropReason) {
        self.blame_source(reason, 1);
        drop(packet);
    }

    #[cold]
    fn drop_unsent(&mut self, to: PortId, packets: &mut Batch) {
        match self.queues.get(usize::from(to.0)) {
            Some(Some(output)) => output.counters.drops(DropReason::TxRingFull).add(packets.len() as u64),
            _ => self.blame_source(DropReason::NoTxQueue, packets.len()),
        }
        packets.clear();
    }

    /// Says which of the worker's receive queues the packets come from that the application gets next.
    #[inline(always)]
    pub(crate) fn set_source(&mut self, index: usize) {
        self.current = index;
    }

    /// The end of a loop turn: pending packets go out and doorbells are rung.
    ///
    /// True where packets were still on their way out: somebody has to look again.
    #[inline(always)]
    pub(crate) fn end_of_turn(&mut self) -> bool {
        let mut rings = false;
        for output in self.queues.iter_mut().flatten() {
            if !output.pending.is_empty() {
                output.flush_pending(&mut self.gone);
            }
            if output.queue.needs_doorbell() {
                rings = true;
                output.ring(&mut self.gone);
            }
        }
        self.turns.quiescent();
        rings
    }

    /// Whether packets wait for more to come before they go: the end of the next turn sends them.
    #[cold]
    pub(crate) fn are_gathering(&self) -> bool {
        self.queues.iter().flatten().any(|output| output.queue.is_gathering())
    }

    pub(crate) fn take_gone(&mut self) -> Option<(PortId, PortGone)> {
        self.gone.take()
    }
}
