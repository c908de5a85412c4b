//! What strict mode signals, and that whatever is signalled still does what it did: on real threads, with real signals.
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use common::{isolated, soft};
use isolation::{Config, Mode, Signals, Source, Turn};
use nix::sys::signal::{SigSet, Signal};
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};

fn getpid() -> i64 {
    // SAFETY: takes nothing; by the system call itself, which libraries may have cached.
    unsafe { libc::syscall(libc::SYS_getpid) }
}

const SYSCALLS: Signals = Signals::SYSCALLS;

#[test]
fn a_system_call_is_counted_recorded_and_made() {
    isolated(&soft(SYSCALLS), |guard| {
        let pid = getpid();
        let watched = guard.watched().unwrap();
        assert_eq!(pid, i64::from(std::process::id()));
        // process::id makes one too.
        assert_eq!(watched.count(Source::Syscall), 2);
        let record = watched.take_record().unwrap();
        assert_eq!(i64::from(record.number), libc::SYS_getpid);
        // The address is behind the instruction: in the C library or in this program.
        assert_eq!(record.address, record.ip);
        assert!(record.stack_bytes >= 8 && record.sp != 0);
        assert_eq!(guard.turn(), Turn::Disturbed);
        assert_eq!(guard.turn(), Turn::Undisturbed);
    });
}

#[inline(never)]
fn outer_of_the_call() -> i64 {
    black_box(inner_of_the_call() + 1)
}

#[inline(never)]
fn inner_of_the_call() -> i64 {
    black_box(getpid() + 1)
}

#[test]
fn the_record_has_the_stack_of_the_call() {
    let mut stacks = isolation::user_stack::UserStacks::read().unwrap();
    let record = isolated(&soft(SYSCALLS), |guard| {
        outer_of_the_call();
        guard.watched().unwrap().take_record().unwrap()
    });
    let frames = stacks.frames(&record);
    let place = |words: &str| frames.iter().position(|frame| frame.contains(words));
    let (inner, outer) = (place("inner_of_the_call"), place("outer_of_the_call"));
    assert!(inner.is_some() && inner < outer, "{frames:#?}");
    // As far as the piece that was kept goes.
    assert!(frames.len() >= 4, "{frames:#?}");
}

#[test]
fn errors_and_six_arguments_arrive() {
    isolated(&soft(SYSCALLS), |guard| {
        // SAFETY: a map of its own, unmapped again.
        let (map, refused) = unsafe {
            let map =
                libc::mmap(std::ptr::null_mut(), 4096, 3, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
            *map.cast::<u64>() = 7;
            assert_eq!(libc::munmap(map, 4096), 0);
            (map, libc::close(-1))
        };
        let errno = nix::errno::Errno::last();
        assert!(map != libc::MAP_FAILED);
        assert_eq!((refused, errno), (-1, nix::errno::Errno::EBADF));
        assert_eq!(guard.watched().unwrap().count(Source::Syscall), 3);
    });
}

#[test]
fn a_window_lets_deliberate_calls_through() {
    isolated(&soft(SYSCALLS), |guard| {
        guard.allow(getpid);
        guard.allow(|| guard.allow(getpid) + getpid());
        assert_eq!(guard.watched().unwrap().count(Source::Syscall), 0);
        getpid();
        assert_eq!(guard.watched().unwrap().count(Source::Syscall), 1);
    });
}

#[test]
fn allowed_calls_are_made_and_not_signalled() {
    let config = Config { allow_syscalls: true, ..soft(SYSCALLS) };
    isolated(&config, |guard| {
        getpid();
        let watched = guard.watched().unwrap();
        assert_eq!((watched.count(Source::Syscall), watched.allowed()), (0, 1));
        assert_eq!(guard.turn(), Turn::Entered);
        assert_eq!(guard.turn(), Turn::Undisturbed);
    });
}

#[test]
fn one_shot_ends_at_the_first_and_may_begin_again() {
    let config = Config { mode: Mode::OneShot, ..soft(SYSCALLS) };
    isolated(&config, |guard| {
        let watched = guard.watched().unwrap();
        for round in 1..=3 {
            assert!(guard.is_isolated());
            getpid();
            getpid();
            assert_eq!(watched.count(Source::Syscall), round);
            assert_eq!(guard.turn(), Turn::Ended(Source::Syscall));
            assert!(!guard.is_isolated());
            getpid();
            guard.enter_again().unwrap();
        }
    });
}

#[test]
fn threads_and_processes_can_be_made() {
    isolated(&soft(SYSCALLS), |guard| {
        let thread = std::thread::spawn(|| (0..100).map(|_| getpid()).max());
        let pid = thread.join().unwrap();
        assert_eq!(pid, Some(i64::from(std::process::id())));
        // By posix_spawn, which shares memory with the child until it has begun.
        let status = std::process::Command::new("true").status().unwrap();
        assert!(status.success());
        // SAFETY: the child only ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: no destructor and no handler runs.
            unsafe { libc::_exit(7) };
        }
        let mut status = 0;
        // SAFETY: the status is written.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!((libc::WTERMSIG(status), libc::WEXITSTATUS(status)), (0, 7), "{status:#x}");
        let before = guard.watched().unwrap().count(Source::Syscall);
        assert!(before > 5, "{before}");
        // Whatever way those took, the gate is shut again.
        guard.turn();
        getpid();
        assert_eq!(guard.watched().unwrap().count(Source::Syscall), before + 1);
    });
}

