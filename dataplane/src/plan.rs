//! The whole configuration, checked before anything is opened or changed.
#![forbid(unsafe_code)]

use crate::arguments::DataplaneArgs;
use crate::assignment::{WorkerQueues, deal};
use crate::dataplane::Dataplane;
use crate::error::Error;
use crate::idle::Idle;
use crate::placement::Placement;
use crate::punt::{self, Exception};
use isolation::KernelIsolation;
use nic::drivers;
use nic::memory::{BATCH_SIZE, PoolConfig};
use nic::{PortId, PortPlan, PortSpec};
use percpu::Topology;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Frames a thread may keep to itself, and room for batches on their way: what a worker needs beyond the rings.
const FRAMES_PER_WORKER: usize = 1024;

/// A configuration that has been checked: ports, CPUs, queues, memory. Nothing is open yet.
pub struct Plan {
    pub(crate) args: DataplaneArgs,
    pub(crate) ports: Vec<(PortSpec, Box<dyn PortPlan>)>,
    /// The exception ports; their numbers are behind those of the ports.
    pub(crate) exceptions: Vec<Exception>,
    pub(crate) placement: Placement,
    reaches: BTreeSet<(PortId, PortId)>,
}

impl Plan {
    /// Checks the options.
    pub fn check(args: &DataplaneArgs) -> Result<Self, Error> {
        let specs = args.port_specs()?;
        if specs.is_empty() {
            return Err(Error::Configuration(
                "no port: give at least one --port SPEC, such as --port afxdp:eth0".into(),
            ));
        }
        if specs.len() > usize::from(u16::MAX) {
            return Err(Error::Configuration(format!(
                "{} ports are too many: at most {}",
                specs.len(),
                u16::MAX
            )));
        }
        for (index, spec) in specs.iter().enumerate().filter(|(_, spec)| spec.driver() == "afxdp") {
            if let Some(first) = specs[..index].iter().position(|other| other.name() == spec.name()) {
                return Err(Error::Configuration(format!(
                    "ports {first} and {index} are both {}: give each interface once (queues=N for more of its queues)",
                    spec.name()
                )));
            }
        }
        let ports = specs
            .into_iter()
            .map(|spec| drivers::check(&spec).map(|plan| (spec, plan)))
            .collect::<Result<Vec<_>, _>>()?;
        check_output_files(&ports)?;
        let exceptions = punt::check(&args.exceptions, &ports)?;
        if args.queues_per_worker == Some(0) {
            return Err(Error::Configuration(
                "--queues-per-worker 0: a worker polls at least one queue".into(),
            ));
        }
        let queues: usize = ports.iter().map(|(_, plan)| plan.rx_queues()).sum();
        let rounds = ports.iter().map(|(_, plan)| plan.rx_queues()).max().unwrap_or(1);
        let wanted = args.queues_per_worker.map_or(rounds, |share| queues.div_ceil(share));
        let topology = Topology::read().map_err(Error::system("cannot read the CPU affinity mask"))?;
        let placement = Placement::choose(&topology, args.workers.as_ref(), args.control, wanted)?;
        args.isolation.check(placement.is_shared())?;
        if args.idle != Idle::Poll && args.isolation.config().is_some() {
            return Err(Error::Configuration(
                "--idle: a worker that sleeps calls the kernel, which --isolation is to keep away: leave one of them out".into(),
            ));
        }
        if let Some(path) = &args.report {
            check_writable(path)
                .map_err(|source| Error::Report { path: path.display().to_string(), source })?;
        }
        if let Some(path) = &args.isolation.violations {
            check_writable(path)
                .map_err(|source| Error::ViolationLog { path: path.display().to_string(), source })?;
        }
        let ids = || (0..ports.len()).map(|port| PortId(port as u16));
        let reaches = ids().flat_map(|from| ids().map(move |to| (from, to))).collect();
        Ok(Self { args: args.clone(), ports, exceptions, placement, reaches })
    }

