//! What others do to a worker: the kernel, other processes, other threads of its own.
#![forbid(unsafe_code)]

use super::helper::{HOG, Helper, REFRESHES};
use super::quiet::interrupts;
use super::scene::{Scene, Stay};
use super::{CPU, LIMIT, all_are, lines, without_ticks};
use crate::sys::{self, Pages};
use crate::until::until;
use anyhow::{Context, Result, anyhow, ensure};
use isolation::trace::Totals;
use isolation::{Config, Source, Violation};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Five seconds without an interrupt, by our count and by the kernel's.
pub(crate) fn a_worker_is_left_alone() -> Result<()> {
    let mut scene = Scene::prepare(Config::default())?;
    scene.enter()?;
    let before = interrupts()?;
    scene.watch(Duration::from_secs(5));
    let more = interrupts()? - before;
    ensure!(more == 0, "the kernel has counted {more} interrupts");
    let signals: u64 = Source::all().map(|source| scene.count(source)).sum();
    ensure!(signals == 0, "{signals} signals");
    let totals = scene.observer.totals(0);
    ensure!(totals == Totals::default(), "we have counted {totals:?}");
    ensure!(scene.leave()? == Stay::Whole, "the stay has ended");
    Ok(())
}

/// A thread of this process on CPU 0, which does one thing when it is told to, and ends after the stay: its end would unmap its stack.
struct Neighbour {
    order: Option<Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
    done: std::sync::mpsc::Receiver<()>,
}

