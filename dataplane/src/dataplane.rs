//! Opens what a plan describes, runs it, and takes it down in order.
#![forbid(unsafe_code)]

use crate::application::{Application, PortInfo, WorkerContext};
use crate::assignment::WorkerQueues;
use crate::control;
use crate::error::Error;
use crate::loop_gap::LoopGap;
use crate::outputs::Outputs;
use crate::plan::{Plan, tx_queues};
use crate::registry::{PortEntry, Registry, WorkerEntry};
use crate::report::{PoolReport, PortReport, Report, WorkerReport};
use crate::signals::{Signals, Waker};
use crate::table::Table;
use crate::worker::{RunState, Worker};
use crossbeam_queue::ArrayQueue;
use nic::port::{OpenContext, PortGone, RxQueue, TxQueue};
use nic::{Pool, PortId};
use percpu::pin::Watch;
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Open ports and the CPUs to run them on.
pub struct Dataplane {
    plan: Plan,
    pool: Pool,
    dealt: Vec<WorkerQueues>,
    registry: Registry,
    rx: Vec<Vec<Option<Box<dyn RxQueue>>>>,
    tx: Vec<Vec<Option<Box<dyn TxQueue>>>>,
    infos: Arc<[PortInfo]>,
    signals: Signals,
}

/// What is left of a run.
pub struct Outcome<A> {
    /// What was counted.
    pub report: Report,
    /// The workers' applications, in the order of the workers.
    pub applications: Vec<A>,
}

type Joined<A> = (A, LoopGap);

