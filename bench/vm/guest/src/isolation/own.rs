//! What the application does itself, in isolation.
#![forbid(unsafe_code)]

use super::scene::{Scene, Stay};
use super::{all_are, lines};
use crate::sys::{self, Pages};
use anyhow::{Result, ensure};
use isolation::{Config, Source, Violation};
use nix::sys::wait::{WaitStatus, waitpid};
use std::fs::File;
use std::panic;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

fn is_call(violation: &Violation, name: &str) -> bool {
    violation.cause == format!("syscall:{name}")
}

#[inline(never)]
fn an_application_that_calls() -> i64 {
    std::hint::black_box(sys::parent() + 1)
}

/// One system call: one violation, with its name, and the stack of whoever made it.
pub(crate) fn a_system_call_is_named() -> Result<()> {
    let mut scene = Scene::with_action(Config::default(), |_| {
        an_application_that_calls();
        Stay::Whole
    })?;
    scene.enter()?;
    scene.act()?;
    let found = scene.violations()?;
    all_are(&found, "getppid", |one| {
        is_call(one, "getppid")
            && one.address.is_some()
            && one.user_stack.iter().any(|frame| frame.contains("an_application_that_calls"))
    })?;
    ensure!(found.len() == 1, "{} violations by one call", found.len());
    ensure!(scene.leave()? == Stay::Whole, "the stay has ended");
    Ok(())
}

/// The first touch of new memory: one violation, with the address.
pub(crate) fn a_page_fault_has_its_address() -> Result<()> {
    static TOUCHED: AtomicU64 = AtomicU64::new(0);
    let mut kept = Vec::with_capacity(1);
    let mut scene = Scene::with_action(Config::default(), move |guard| {
        // Mapping it is meant, and not what is looked for.
        if let Ok(pages) = guard.allow(|| Pages::new(2)) {
            TOUCHED.store(pages.touch(Pages::BYTES + 0x123), Ordering::Relaxed);
            pages.touch(Pages::BYTES + 0x456);
            // Unmapped after the stay.
            kept.push(pages);
        }
        Stay::Whole
    })?;
    scene.enter()?;
    scene.act()?;
    let (found, touched) = (scene.violations()?, TOUCHED.load(Ordering::Relaxed));
    all_are(&found, "a fault", |one| one.cause == "exception:page_fault" && one.address == Some(touched))?;
    ensure!(found.len() == 1, "{} violations by one fault", found.len());
    ensure!(scene.leave()? == Stay::Whole, "the stay has ended");
    Ok(())
}

/// A new thread has the worker's CPU, and so takes it: besides the calls that made it there is that.
pub(crate) fn a_thread_can_be_made() -> Result<()> {
    let mut scene = Scene::with_action(Config::default(), |_| {
        let thread = thread::Builder::new().name("made".into()).spawn(|| 7);
        match thread.map(thread::JoinHandle::join) {
            Ok(Ok(7)) => Stay::Whole,
            _ => Stay::Ended,
        }
    })?;
    scene.enter()?;
    scene.act()?;
    let found = scene.violations()?;
    ensure!(found.iter().any(|one| is_call(one, "clone3") || is_call(one, "clone")), "no thread was made");
    // It has the name of its maker at first. With two tasks the kernel needs its tick, which begins by a word to itself.
    let taken = ["task:made", "task:worker", "blocked", "irq:irq_work", "irq:local_timer"];
    all_are(&found, "a thread", |one| {
        one.cause.starts_with("syscall:") || taken.contains(&one.cause.as_str())
    })?;
    ensure!(scene.leave()? == Stay::Whole, "the thread did not give what it should, or the stay has ended");
    Ok(())
}

/// A panic that is caught: the process lives, and the worker is isolated as before.
pub(crate) fn a_panic_is_survived() -> Result<()> {
    // What it prints would have the console's interrupt follow.
    nix::unistd::dup2_stderr(File::create("/dev/null")?)?;
    let mut scene =
        Scene::with_action(Config::default(), |_| match panic::catch_unwind(|| panic!("deliberate")) {
            Err(_) => Stay::Whole,
            Ok(()) => Stay::Ended,
        })?;
    scene.enter()?;
    scene.act()?;
    let found = scene.violations()?;
    // At least its message.
    ensure!(found.iter().any(|one| is_call(one, "write") || is_call(one, "writev")), "nothing was printed");
    all_are(&found, "a panic", |one| one.cause.starts_with("syscall:"))?;
    ensure!(scene.leave()? == Stay::Whole, "the stay has ended");
    Ok(())
}

/// `abort` ends the process by SIGABRT, as anywhere else; so does the first violation where that is what was asked for.
pub(crate) fn an_abort_is_one() -> Result<()> {
    for check in ["the_application_aborts", "a_violation_aborts"] {
        let child = Command::new("/proc/self/exe").args(["--helper", check, "0"]).spawn()?;
        let status = waitpid(nix::unistd::Pid::from_raw(child.id() as i32), None)?;
        ensure!(
            matches!(status, WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGABRT, _)),
            "{check}: {status:?}"
        );
    }
    Ok(())
}

/// The other process of [`an_abort_is_one`].
pub(crate) fn aborts(by_violation: bool) -> Result<()> {
    let config = Config { abort: by_violation, ..Config::default() };
    let mut scene = Scene::with_action(config, move |_| {
        if !by_violation {
            process::abort();
        }
        sys::parent();
        Stay::Whole
    })?;
    scene.enter()?;
    scene.act()
}

/// A thread that ends without leaving: its last calls are told, and the process lives.
pub(crate) fn a_thread_can_end() -> Result<()> {
    let mut scene = Scene::with_action(Config::default(), |_| Stay::Forgotten)?;
    scene.enter()?;
    scene.act()?;
    let found = scene.violations()?;
    ensure!(found.iter().any(|one| is_call(one, "exit")), "its end was not told: {}", lines(&found));
    // The kernel may have a word with itself about a thread that ends.
    all_are(&found, "a thread's end", |one| {
        one.cause.starts_with("syscall:") || one.cause == "irq:irq_work"
    })?;
    let calls = found.iter().filter(|one| one.cause.starts_with("syscall:")).count() as u64;
    ensure!(scene.count(Source::Syscall) == calls, "some calls were not told");
    ensure!(scene.leave()? == Stay::Forgotten, "it has ended in another way");
    Ok(())
}
