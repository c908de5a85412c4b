//! Interrupts each critical section before each of its instructions, and looks at what is left.
//!
//! A child runs an operation under ptrace with a breakpoint on one instruction. The stop itself is an interruption: going on, the kernel must
//! send the child to the abort address, where a second breakpoint holds it. There the memory of the structure must be what it was before
//! the operation. Then the child goes on, tries again, and must end with the operation done once. Three ways: stopped, with a
//! signal, and moved to another CPU.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code, clippy::unwrap_used)]

use iced_x86::{Decoder, DecoderOptions};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::ptrace;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use percpu::rseq::{CriticalSection, Registration, critical_sections, registration};
use percpu::{Counter, Indexing, Log, Stack, Topology, pin_on_cpu};
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

/// Children are stopped and moved about: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[derive(Clone, Copy, Debug, PartialEq)]
enum Interruption {
    Stop,
    Signal,
    Migration,
}

/// Reads eight bytes of the child at an address.
type Peek<'a> = dyn Fn(usize) -> u64 + 'a;

/// An operation to be interrupted.
struct Case<'a> {
    /// Runs it in the child; true where it did all that it should.
    operation: &'a dyn Fn() -> bool,
    /// The structure's memory on the CPU that the child starts on, as far as anybody looks at it.
    state: &'a dyn Fn(&Peek<'_>) -> Vec<u64>,
}

fn cpus() -> Vec<usize> {
    Topology::read().unwrap().allowed.iter().collect()
}

fn move_to(pid: Pid, cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    sched_setaffinity(pid, &set).unwrap();
}

extern "C" fn ignore(_: i32) {}

/// Forks a child that stops itself and then runs the operation.
fn child(case: &Case<'_>) -> Pid {
    // SAFETY: the child calls nothing but the operation, which neither allocates nor locks, and system calls.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Stopped(child, Signal::SIGSTOP));
            ptrace::setoptions(child, ptrace::Options::PTRACE_O_EXITKILL).unwrap();
            child
        }
        ForkResult::Child => {
            let done = ptrace::traceme().is_ok() && raise(Signal::SIGSTOP).is_ok() && (case.operation)();
            // SAFETY: ends the child at once, as it must: the test harness's threads are not in it.
            unsafe { libc::_exit(if done { 0 } else { 1 }) }
        }
    }
}

fn peek(pid: Pid, address: usize) -> u64 {
    ptrace::read(pid, address as ptrace::AddressType).unwrap().cast_unsigned()
}

/// A breakpoint in a child; gives back the byte that was there.
fn set_breakpoint(pid: Pid, address: u64) -> u8 {
    let word = peek(pid, address as usize);
    ptrace::write(pid, address as ptrace::AddressType, (word & !0xFF | 0xCC).cast_signed()).unwrap();
    word as u8
}

fn clear_breakpoint(pid: Pid, address: u64, byte: u8) {
    let word = peek(pid, address as usize);
    ptrace::write(pid, address as ptrace::AddressType, (word & !0xFF | u64::from(byte)).cast_signed())
        .unwrap();
}

/// Goes on until a breakpoint (whose address comes back, and the child stands on it) or the end (its exit status).
fn go_on(pid: Pid, signal: Option<Signal>) -> Result<u64, i32> {
    let mut signal = signal;
    loop {
        ptrace::cont(pid, signal).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                let mut registers = ptrace::getregs(pid).unwrap();
                registers.rip -= 1;
                ptrace::setregs(pid, registers).unwrap();
                return Ok(registers.rip);
            }
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(_, status) => return Err(status),
            other => panic!("the child ended by {other:?}"),
        }
    }
}

fn kill(pid: Pid) {
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    let _ = waitpid(pid, None);
}

/// The addresses of a section's instructions. Read from our own memory, which is a child's too.
fn instructions(section: &CriticalSection) -> Vec<u64> {
    // SAFETY: program text of the length that the descriptor gives.
    let code = unsafe {
        std::slice::from_raw_parts(section.start_ip as *const u8, section.post_commit_offset as usize)
    };
    let addresses: Vec<u64> = Decoder::with_ip(64, code, section.start_ip, DecoderOptions::NONE)
        .iter()
        .map(|instruction| instruction.ip())
        .collect();
    assert!(addresses.len() >= 3, "{section:?}");
    addresses
}

