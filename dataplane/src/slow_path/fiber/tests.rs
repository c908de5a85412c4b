//! Fibers as their users see them.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use super::super::tests::{assert_accounted, compute, config, replies, start};
use super::super::*;
use super::Woken;
use std::panic::resume_unwind;
use std::sync::atomic::AtomicUsize;

const LIMIT: Duration = Duration::from_secs(30);
const CLASS: Class = Class(0);

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LIMIT, "{what}: not in 30 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn counts(slow: &SlowPath) -> SlowPathClassReport {
    let report = slow.report();
    assert_accounted(&report);
    report.classes[0].clone()
}

/// Counts when it is dropped.
struct Witness(Arc<AtomicUsize>);

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_class_of_one_thread_has_it_for_jobs_and_the_last_of_all_is_no_host() {
    let classes = vec![ClassConfig { threads: 1, ..ClassConfig::new("first") }, ClassConfig::new("second")];
    let slow = start(SlowPathConfig { classes, ..config(Detection::Wrapped, 2, 1) });
    let mut submitter = slow.submitter().unwrap();
    let event = slow.event(CLASS).unwrap();
    let waits = event.clone();
    assert!(slow.spawn_fiber(CLASS, move |fiber| assert_eq!(fiber.wait(&waits), Woken::Signalled)).is_ok());
    assert!(slow.spawn_fiber(Class(1), |_| ()).is_err(), "the other thread is for jobs");
    for class in [0, 1] {
        assert!(submitter.submit(Class(class), move || [class as u64; 4]).is_ok());
    }
    replies(&mut submitter, 2);
    event.signal();
    until("the fiber's end", || counts(&slow).fibers_done == 1);
    assert!(slow.spawn_fiber(CLASS, |_| ()).is_ok());
}

#[test]
fn without_fibers_there_are_no_events_and_those_that_nobody_used_come_back() {
    let none = start(SlowPathConfig { fibers: 0, ..config(Detection::Wrapped, 2, 1) });
    assert!(none.event(CLASS).is_err() && none.spawn_fiber(CLASS, |_| ()).is_err());
    let few = start(SlowPathConfig { fibers: 3, ..config(Detection::Wrapped, 2, 1) });
    for _ in 0..3 {
        let events: Vec<Event> = (0..6).map(|_| few.event(CLASS).unwrap()).collect();
        assert!(few.event(CLASS).is_err(), "{} are in use", events.len());
    }
}

