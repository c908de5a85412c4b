//! The run: a forwarder that hands jobs of every kind to the slow path.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use dataplane::slow_path::{Class, ClassConfig, SlowPathConfig, Submitter, blocking};
use dataplane::{Application, DataplaneArgs, Outputs, Plan, PortMap, Shared};
use nic::{Batch, Pool, PortId};
use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    dataplane: DataplaneArgs,

    /// Give the exception port's interface this address, before workers are isolated
    #[arg(long, value_name = "ADDRESS")]
    address: String,
}

/// What the jobs do, by class.
const KINDS: [(&str, fn()); 6] = [
    ("wrapped", || blocking(|| thread::sleep(Duration::from_millis(1)))),
    ("sleep", || thread::sleep(Duration::from_millis(1))),
    ("file", write_a_file),
    ("heap", use_the_heap),
    ("pool", empty_the_pool),
    ("log", || tracing::debug!("a job has a word to say")),
];
/// Jobs that are on their way at a time.
const OUTSTANDING: usize = 8;
/// Of so many batches one goes to the kernel.
const PUNTED: u64 = 64;

static POOL: OnceLock<Pool> = OnceLock::new();
/// The fewest free frames that a job has left, wherever they waited.
static LEAST_FREE: AtomicU64 = AtomicU64::new(u64::MAX);

fn write_a_file() {
    let written = File::create("/tmp/busy-file").and_then(|mut file| {
        file.write_all(&[7; 4096])?;
        file.sync_all()
    });
    if let Err(error) = written {
        tracing::error!("{error}");
    }
}

/// More than the allocator gave to the kernel at once, if it were not told to keep it.
fn use_the_heap() {
    let memory: Vec<Vec<u8>> =
        (1..20).map(|part| vec![part as u8; usize::from(part as u8) * 10_000]).collect();
    std::hint::black_box(memory);
}

/// Takes every frame that it can get, so that those are wanted back that wait on the workers' CPUs; and gives them to its own CPU, from where the workers
/// want them.
fn empty_the_pool() {
    let Some(pool) = POOL.get() else { return };
    let mut all = Vec::with_capacity(pool.frames() / 32);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(20) {
        let mut batch = Batch::new();
        if pool.allocate_batch(&mut batch, 64, 60, PortId(0)) > 0 {
            all.push(batch);
        } else {
            LEAST_FREE.fetch_min(pool.free() as u64, Ordering::Relaxed);
            thread::sleep(Duration::from_micros(100));
        }
    }
}

struct Busy {
    routes: Shared<PortMap>,
    submitter: Submitter,
    jobs: usize,
    batches: u64,
}

impl Application for Busy {
    fn process(&mut self, packets: &mut Batch, from: PortId, out: &mut Outputs) {
        self.batches += 1;
        if self.batches.is_multiple_of(PUNTED) {
            return out.punt_all(packets);
        }
        let to = out.read(&self.routes)[from];
        out.send(to, packets);
    }

    fn poll(&mut self, _out: &mut Outputs) {
        while self.submitter.poll().is_some() {}
        if self.submitter.outstanding() < OUTSTANDING {
            let kind = self.jobs % KINDS.len();
            let (_, work) = KINDS[kind];
            self.jobs += 1;
            // A refused one is counted.
            let _ = self.submitter.submit(Class(kind), move || {
                work();
                [0; 4]
            });
        }
    }
}

pub(crate) fn run(args: Box<Args>) -> Result<()> {
    let mut dataplane = Plan::check(&args.dataplane)?.open()?;
    let classes = KINDS.map(|(name, _)| ClassConfig::new(name)).to_vec();
    dataplane.start_slow_path(SlowPathConfig { classes, threads: 16, ..SlowPathConfig::default() })?;
    let _ = POOL.set(dataplane.pool().clone());
    let (ports, reach) = (dataplane.ports().len(), dataplane.reach());
    let setting = ("portmap", "all pairs of ports, such as (0,1)");
    let published = dataplane.publish_setting(setting, "(0,1)", move |text| {
        let portmap = PortMap::new(Some(text), ports)?;
        reach.check(|from| portmap[from])?;
        Ok(portmap)
    })?;
    let exception = args.dataplane.exceptions.first().and_then(|text| text.split_once('='));
    let (_, interface) = exception.context("--exception is missing")?;
    let status = Command::new("ifconfig")
        .args([interface, &args.address, "netmask", "255.255.255.0", "up"])
        .status()?;
    ensure!(status.success(), "ifconfig: {status}");
    let frames = dataplane.pool().frames();
    dataplane.run(|worker| Busy {
        routes: published.shared(),
        submitter: worker
            .slow_path
            .as_ref()
            .and_then(|slow_path| slow_path.submitter().ok())
            .expect("the slow path was started"),
        jobs: 0,
        batches: 0,
    })?;
    println!("{}", serde_json::json!({ "frames": frames, "least_free": LEAST_FREE.load(Ordering::Relaxed) }));
    Ok(())
}
