//! A NIC that is sent to look for its packets where nothing is mapped: the IOMMU says so, and no byte of the packet memory changes.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use clap::Args as Arguments;
use nic::port::OpenContext;
use nic::{Batch, Pool, PoolConfig, PortId, PortSpec};
use std::time::{Duration, Instant};

/// How long the faults may take.
const LIMIT: Duration = Duration::from_secs(60);
/// What the packet memory is full of.
const PATTERN: u8 = 0xA5;

/// What to open
#[derive(Arguments)]
pub(crate) struct Args {
    /// The port, `vfio:ADDRESS`
    #[arg(long)]
    port: PortSpec,
    /// A file whose appearance says that frames have been sent to the NIC
    #[arg(long)]
    sent: std::path::PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let pool = Pool::new(&PoolConfig { frames: 4096, ..PoolConfig::default() })?;
    fill(&pool);
    let context = OpenContext { pool: &pool, id: PortId(0), tx_queues: 1, promiscuous: true };
    let mut open = nic::open_vfio_aimed_outside(&args.port, &context)?;
    println!("open: {}", open.port.mode());
    let start = Instant::now();
    let mut batch = Batch::new();
    let (mut sent, mut received) = (false, 0);
    // Again, as long as nobody has seen it: of faults that come at a time the hardware keeps one. Not often: the kernel tells of ten in five seconds.
    let mut due = start;
    while !args.sent.exists() || !sent {
        ensure!(start.elapsed() < LIMIT, "no link, or nobody has sent");
        if Instant::now() >= due && matches!(open.port.link(), nic::LinkState::Up { .. }) {
            due = Instant::now() + Duration::from_secs(2);
            pool.allocate_batch(&mut batch, 1, 60, PortId(0));
            open.tx.iter_mut().for_each(|queue| queue.transmit(&mut batch));
            if batch.is_empty() && !std::mem::replace(&mut sent, true) {
                println!("sent");
            }
            batch.clear();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // What the device calls received is what was there before.
    for queue in &mut open.rx {
        queue.receive(&mut batch);
        received += batch.len();
        let changed = batch.iter().flat_map(|packet| packet.data()).filter(|byte| **byte != PATTERN).count();
        ensure!(changed == 0, "{changed} bytes of packet memory were written");
        batch.clear();
    }
    drop((open.rx, open.tx));
    drop(open.port);
    let audit = pool.audit();
    ensure!(audit.held == 0 && audit.duplicated == 0, "{audit:?}");
    ensure!(whole(&pool), "packet memory was written");
    println!("{received} received, and not a byte of them written");
    Ok(())
}

/// All frames, held at a time.
fn all(pool: &Pool) -> Vec<nic::Packet> {
    std::iter::from_fn(|| pool.allocate(pool.data_room())).collect()
}

fn fill(pool: &Pool) {
    all(pool).iter_mut().for_each(|packet| packet.data_mut().fill(PATTERN));
}

fn whole(pool: &Pool) -> bool {
    all(pool).iter().all(|packet| packet.data().iter().all(|byte| *byte == PATTERN))
}
