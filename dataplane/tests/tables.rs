//! A table that is replaced a thousand times while workers look things up in it: every lookup finds a whole one, and memory stays flat.
#![allow(clippy::unwrap_used)]

use clap::Parser;
use dataplane::{Application, DataplaneArgs, Outputs, Plan, Shared};
use nic::{Batch, PortId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    dataplane: DataplaneArgs,
}

const ENTRIES: usize = 1000;
const REPLACED: u64 = 2000;

/// Every entry is the table's own number, as long as it lives.
struct Routes {
    number: u64,
    entries: Box<[AtomicU64]>,
    live: Arc<AtomicUsize>,
}

impl Routes {
    fn new(number: u64, live: &Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::Relaxed);
        let entries = (0..ENTRIES).map(|_| AtomicU64::new(number)).collect();
        Self { number, entries, live: Arc::clone(live) }
    }
}

impl Drop for Routes {
    /// Whoever still reads it sees that.
    fn drop(&mut self) {
        self.entries.iter().for_each(|entry| entry.store(u64::MAX, Ordering::Relaxed));
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Looks up something for each packet.
struct Router {
    routes: Shared<Routes>,
    at: usize,
    last: u64,
    tables: u64,
    lookups: u64,
    wrong: u64,
    stop: Arc<AtomicBool>,
}

impl Application for Router {
    fn process(&mut self, packets: &mut Batch, from: PortId, out: &mut Outputs) {
        let routes = out.read(&self.routes);
        let number = routes.number;
        self.wrong += u64::from(number < self.last);
        self.tables += u64::from(number != self.last);
        self.last = number;
        for _ in 0..packets.len() {
            self.at = (self.at + 7) % ENTRIES;
            self.wrong += u64::from(routes.entries[self.at].load(Ordering::Relaxed) != number);
            self.lookups += 1;
        }
        out.send(PortId(from.0 ^ 1), packets);
    }

    fn is_finished(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

#[test]
fn a_table_is_replaced_under_traffic_and_every_lookup_finds_a_whole_one() {
    let args = ["test", "--quiet", "--port", "mem:gen", "--port", "mem:gen", "--duration", "60"];
    let args = Args::parse_from(args);
    let dataplane = Plan::check(&args.dataplane).unwrap().open().unwrap();
    let (live, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let published = dataplane.publish(Routes::new(0, &live));
    let shared = published.shared();
    let replaces = thread::spawn({
        let (live, stop, published) = (Arc::clone(&live), Arc::clone(&stop), published.clone());
        move || {
            let (start, mut most, mut refused) = (Instant::now(), 0, 0);
            for number in 1..=REPLACED {
                // A thousand a second, where the machine lets us; no faster.
                thread::sleep(Duration::from_millis(number).saturating_sub(start.elapsed()));
                let table = Routes::new(number, &live);
                refused += usize::from(published.publish(table, Duration::from_secs(10)).is_err());
                most = most.max(live.load(Ordering::Relaxed));
            }
            stop.store(true, Ordering::Relaxed);
            (most, refused, start.elapsed())
        }
    });
    let outcome = dataplane.run(|_| Router {
        routes: shared.clone(),
        at: 0,
        last: 0,
        tables: 0,
        lookups: 0,
        wrong: 0,
        stop: Arc::clone(&stop),
    });
    let (most, refused, took) = replaces.join().unwrap();
    let outcome = outcome.unwrap();
    let sum = |of: fn(&Router) -> u64| outcome.applications.iter().map(of).sum::<u64>();
    let (lookups, tables, wrong) = (sum(|a| a.lookups), sum(|a| a.tables), sum(|a| a.wrong));
    eprintln!("{lookups} lookups in {tables} tables, {REPLACED} replaced in {took:?}, at most {most} alive");
    assert_eq!((wrong, refused), (0, 0));
    assert!(lookups > 100_000 && tables > REPLACED / 10, "{lookups} lookups in {tables} tables");
    // Sixteen that wait, the one in use, and the one that is offered.
    assert!(most <= 18, "{most} tables at once");
    assert_eq!((published.collect(), live.load(Ordering::Relaxed)), (0, 1));
    assert_eq!(outcome.report.pool.leaked, 0);
    drop((published, shared, outcome));
    assert_eq!(live.load(Ordering::Relaxed), 0);
}

/// Stays in its first turn until it is told to go on.
struct Stuck(Shared<Routes>, Arc<AtomicBool>, Arc<AtomicBool>);

impl Application for Stuck {
    fn process(&mut self, packets: &mut Batch, _from: PortId, out: &mut Outputs) {
        packets.clear();
        let routes = out.read(&self.0);
        self.1.store(true, Ordering::Relaxed);
        let start = Instant::now();
        while !self.2.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(30) {
            thread::yield_now();
        }
        assert_eq!(routes.entries[0].load(Ordering::Relaxed), 0, "freed under it");
    }

    fn is_finished(&self) -> bool {
        self.2.load(Ordering::Relaxed)
    }
}

#[test]
fn a_worker_that_is_stuck_keeps_its_table_and_new_ones_are_refused_in_words() {
    let args = Args::parse_from(["test", "--quiet", "--port", "mem:gen", "--watchdog", "0"]);
    let dataplane = Plan::check(&args.dataplane).unwrap().open().unwrap();
    let live = Arc::<AtomicUsize>::default();
    let published = dataplane.publish(Routes::new(0, &live));
    let shared = published.shared();
    let (inside, go_on) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    // Nobody has begun, so nobody is waited for.
    assert!(published.publish(Routes::new(0, &live), Duration::ZERO).is_ok());
    assert_eq!(live.load(Ordering::Relaxed), 1);
    let replaces = thread::spawn({
        let (live, inside, go_on) = (Arc::clone(&live), Arc::clone(&inside), Arc::clone(&go_on));
        move || {
            let start = Instant::now();
            while !inside.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(30) {
                thread::sleep(Duration::from_millis(1));
            }
            let publish = |number| published.publish(Routes::new(number, &live), Duration::ZERO);
            let refused = (1..100).find_map(|number| publish(number).err());
            let said = refused.map(|refused| refused.to_string());
            let most = live.load(Ordering::Relaxed);
            go_on.store(true, Ordering::Relaxed);
            (said, most, published)
        }
    });
    let outcome = dataplane.run(|_| Stuck(shared.clone(), Arc::clone(&inside), Arc::clone(&go_on)));
    let (said, most, published) = replaces.join().unwrap();
    assert!(outcome.is_ok());
    assert!(said.as_ref().is_some_and(|said| said.contains("worker 0 has not ended its turn")), "{said:?}");
    assert_eq!(most, 17, "sixteen old ones and the last");
    // It has ended, and holds nothing up.
    assert_eq!((published.collect(), live.load(Ordering::Relaxed)), (0, 1));
}