#[test]
fn vfork_shares_the_stack_and_works() {
    isolated(&soft(SYSCALLS), |guard| {
        // SAFETY: the child only ends.
        #[allow(deprecated)]
        let child = unsafe { libc::vfork() };
        if child == 0 {
            // SAFETY: as after every vfork.
            unsafe { libc::_exit(5) };
        }
        guard.turn();
        let mut status = 0;
        // SAFETY: the status is written.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(libc::WEXITSTATUS(status), 5);
        assert!(guard.watched().unwrap().count(Source::Syscall) >= 2);
    });
}

#[test]
fn our_signals_cannot_be_shut_out() {
    isolated(&soft(SYSCALLS), |guard| {
        let before = SigSet::thread_get_mask().unwrap();
        SigSet::all().thread_block().unwrap();
        let during = SigSet::thread_get_mask().unwrap();
        assert!(!during.contains(Signal::SIGSYS) && !during.contains(Signal::SIGTRAP));
        assert!(during.contains(Signal::SIGSEGV));
        getpid();
        before.thread_set_mask().unwrap();
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
        // A bad address is an error, as ever.
        // SAFETY: the kernel checks the address and refuses.
        let result =
            unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, 8_usize, 0_usize, 8_usize) };
        assert_eq!((result, nix::errno::Errno::last()), (-1, nix::errno::Errno::EFAULT));
        assert_eq!(guard.watched().unwrap().count(Source::Syscall), 7);
    });
}