impl Dataplane {
    pub(crate) fn open(mut plan: Plan) -> Result<Self, Error> {
        let dealt = plan.deal()?;
        // Before any port: a signal while one is opened must not end the process with something on the host changed.
        let signals = Signals::install().map_err(Error::system("cannot install signal handlers"))?;
        let pool = Pool::new(&plan.pool_config(&dealt)?)?;
        let mut registry = Registry { ports: Vec::new(), workers: Vec::new() };
        let (mut rx, mut tx, mut infos) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (_, port_plan)) in std::mem::take(&mut plan.ports).into_iter().enumerate() {
            let id = PortId(index as u16);
            let context = OpenContext {
                pool: &pool,
                id,
                tx_queues: tx_queues(&dealt, index),
                promiscuous: plan.args.promiscuous,
            };
            let mut open = port_plan.open(&context)?;
            tracing::info!("port {id}: {}, {}, {}", open.port.name(), open.port.mode(), open.port.mac());
            infos.push(PortInfo {
                id,
                name: open.port.name().to_owned(),
                mac: open.port.mac(),
                max_packet_len: open.port.max_packet_len(),
            });
            registry.ports.push(PortEntry {
                rx: open.rx.iter().map(|queue| Arc::clone(queue.counters())).collect(),
                tx: open.tx.iter().map(|queue| Arc::clone(queue.counters())).collect(),
                link: open.port.link(),
                port: open.port,
            });
            rx.push(open.rx.into_iter().map(Some).collect());
            tx.push(open.tx.into_iter().map(Some).collect());
        }
        let cpus = plan.placement.workers.iter();
        registry.workers = cpus
            .map(|&cpu| WorkerEntry { cpu, counters: Arc::default(), watch: None, affinity_changes: 0 })
            .collect();
        Ok(Self { plan, pool, dealt, registry, rx, tx, infos: infos.into(), signals })
    }

    /// What is known of the ports, by number.
    pub fn ports(&self) -> &[PortInfo] {
        &self.infos
    }

    /// The packet memory.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Runs one application for each worker, made by `make`, until the duration is over, a signal comes, or there is nothing left
    /// to do. Then closes everything, prints the totals and writes the report.
    pub fn run<A: Application + 'static>(
        mut self,
        mut make: impl FnMut(&WorkerContext) -> A,
    ) -> Result<Outcome<A>, Error> {
        let state = Arc::new(RunState {
            stop: AtomicBool::new(false),
            events: ArrayQueue::new(16),
            pool: self.pool.clone(),
        });
        percpu::tsc::frequency_hz();
        let workers: Vec<Worker<A>> =
            (0..self.dealt.len()).map(|index| self.make_worker(index, &state, &mut make)).collect();
        let mut table = Table::new(&self.plan.args);
        let mut started = Instant::now();
        let mut result =
            Crew::start(workers, &self.plan.placement.workers, &state, &self.signals).and_then(|mut crew| {
                for (entry, watch) in self.registry.workers.iter_mut().zip(crew.watches.drain(..)) {
                    entry.watch = Some(watch);
                }
                // Only now: threads inherit the affinity mask of the one that makes them. A control CPU nobody asked for is
                // a wish.
                let pinned = percpu::pin_on_cpu(self.plan.placement.control);
                let _pinned = match pinned {
                    Err(error) if self.plan.args.control.is_some() => {
                        return Err(Error::Configuration(format!("control core: {error}")));
                    }
                    pinned => pinned.ok(),
                };
                started = Instant::now();
                let ended = control::run(
                    &mut self.registry,
                    &mut self.signals,
                    &state,
                    &self.plan.args,
                    &mut table,
                    || crew.is_finished(),
                );
                crew.join().and_then(|joined| ended.map(|gone| (joined, gone)))
            });
        let duration_s = started.elapsed().as_secs_f64();
        // The queues went with the workers; those nobody took go now. What the kernel counted is read before the port closes.
        drop((std::mem::take(&mut self.rx), std::mem::take(&mut self.tx)));
        let lost = control::last_look(&mut self.registry, &state);
        self.registry.ports.iter_mut().for_each(|entry| entry.port.refresh());
        let ports: Vec<PortReport> = self.registry.ports.iter().map(PortReport::new).collect();
        let workers = |gaps: &[LoopGap]| -> Vec<WorkerReport> {
            self.registry.workers.iter().zip(gaps).map(|(entry, gap)| worker_report(entry, gap)).collect()
        };
        let gone: Option<PortGone> = result.as_mut().ok().and_then(|(_, gone)| gone.take());
        let joined = result.map(|(joined, _)| joined)?;
        let (applications, gaps): (Vec<A>, Vec<LoopGap>) = joined.into_iter().unzip();
        let workers = workers(&gaps);
        self.registry.ports.clear();
        let report = Report {
            duration_s,
            tsc_hz: percpu::tsc::frequency_hz(),
            ports,
            workers,
            pool: PoolReport::new(self.pool.audit()),
        };
        table.totals(&report);
        if report.pool.leaked > 0 {
            tracing::error!(
                "{} frames are neither free nor held: please report this as a bug",
                report.pool.leaked
            );
        }
        if let Some(path) = &self.plan.args.report {
            write_report(path, &report)?;
        }
        match gone.or(lost) {
            Some(gone) => Err(gone.into()),
            None => Ok(Outcome { report, applications }),
        }
    }

    fn make_worker<A: Application>(
        &mut self,
        index: usize,
        state: &Arc<RunState>,
        make: &mut impl FnMut(&WorkerContext) -> A,
    ) -> Worker<A> {
        let context = WorkerContext {
            worker: index,
            workers: self.dealt.len(),
            cpu: self.registry.workers[index].cpu,
            ports: Arc::clone(&self.infos),
            pool: self.pool.clone(),
        };
        let queues = std::mem::take(&mut self.dealt[index]);
        let mut rx = Vec::new();
        for (port, queue) in queues.rx {
            rx.extend(self.rx[usize::from(port.0)][queue].take().map(|queue| (port, queue)));
        }
        let sources = rx.iter().map(|(_, queue)| Arc::clone(queue.counters())).collect();
        let mut outputs = Outputs::new(self.infos.len(), sources);
        for (port, queue) in queues.tx {
            if let Some(queue) = self.tx[usize::from(port.0)][queue].take() {
                outputs.add(port, queue);
            }
        }
        let counters = Arc::clone(&self.registry.workers[index].counters);
        Worker::new(rx, outputs, make(&context), counters, Arc::clone(state))
    }
}

