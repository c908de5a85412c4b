//! What `bench/vfio/instructions.sh` counts the instructions of: bursts of 32 packets that are received and sent again, with each layout.

use super::*;

const BURSTS: usize = 500;
const BURST: usize = 32;

/// One line says how many packets passed, for the script.
fn bursts(name: &str, want: Want) {
    let mut rig = Rig::new(Want { ring: 256, ..want });
    // A notification is a register's write, which costs what the bus costs, and here what a model does.
    rig.model.lock().wants_notifications = false;
    rig.model.lock().collect(0, 1);
    while rig.model.lock().deliver(0, &payload(0, 60)) {}
    while !rig.receive(0).is_empty() {}
    rig.model.lock().deliver(0, &payload(0, 60));
    drop(rig.receive(0));
    let before = rig.tx_counters(0).packets.get();
    let mut batch = Batch::new();
    for burst in 0..BURSTS {
        {
            let mut model = rig.model.lock();
            (0..BURST).for_each(|number| assert!(model.deliver(0, &payload(burst + number, 60))));
        }
        rig.nic().rx[0].receive(&mut batch);
        assert_eq!(batch.len(), BURST);
        rig.nic().tx[0].transmit(&mut batch);
        assert!(batch.is_empty());
        assert_eq!(rig.model.lock().collect(0, 64).len(), BURST);
    }
    rig.transmit(0, &mut batch);
    assert_eq!(rig.tx_counters(0).packets.get() - before, (BURSTS * BURST) as u64);
    println!("INSTRUCTIONS {name} packets={}", BURSTS * BURST);
    rig.close();
}

#[test]
fn bursts_by_a_split_ring() {
    bursts("virtio-net-split", Want::default().split());
}

#[test]
fn bursts_by_a_packed_ring() {
    bursts("virtio-net-packed", Want::default());
}
