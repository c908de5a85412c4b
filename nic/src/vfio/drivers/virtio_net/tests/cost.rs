//! What `bench/vfio/instructions.sh` counts the instructions of: bursts that are received and sent again, with each layout.

use super::*;
use crate::vfio::instructions::{BURST, count};

fn bursts(test: &str, driver: &str, want: Want) {
    count(&format!("vfio::drivers::virtio_net::tests::cost::{test}"), driver, |marks| {
        let mut rig = Rig::new(Want { ring: 256, ..want });
        // A notification is a register's write, which costs what the bus does, and here what a model does.
        rig.model.lock().want_no_notifications();
        let mut batch = Batch::new();
        for turn in 0..96 {
            let mut model = rig.model.lock();
            (0..BURST).for_each(|number| assert!(model.deliver(0, &payload(turn + number, 60))));
            drop(model);
            let open = rig.open.as_mut().unwrap();
            let (rx, tx) = (&mut open.rx[0], &mut open.tx[0]);
            let mut work = || {
                rx.receive(&mut batch);
                tx.transmit(&mut batch);
            };
            // More than once round the ring before; the device finds nothing, and says that it needs no notification.
            if turn < 64 {
                work();
            } else {
                marks.counted(work);
            }
            assert!(batch.is_empty());
            assert_eq!(rig.model.lock().collect(0, 99).len(), BURST);
        }
        rig.close();
    });
}

#[test]
#[ignore = "bench/vfio/instructions.sh runs it, in the release build"]
fn instructions_virtio_net_split() {
    bursts("instructions_virtio_net_split", "virtio-net, split ring", Want::default().split());
}

#[test]
#[ignore = "bench/vfio/instructions.sh runs it, in the release build"]
fn instructions_virtio_net_packed() {
    bursts("instructions_virtio_net_packed", "virtio-net, packed ring", Want::default());
}