impl Neighbour {
    fn start(act: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Self> {
        let (order, ordered) = channel::<()>();
        let (tell, done) = channel();
        let thread = thread::Builder::new().name("neighbour".into()).spawn(move || {
            let acted = ordered.recv().map_err(anyhow::Error::from).and_then(|()| act());
            tell.send(())?;
            // Until the stay is over.
            let _ = ordered.recv();
            acted
        })?;
        Ok(Self { order: Some(order), thread: Some(thread), done })
    }

    fn act(&self) -> Result<()> {
        self.order.as_ref().context("it has ended")?.send(())?;
        self.done.recv_timeout(LIMIT).context("the neighbour is not done")
    }

    fn end(mut self) -> Result<()> {
        self.order = None;
        let thread = self.thread.take().context("it has ended")?;
        thread.join().map_err(|_| anyhow!("the neighbour panicked"))?
    }
}

fn is_sent_by(violation: &Violation, comm: &str) -> bool {
    violation.cause.starts_with("irq:call_function")
        && violation.detail.contains(&format!("sent by {comm} (pid "))
}

/// With the worker's own memory kept from children, a fork in another thread costs the interrupts it takes, and no fault.
pub(crate) fn a_fork_elsewhere_shares_no_stack() -> Result<()> {
    fork_elsewhere(true)
}

/// Without, the worker's next write to its stack faults too.
pub(crate) fn a_fork_elsewhere_faults_where_it_may() -> Result<()> {
    fork_elsewhere(false)
}

fn fork_elsewhere(keep_from_children: bool) -> Result<()> {
    let mut scene = Scene::prepare(Config { keep_from_children, ..Config::default() })?;
    let neighbour = Neighbour::start(|| Ok(sys::fork_and_wait()?))?;
    scene.enter()?;
    neighbour.act()?;
    let found = scene.violations()?;
    let stack_faults = found.iter().filter(|one| {
        one.cause == "exception:page_fault" && one.address.is_some_and(|address| scene.is_on_stack(address))
    });
    let stack_faults = stack_faults.count();
    let faults = found.iter().filter(|one| one.cause == "exception:page_fault").count();
    let others: Vec<Violation> =
        found.into_iter().filter(|one| one.cause != "exception:page_fault").collect();
    all_are(&others, "a fork elsewhere", |one| {
        is_sent_by(one, "neighbour")
            || is_sent_by(one, "check")
            // A fault waits for the fork to be done with the memory's map: the worker's own, or the kernel's, which writes to the
            // thread's rseq area when it signals.
            || one.cause == "blocked"
    })?;
    ensure!(faults == 0 || !keep_from_children, "{faults} faults");
    ensure!(stack_faults > 0 || keep_from_children, "of {faults} faults none was on the stack");
    ensure!(scene.leave()? == Stay::Whole, "the stay has ended");
    neighbour.end()
}

/// Another thread unmaps memory: the interrupt that tells the worker's CPU so has a sender.
pub(crate) fn a_shootdown_has_its_sender() -> Result<()> {
    let mut scene = Scene::prepare(Config::default())?;
    let pages = Pages::new(64)?;
    for page in 0..64 {
        pages.touch(page * Pages::BYTES);
    }
    let neighbour = Neighbour::start(move || {
        drop(pages);
        Ok(())
    })?;
    scene.enter()?;
    neighbour.act()?;
    let found = scene.violations()?;
    all_are(&found, "a shoot-down", |one| {
        is_sent_by(one, "neighbour")
            && one.detail.contains("flush_tlb")
            && one.kernel_stack.iter().any(|function| function.contains("munmap"))
            && one.user_stack.iter().any(|function| function.contains("scene::work"))
    })?;
    ensure!(found.len() == 1, "{} violations by one", found.len());
    let signals = scene.count(Source::Vector("call_function_single"));
    ensure!(signals == 1, "{signals} signals by one");
    ensure!(scene.leave()? == Stay::Whole, "the stay has ended");
    neighbour.end()
}

/// Work that another CPU has the kernel do on this one.
pub(crate) fn work_of_the_kernel_is_named() -> Result<()> {
    let mut scene = Scene::prepare(Config::default())?;
    let mut refresher = Helper::start("refresher", scene.tid)?;
    scene.enter()?;
    refresher.order()?;
    let found = without_ticks(scene.violations()?);
    let sender = format!("sent by refresher (pid {}) on CPU 0 from ", refresher.pid());
    let is_work = |one: &Violation| one.cause.starts_with("task:kworker/1:");
    // The scheduler is told of it, and so is the tick, which two tasks need. Whether the work then comes at once or with that tick is the scheduler's.
    let is_word = |one: &Violation| {
        ["irq:reschedule", "irq:call_function_single"].contains(&one.cause.as_str())
            && one.detail.contains(&sender)
    };
    all_are(&found, "stat_refresh", |one| is_work(one) || is_word(one))?;
    let text = lines(&found);
    let works = text.matches("work refresh_vm_stats").count();
    ensure!(works == REFRESHES, "{works} works by {REFRESHES} reads: {text}");
    ensure!(text.contains(&sender), "who had it done is not told: {text}");
    ensure!(scene.leave()? == Stay::Whole, "the stay has ended");
    Ok(())
}

/// A task that the scheduler puts before the worker.
pub(crate) fn a_real_time_task_is_named() -> Result<()> {
    let mut scene = Scene::prepare(Config::default())?;
    let mut hog = Helper::start("hog", scene.tid)?;
    scene.enter()?;
    hog.order()?;
    let found = without_ticks(scene.violations()?);
    let pid = format!("pid {}", hog.pid());
    // The kernel's thread that moves it here may announce it by an interrupt of its own, where this CPU is slow to switch.
    let announced = |one: &Violation| one.cause == "irq:reschedule" && one.detail.contains("migration/");
    let is_hog = |one: &Violation| one.cause == "task:hog" && one.detail.starts_with(&pid);
    all_are(&found, "a hog", |one| is_hog(one) || announced(one))?;
    let found: Vec<Violation> = found.into_iter().filter(is_hog).collect();
    let took_ns: u64 = found.iter().filter_map(|one| one.duration_ns).sum();
    ensure!(took_ns >= HOG.as_nanos() as u64, "only {took_ns} ns of it: {}", lines(&found));
    ensure!(scene.count(Source::Switch) > 0, "it was not signalled");
    // It may have to wait once for the thread that has moved it.
    ensure!(found.len() <= 2, "{} violations by one: {}", found.len(), lines(&found));
    ensure!(scene.leave()? == Stay::Whole, "the stay has ended");
    Ok(())
}

/// The serial line of the console, whose interrupt somebody has steered to this CPU.
pub(crate) fn a_device_interrupt_is_named() -> Result<()> {
    let mut scene = Scene::prepare(Config::default())?;
    let text = fs::read_to_string("/proc/interrupts")?;
    let line = text.lines().find(|line| line.ends_with("ttyS0")).context("the console has no interrupt")?;
    let irq: u32 = line.split(':').next().unwrap_or_default().trim().parse()?;
    let steer = |cpu: usize| fs::write(format!("/proc/irq/{irq}/smp_affinity_list"), cpu.to_string());
    let mut console = OpenOptions::new().write(true).open("/dev/ttyS0")?;
    steer(CPU)?;
    // It moves with the next one.
    let before = interrupts()?;
    until(LIMIT, || {
        console.write_all(b"-\n")?;
        Ok(interrupts()? > before)
    })?;
    scene.enter()?;
    console.write_all(b"on purpose\n")?;
    let found = without_ticks(scene.violations()?);
    steer(0)?;
    all_are(&found, "the console", |one| {
        one.cause == "irq:ttyS0" && one.detail.starts_with(&format!("irq {irq}"))
    })?;
    ensure!(scene.count(Source::DeviceInterrupt) > 0, "it was not signalled");
    ensure!(scene.leave()? == Stay::Whole, "the stay has ended");
    Ok(())
}

/// Another process attaches a perf event to the worker.
pub(crate) fn a_profiler_is_named() -> Result<()> {
    let mut scene = Scene::prepare(Config::default())?;
    let mut profiler = Helper::start("profiler", scene.tid)?;
    scene.enter()?;
    profiler.order()?;
    let found = scene.violations()?;
    let sender = format!("sent by profiler (pid {}) on CPU 0 from ", profiler.pid());
    all_are(&found, "perf", |one| {
        one.cause == "irq:call_function_single"
            && one.detail.contains(&sender)
            && one.kernel_stack.iter().any(|function| function.contains("perf"))
    })?;
    ensure!(scene.count(Source::Vector("call_function_single")) > 0, "it was not signalled");
    ensure!(scene.leave()? == Stay::Whole, "the stay has ended");
    Ok(())
}

/// While a debugger is attached nothing is signalled; when it has gone, all is again.
pub(crate) fn a_debugger_suspends() -> Result<()> {
    let mut scene = Scene::with_action(Config::default(), |_| {
        sys::parent();
        Stay::Whole
    })?;
    let mut debugger = Helper::start("debugger", scene.tid)?;
    scene.enter()?;
    debugger.order()?;
    scene.observer.watch_debuggers();
    let name = format!("debugger/{}", debugger.pid());
    let names: Vec<&String> = scene.observer.suspended_by().keys().collect();
    ensure!(names == [&name], "{names:?}");
    scene.act()?;
    scene.watch(Duration::from_millis(100));
    ensure!(scene.count(Source::Syscall) == 0, "a call was counted while it was attached");
    debugger.dismiss()?;
    scene.observer.watch_debuggers();
    ensure!(!scene.watched().is_some_and(isolation::Watched::is_suspended), "still suspended");
    // A turn of the worker's shuts the gate.
    until(LIMIT, || {
        scene.act()?;
        Ok(scene.count(Source::Syscall) > 0)
    })?;
    let found = scene.violations()?;
    all_are(&found, "after the debugger", |one| one.cause == "syscall:getppid")?;
    ensure!(found.len() == 1, "{} violations by one call", found.len());
    ensure!(scene.leave()? == Stay::Whole, "the stay has ended");
    Ok(())
}

/// Another process moves the worker: that is told, and ends the stay.
pub(crate) fn a_move_ends_the_stay() -> Result<()> {
    let mut scene = Scene::prepare(Config::default())?;
    let mut mover = Helper::start("mover", scene.tid)?;
    scene.enter()?;
    mover.order()?;
    let found = scene.violations()?;
    all_are(&found, "a move", |one| one.cause == "migration")?;
    ensure!(found.len() == 1, "{} violations by one", found.len());
    ensure!(!scene.is_isolated(), "it is isolated elsewhere");
    ensure!(scene.leave()? == Stay::Ended, "the worker does not know");
    Ok(())
}
