//! The driver on the model of its device.
#![forbid(unsafe_code)]

mod hostile;
mod mistakes;
mod receive;
mod recovery;
mod semaphore;
mod setup;
mod transmit;

use super::model::{Fate, Kind, Model};
use super::open::open_with;
use crate::counters::DropReason;
use crate::memory::{Batch, Packet, Pool, PoolConfig};
use crate::port::{LinkState, PortId, RxQueue, TxQueue};
use crate::vfio::dma::PoolMapping;
use crate::vfio::function::PciFunction;
use crate::vfio::nic::{Nic, NicConfig, NicError, OpenNic};
use etherparse::PacketBuilder;
use std::sync::Arc;
use std::time::Duration;

/// The model's address, and another.
const OURS: [u8; 6] = [0x02, 0x15, 0x17, 0xAB, 0xCD, 0xEF];
const OTHER: [u8; 6] = [0x02, 0, 0, 0, 0, 9];
const BROADCAST: [u8; 6] = [0xFF; 6];
const MULTICAST: [u8; 6] = [0x01, 0, 0x5E, 0, 0, 0x16];

/// What a test wants of a port.
#[derive(Clone, Debug)]
struct Wish {
    rx: u16,
    tx: u16,
    rings: (u16, u16),
    mtu: usize,
    promiscuous: bool,
    checksum: bool,
    vlans: Vec<u16>,
    frames: usize,
    frame_size: usize,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            rx: 1,
            tx: 1,
            rings: (64, 64),
            mtu: 1500,
            promiscuous: false,
            checksum: false,
            vlans: Vec::new(),
            frames: 1024,
            frame_size: 2048,
        }
    }
}

/// A port on a model.
struct Bed {
    model: Model,
    pool: Pool,
    nic: Box<dyn Nic>,
    rx: Vec<Box<dyn RxQueue>>,
    tx: Vec<Box<dyn TxQueue>>,
}

fn pool(wish: &Wish) -> Pool {
    let config = PoolConfig { frames: wish.frames, frame_size: wish.frame_size, ..PoolConfig::default() };
    Pool::new(&config).unwrap()
}

/// Opens it on this function, in the model's time.
fn open(
    function: &Arc<dyn PciFunction>,
    model: &Model,
    wish: &Wish,
    pool: &Pool,
) -> Result<OpenNic, NicError> {
    let frames: Arc<PoolMapping> = function.dma().map_pool(pool).unwrap();
    // As the core leaves it.
    function.set_bus_master(true);
    let config = NicConfig {
        name: "vfio:model",
        rx_queues: wish.rx,
        tx_queues: wish.tx,
        rx_ring: wish.rings.0,
        tx_ring: wish.rings.1,
        mtu: wish.mtu,
        promiscuous: wish.promiscuous,
        checksum: wish.checksum,
        vlans: &wish.vlans,
        frames: &frames,
        id: PortId(3),
        options: &[],
    };
    open_with(function, &config, model.clock.clone())
}

/// The error of a port that cannot be had; nothing of it is left.
#[track_caller]
fn refused(model: &Model, wish: &Wish) -> String {
    let pool = pool(wish);
    let function: Arc<dyn PciFunction> = Arc::new(model.clone());
    let error = open(&function, model, wish, &pool).err().expect("it was opened");
    function.set_bus_master(false);
    assert_eq!((model.iommu().mappings(), pool.audit().held), (0, 0));
    error.to_string()
}

impl Bed {
    #[track_caller]
    fn new(kind: Kind, wish: &Wish) -> Self {
        Self::on(Model::new(kind), wish)
    }

    /// Opens a port, and waits for its link.
    #[track_caller]
    fn on(model: Model, wish: &Wish) -> Self {
        let pool = pool(wish);
        let function: Arc<dyn PciFunction> = Arc::new(model.clone());
        let OpenNic { mut nic, rx, tx } = open(&function, &model, wish, &pool).unwrap();
        let up = (0..10).any(|_| matches!(nic.link(), LinkState::Up { .. }));
        assert!(up, "no link");
        Self { model, pool, nic, rx, tx }
    }

