//! The worker threads: made, pinned, prepared, let go together, and joined.
#![forbid(unsafe_code)]

use crate::application::Application;
use crate::error::Error;
use crate::loop_gap::LoopGap;
use crate::signals::{Signals, Waker};
use crate::worker::{RunState, Worker};
use isolation::{Isolated, Prepared, Refusal, Watched};
use percpu::pin::Watch;
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

/// What a worker leaves: its application, and how long its turns took.
pub(crate) type Joined<A> = (A, LoopGap);

/// A worker that is on its CPU and waits to be let go.
pub(crate) struct Ready {
    /// Of its affinity.
    pub(crate) watch: Watch,
    /// Of its isolation, where it is to be isolated.
    pub(crate) watched: Option<Watched>,
    /// What its isolation lacks, in words.
    pub(crate) lacks: Vec<String>,
}

/// The worker threads.
pub(crate) struct Crew<A> {
    threads: Vec<JoinHandle<Result<Joined<A>, Error>>>,
    /// In the order of the workers.
    ready: Vec<Ready>,
    /// Dropped, they let the workers go.
    starts: Vec<mpsc::Sender<()>>,
    state: Arc<RunState>,
}

impl<A: Application + 'static> Crew<A> {
    /// Starts a thread for each worker, and comes back when all are on their CPUs and prepared. None runs its loop before
    /// [`go`](Self::go).
    pub(crate) fn start(
        workers: Vec<Worker<A>>,
        cpus: &[usize],
        isolation: Option<isolation::Config>,
        state: &Arc<RunState>,
        signals: &Signals,
    ) -> Result<Self, Error> {
        let mut crew =
            Self { threads: Vec::new(), ready: Vec::new(), starts: Vec::new(), state: Arc::clone(state) };
        let (ready, all_ready) = mpsc::channel();
        for (index, (worker, &cpu)) in workers.into_iter().zip(cpus).enumerate() {
            let waker = signals.waker().map_err(Error::system("cannot make a pipe"))?;
            let ready = ready.clone();
            let (start, may_start) = mpsc::channel::<()>();
            let state = Arc::clone(state);
            let body = move || {
                let _at_the_end = AtTheEnd { waker, state: Arc::clone(&state) };
                let refused = |source| Error::Isolation { worker: index, source };
                let (_pinned, prepared, result) = match percpu::pin_on_cpu(cpu) {
                    Ok(pinned) => {
                        match isolation.map(|config| isolation::prepare(cpu, &config)).transpose() {
                            Ok(prepared) => {
                                let watched = prepared.as_ref().map(Prepared::watched);
                                let lacks = prepared.as_ref().map_or(&[][..], Prepared::shortcomings);
                                let lacks = lacks.iter().map(Refusal::as_shortcoming).collect();
                                let ready = Ready { watch: pinned.watch(), watched, lacks };
                                (Some(pinned), prepared, Ok((index, ready)))
                            }
                            Err(refusal) => (Some(pinned), None, Err(refused(refusal))),
                        }
                    }
                    Err(source) => (None, None, Err(Error::Pin { worker: index, source })),
                };
                let _ = ready.send(result);
                // The channel ends with the last of them, also where another has panicked.
                drop(ready);
                // An error means that some worker could not start: then the stop flag is set and run returns at once.
                let _ = may_start.recv();
                if state.stop.load(Ordering::Relaxed) {
                    return Ok(worker.run(None));
                }
                let known = prepared.as_ref().map_or(0, |prepared| prepared.shortcomings().len());
                let isolated = match prepared.map(Prepared::enter).transpose() {
                    Ok(isolated) => {
                        if let Some(isolated) = &isolated {
                            say_more(index, isolated, known);
                        }
                        isolated
                    }
                    Err(refusal) => {
                        state.stop.store(true, Ordering::Relaxed);
                        return Err(refused(refusal));
                    }
                };
                Ok(worker.run(isolated))
            };
            let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(body);
            crew.threads.push(thread.map_err(Error::system("cannot start a worker thread"))?);
            crew.starts.push(start);
        }
        drop(ready);
        let ready: Result<BTreeMap<usize, Ready>, Error> =
            all_ready.iter().take(crew.threads.len()).collect();
        if ready.is_err() {
            state.stop.store(true, Ordering::Relaxed);
        }
        crew.ready = ready?.into_values().collect();
        Ok(crew)
    }

    pub(crate) fn take_ready(&mut self) -> Vec<Ready> {
        std::mem::take(&mut self.ready)
    }

    /// Lets all of them begin.
    pub(crate) fn go(&mut self) {
        self.starts.clear();
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    pub(crate) fn join(mut self) -> Result<Vec<Joined<A>>, Error> {
        self.state.stop.store(true, Ordering::Relaxed);
        let joined: Vec<_> = std::mem::take(&mut self.threads).into_iter().map(JoinHandle::join).collect();
        joined
            .into_iter()
            .enumerate()
            .map(|(worker, result)| {
                result.map_err(|panic| Error::Panic { worker, message: panic_message(&*panic) })?
            })
            .collect()
    }
}

impl<A> Drop for Crew<A> {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        self.starts.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What turned out when it entered, besides what was known before. The worker says it itself, in a window.
fn say_more(worker: usize, isolated: &Isolated, known: usize) {
    let more = &isolated.shortcomings()[known..];
    if !more.is_empty() {
        isolated.allow(|| {
            more.iter().for_each(|lack| tracing::warn!("worker {worker}: {}", lack.as_shortcoming()))
        });
    }
}

/// Tells the others that a worker has ended; one that panicked ends them too, or its queues would overflow unseen.
struct AtTheEnd {
    waker: Waker,
    state: Arc<RunState>,
}

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        if thread::panicking() {
            self.state.stop.store(true, Ordering::Relaxed);
        }
        self.waker.wake();
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
