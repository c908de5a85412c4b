//! A thread that runs jobs, one after another; and what a job may call.
#![forbid(unsafe_code)]

use super::Shared;
use super::seat::Seat;
use super::submitter::{From, Outcome, Pending};
use super::sys;
use std::any::Any;
use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

thread_local! {
    /// On a thread of a slow path, outside [`blocking`].
    static OWN: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

pub(super) fn start(
    shared: &Arc<Shared>,
    seat: &'static Seat,
    ready: mpsc::Sender<io::Result<()>>,
) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name(format!("slow-{}", seat.index)).spawn(move || {
        let begun = sys::own_cpu_clock().and_then(|clock| {
            seat.sit_down(nix::unistd::gettid().as_raw(), clock);
            sys::stay_on(&shared.cpus)
        });
        let failed = begun.is_err();
        let _ = ready.send(begun);
        drop(ready);
        if failed {
            return;
        }
        sys::take_seat(seat);
        OWN.set(Some(Arc::clone(&shared)));
        loop {
            seat.wait();
            let Some(job) = shared.gate.take(seat.index) else { return };
            run(&shared, seat, job);
            shared.gate.finish(seat.index);
        }
    })
}

fn run(shared: &Shared, seat: &Seat, job: Pending) {
    let class = job.class();
    let Pending { task, from } = job;
    seat.enter_job();
    let ended = catch_unwind(AssertUnwindSafe(|| task.run()));
    // All that can allocate or free is done as the job's.
    let outcome = match ended {
        Ok(message) => Outcome::Done(message),
        Err(panic) => {
            let name = shared.config.classes[class].name;
            tracing::error!("slow path: a job of class {name} panicked: {}", words(&*panic));
            // What it threw may panic when it is dropped.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(panic)));
            Outcome::Panicked
        }
    };
    seat.leave_job();
    // Fibers are counted one by one.
    let From::Submitter(source, ticket) = from else { return };
    let counter = match outcome {
        Outcome::Done(_) => &shared.ended[class].done,
        _ => &shared.ended[class].panicked,
    };
    counter.fetch_add(1, Ordering::Relaxed);
    source.answer(ticket, class, outcome);
}

pub(super) fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// A job says by this that what it is about to do may block: its slot passes on before, without anybody having to notice, and it
/// queues for one afterwards. Anywhere else it only calls `f`.
///
/// `f` runs without a slot: it should be no more than the call that blocks.
pub fn blocking<T>(f: impl FnOnce() -> T) -> T {
    let own = sys::own_seat().and_then(|seat| Some((seat, OWN.take()?)));
    let Some((seat, shared)) = own else { return f() };
    seat.leave_job();
    shared.gate.block(seat.index);
    let _again = Again { seat, shared: Some(shared) };
    f()
}

/// On a thread that runs a job: it is not stopped while this lives. For what takes a lock that others need, or is halfway through a ring.
pub(super) struct Unstopped(Option<&'static Seat>);

impl Unstopped {
    #[inline]
    pub(super) fn begin() -> Self {
        let seat = sys::own_seat().filter(|seat| seat.is_in_job());
        if let Some(seat) = seat {
            seat.leave_job();
        }
        Self(seat)
    }
}

impl Drop for Unstopped {
    #[inline]
    fn drop(&mut self) {
        if let Some(seat) = self.0 {
            seat.enter_job();
        }
    }
}

/// Queues again, also where the call panics.
struct Again {
    seat: &'static Seat,
    shared: Option<Arc<Shared>>,
}

impl Drop for Again {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.gate.unblock(self.seat.index);
            OWN.set(Some(shared));
        }
        self.seat.enter_job();
    }
}
