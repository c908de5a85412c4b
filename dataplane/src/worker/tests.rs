//! A worker's end, by its inputs.

use super::*;
use crate::idle::Idle;
use nic::{PoolConfig, QueueCounters};

/// An input without packets, at its end or not.
#[derive(Default)]
struct Empty {
    finished: bool,
    counters: Arc<QueueCounters>,
}

impl RxQueue for Empty {
    fn receive(&mut self, _: &mut Batch) {}

    fn is_finished(&self) -> bool {
        self.finished
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
}

struct Nothing;

impl Application for Nothing {
    fn process(&mut self, _: &mut Batch, _: PortId, _: &mut Outputs) {}
}

/// A worker with one input at its end, and maybe an exception port's.
fn ended(state: &Arc<RunState>, brings_back: bool) -> thread::JoinHandle<()> {
    let input = |finished, exception_of| Input {
        queue: Box::new(Empty { finished, ..Empty::default() }),
        port: PortId(0),
        bell: None,
        wakes: false,
        exception_of,
        down: Arc::default(),
    };
    let inputs = if brings_back {
        vec![input(true, None), input(false, Some(PortId(0)))]
    } else {
        vec![input(true, None)]
    };
    let parts = Parts {
        index: 0,
        inputs,
        outputs: Outputs::new(0, Vec::new(), state.readers.reader(0)),
        counters: Arc::default(),
        gaps: Arc::new(Gaps::new(1)),
        sleeper: Sleeper::new(Idle::Poll),
    };
    let worker = Worker::new(parts, Nothing, Arc::clone(state));
    thread::spawn(move || drop(worker.run(None)))
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} never");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_way_back_from_the_kernel_outlives_the_other_inputs_of_its_worker() {
    let pool = Pool::new(&PoolConfig { frames: 64, ..PoolConfig::default() }).unwrap();
    let state = Arc::new(RunState::new(pool, OnViolation::Log));
    let brings_back = ended(&state, true);
    // What it brings back may still come as long as there is any other worker.
    let at_work = AtWork::begin(&state);
    wait_until("it says that its inputs have ended", || state.at_work.load(Ordering::Relaxed) == 1);
    let other = ended(&state, false);
    wait_until("another ends by itself", || other.is_finished());
    assert!(!brings_back.is_finished() && !state.nobody_is_at_work());
    drop(at_work);
    assert!(state.nobody_is_at_work());
    state.stop.store(true, Ordering::Relaxed);
    brings_back.join().unwrap();
    other.join().unwrap();
}