#[test]
fn ten_thousand_fibers_wait_beside_a_thousand_jobs_that_block() {
    const FIBERS: usize = 10_000;
    const ROUNDS: usize = 3;
    let classes = vec![ClassConfig::new("fibers"), ClassConfig::new("jobs")];
    let slow = start(SlowPathConfig { classes, ..config(Detection::Trace, 64, 2) });
    let mut submitter = slow.submitter().unwrap();
    let events: Vec<Event> = (0..FIBERS).map(|_| slow.event(CLASS).unwrap()).collect();
    let ran: Arc<Vec<AtomicUsize>> = Arc::new((0..FIBERS).map(|_| AtomicUsize::new(0)).collect());
    let (awake, mut due) = (Arc::new(AtomicUsize::new(0)), 0);
    for (number, event) in events.iter().enumerate() {
        let (event, ran, awake) = (event.clone(), Arc::clone(&ran), Arc::clone(&awake));
        let body = move |fiber: &Fiber<'_>| {
            for _ in 0..ROUNDS {
                assert_eq!(fiber.wait(&event), Woken::Signalled);
                ran[number].fetch_add(1, Ordering::Relaxed);
                awake.fetch_add(1, Ordering::Release);
            }
        };
        assert!(slow.spawn_fiber(CLASS, body).is_ok(), "{number}");
    }
    assert!(slow.spawn_fiber(CLASS, |_| ()).is_err(), "there are as many as there may be");
    let started = Instant::now();
    for _ in 0..1000 {
        let job = || {
            std::thread::sleep(Duration::from_millis(5));
            [0; 4]
        };
        assert!(submitter.submit(Class(1), job).is_ok());
    }
    for round in 1..=ROUNDS {
        events.iter().for_each(Event::signal);
        due += FIBERS;
        until("a round of events", || awake.load(Ordering::Acquire) >= due);
        assert!(ran.iter().all(|ran| ran.load(Ordering::Relaxed) == round), "not once each in round {round}");
    }
    replies(&mut submitter, 1000);
    println!("1000 jobs beside {ROUNDS} x {FIBERS} fibers that were woken: {:?}", started.elapsed());
    until("all fibers end", || counts(&slow).fibers_done == FIBERS as u64);
    assert_eq!(awake.load(Ordering::Relaxed), due, "never more often than signalled");
    let report = slow.report();
    assert_accounted(&report);
    let fibers = &report.classes[0];
    assert_eq!((fibers.fibers_spawned, fibers.fibers_refused), (FIBERS as u64 + 1, 1));
    assert_eq!((fibers.submitted, fibers.done, report.classes[1].done), (0, 0, 1000));
    assert!(report.most_running <= report.slots + 1, "{report:?}");
    // Places and events are there again, and an event that is given out anew has no signals of its life before.
    drop(events);
    until("events come back", || counts(&slow).under_way == 0 && slow.event(CLASS).is_ok());
    let (event, seen) = (slow.event(CLASS).unwrap(), Arc::new(Mutex::new(None)));
    let own = Arc::clone(&seen);
    let body = move |fiber: &Fiber<'_>| {
        *own.lock().unwrap() = Some(fiber.wait_for(&event, Duration::from_millis(1)));
    };
    assert!(slow.spawn_fiber(CLASS, body).is_ok());
    until("one more", || seen.lock().unwrap().is_some());
    assert_eq!(*seen.lock().unwrap(), Some(Woken::TimedOut));
    assert_eq!(slow.close(), 0);
}

#[test]
fn a_signal_wakes_one_fiber_and_one_that_came_before_is_not_lost() {
    let slow = start(config(Detection::Wrapped, 2, 1));
    let (event, woken) = (slow.event(CLASS).unwrap(), Arc::new(AtomicUsize::new(0)));
    (0..3).for_each(|_| event.signal());
    for _ in 0..5 {
        let (event, woken) = (event.clone(), Arc::clone(&woken));
        let body = move |fiber: &Fiber<'_>| {
            assert_eq!(fiber.wait(&event), Woken::Signalled);
            woken.fetch_add(1, Ordering::Relaxed);
        };
        assert!(slow.spawn_fiber(CLASS, body).is_ok());
    }
    until("those that were signalled", || counts(&slow).fibers_done == 3);
    // Longer than any nap: a fourth would have run.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((woken.load(Ordering::Relaxed), counts(&slow).fibers_under_way), (3, 2));
    // One that times out is not in the way of those behind it.
    event.signal();
    event.signal();
    until("all", || counts(&slow).fibers_done == 5);
}

#[test]
fn times_are_kept_and_a_signal_in_time_is_told_apart() {
    let slow = start(config(Detection::Wrapped, 2, 1));
    let event = slow.event(CLASS).unwrap();
    let (told, sleeps) = (Arc::new(Mutex::new(Vec::new())), Duration::from_millis(20));
    let (own, waits) = (Arc::clone(&told), event.clone());
    let body = move |fiber: &Fiber<'_>| {
        let started = Instant::now();
        let first = fiber.wait_for(&waits, sleeps);
        let second = fiber.wait_for(&waits, LIMIT);
        fiber.sleep(sleeps);
        *own.lock().unwrap() = vec![(first, started.elapsed()), (second, started.elapsed())];
    };
    assert!(slow.spawn_fiber(CLASS, body).is_ok());
    // In the other order than their times.
    let order = Arc::new(Mutex::new(Vec::new()));
    for ms in [90, 60, 30] {
        let order = Arc::clone(&order);
        let body = move |fiber: &Fiber<'_>| {
            fiber.sleep(Duration::from_millis(ms));
            order.lock().unwrap().push(ms);
        };
        assert!(slow.spawn_fiber(CLASS, body).is_ok());
    }
    until("sleepers", || order.lock().unwrap().len() == 3);
    assert_eq!(*order.lock().unwrap(), [30, 60, 90]);
    event.signal();
    until("the one that waits", || !told.lock().unwrap().is_empty());
    let told = told.lock().unwrap();
    assert_eq!([told[0].0, told[1].0], [Woken::TimedOut, Woken::Signalled]);
    assert!(told[1].1 >= 2 * sleeps, "{told:?}");
}

