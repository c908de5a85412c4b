//! The main thread in isolation, which is another program's way: its stack is mapped as far as it has grown.
#![allow(unsafe_code, clippy::unwrap_used)]

/// Not a test harness: that would run tests on other threads.
fn main() {
    let cpu = percpu::Topology::read().unwrap().allowed.iter().last().unwrap();
    let _pinned = percpu::pin_on_cpu(cpu).unwrap();
    let config = isolation::Config {
        signals: isolation::Signals::SYSCALLS,
        strictness: isolation::Strictness::Soft,
        ..Default::default()
    };
    for _ in 0..3 {
        let guard = isolation::prepare(cpu, &config).unwrap().enter().unwrap();
        std::hint::black_box(std::process::id());
        assert!(guard.watched().unwrap().count(isolation::Source::Syscall) >= 1);
        drop(guard);
        // SAFETY: the child only ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: no destructor and no handler runs.
            unsafe { libc::_exit(3) };
        }
        let mut status = 0;
        // SAFETY: the status is written.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!((libc::WTERMSIG(status), libc::WEXITSTATUS(status)), (0, 3), "{status:#x}");
    }
    // In libtest's words, which test.sh counts.
    println!("test result: ok. 1 passed; 0 failed;");
}