/// The sections that an operation goes through.
fn sections_of(case: &Case<'_>) -> Vec<&'static CriticalSection> {
    let pid = child(case);
    let starts: Vec<_> =
        critical_sections().iter().map(|section| (section, set_breakpoint(pid, section.start_ip))).collect();
    let mut found = Vec::new();
    while let Ok(stopped_at) = go_on(pid, None) {
        let Some((section, byte)) = starts.iter().find(|(section, _)| section.start_ip == stopped_at) else {
            continue;
        };
        clear_breakpoint(pid, stopped_at, *byte);
        found.push(*section);
    }
    found
}

/// Interrupts one operation at every instruction in one way; how many instructions there were, or what went wrong.
fn check(case: &Case<'_>, interruption: Interruption) -> Result<usize, String> {
    let cpus = cpus();
    let mut count = 0;
    for section in sections_of(case) {
        for address in instructions(section) {
            let offset = address - section.start_ip;
            // The kernel may interrupt it by itself on the way there, on a slow machine more than once: then anew.
            let stopped = (0..100).find_map(|_| {
                let pid = child(case);
                let before = (case.state)(&|address| peek(pid, address));
                let byte = set_breakpoint(pid, address);
                let abort_byte = set_breakpoint(pid, section.abort_ip);
                match go_on(pid, None) {
                    Ok(stopped) if stopped == section.abort_ip => {
                        kill(pid);
                        None
                    }
                    stopped => Some((pid, before, byte, abort_byte, stopped)),
                }
            });
            let Some((pid, before, byte, abort_byte, stopped)) = stopped else {
                return Err(format!("never got to +{offset} without an interruption"));
            };
            match stopped {
                // Not on the way of this operation, such as the loop of a copy that is too short for it.
                Err(0) => continue,
                Err(status) => return Err(format!("not interrupted at +{offset}, it ended with {status}")),
                Ok(stopped) => assert_eq!(stopped, address),
            }
            clear_breakpoint(pid, address, byte);
            let signal = (interruption == Interruption::Signal).then_some(Signal::SIGUSR1);
            if interruption == Interruption::Migration {
                move_to(pid, cpus[1]);
            }
            match go_on(pid, signal) {
                Ok(stopped) if stopped == section.abort_ip => {}
                other => return Err(format!("interrupted at +{offset} it was not aborted: {other:x?}")),
            }
            let after = (case.state)(&|address| peek(pid, address));
            if after != before {
                kill(pid);
                return Err(format!("aborted at +{offset}: {before:x?} became {after:x?}"));
            }
            clear_breakpoint(pid, section.abort_ip, abort_byte);
            if go_on(pid, None) != Err(0) {
                kill(pid);
                return Err(format!("aborted at +{offset} it was not done in the end"));
            }
            count += 1;
        }
    }
    Ok(count)
}

/// Runs `test` on the first CPU, with a harmless handler for the signal; false where there are no sections to be interrupted.
fn on_first_cpu(name: &str, test: impl FnOnce()) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Registration::Off { why } = registration() {
        return eprintln!("SKIPPED {name}: no rseq: {why}");
    }
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    let _pinned = pin_on_cpu(cpus()[0]).unwrap();
    test();
}

/// In every way that this machine has; the least number of instructions that were interrupted.
fn check_all(case: &Case<'_>) -> usize {
    let mut ways = vec![Interruption::Stop, Interruption::Signal];
    if cpus().len() > 1 {
        ways.push(Interruption::Migration);
    }
    ways.into_iter()
        .map(|way| check(case, way).unwrap_or_else(|wrong| panic!("{way:?}: {wrong}")))
        .min()
        .unwrap()
}

/// What lies in a stack's slot: its length, and the items below it.
fn stack_state(stack: &Stack<u32>, cpu: usize, peek: &Peek<'_>) -> Vec<u64> {
    let slot = stack.slot_address(cpu);
    let len_bytes = peek(slot) >> 32;
    let words = (0..len_bytes.div_ceil(8)).map(|word| peek(slot + 64 + word as usize * 8));
    let mut state: Vec<u64> = [peek(slot)].into_iter().chain(words).collect();
    // The upper half of the last word is above an odd length: nobody looks at it.
    if !len_bytes.is_multiple_of(8) {
        *state.last_mut().unwrap() &= u64::from(u32::MAX);
    }
    state
}

#[test]
fn an_addition_is_done_once_or_not_at_all() {
    on_first_cpu("an_addition_is_done_once_or_not_at_all", || {
        let counter = Counter::new();
        counter.add(5);
        let before = counter.sum();
        let case = Case {
            operation: &|| {
                counter.add(7);
                counter.sum() == before + 7
            },
            state: &|peek| vec![peek(counter.slot_address(cpus()[0]))],
        };
        assert_eq!(check_all(&case), 5);
    });
}