    /// All that a queue has, copied out.
    fn receive(&mut self, queue: usize) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        loop {
            let mut batch = Batch::new();
            self.rx[queue].receive(&mut batch);
            if batch.is_empty() {
                return packets;
            }
            packets.extend(batch.iter().map(Packet::to_vec));
        }
    }

    /// Packets in frames of the pool.
    fn batch(&self, packets: &[Vec<u8>]) -> Batch {
        let mut batch = Batch::new();
        for bytes in packets {
            assert!(batch.push(chain(&self.pool, bytes).unwrap()).is_ok());
        }
        batch
    }

    /// Lets so much time pass, and the control thread and the workers have a turn each.
    fn turn(&mut self, time: Duration) {
        self.model.clock.advance(time);
        self.nic.refresh();
        for queue in 0..self.rx.len() {
            self.rx[queue].receive(&mut Batch::new());
        }
        self.tx.iter_mut().for_each(|queue| _ = queue.needs_doorbell());
    }

    fn dropped(&self, queue: usize, reason: DropReason) -> u64 {
        self.rx[queue].counters().drops(reason).get()
    }

    fn unsent(&self, queue: usize, reason: DropReason) -> u64 {
        self.tx[queue].counters().drops(reason).get()
    }

    fn extra(&self, name: &str) -> u64 {
        self.nic.extra_counters().into_iter().find(|(known, _)| known == name).map_or(0, |(_, value)| value)
    }

    /// Closes it as a run does: nothing was done wrong, and nothing is left.
    #[track_caller]
    fn close(self) {
        let Self { model, pool, nic, rx, tx } = self;
        drop((rx, tx, nic));
        model.assert_closed();
        let audit = pool.audit();
        assert_eq!((audit.held, audit.duplicated), (0, 0));
    }
}

/// A packet, in as many frames as it takes.
fn chain(pool: &Pool, bytes: &[u8]) -> Option<Packet> {
    let mut packet: Option<Packet> = None;
    for part in bytes.chunks(pool.data_room()) {
        let mut segment = pool.allocate(part.len())?;
        segment.data_mut().copy_from_slice(part);
        match &mut packet {
            Some(packet) => packet.chain(segment),
            None => packet = Some(segment),
        }
    }
    packet
}

/// Ethernet, and then numbers that differ from packet to packet.
fn frame(to: [u8; 6], length: usize, number: usize) -> Vec<u8> {
    let mut bytes = [&to[..], &OTHER, &[0x88, 0xB5]].concat();
    bytes.extend((0..length.saturating_sub(14)).map(|at| (at * 7 + number * 13) as u8));
    bytes.truncate(length);
    bytes
}

/// The same with VLAN tags.
fn tagged(to: [u8; 6], tags: &[(u16, u16)], length: usize) -> Vec<u8> {
    let mut bytes = frame(to, length - 4 * tags.len(), 1);
    for (ether_type, vlan) in tags.iter().rev() {
        bytes.splice(12..12, [ether_type.to_be_bytes(), vlan.to_be_bytes()].concat());
    }
    bytes
}

/// TCP over IPv4 from this flow, with its number in the payload.
fn flow(flow: u32, number: u32) -> Vec<u8> {
    let [_, a, b, c] = flow.wrapping_mul(0x9E37_79B1).to_be_bytes();
    let builder = PacketBuilder::ethernet2(OTHER, OURS)
        .ipv4([10, a, b, c], [192, 168, 1, flow as u8], 20)
        .tcp(flow as u16 ^ 0x5A5A, 80, number, 1024);
    let payload = [flow.to_be_bytes(), number.to_be_bytes()].concat();
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &payload).unwrap();
    bytes.resize(bytes.len().max(60), 0);
    bytes
}

/// Flow and number again.
fn flow_of(bytes: &[u8]) -> (u32, u32) {
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    (word(54), word(58))
}

#[test]
fn the_table_of_drivers_has_all_chips() {
    use crate::vfio::function::PciId;
    use crate::vfio::table::find;
    for (device, name) in
        [(0x10FB, "82599ES"), (0x1557, "82599EN"), (0x1528, "X540-AT2"), (0x1563, "X550-AT2")]
    {
        let (driver, known) = find(PciId { vendor: 0x8086, device }).unwrap();
        assert_eq!((driver.name, known.name), ("ixgbe", name));
    }
}

#[test]
#[ignore = "bench/vfio/instructions.sh runs it, in the release build"]
fn instructions_ixgbe() {
    use crate::vfio::intel::format::{Advanced, Advanced82599};
    let test = "vfio::drivers::ixgbe::tests::instructions_ixgbe";
    crate::vfio::intel::tests::count_instructions::<Advanced82599, Advanced>(test, "ixgbe");
}