#[test]
fn a_fiber_that_panics_harms_nobody() {
    /// Waits while it is dropped.
    struct Waits<'a>(&'a Fiber<'a>, Arc<Mutex<Option<Woken>>>, Event);
    impl Drop for Waits<'_> {
        fn drop(&mut self) {
            *self.1.lock().unwrap() = Some(self.0.wait(&self.2));
        }
    }
    let classes = vec![ClassConfig::new("fibers"), ClassConfig::new("others")];
    let slow = start(SlowPathConfig { classes, ..config(Detection::Wrapped, 2, 1) });
    let (dropped, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None)));
    let event = slow.event(CLASS).unwrap();
    for number in 0..20 {
        let (witness, seen, event) = (Witness(Arc::clone(&dropped)), Arc::clone(&seen), event.clone());
        let body = move |fiber: &Fiber<'_>| {
            let _witness = witness;
            fiber.give_way();
            if number % 2 == 0 {
                let _waits = Waits(fiber, seen, event);
                // Without the hook's words on standard error.
                resume_unwind(Box::new("deliberate"));
            }
            fiber.sleep(Duration::from_millis(1));
        };
        assert!(slow.spawn_fiber(CLASS, body).is_ok());
    }
    // An event of another class is a mistake that only its fiber pays for.
    let others = slow.event(Class(1)).unwrap();
    assert!(slow.spawn_fiber(CLASS, move |fiber| assert_eq!(fiber.wait(&others), Woken::Signalled)).is_ok());
    until("all end", || counts(&slow).fibers_under_way == 0);
    let report = counts(&slow);
    assert_eq!((report.fibers_done, report.fibers_panicked), (10, 11));
    assert_eq!(dropped.load(Ordering::Relaxed), 20);
    assert_eq!(*seen.lock().unwrap(), Some(Woken::Unwinding));
    // Its place and its stack are of use to others.
    assert!(slow.spawn_fiber(CLASS, |fiber| fiber.give_way()).is_ok());
    until("another", || counts(&slow).fibers_done == 11);
}

#[test]
fn at_the_end_fibers_are_unwound_where_they_wait() {
    const FIBERS: usize = 300;
    let slow = start(SlowPathConfig { fibers: FIBERS, ..config(Detection::Trace, 2, 1) });
    let (event, dropped) = (slow.event(CLASS).unwrap(), Arc::new(AtomicUsize::new(0)));
    let begun = Arc::new(AtomicUsize::new(0));
    for number in 0..FIBERS {
        let (event, witness, begun) = (event.clone(), Witness(Arc::clone(&dropped)), Arc::clone(&begun));
        let body = move |fiber: &Fiber<'_>| {
            let _witness = witness;
            begun.fetch_add(1, Ordering::Relaxed);
            match number % 3 {
                0 => assert_eq!(fiber.wait(&event), Woken::Signalled),
                1 => fiber.sleep(LIMIT),
                // Never waits, and lets others go on.
                _ => loop {
                    fiber.give_way();
                },
            }
        };
        assert!(slow.spawn_fiber(CLASS, body).is_ok());
    }
    assert!(slow.spawn_fiber(CLASS, |_| ()).is_err());
    until("all begin", || begun.load(Ordering::Relaxed) == FIBERS);
    let started = Instant::now();
    assert_eq!(slow.close(), 0);
    assert!(started.elapsed() < LIMIT);
    assert_eq!(dropped.load(Ordering::Relaxed), FIBERS);
    let report = counts(&slow);
    assert_eq!((report.fibers_unwound, report.fibers_under_way), (FIBERS as u64, 0));
    assert!(slow.spawn_fiber(CLASS, |_| ()).is_err(), "closed");
    assert_eq!(counts(&slow).fibers_refused, 2);
}

