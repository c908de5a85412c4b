use super::*;
use crate::rseq::has_given_up;
use std::iter;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

fn list(text: &str) -> CpuList {
    text.parse().unwrap()
}

/// The first two CPUs that this process may use; says SKIPPED where there is one.
fn two_cpus(test: &str) -> Option<(usize, usize)> {
    let allowed = Topology::read().unwrap().allowed;
    let mut cpus = allowed.iter();
    let pair = cpus.next().zip(cpus.next());
    if pair.is_none() {
        eprintln!("SKIPPED {test}: needs a second CPU");
    }
    pair
}

type Job = Box<dyn FnOnce(&Pinned) + Send>;

/// A pinned thread that sleeps until it is given something to do, so that nothing but the kernel's orders moves it.
struct Worker {
    jobs: Option<Sender<Job>>,
    watch: Watch,
    thread: Option<thread::JoinHandle<CpuList>>,
}

impl Worker {
    fn start(cpu: usize, policy: Policy) -> Self {
        let (jobs, take) = channel::<Job>();
        let (send, watch) = channel();
        let thread = thread::spawn(move || {
            let pinned = pin_with_policy(cpu, policy).unwrap();
            send.send(pinned.watch()).unwrap();
            take.iter().for_each(|job| job(&pinned));
            drop(pinned);
            sys::get_affinity().unwrap()
        });
        Self { jobs: Some(jobs), watch: watch.recv_timeout(LIMIT).unwrap(), thread: Some(thread) }
    }

    /// Has the thread do something, and waits for what comes of it.
    fn run<T: Send + 'static>(&self, job: impl FnOnce(&Pinned) -> T + Send + 'static) -> T {
        let (done, result): (_, Receiver<T>) = channel();
        self.jobs.as_ref().unwrap().send(Box::new(move |pinned| drop(done.send(job(pinned))))).unwrap();
        match result.recv_timeout(LIMIT) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => panic!("not done within {LIMIT:?}"),
            Err(RecvTimeoutError::Disconnected) => panic!("the job panicked"),
        }
    }

    /// What `taskset -p` does.
    fn change_mask(&self, mask: &CpuList) {
        sys::set_affinity_of(self.watch.tid(), mask).unwrap();
    }

    /// Drops the guard; gives the mask that the thread has then.
    fn end(mut self) -> CpuList {
        self.jobs = None;
        self.thread.take().unwrap().join().unwrap()
    }
}

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn pinning_binds_refuses_others_and_ends_with_the_guard() {
    let before = Topology::read().unwrap();
    let cpu = before.allowed.iter().last().unwrap();
    let pinned = pin_on_cpu(cpu).unwrap();
    let after = Topology::read().unwrap();
    assert_eq!(after.allowed.iter().collect::<Vec<_>>(), [cpu]);
    assert!(matches!(pin_on_cpu(cpu + 1), Err(PinError::Unusable(_))));
    pinned.check().unwrap();
    pinned.check_fully().unwrap();
    assert_eq!((pinned.watch().check().unwrap(), pinned.changes()), (None, 0));
    drop(pinned);
    assert_eq!(Topology::read().unwrap().allowed, before.allowed);
}