static USR1: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_usr1(_: libc::c_int) {
    getpid();
    USR1.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn another_handler_returns_although_its_return_is_a_system_call() {
    // SAFETY: the handler makes a system call and counts.
    unsafe { libc::signal(libc::SIGUSR1, on_usr1 as *const () as libc::sighandler_t) };
    isolated(&soft(SYSCALLS), |guard| {
        let mut usr1 = SigSet::empty();
        usr1.add(Signal::SIGUSR1);
        usr1.thread_unblock().unwrap();
        for _ in 0..10 {
            nix::sys::signal::raise(Signal::SIGUSR1).unwrap();
        }
        assert_eq!(USR1.load(Ordering::Relaxed), 10);
        // One to unblock, for each raise some of the C library's and one of the handler's.
        assert!(guard.watched().unwrap().count(Source::Syscall) >= 21);
    });
}

#[test]
fn a_panic_unwinds_out_of_isolation() {
    let caught = std::panic::catch_unwind(|| {
        isolated(&soft(SYSCALLS), |_| panic!("deliberate"));
    });
    assert!(caught.is_err());
    // The thread that panicked is another; this one was never isolated.
    getpid();
}

#[test]
fn a_fault_is_signalled_with_its_address() {
    let mut memory = vec![0_u8; 16 << 12];
    let page = (memory.as_mut_ptr() as usize).next_multiple_of(4096);
    isolated(&soft(Signals::EXCEPTIONS), |guard| {
        let mapped = page as *mut u8;
        // SAFETY: the page is inside `memory`, whose content nobody needs.
        unsafe {
            libc::madvise(mapped.cast(), 4096, libc::MADV_DONTNEED);
            libc::munlock(mapped.cast(), 4096);
            libc::madvise(mapped.cast(), 4096, libc::MADV_DONTNEED);
        }
        let watched = guard.watched().unwrap();
        let before = watched.count(Source::PageFault);
        // SAFETY: as above.
        unsafe { mapped.add(0x123).write_volatile(black_box(1)) };
        assert_eq!(watched.count(Source::PageFault), before + 1);
        let record = std::iter::from_fn(|| watched.take_record()).last().unwrap();
        assert_eq!(record.address, page as u64 + 0x123);
        // SAFETY: as above.
        unsafe { mapped.add(0x456).write_volatile(black_box(1)) };
        assert_eq!(watched.count(Source::PageFault), before + 1);
    });
    drop(memory);
}

#[test]
fn strict_refuses_where_the_tick_goes_on() {
    common::on_pinned_thread(|cpu| {
        if isolation::KernelIsolation::read().nohz_full.contains(cpu) {
            eprintln!("SKIPPED strict_refuses_where_the_tick_goes_on: CPU {cpu} is tickless");
            return;
        }
        let refusal = isolation::prepare(cpu, &Config { signals: SYSCALLS, ..Config::default() });
        let words = refusal.map(|_| ()).unwrap_err().to_string();
        assert!(words.contains("keeps its timer tick") && words.contains("nohz_full="), "{words}");
    });
}

#[test]
fn a_mask_is_set_and_asked_for_in_one_place() {
    isolated(&soft(SYSCALLS), |_| {
        let before = SigSet::thread_get_mask().unwrap();
        let mut place = 0_u64;
        // SAFETY: both are the same live number of 64 bits, as the kernel allows.
        let result = unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw mut place,
                &raw mut place,
                8_usize,
            )
        };
        assert_eq!(result, 0);
        assert_eq!(SigSet::thread_get_mask().unwrap(), SigSet::empty());
        assert_eq!(place >> (libc::SIGTERM - 1) & 1, u64::from(before.contains(Signal::SIGTERM)));
        before.thread_set_mask().unwrap();
    });
}

#[test]
fn a_thread_is_prepared_once_at_a_time() {
    common::on_pinned_thread(|cpu| {
        let config = soft(SYSCALLS);
        let first = isolation::prepare(cpu, &config).unwrap();
        let refusal = isolation::prepare(cpu, &config).map(|_| ()).unwrap_err();
        assert!(refusal.to_string().contains("one guard at a time"), "{refusal}");
        drop(first.enter().unwrap());
        assert!(isolation::prepare(cpu, &config).is_ok());
    });
}

#[test]
fn a_migration_ends_the_stay_also_without_its_signal() {
    common::on_pinned_thread(|cpu| {
        let Some(other) = percpu::Topology::read().unwrap().online.iter().find(|other| *other != cpu) else {
            eprintln!("SKIPPED a_migration_ends_the_stay_also_without_its_signal: needs a second CPU");
            return;
        };
        let to = |cpu| {
            let mut set = nix::sched::CpuSet::new();
            set.set(cpu).unwrap();
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
        };
        // Migrations are not among what is signalled here.
        let mut guard = isolation::prepare(cpu, &soft(SYSCALLS)).unwrap().enter().unwrap();
        guard.allow(|| to(other));
        assert!(guard.is_isolated());
        getpid();
        assert_eq!(guard.turn(), Turn::Ended(Source::Migration));
        assert_eq!(guard.watched().unwrap().count(Source::Migration), 1);
        assert!(guard.enter_again().is_err());
        to(cpu);
        guard.enter_again().unwrap();
        assert!(guard.is_isolated());
    });
}