#[test]
fn a_fiber_that_never_gives_way_holds_up_its_class_alone_and_is_told_of() {
    let class = |name| ClassConfig { report_after: Duration::from_millis(100), ..ClassConfig::new(name) };
    let classes = vec![class("stuck"), class("good")];
    let slow = start(SlowPathConfig { classes, ..config(Detection::Wrapped, 4, 1) });
    let over = Arc::new(AtomicBool::new(false));
    let endless = Arc::clone(&over);
    let body = move |_: &Fiber<'_>| {
        while !endless.load(Ordering::Relaxed) {
            compute(Duration::from_micros(10));
        }
    };
    assert!(slow.spawn_fiber(CLASS, body).is_ok());
    // With one slot: the other class gets it all the same, by fibers and by jobs.
    let mut submitter = slow.submitter().unwrap();
    for number in 0..20_u64 {
        assert!(slow.spawn_fiber(Class(1), |fiber| fiber.sleep(Duration::from_millis(1))).is_ok());
        assert!(submitter.submit(Class(1), move || [number; 4]).is_ok());
    }
    replies(&mut submitter, 20);
    until("the others' fibers", || slow.report().classes[1].fibers_done == 20);
    until("it is told of", || slow.report().classes[0].overdue > 0);
    assert_eq!(slow.report().classes[0].overdue, 1, "once");
    assert_eq!(slow.close(), 1, "it is left alone");
    over.store(true, Ordering::Relaxed);
    until("it ends", || counts(&slow).fibers_under_way == 0);
}

/// A fiber that needs more than its stack: run in a process of its own.
#[test]
#[ignore = "ends its process: a_stack_that_is_too_small_ends_the_process_and_corrupts_nothing runs it"]
fn overflows_its_stack() {
    fn deep(depth: u64) -> u64 {
        let fill = std::hint::black_box([depth; 64]);
        if depth == 0 { fill[0] } else { deep(depth - 1) + fill[(depth % 64) as usize] }
    }
    let slow = start(config(Detection::Wrapped, 2, 1));
    assert!(slow.spawn_fiber(CLASS, |_| println!("got to {}", deep(1 << 20))).is_ok());
    until("it ends", || counts(&slow).fibers_under_way == 0);
}

#[test]
fn a_stack_that_is_too_small_ends_the_process_and_corrupts_nothing() {
    use std::os::unix::process::ExitStatusExt;
    let test = "slow_path::fiber::tests::overflows_its_stack";
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(words.contains("running 1 test") && !words.contains("got to"), "{words}");
    assert!(matches!(child.status.signal(), Some(libc::SIGSEGV | libc::SIGABRT)), "{child:?}");
}

#[test]
fn a_class_of_fibers_that_compute_keeps_to_its_cap() {
    let capped = ClassConfig { cap: Some(0.2), ..ClassConfig::new("capped") };
    let slow = start(SlowPathConfig { classes: vec![capped], ..config(Detection::Wrapped, 2, 1) });
    let over = Arc::new(AtomicBool::new(false));
    for _ in 0..4 {
        let over = Arc::clone(&over);
        let body = move |fiber: &Fiber<'_>| {
            while !over.load(Ordering::Relaxed) {
                compute(Duration::from_micros(200));
                fiber.give_way();
            }
        };
        assert!(slow.spawn_fiber(CLASS, body).is_ok());
    }
    std::thread::sleep(Duration::from_millis(100));
    let (before, started) = (counts(&slow).cpu_ns, Instant::now());
    std::thread::sleep(Duration::from_secs(1));
    let (after, elapsed) = (counts(&slow).cpu_ns, started.elapsed());
    over.store(true, Ordering::Relaxed);
    let share = (after - before) as f64 / elapsed.as_nanos() as f64;
    println!("fibers of a class capped at 0.2 CPUs got {share:.3}");
    assert!(share > 0.0 && share <= 0.22, "{share}");
    until("all end", || counts(&slow).fibers_done == 4);
}
