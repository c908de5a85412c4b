//! What an application is: one trait, batches in and out.
#![forbid(unsafe_code)]

use crate::outputs::Outputs;
use crate::punt::Local;
use crate::slow_path::SlowPath;
use isolation::Turn;
use nic::{Batch, MacAddress, PortId};
use std::sync::Arc;

/// The packet processing of one worker. Every worker has its own: nothing is shared, nothing is locked.
pub trait Application: Send {
    /// Handles packets that came in by `from`. What is left in `packets` afterwards is dropped as `application`.
    ///
    /// A packet that is taken out of the batch must go to `out`: to a port, or to [`Outputs::discard_one`]. One that is merely
    /// dropped is freed and counted nowhere.
    ///
    /// Runs on the hot path: no allocation, no lock, no system call.
    fn process(&mut self, packets: &mut Batch, from: PortId, out: &mut Outputs);

    /// Called once a loop turn, before the receive queues are polled: for applications that send by themselves.
    #[inline]
    fn poll(&mut self, _out: &mut Outputs) {}

    /// True while the application has something of its own to do, such as sending: the worker then goes on although no
    /// input will bring any more packets.
    #[inline]
    fn is_sending(&self) -> bool {
        false
    }

    /// True once the application has nothing left to do; the worker then stops.
    #[inline]
    fn is_finished(&self) -> bool {
        false
    }

    /// Called at the next turn after the worker's isolation was violated (`--isolation`): at `Turn::Disturbed` it goes on, at
    /// `Turn::Ended` it has ended. What it was is in the log.
    fn on_violation(&mut self, _turn: Turn) {}

    /// Called once when the worker has stopped: packets that the application has kept go now.
    fn stop(&mut self) {}
}

/// What an application may know of a port.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// Its number.
    pub id: PortId,
    /// Its name: `afxdp:eth0`.
    pub name: String,
    /// Its own Ethernet address.
    pub mac: MacAddress,
    /// The longest packet it sends, in bytes, with the Ethernet header.
    pub max_packet_len: usize,
    /// Knows what is for the port itself, where it has an exception port to punt that to.
    pub local: Option<Local>,
}

/// What an application gets to know when it is made for a worker.
#[derive(Clone, Debug)]
pub struct WorkerContext {
    /// The worker's number, from 0.
    pub worker: usize,
    /// How many workers there are.
    pub workers: usize,
    /// The CPU it runs on.
    pub cpu: usize,
    /// All ports, by number.
    pub ports: Arc<[PortInfo]>,
    /// The pool, for applications that make packets.
    pub pool: nic::Pool,
    /// For jobs that may block, where one was started ([`Dataplane::start_slow_path`](crate::Dataplane::start_slow_path)).
    pub slow_path: Option<Arc<SlowPath>>,
}

impl WorkerContext {
    /// The port of that number.
    pub fn port(&self, id: PortId) -> &PortInfo {
        &self.ports[usize::from(id.0)]
    }
}
