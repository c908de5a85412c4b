//! Every combination of classes, modes and allowances, each with a system call and a page fault: what is signalled, what is allowed,
//! and what ends the stay.
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use common::on_pinned_thread;
use isolation::{Config, Isolated, Mode, Signals, Source, Strictness, Turn, Watched};
use std::sync::mpsc::channel;
use std::time::Duration;

/// A page that is not there.
struct Absent(*mut u8);

impl Absent {
    fn new(guard: &Isolated) -> Self {
        // SAFETY: a new map of one page, which is not locked and not present.
        let page = guard.allow(|| unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, 3, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        });
        assert!(page != libc::MAP_FAILED);
        Self(page.cast())
    }

    fn touch(&self) {
        // SAFETY: the page is ours.
        unsafe { self.0.write_volatile(1) };
    }
}

impl Drop for Absent {
    fn drop(&mut self) {
        // SAFETY: mapped above, and not used any more.
        unsafe { libc::munmap(self.0.cast(), 4096) };
    }
}

/// How often to try what an interrupt may come in between of.
const ATTEMPTS: usize = 10;

/// All signals, by class.
fn counted(watched: &Watched) -> (u64, u64, u64) {
    let of =
        |class| Source::all().filter(|source| source.class() == class).map(|one| watched.count(one)).sum();
    (of(Signals::SYSCALLS), of(Signals::EXCEPTIONS), of(Signals::INTERRUPTS))
}

/// False where an interrupt came in between, or took the signal of the fault with it: then nothing was shown.
fn check(cpu: usize, config: &Config) -> bool {
    let prepared = isolation::prepare(cpu, config).unwrap_or_else(|refusal| panic!("{config:?}: {refusal}"));
    let mut guard = prepared.enter().unwrap();
    let watched = guard.watched().unwrap();
    let page = Absent::new(&guard);
    // SAFETY: takes nothing.
    unsafe { libc::syscall(libc::SYS_getppid) };
    page.touch();
    let (calls, faults, interrupts) = counted(&watched);
    let allowed = watched.allowed();
    let turn = guard.turn();
    let one_shot = config.mode == Mode::OneShot;
    let signals = config.signals;
    let expected = |class, allowed: bool| u64::from(signals.contains(class) && !allowed);
    let wanted_calls = expected(Signals::SYSCALLS, config.allow_syscalls);
    let wanted_faults = expected(Signals::EXCEPTIONS, config.allow_exceptions);
    let told = format!(
        "{config:?}: {calls} calls, {faults} faults, {interrupts} interrupts, {allowed} allowed, {turn:?}"
    );
    if !signals.contains(Signals::INTERRUPTS) {
        assert_eq!(interrupts, 0, "{told}");
    }
    if one_shot && wanted_calls + wanted_faults + interrupts > 0 {
        // The first ends it, whichever that was; nothing is counted after it.
        assert_eq!(calls + faults + interrupts, 1, "{told}");
        let Turn::Ended(source) = turn else { panic!("{told}") };
        assert_eq!(watched.count(source), 1, "{told}");
        assert!(
            interrupts > 0 || source == if wanted_calls == 1 { Source::Syscall } else { Source::PageFault },
            "{told}"
        );
        assert!(!guard.is_isolated(), "{told}");
        guard.enter_again().unwrap();
        assert!(guard.is_isolated() || signals.contains(Signals::INTERRUPTS), "{told}");
        return true;
    }
    let entries =
        u64::from(signals.contains(Signals::SYSCALLS)) + u64::from(signals.contains(Signals::EXCEPTIONS));
    if interrupts > 0 && calls + faults + allowed < entries {
        return false;
    }
    assert_eq!((calls, faults), (wanted_calls, wanted_faults), "{told}");
    let allowed_calls = u64::from(signals.contains(Signals::SYSCALLS) && config.allow_syscalls);
    let allowed_faults = u64::from(signals.contains(Signals::EXCEPTIONS) && config.allow_exceptions);
    assert_eq!(allowed, allowed_calls + allowed_faults, "{told}");
    let wanted = match (calls + faults + interrupts, allowed) {
        (0, 0) => Turn::Undisturbed,
        (0, _) => Turn::Entered,
        _ => Turn::Disturbed,
    };
    if turn != wanted && counted(&watched).2 > interrupts {
        // It came between the count and the turn.
        return false;
    }
    assert_eq!(turn, wanted, "{told}");
    // In one shot, an interrupt may have ended it while it waited for quiet.
    assert!(guard.is_isolated() || one_shot && signals.contains(Signals::INTERRUPTS), "{told}");
    drop(guard);
    // Afterwards nothing is signalled.
    let before = counted(&watched);
    // SAFETY: takes nothing.
    unsafe { libc::syscall(libc::SYS_getppid) };
    assert_eq!(counted(&watched), before, "{told}");
    true
}