    /// Refuses packets of `length` bytes where a port is known to send shorter ones only; what `option` is to be instead is
    /// in the error.
    pub fn check_packet_len(&self, option: &str, length: usize) -> Result<(), Error> {
        let ports = self.ports.iter().filter_map(|(spec, plan)| Some((spec, plan.max_packet_len()?)));
        match ports.min_by_key(|(_, most)| *most).filter(|(_, most)| length > *most) {
            None => Ok(()),
            Some((spec, most)) => Err(Error::Configuration(format!(
                "{option}: frames of {length} bytes do not fit {}: choose at most {most}",
                spec.name()
            ))),
        }
    }

    /// How many ports there are.
    pub fn port_count(&self) -> usize {
        self.ports.len()
    }

    /// Says where packets that come in by a port may go. Without it every port reaches every port, and needs a transmit queue
    /// for each worker.
    ///
    /// With live control they may go elsewhere later: then each worker gets a queue of every port that has enough, and [`Reach`](crate::Reach) says
    /// where that leaves a way.
    pub fn routes(mut self, to: impl Fn(PortId) -> PortId) -> Self {
        self.reaches.retain(|(from, destination)| to(*from) == *destination);
        self
    }

    pub(crate) fn deal(&self) -> Result<Vec<WorkerQueues>, Error> {
        let rx_queues: Vec<usize> = self.ports.iter().map(|(_, plan)| plan.rx_queues()).collect();
        let workers = self.placement.workers.len();
        let may_come = |to: PortId| {
            self.args.ctl.is_some() && workers <= self.ports[usize::from(to.0)].1.max_tx_queues()
        };
        let reaches = |from, to| self.reaches.contains(&(from, to)) || may_come(to);
        let mut dealt = deal(&rx_queues, workers, self.args.queues_per_worker, reaches)?;
        punt::deal(&self.exceptions, self.ports.len(), &mut dealt)?;
        for (port, (spec, plan)) in self.ports.iter().enumerate() {
            let (wanted, most) = (tx_queues(&dealt, port), plan.max_tx_queues());
            if wanted > most {
                let queues =
                    if plan.tx_queues_follow() { format!("it queues={wanted}, or ") } else { String::new() };
                return Err(Error::Configuration(format!(
                    "{}: {wanted} workers send to it and it has {most} transmit queue{}: give {queues}fewer CPUs to --workers",
                    spec.name(),
                    if most == 1 { "" } else { "s" },
                )));
            }
        }
        Ok(dealt)
    }

    /// The pool that these ports and workers need.
    pub(crate) fn pool_config(&self, dealt: &[WorkerQueues]) -> Result<PoolConfig, Error> {
        let rings: usize =
            self.ports.iter().enumerate().map(|(port, (_, plan))| plan.frames(tx_queues(dealt, port))).sum();
        let batches: usize =
            dealt.iter().map(|worker| FRAMES_PER_WORKER + worker.tx.len() * BATCH_SIZE).sum();
        let exceptions = self.exceptions.iter().enumerate();
        let exceptions: usize = exceptions
            .map(|(index, exception)| exception.plan.frames(tx_queues(dealt, self.ports.len() + index)))
            .sum();
        let rings = rings + exceptions;
        let needed = rings + batches;
        if let Some(frames) = self.args.frames
            && frames < needed
        {
            return Err(Error::Configuration(format!(
                "--frames {frames}: the rings keep {rings} frames and the workers {batches}: choose at least {needed}"
            )));
        }
        let smallest = self.ports.iter().max_by_key(|(_, plan)| plan.min_frame_size());
        let least = smallest.map_or(2048, |(_, plan)| plan.min_frame_size());
        let frame_size = self.args.frame_size.unwrap_or(least);
        let config = PoolConfig {
            frames: self.args.frames.unwrap_or_else(|| needed.next_power_of_two().max(4096)),
            frame_size,
            pages: self.args.pages,
            ..PoolConfig::default()
        };
        config.check()?;
        if let Some((spec, _)) = smallest
            && frame_size < least
        {
            return Err(Error::Configuration(format!(
                "--frame-size {frame_size}: {} needs frames of {least} bytes: choose that",
                spec.name()
            )));
        }
        Ok(config)
    }

