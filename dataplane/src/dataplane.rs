//! Opens what a plan describes, runs it, and takes it down in order.
#![forbid(unsafe_code)]

use crate::application::{Application, PortInfo, WorkerContext};
use crate::arguments::Kick;
use crate::assignment::WorkerQueues;
use crate::bell::Bells;
use crate::control;
use crate::crew::Crew;
use crate::error::Error;
use crate::idle::Sleeper;
use crate::loop_gap::{Gaps, LoopGap};
use crate::outputs::Outputs;
use crate::plan::{Plan, tx_queues};
use crate::punt::{Local, Punting};
use crate::reach::Reach;
use crate::registry::{ExceptionEntry, PortEntry, Registry, WorkerEntry};
use crate::report::{PoolReport, PortReport, Report, WorkerReport};
use crate::signals::Signals;
use crate::slow_path::{SlowPath, SlowPathConfig};
use crate::table::Table;
use crate::telemetry::Endpoints;
use crate::violations::{Place, Watcher};
use crate::worker::{Input, Parts, RunState, Worker};
use nic::port::{OpenContext, OpenPort, PortGone, RxQueue, TxQueue};
use nic::{Pool, PortId};
use nix::net::if_::if_nametoindex;
use percpu::qsbr::{Domain, Published};
use std::sync::Arc;
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
    endpoints: Endpoints,
    readers: Arc<Domain>,
    slow_path: Option<Arc<SlowPath>>,
}

/// What is left of a run.
pub struct Outcome<A> {
    /// What was counted.
    pub report: Report,
    /// The workers' applications, in the order of the workers.
    pub applications: Vec<A>,
}

impl Dataplane {
    pub(crate) fn open(mut plan: Plan) -> Result<Self, Error> {
        let dealt = plan.deal()?;
        // Before any port: a signal while one is opened must not end the process with something on the host changed.
        let signals = Signals::install().map_err(Error::system("cannot install signal handlers"))?;
        let endpoints = Endpoints::open(&plan.args)?;
        let pool = Pool::new(&plan.pool_config(&dealt)?)?;
        let mut registry = Registry { ports: Vec::new(), workers: Vec::new(), view: None };
        let (mut rx, mut tx, mut infos) = (Vec::new(), Vec::new(), Vec::new());
        let plan_ports = plan.ports.len();
        let mut enter = |mut open: OpenPort, id: PortId, exception: Option<ExceptionEntry>| {
            let of = exception.as_ref().map(|exception| format!(", exception port of port {}", exception.of));
            let (port, of) = (&open.port, of.unwrap_or_default());
            tracing::info!("port {id}: {}, {}, {}{of}", port.name(), port.mode(), port.mac());
            registry.ports.push(PortEntry {
                rx: open.rx.iter().map(|queue| Arc::clone(queue.counters())).collect(),
                tx: open.tx.iter().map(|queue| Arc::clone(queue.counters())).collect(),
                link: open.port.link(),
                down: Arc::default(),
                port: open.port,
                exception,
            });
            rx.push(open.rx.into_iter().map(Some).collect());
            tx.push(open.tx.into_iter().map(Some).collect());
        };
        for (index, (_, port_plan)) in std::mem::take(&mut plan.ports).into_iter().enumerate() {
            let id = PortId(index as u16);
            let context = OpenContext {
                pool: &pool,
                id,
                tx_queues: tx_queues(&dealt, index),
                promiscuous: plan.args.promiscuous,
            };
            let open = port_plan.open(&context)?;
            infos.push(PortInfo {
                id,
                name: open.port.name().to_owned(),
                mac: open.port.mac(),
                max_packet_len: open.port.max_packet_len(),
                local: None,
            });
            enter(open, id, None);
        }
        for (index, exception) in plan.exceptions.iter().enumerate() {
            let (index, info) = (plan_ports + index, &mut infos[usize::from(exception.port.0)]);
            let id = PortId(index as u16);
            let context =
                OpenContext { pool: &pool, id, tx_queues: tx_queues(&dealt, index), promiscuous: false };
            let open = exception.plan_for(info.mac, info.max_packet_len)?.open(&context)?;
            let ifindex = if_nametoindex(exception.interface.as_str())
                .map_err(|errno| Error::system("cannot find an exception port's interface")(errno.into()))?;
            let (of, addresses) = (exception.port, Arc::default());
            info.local = Some(Local::new(info.mac, Arc::clone(&addresses)));
            enter(open, id, Some(ExceptionEntry { of, ifindex, addresses }));
        }
        let cpus = plan.placement.workers.iter();
        registry.workers = cpus
            .map(|&cpu| WorkerEntry {
                cpu,
                counters: Arc::default(),
                watch: None,
                affinity_changes: 0,
                stalls: 0,
                gaps: Arc::new(Gaps::new(256)),
            })
            .collect();
        let readers = Domain::new();
        Ok(Self {
            plan,
            pool,
            dealt,
            registry,
            rx,
            tx,
            infos: infos.into(),
            signals,
            endpoints,
            readers,
            slow_path: None,
        })
    }

