//! The driver on the model of its device.
#![forbid(unsafe_code)]

use super::model::{Fate, Kind, Model};
use super::open::open_with;
use crate::memory::{Batch, Pool, PoolConfig};
use crate::port::{LinkState, PortId, RxQueue, TxQueue};
use crate::vfio::dma::PoolMapping;
use crate::vfio::function::PciFunction;
use crate::vfio::nic::{Nic, NicConfig, NicError, OpenNic};
use std::sync::Arc;

/// What a test wants of a port.
#[derive(Clone, Debug)]
struct Wish {
    queues: (u16, u16),
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
            queues: (1, 1),
            rings: (64, 64),
            mtu: 1500,
            promiscuous: false,
            checksum: false,
            vlans: Vec::new(),
            frames: 512,
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
    Pool::new(&PoolConfig { frames: wish.frames, frame_size: wish.frame_size, ..PoolConfig::default() })
        .unwrap()
}

fn try_open(model: &Model, wish: &Wish, pool: &Pool) -> Result<OpenNic, NicError> {
    let function: Arc<dyn PciFunction> = Arc::new(model.clone());
    let frames: Arc<PoolMapping> = function.dma().map_pool(pool).unwrap();
    let config = NicConfig {
        name: "vfio:model",
        rx_queues: wish.queues.0,
        tx_queues: wish.queues.1,
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
    open_with(&function, &config, model.clock.clone())
}

impl Bed {
    #[track_caller]
    fn open(kind: Kind, wish: &Wish) -> Self {
        Self::on(Model::new(kind), wish)
    }

    #[track_caller]
    fn on(model: Model, wish: &Wish) -> Self {
        let pool = pool(wish);
        let OpenNic { mut nic, rx, tx } = try_open(&model, wish, &pool).unwrap();
        // The link takes some looks.
        for _ in 0..5 {
            nic.link();
        }
        Self { model, pool, nic, rx, tx }
    }
}

#[test]
fn smoke() {
    for kind in Kind::ALL {
        let mut bed = Bed::open(kind, &Wish::default());
        assert_eq!(bed.model.take_violations(), [] as [String; 0], "{kind:?}");
        assert_eq!(bed.nic.link(), LinkState::Up { speed_mbps: Some(10_000) }, "{kind:?}");
        let mut packet = vec![0xFF; 60];
        packet[12] = 8;
        assert_eq!(bed.model.wire(&packet), Fate::Received(0));
        let mut batch = Batch::new();
        bed.rx[0].receive(&mut batch);
        assert_eq!(batch.len(), 1);
        bed.tx[0].transmit(&mut batch);
        assert_eq!(bed.model.take_sent()[0].bytes, packet);
        let Bed { model, pool, nic, rx, tx } = bed;
        drop((rx, tx, nic));
        model.assert_closed();
        assert_eq!(pool.audit().held, 0);
    }
}