/// The worker threads.
struct Crew<A> {
    threads: Vec<JoinHandle<Joined<A>>>,
    /// Of their affinity, in the order of the workers.
    watches: Vec<Watch>,
    state: Arc<RunState>,
}

impl<A: Application + 'static> Crew<A> {
    /// Starts a thread for each worker. None runs its loop before all are on their CPUs.
    fn start(
        workers: Vec<Worker<A>>,
        cpus: &[usize],
        state: &Arc<RunState>,
        signals: &Signals,
    ) -> Result<Self, Error> {
        let mut crew = Self { threads: Vec::new(), watches: Vec::new(), state: Arc::clone(state) };
        let (ready, all_ready) = mpsc::channel();
        let mut starts = Vec::new();
        for (index, (worker, &cpu)) in workers.into_iter().zip(cpus).enumerate() {
            let waker = signals.waker().map_err(Error::system("cannot make a pipe"))?;
            let ready = ready.clone();
            let (start, may_start) = mpsc::channel::<()>();
            let state = Arc::clone(state);
            let body = move || {
                let _at_the_end = AtTheEnd { waker, state };
                let (_pinned, result) = match percpu::pin_on_cpu(cpu) {
                    Ok(pinned) => {
                        let watch = pinned.watch();
                        (Some(pinned), Ok((index, watch)))
                    }
                    Err(source) => (None, Err(Error::Pin { worker: index, source })),
                };
                let _ = ready.send(result);
                // An error means that some worker could not start: then the stop flag is set and run returns at once.
                let _ = may_start.recv();
                worker.run()
            };
            let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(body);
            crew.threads.push(thread.map_err(Error::system("cannot start a worker thread"))?);
            starts.push(start);
        }
        drop(ready);
        let pinned: Result<BTreeMap<usize, Watch>, Error> =
            all_ready.iter().take(crew.threads.len()).collect();
        if pinned.is_err() {
            state.stop.store(true, Ordering::Relaxed);
        }
        drop(starts);
        crew.watches = pinned?.into_values().collect();
        Ok(crew)
    }

    fn is_finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    fn join(mut self) -> Result<Vec<Joined<A>>, Error> {
        self.state.stop.store(true, Ordering::Relaxed);
        let joined: Vec<_> = std::mem::take(&mut self.threads).into_iter().map(JoinHandle::join).collect();
        joined
            .into_iter()
            .enumerate()
            .map(|(worker, result)| {
                result.map_err(|panic| Error::Panic { worker, message: panic_message(&*panic) })
            })
            .collect()
    }
}

impl<A> Drop for Crew<A> {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Tells the others that a worker has ended; one that panicked ends them too, or its queues would overflow unseen.
struct AtTheEnd {
    waker: Waker,
    state: Arc<RunState>,
}

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        if thread::panicking() {
            self.state.stop.store(true, Ordering::Relaxed);
        }
        self.waker.wake();
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

fn worker_report(entry: &WorkerEntry, gap: &LoopGap) -> WorkerReport {
    let sample = entry.sample();
    let per_packet = sample.busy_tsc as f64 / sample.packets as f64;
    WorkerReport {
        cpu: entry.cpu,
        packets: sample.packets,
        tsc_per_packet: per_packet.is_finite().then_some((per_packet * 100.0).round() / 100.0),
        turns: entry.counters.turns.get(),
        loop_gap_ns: gap.percentiles_ns(),
        affinity_changes: entry.affinity_changes,
    }
}

fn write_report(path: &std::path::Path, report: &Report) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(report).map_err(std::io::Error::from);
    text.and_then(|text| std::fs::write(path, text + "\n"))
        .map_err(|source| Error::Report { path: path.display().to_string(), source })
}