#[test]
fn a_mask_widened_without_a_move_is_seen_by_the_next_full_check_once() {
    let Some((one, other)) = two_cpus("a_mask_widened_without_a_move_is_seen_by_the_next_full_check_once")
    else {
        return;
    };
    let worker = Worker::start(one, Policy::Error);
    let both: CpuList = [one, other].into_iter().collect();
    assert_eq!(worker.watch.check().unwrap(), None);
    worker.change_mask(&both);
    let outsider = worker.watch.check().unwrap().unwrap();
    assert_eq!(
        (outsider.cpu_pinned, &outsider.mask_before, &outsider.mask_now, outsider.moved_to),
        (one, &CpuList::from_iter([one]), &both, None)
    );
    assert_eq!(outsider.tid, worker.watch.tid());
    assert_eq!(worker.watch.check().unwrap(), None, "reported twice");
    assert_eq!(worker.watch.changes(), 1);
    // The thread learns of it, and may repin.
    let seen = outsider.clone();
    worker.run(move |pinned| {
        // It woke up for this, and may have been moved by that.
        let error = pinned.check().unwrap_err();
        assert_eq!((&error.mask_now, error.cpu_pinned), (&seen.mask_now, one));
        pinned.check().unwrap_err();
        pinned.repin().unwrap();
        pinned.check().unwrap();
        pinned.check_fully().unwrap();
    });
    assert_eq!(worker.watch.check().unwrap(), None);
    worker.end();
}

#[test]
fn a_full_check_of_the_threads_own_sees_a_widened_mask() {
    let Some((one, other)) = two_cpus("a_full_check_of_the_threads_own_sees_a_widened_mask") else { return };
    let worker = Worker::start(one, Policy::Error);
    worker.change_mask(&[one, other].into_iter().collect());
    worker.run(|pinned| pinned.check_fully().unwrap_err());
    assert_eq!(worker.watch.check().unwrap(), None, "the thread has noticed it before");
    worker.end();
}

#[test]
fn a_migration_is_seen_at_once_by_the_thread_itself() {
    let Some((one, other)) = two_cpus("a_migration_is_seen_at_once_by_the_thread_itself") else { return };
    let worker = Worker::start(one, Policy::Error);
    worker.run(move |pinned| {
        pinned.check().unwrap();
        // As an outsider would.
        sys::set_affinity_of(pinned.watch().tid(), &CpuList::from_iter([other])).unwrap();
        let error = pinned.check().unwrap_err();
        assert_eq!((error.cpu_pinned, error.moved_to), (one, Some(other)));
        assert_eq!(
            (error.mask_before, error.mask_now),
            (CpuList::from_iter([one]), CpuList::from_iter([other]))
        );
        pinned.check().unwrap_err();
        assert_eq!(pinned.changes(), 1);
        pinned.repin().unwrap();
        pinned.check().unwrap();
    });
    worker.end();
}

#[test]
fn a_watch_says_where_the_thread_went() {
    let Some((one, other)) = two_cpus("a_watch_says_where_the_thread_went") else { return };
    let worker = Worker::start(one, Policy::Error);
    worker.change_mask(&CpuList::from_iter([other]));
    // A sleeper is moved when it wakes up.
    worker.run(|_| ());
    let outsider = worker.watch.check().unwrap().unwrap();
    assert_eq!((outsider.moved_to, outsider.mask_now), (Some(other), CpuList::from_iter([other])));
    // And back: another change.
    worker.change_mask(&CpuList::from_iter([one]));
    let back = worker.watch.check().unwrap().unwrap();
    assert_eq!((back.mask_before, back.mask_now), (CpuList::from_iter([other]), CpuList::from_iter([one])));
    assert_eq!(back.moved_to, None);
    worker.end();
}

#[test]
fn the_callback_is_called_once_a_change_by_whoever_noticed() {
    let Some((one, other)) = two_cpus("the_callback_is_called_once_a_change_by_whoever_noticed") else {
        return;
    };
    let calls = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&calls);
    let callback =
        move |outsider: &Outsider| log.lock().unwrap().push((thread::current().id(), outsider.clone()));
    let worker = Worker::start(one, Policy::Callback(Arc::new(callback)));
    let both: CpuList = [one, other].into_iter().collect();
    worker.change_mask(&both);
    worker.watch.check().unwrap().unwrap();
    worker.watch.check().unwrap();
    assert_eq!(calls.lock().unwrap().len(), 1);
    assert_eq!(calls.lock().unwrap()[0].0, thread::current().id());
    let log = Arc::clone(&calls);
    worker.run(move |pinned| {
        sys::set_affinity(&CpuList::from_iter([other])).unwrap();
        log.lock().unwrap().clear();
        for _ in 0..3 {
            pinned.check().unwrap();
            pinned.check_fully().unwrap();
        }
        let calls = log.lock().unwrap();
        let [(thread, outsider)] = &calls[..] else { panic!("{calls:?}") };
        assert_eq!(*thread, thread::current().id());
        assert_eq!((outsider.moved_to, &outsider.mask_now), (Some(other), &CpuList::from_iter([other])));
    });
    worker.end();
}