fn combinations(signals: Signals) -> impl Iterator<Item = Config> {
    let modes = [Mode::Persistent, Mode::OneShot];
    modes.into_iter().flat_map(move |mode| {
        (0..8).map(move |bits: u32| Config {
            signals,
            mode,
            strictness: Strictness::Soft,
            allow_syscalls: bits & 1 != 0,
            allow_exceptions: bits & 2 != 0,
            quiesce: bits & 4 != 0,
            quiesce_limit: Duration::from_millis(30),
            ..Config::default()
        })
    })
}

/// Another thread has all events open meanwhile: the kernel patches its code when a trace event's first user comes and when its last one
/// goes, and takes a third of a second for those that one thread opens.
fn while_events_are_open(body: impl FnOnce()) {
    let ((opened, are_open), (done, until_done)) = (channel(), channel::<()>());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            on_pinned_thread(move |cpu| {
                let config = Config { strictness: Strictness::Soft, ..Config::default() };
                let _open = isolation::prepare(cpu, &config).unwrap_or_else(|refusal| panic!("{refusal}"));
                opened.send(()).unwrap();
                // Ends when the other end is dropped.
                let _ = until_done.recv();
            });
        });
        are_open.recv().unwrap();
        body();
        drop(done);
    });
}

#[test]
fn every_combination_without_privilege() {
    on_pinned_thread(|cpu| {
        let (calls, faults) = (Signals::SYSCALLS, Signals::EXCEPTIONS);
        let signals = [Signals::NONE, calls, faults, calls.with(faults)];
        signals.into_iter().flat_map(combinations).for_each(|config| assert!(check(cpu, &config)));
    });
}

#[test]
fn namespace_every_combination_with_interrupts() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED namespace_every_combination_with_interrupts: needs root to trace");
        return;
    }
    while_events_are_open(|| {
        on_pinned_thread(|cpu| {
            let (calls, faults) = (Signals::SYSCALLS, Signals::EXCEPTIONS);
            let signals = [Signals::NONE, calls, faults, calls.with(faults)];
            let signals = signals.into_iter().map(|signals| signals.with(Signals::INTERRUPTS));
            signals.flat_map(combinations).for_each(|config| {
                let shown = (0..ATTEMPTS).any(|_| check(cpu, &config));
                assert!(shown, "{config:?}: each time an interrupt came at the same moment");
            });
        });
    });
}

/// Not a test of its own: the next one runs it in another process.
#[test]
#[ignore = "ends by SIGABRT"]
fn a_violation_that_aborts() {
    on_pinned_thread(|cpu| {
        let config = Config {
            abort: true,
            signals: Signals::SYSCALLS,
            strictness: Strictness::Soft,
            ..Config::default()
        };
        let _guard = isolation::prepare(cpu, &config).unwrap().enter().unwrap();
        // SAFETY: takes nothing.
        unsafe { libc::syscall(libc::SYS_getppid) };
    });
}

#[test]
fn a_violation_may_end_the_process() {
    use std::os::unix::process::ExitStatusExt;
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--ignored", "--exact", "a_violation_that_aborts"]).output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
}

#[test]
fn quiescing_waits_and_is_bounded() {
    on_pinned_thread(|cpu| {
        let config = |limit| Config {
            signals: Signals::SYSCALLS,
            strictness: Strictness::Soft,
            quiesce: true,
            quiesce_limit: limit,
            ..Config::default()
        };
        for (limit_ms, least_ms) in [(2000, 10), (3, 3)] {
            let mut guard =
                isolation::prepare(cpu, &config(Duration::from_millis(limit_ms))).unwrap().enter().unwrap();
            // SAFETY: takes nothing.
            unsafe { libc::syscall(libc::SYS_getppid) };
            let start = percpu::tsc::now();
            assert_eq!(guard.turn(), Turn::Disturbed);
            let took_ms = percpu::tsc::to_ns(percpu::tsc::now() - start) / 1_000_000;
            assert!((least_ms..1900).contains(&took_ms), "{took_ms} ms of {limit_ms}");
        }
    });
}
