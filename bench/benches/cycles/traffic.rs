//! Writing and checking test packets.
#![forbid(unsafe_code)]

use bench::{Ticks, per_item};
use criterion::Criterion;
use nic::traffic::{Addresses, FrameBuilder, Start, Tracker};
use std::hint::black_box;

/// As many as a worker has in its hands: they stay in the first-level cache.
const FRAMES: usize = 64;

pub(crate) fn benches(criterion: &mut Criterion<Ticks>) {
    let mut group = criterion.benchmark_group("traffic");
    for size in [64, 1514] {
        let mut frames = vec![vec![0; size]; FRAMES];
        let mut builder = FrameBuilder::new(&Addresses::default(), false);
        let mut sequence = 0;
        group.bench_function(format!("write a test packet of {size} bytes"), |bencher| {
            per_item(bencher, FRAMES, || {
                for frame in black_box(frames.as_mut_slice()) {
                    builder.write(frame, 0, sequence);
                    sequence += 1;
                }
            });
        });
        // A packet that came before takes another way through the books, so each one is new.
        let mut tracker = Tracker::new(1, Start::FirstSeen);
        group.bench_function(format!("write and check a test packet of {size} bytes"), |bencher| {
            per_item(bencher, FRAMES, || {
                for frame in black_box(frames.as_mut_slice()) {
                    builder.write(frame, 0, sequence);
                    sequence += 1;
                }
                black_box(&frames).iter().for_each(|frame| tracker.receive_frame(frame));
            });
        });
        assert_eq!(tracker.totals().packets, tracker.totals().received);
    }
    group.finish();
}