#[test]
fn giving_up_is_for_good_until_the_thread_repins() {
    let Some((one, other)) = two_cpus("giving_up_is_for_good_until_the_thread_repins") else { return };
    let worker = Worker::start(one, Policy::GiveUp);
    assert!(!worker.run(|pinned| pinned.given_up() || has_given_up()));
    worker.change_mask(&[one, other].into_iter().collect());
    worker.watch.check().unwrap().unwrap();
    // Put back by the outsider: given up all the same.
    worker.change_mask(&CpuList::from_iter([one]));
    worker.run(|pinned| {
        assert!(pinned.given_up());
        pinned.check().unwrap();
        assert!(has_given_up());
        pinned.repin().unwrap();
        pinned.check().unwrap();
        assert!(!pinned.given_up() && !has_given_up());
    });
    worker.end();
}

#[test]
fn the_end_is_no_outsiders_change_and_an_outsiders_mask_outlives_the_guard() {
    let Some((one, other)) =
        two_cpus("the_end_is_no_outsiders_change_and_an_outsiders_mask_outlives_the_guard")
    else {
        return;
    };
    let all = Topology::read().unwrap().allowed;
    let worker = Worker::start(one, Policy::Error);
    let watch = worker.watch.clone();
    assert_eq!(worker.end(), all);
    assert_eq!((watch.check().unwrap(), watch.changes()), (None, 0));

    let worker = Worker::start(one, Policy::Error);
    worker.change_mask(&CpuList::from_iter([other]));
    assert_eq!(worker.end(), CpuList::from_iter([other]));
}

/// Two threads look while the thread's mask changes and it repins: what they saw before must not be found after.
#[test]
fn a_look_from_before_repinning_finds_nothing_after_it() {
    let Some((one, other)) = two_cpus("a_look_from_before_repinning_finds_nothing_after_it") else { return };
    let worker = Worker::start(one, Policy::Error);
    let both: CpuList = [one, other].into_iter().collect();
    let stop = AtomicBool::new(false);
    let watches = [worker.watch.clone(), worker.watch.clone()];
    thread::scope(|scope| {
        for watch in &watches {
            let stop = &stop;
            scope.spawn(move || {
                let start = Instant::now();
                while !stop.load(Ordering::Relaxed) && start.elapsed() < LIMIT {
                    watch.check().unwrap();
                }
            });
        }
        let undisturbed = worker.run(move |pinned| {
            let start = Instant::now();
            iter::repeat(()).take_while(|()| start.elapsed() < Duration::from_secs(3)).all(|()| {
                sys::set_affinity(&both).unwrap();
                thread::yield_now();
                pinned.repin().unwrap();
                (0..200).all(|_| pinned.check().is_ok())
            })
        });
        stop.store(true, Ordering::Relaxed);
        assert!(undisturbed);
    });
    assert!(worker.watch.changes() > 0, "the watches never saw anything");
    worker.end();
}

#[test]
fn where_a_cpu_has_gone_repinning_says_so() {
    let text = PinError::from(Unusable::Offline { cpu: 3, allowed: list("0-1") }).to_string();
    assert!(text.contains("CPU 3 is offline"), "{text}");
    // Beyond any machine: the way of a CPU that has gone.
    assert!(matches!(bind(sys::CPU_SETSIZE - 1), Err(PinError::Unusable(Unusable::Missing { .. }))));
}