    /// Opens the ports.
    pub fn open(self) -> Result<Dataplane, Error> {
        let kernel = KernelIsolation::read();
        if self.placement.is_shared() {
            tracing::warn!(
                "one CPU for everything: the control core and the worker take turns on CPU {}, which costs gaps of milliseconds",
                self.placement.control
            );
        }
        // An isolated worker says more, and more exactly.
        let isolated = self.args.isolation.isolation != crate::IsolationMode::Off;
        if !isolated {
            for shortcoming in self.placement.workers.iter().filter_map(|&cpu| kernel.shortcoming(cpu)) {
                tracing::info!("{shortcoming}");
            }
        }
        Dataplane::open(self)
    }
}

pub(crate) fn tx_queues(dealt: &[WorkerQueues], port: usize) -> usize {
    dealt.iter().flat_map(|worker| &worker.tx).filter(|(to, _)| usize::from(to.0) == port).count()
}

/// The first of two ports empties the file, and only then the second one would find it taken.
fn check_output_files(ports: &[(PortSpec, Box<dyn PortPlan>)]) -> Result<(), Error> {
    let mut known = BTreeMap::new();
    for (index, file) in
        ports.iter().enumerate().filter_map(|(index, (_, plan))| Some((index, plan.output_file()?)))
    {
        if let Some(first) = known.get(&file) {
            return Err(Error::Configuration(format!(
                "ports {first} and {index} both write {}: give each port a file of its own (out=FILE)",
                file.display()
            )));
        }
        known.insert(file, index);
    }
    Ok(())
}

/// Tells now, and not after an hour's run, that a file cannot be written; leaves none behind.
fn check_writable(path: &Path) -> io::Result<()> {
    // Non-blocking, or a FIFO without a reader would wait here for ever: it answers ENXIO.
    let open = |create_new: bool| {
        OpenOptions::new().append(true).create_new(create_new).custom_flags(libc::O_NONBLOCK).open(path)
    };
    match open(true) {
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => open(false).map(drop),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use nic::port::{OpenContext, OpenPort, PortError};

    #[derive(clap::Parser)]
    struct Args {
        #[command(flatten)]
        dataplane: crate::DataplaneArgs,
    }

    /// A device of two transmit queues, of which it has no more whatever is asked of it.
    struct Two;

    impl PortPlan for Two {
        fn rx_queues(&self) -> usize {
            1
        }

        fn max_tx_queues(&self) -> usize {
            2
        }

        fn tx_queues_follow(&self) -> bool {
            false
        }

        fn frames(&self, _tx_queues: usize) -> usize {
            64
        }

        fn open(self: Box<Self>, _context: &OpenContext<'_>) -> Result<OpenPort, PortError> {
            unreachable!("nothing is opened here")
        }
    }

    #[test]
    fn who_has_too_few_transmit_queues_is_told_what_helps() {
        let refused = |fixed: bool| {
            let ports = ["mem:gen?queues=3", "mem:cable?queues=2"];
            let args = ["test"].into_iter().chain(ports.into_iter().flat_map(|port| ["--port", port]));
            let args: Args = clap::Parser::parse_from(args);
            let mut plan = Plan::check(&args.dataplane).unwrap();
            plan.placement = Placement { control: 0, workers: vec![1, 2, 3] };
            if fixed {
                plan.ports[1].1 = Box::new(Two);
            }
            plan.deal().unwrap_err().to_string()
        };
        let words = "mem:cable: 3 workers send to it and it has 2 transmit queues: give";
        assert_eq!(refused(false), format!("{words} it queues=3, or fewer CPUs to --workers"));
        assert_eq!(refused(true), format!("{words} fewer CPUs to --workers"));
    }
}