#[test]
fn a_push_is_done_whole_or_not_at_all() {
    on_first_cpu("a_push_is_done_whole_or_not_at_all", || {
        for count in [1, 4, 7, 32] {
            let stack = Stack::<u32>::new(64, 100, Indexing::Cpu);
            stack.push(&[100, 101, 102]);
            let items: Vec<u32> = (0..count).collect();
            let case = Case {
                operation: &|| {
                    stack.push(&items);
                    stack.len() == items.len() + 3
                },
                state: &|peek| stack_state(&stack, cpus()[0], peek),
            };
            let interrupted = check_all(&case);
            // One item goes through a register, more are copied.
            assert!(interrupted >= if count == 1 { 12 } else { 19 }, "{interrupted}");
        }
    });
}

#[test]
fn a_pop_is_done_whole_or_not_at_all() {
    on_first_cpu("a_pop_is_done_whole_or_not_at_all", || {
        for count in [1, 4, 7, 32] {
            let stack = Stack::<u32>::new(64, 100, Indexing::Cpu);
            let items: Vec<u32> = (0..40).collect();
            stack.push(&items);
            let case = Case {
                operation: &|| {
                    let mut hand = [MaybeUninit::uninit(); 64];
                    // Moved away, it finds the other CPU's stack empty.
                    let taken = if count == 1 {
                        stack.pop_one().map_or(&[][..], |item| std::slice::from_ref(hand[0].write(item)))
                    } else {
                        stack.pop(&mut hand[..count])
                    };
                    let right = taken.is_empty() || *taken == items[40 - count..];
                    right && stack.len() == 40 - taken.len()
                },
                state: &|peek| stack_state(&stack, cpus()[0], peek),
            };
            let interrupted = check_all(&case);
            assert!(interrupted >= if count == 1 { 11 } else { 20 }, "{interrupted}");
        }
    });
}

#[test]
fn a_reservation_is_done_whole_or_not_at_all() {
    on_first_cpu("a_reservation_is_done_whole_or_not_at_all", || {
        let log = Log::new(4096);
        log.write(b"before").unwrap();
        let case = Case {
            operation: &|| log.write(b"the record").is_ok(),
            state: &|peek| {
                let slot = log.slot_address(cpus()[0]);
                vec![
                    peek(slot),
                    peek(slot + 8),
                    peek(slot + 64),
                    peek(slot + 72),
                    peek(slot + 80),
                    peek(slot + 88),
                ]
            },
        };
        assert_eq!(check_all(&case), 12);
    });
}

/// A push that stores the length first. The checks above would be worth nothing if they let it pass.
#[test]
fn a_commit_that_is_not_the_last_instruction_is_found() {
    on_first_cpu("a_commit_that_is_not_the_last_instruction_is_found", || {
        let stack = Stack::<u32>::new(64, 100, Indexing::Cpu);
        stack.push(&[1, 2, 3]);
        let slot = stack.slot_address(cpus()[0]);
        let area = percpu::rseq::area_address().unwrap();
        let case = Case {
            operation: &|| {
                // SAFETY: what the real push does, in the wrong order, in a process that ends at once.
                unsafe {
                    std::arch::asm!(
                        ".pushsection rseq_descriptors, \"aw\", @progbits",
                        ".balign 32",
                        "3:",
                        ".long 0, 0",
                        ".quad 4f, 5f - 4f, 44f",
                        ".popsection",
                        "33:",
                        "lea {scratch}, [rip + 3b]",
                        "mov qword ptr [{area} + 8], {scratch}",
                        "4:",
                        "mov {scratch:e}, dword ptr [{slot} + 4]",
                        "add dword ptr [{slot} + 4], 4",
                        "mov dword ptr [{slot} + {scratch} + 64], 7",
                        "5:",
                        ".pushsection rseq_aborts, \"ax\", @progbits",
                        ".byte 0x0f, 0xb9, 0x3d",
                        ".long 0x53053053",
                        "44:",
                        "jmp 33b",
                        ".popsection",
                        slot = in(reg) slot,
                        area = in(reg) area,
                        scratch = out(reg) _,
                        options(nostack),
                    );
                }
                stack.len() == 4
            },
            state: &|peek| stack_state(&stack, cpus()[0], peek),
        };
        let wrong = check(&case, Interruption::Stop).unwrap_err();
        assert!(wrong.contains("became"), "{wrong}");
    });
}