    /// What is known of the ports, by number.
    pub fn ports(&self) -> &[PortInfo] {
        &self.infos
    }

    /// The packet memory.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Publishes a table that the workers of this dataplane read by [`Outputs::read`], and that other threads replace while they do, without a lock.
    /// Each application keeps a handle ([`Published::shared`]); whoever replaces the table keeps what this gives.
    pub fn publish<T: Send + Sync + 'static>(&self, table: T) -> Published<T> {
        Published::new(&self.readers, table)
    }

    /// Publishes a table that is made of a text, and that clients of `--ctl` replace by another text: `isoplane ctl set app NAME TEXT`. `make` checks a
    /// text and makes the table of it, or says what is wrong; `takes` says in a few words what it takes.
    pub fn publish_setting<T: Send + Sync + 'static>(
        &mut self,
        (name, takes): (&'static str, &'static str),
        text: &str,
        make: impl Fn(&str) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<Published<T>, Error> {
        let published = self.publish(make(text)?);
        self.endpoints.settings.offer((name, takes), text, published.clone(), make);
        Ok(published)
    }

    /// Which ports the workers can send to, for routes that change.
    pub fn reach(&self) -> Reach {
        Reach::new(&self.dealt, self.infos.iter().map(|port| port.name.clone()))
    }

    /// Starts a slow path for this run, on the CPUs that no worker has, or on the only one. Applications find it in their
    /// [`WorkerContext`].
    pub fn start_slow_path(&mut self, config: SlowPathConfig) -> Result<&Arc<SlowPath>, Error> {
        let cpus = self.plan.placement.housekeeping().map_err(Error::system("cannot read the CPUs"))?;
        Ok(self.slow_path.insert(Arc::new(SlowPath::start(config, &cpus)?)))
    }

    /// Runs one application for each worker, made by `make`, until the duration is over, a signal comes, or there is nothing left
    /// to do. Then closes everything, prints the totals and writes the report.
    pub fn run<A: Application + 'static>(
        mut self,
        mut make: impl FnMut(&WorkerContext) -> A,
    ) -> Result<Outcome<A>, Error> {
        let state = RunState::new(self.pool.clone(), self.plan.args.isolation.on_violation);
        let state = Arc::new(state.with_readers(&self.readers));
        let config = self.plan.args.isolation.config();
        let mut watcher = Watcher::new(&self.plan.args.isolation)?;
        let places = self.places();
        percpu::tsc::frequency_hz();
        let kick = self.plan.args.kick();
        let mut bells = Bells::new(kick == Kick::Control);
        let workers: Vec<Worker<A>> = (0..self.dealt.len())
            .map(|index| self.make_worker(index, &state, &mut bells, &mut make))
            .collect::<Result<_, _>>()?;
        let mut table = Table::new(&self.plan.args);
        let mut started = Instant::now();
        let mut result = Crew::start(workers, &self.plan.placement.workers, config, &state, &self.signals)
            .and_then(|mut crew| {
                let mut watched = Vec::new();
                for (index, (entry, ready)) in
                    self.registry.workers.iter_mut().zip(crew.take_ready()).enumerate()
                {
                    entry.watch = Some(ready.watch);
                    watched.extend(ready.watched);
                    ready.lacks.into_iter().for_each(|lack| watcher.lacks(index, lack));
                }
                // It ends when the workers have, whatever they asked for last.
                let _kicker = bells.start(self.plan.placement.control, &state)?;
                let (endpoints, pool) = (std::mem::take(&mut self.endpoints), &self.pool);
                let _telemetry = endpoints.start(&mut self.registry, pool, self.plan.placement.control)?;
                // Only now: threads inherit the affinity mask of the one that makes them. A control CPU nobody asked for is
                // a wish.
                let pinned = percpu::pin_on_cpu(self.plan.placement.control);
                let _pinned = match pinned {
                    Err(error) if self.plan.args.control.is_some() => {
                        return Err(Error::Configuration(format!("control core: {error}")));
                    }
                    pinned => pinned.ok(),
                };
                let control = self.plan.placement.control;
                self.registry.ports.iter_mut().for_each(|entry| entry.port.deliver_interrupts(control));
                // The last that interrupts a worker's CPU; then they enter.
                watcher.open(watched, places, &self.registry);
                crew.go();
                started = Instant::now();
                let ended = control::run(
                    &mut self.registry,
                    &mut self.signals,
                    &state,
                    &self.plan.args,
                    &mut table,
                    &mut watcher,
                    || crew.is_finished(),
                );
                crew.join().and_then(|joined| ended.map(|gone| (joined, gone)))
            });
        let duration_s = started.elapsed().as_secs_f64();
        // Those of the workers and those nobody took. What the kernel counted is read before the port closes.
        state.close_queues();
        drop((std::mem::take(&mut self.rx), std::mem::take(&mut self.tx)));
        let lost = control::last_look(&mut self.registry, &state);
        self.registry.ports.iter_mut().for_each(|entry| entry.port.refresh());
        let slow_path = self.slow_path.as_deref().map(SlowPath::end);
        let told = watcher.finish();
        let ports: Vec<PortReport> = self.registry.ports.iter().map(PortReport::new).collect();
        let workers = |gaps: &[LoopGap]| -> Vec<WorkerReport> {
            self.registry.workers.iter().zip(gaps).map(|(entry, gap)| worker_report(entry, gap)).collect()
        };
        let gone: Option<PortGone> = result.as_mut().ok().and_then(|(_, gone)| gone.take());
        let joined = result.map(|(joined, _)| joined)?;
        told?;
        let (applications, gaps): (Vec<A>, Vec<LoopGap>) = joined.into_iter().unzip();
        let workers = workers(&gaps);
        self.registry.ports.clear();
        let report = Report {
            duration_s,
            tsc_hz: percpu::tsc::frequency_hz(),
            ports,
            workers,
            pool: PoolReport::new(self.pool.audit()),
            kick: kick.name(),
            slow_path,
            isolation: watcher.report(),
            violations: watcher.counts().clone(),
        };
        table.totals(&report, watcher.times_ns());
        if report.pool.leaked > 0 {
            tracing::error!(
                "{} frames are neither free nor held: please report this as a bug",
                report.pool.leaked
            );
        }
        if let Some(path) = &self.plan.args.report {
            write_report(path, &report)?;
        }
        if let Some(worker) = state.interrupted() {
            return Err(Error::Interrupted { worker });
        }
        match gone.or(lost) {
            Some(gone) => Err(gone.into()),
            None => Ok(Outcome { report, applications }),
        }
    }

    /// The queues of each worker, by port and number, with their counters.
    fn places(&self) -> Vec<Vec<Place>> {
        let place = |(port, queue): (PortId, usize), receives: bool| {
            let entry = &self.registry.ports[usize::from(port.0)];
            let queues = if receives { &entry.rx } else { &entry.tx };
            let port = entry.port.name().to_owned();
            Place { port, queue, receives, counters: Arc::clone(&queues[queue]) }
        };
        let places = |queues: &WorkerQueues| {
            let rx = queues.rx.iter().map(|&queue| place(queue, true));
            rx.chain(queues.tx.iter().map(|&queue| place(queue, false))).collect()
        };
        self.dealt.iter().map(places).collect()
    }

    /// A worker's way to the exception ports.
    fn punting(&self) -> Punting {
        let mut punting = Punting::default();
        for (index, entry) in self.registry.ports.iter().enumerate() {
            if let Some(exception) = &entry.exception {
                let limits = self.plan.args.punt_limit.unwrap_or_default();
                punting.add(exception.of, PortId(index as u16), limits);
            }
        }
        punting
    }

    fn make_worker<A: Application>(
        &mut self,
        index: usize,
        state: &Arc<RunState>,
        bells: &mut Bells,
        make: &mut impl FnMut(&WorkerContext) -> A,
    ) -> Result<Worker<A>, Error> {
        let context = WorkerContext {
            worker: index,
            workers: self.dealt.len(),
            cpu: self.registry.workers[index].cpu,
            ports: Arc::clone(&self.infos),
            pool: self.pool.clone(),
            slow_path: self.slow_path.clone(),
        };
        let queues = std::mem::take(&mut self.dealt[index]);
        // In copy mode poll(2) of a socket sends what is on its transmit ring, too: that must be this worker's own, which is empty when it sleeps.
        let is_own = |(port, queue): &(PortId, usize)| {
            queues.tx.contains(&(*port, *queue)) || self.tx[usize::from(port.0)].get(*queue).is_none()
        };
        let wakes: Vec<bool> = queues.rx.iter().map(is_own).collect();
        let mut inputs = Vec::new();
        for ((port, queue), wakes) in queues.rx.into_iter().zip(wakes) {
            inputs.extend(self.rx[usize::from(port.0)][queue].take().map(|queue| {
                let bell = queue.doorbell().map(|doorbell| bells.make(port, doorbell, queue.counters()));
                let entry = &self.registry.ports[usize::from(port.0)];
                let exception_of = entry.exception.as_ref().map(|exception| exception.of);
                Input { queue, port, bell, wakes, exception_of, down: Arc::clone(&entry.down) }
            }));
        }
        let sources = inputs.iter().map(|input| Arc::clone(input.queue.counters())).collect();
        let mut outputs = Outputs::new(self.registry.ports.len(), sources, self.readers.reader(index));
        outputs.set_punting(self.punting());
        for (port, queue) in queues.tx {
            if let Some(queue) = self.tx[usize::from(port.0)][queue].take() {
                let bell = queue.doorbell().map(|doorbell| bells.make(port, doorbell, queue.counters()));
                let down = Arc::clone(&self.registry.ports[usize::from(port.0)].down);
                outputs.add(port, queue, bell, down);
            }
        }
        let sleeper = Sleeper::new(self.plan.args.idle);
        let counters = Arc::clone(&self.registry.workers[index].counters);
        let gaps = Arc::clone(&self.registry.workers[index].gaps);
        let parts = Parts { index, inputs, outputs, counters, gaps, sleeper };
        Ok(Worker::new(parts, make(&context), Arc::clone(state)))
    }
}

fn worker_report(entry: &WorkerEntry, gap: &LoopGap) -> WorkerReport {
    let sample = entry.sample();
    WorkerReport {
        cpu: entry.cpu,
        packets: sample.packets,
        tsc_per_packet: sample.tsc_per_packet(),
        turns: sample.turns,
        sleeps: sample.sleeps,
        loop_gap_ns: gap.percentiles_ns(),
        affinity_changes: entry.affinity_changes,
        stalls: entry.stalls,
    }
}

fn write_report(path: &std::path::Path, report: &Report) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(report).map_err(std::io::Error::from);
    text.and_then(|text| std::fs::write(path, text + "\n"))
        .map_err(|source| Error::Report { path: path.display().to_string(), source })
}
