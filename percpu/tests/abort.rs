//! Interrupts each critical section before each of its instructions, and looks at what is left.
//!
//! A child runs an operation under ptrace with a breakpoint on one instruction. Stopping there takes the CPU from it, which is an interruption as
//! any preemption: going on, the kernel must send the child to the abort address, where a second breakpoint holds it. There the memory of
//! the structure must be what it was before the operation. Then the child goes on, tries again, and must end with the operation done
//! once. Three ways: the stop alone, the stop and a signal that is delivered on going on, the stop and another CPU to go on on. Behind the
//! last instruction a stop is no interruption of the section any more, and the operation must be complete.
//!
//! A stop is always a part of that. A signal alone is the cause where a hardware breakpoint sends it: no tracer, and no stop.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code, clippy::unwrap_used)]

#[path = "common/traced.rs"]
mod traced;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;
use percpu::rseq::{CriticalSection, Registration, registration};
use percpu::{Counter, Indexing, Item, Log, Stack, pin_on_cpu};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use traced::{
    Case, Peek, child, clear_breakpoint, cpus, first_index, go_on, ignore, instructions, kill, move_to, peek,
    sections_of, set_breakpoint,
};

/// Children are stopped and moved about: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[derive(Clone, Copy, Debug, PartialEq)]
enum Interruption {
    Stop,
    Signal,
    Migration,
}

/// An operation that was run up to an instruction.
struct Run {
    pid: Pid,
    /// The state before it began.
    before: Vec<u64>,
    /// What is under the breakpoints there and at the abort address.
    bytes: [u8; 2],
    /// What [`go_on`] said.
    stopped: Result<u64, i32>,
}

/// Runs one operation up to an instruction of a section; `all` are those that it can go through.
fn run_to(
    case: &Case<'_>,
    all: &[&CriticalSection],
    section: &CriticalSection,
    address: u64,
) -> Result<Run, String> {
    // The kernel may interrupt it by itself on the way there, on a slow machine more than once: then anew. Also where that was in another
    // section, for that would lead it to one that is no part of the undisturbed way.
    let stopped = (0..100).find_map(|_| {
        let pid = child(case);
        let before = (case.state)(&|address| peek(pid, address));
        let others: Vec<u64> =
            all.iter().map(|other| other.abort_ip).filter(|abort| *abort != section.abort_ip).collect();
        let other_bytes: Vec<u8> = others.iter().map(|abort| set_breakpoint(pid, *abort)).collect();
        let bytes = [address, section.abort_ip].map(|address| set_breakpoint(pid, address));
        match go_on(pid, None) {
            Ok(stopped) if stopped != address => {
                kill(pid);
                None
            }
            stopped => {
                if stopped.is_ok() {
                    others
                        .iter()
                        .zip(other_bytes)
                        .for_each(|(abort, byte)| clear_breakpoint(pid, *abort, byte));
                }
                Some(Run { pid, before, bytes, stopped })
            }
        }
    });
    stopped.ok_or_else(|| format!("never got to {address:#x} without an interruption"))
}

/// Behind the commit the operation is complete, and nothing undoes it. False where the operation does not come by.
fn check_commit(
    case: &Case<'_>,
    all: &[&CriticalSection],
    section: &CriticalSection,
) -> Result<bool, String> {
    let address = section.start_ip + section.post_commit_offset;
    let Run { pid, before, bytes, stopped } = run_to(case, all, section, address)?;
    match stopped {
        Err(0) => return Ok(false),
        Err(status) => return Err(format!("stopped nowhere, it ended with {status}")),
        Ok(stopped) => assert_eq!(stopped, address),
    }
    let (after, complete) = ((case.state)(&|address| peek(pid, address)), (case.committed)(&before));
    if after != complete {
        kill(pid);
        return Err(format!("committed: {before:x?} became {after:x?} and not {complete:x?}"));
    }
    clear_breakpoint(pid, address, bytes[0]);
    match go_on(pid, None) {
        Err(0) => Ok(true),
        other => {
            kill(pid);
            Err(format!("stopped behind the commit it did not simply go on: {other:x?}"))
        }
    }
}

/// Interrupts one operation at every instruction in one way; how many instructions there were, or what went wrong.
fn check(case: &Case<'_>, interruption: Interruption) -> Result<usize, String> {
    let cpus = cpus();
    let mut count = 0;
    let all = sections_of(case);
    for section in &all {
        // A copy of the section for a second try is none of this operation's: the first breakpoint made it come by there.
        if !check_commit(case, &all, section)? {
            continue;
        }
        for address in instructions(section) {
            let offset = address - section.start_ip;
            let Run { pid, before, bytes: [byte, abort_byte], stopped } =
                run_to(case, &all, section, address)?;
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

/// In every way that this machine has; how many instructions were interrupted, in each way the same.
fn check_all(name: &str, case: &Case<'_>) -> usize {
    let mut ways = vec![Interruption::Stop, Interruption::Signal];
    if cpus().len() > 1 {
        ways.push(Interruption::Migration);
    } else {
        eprintln!("SKIPPED {name}: a migration needs a second CPU");
    }
    let counts: Vec<usize> = ways
        .into_iter()
        .map(|way| check(case, way).unwrap_or_else(|wrong| panic!("{way:?}: {wrong}")))
        .collect();
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    counts[0]
}

/// What lies in a stack's slot: its claim and length in bytes, and the items below that.
fn stack_state<T: Item>(stack: &Stack<T>, peek: &Peek<'_>) -> Vec<u64> {
    let slot = stack.slot_address(first_index(stack.stacks()));
    let len_bytes = peek(slot) >> 32;
    let words = (0..len_bytes.div_ceil(8)).map(|word| peek(slot + 64 + word as usize * 8));
    let mut state: Vec<u64> = [peek(slot)].into_iter().chain(words).collect();
    // The upper half of the last word is above an odd length: nobody looks at it.
    if !len_bytes.is_multiple_of(8) {
        *state.last_mut().unwrap() &= u64::from(u32::MAX);
    }
    state
}

/// The same, as it should be.
fn stack_of<T: Item + Into<u64>>(items: &[T]) -> Vec<u64> {
    let whole = size_of::<T>() == 8;
    let words = items.chunks(if whole { 1 } else { 2 }).map(|word| {
        let upper = word.get(1).map_or(0, |item| (*item).into() << 32);
        word[0].into() | upper
    });
    [(size_of_val(items) as u64) << 32].into_iter().chain(words).collect()
}

#[test]
fn an_addition_is_done_once_or_not_at_all() {
    let name = "an_addition_is_done_once_or_not_at_all";
    on_first_cpu(name, || {
        let counter = Counter::with_indexing(Indexing::Cpu);
        counter.add(5);
        let before = counter.sum();
        let slot = counter.slot_address(cpus()[0]);
        let case = Case {
            operation: &|| {
                counter.add(7);
                counter.sum() == before + 7
            },
            state: &|peek| vec![peek(slot)],
            committed: &|before| vec![before[0] + 7],
        };
        assert_eq!(check_all(name, &case), 5);
    });
}

/// Items none of whose bytes is 0, as memory may be.
fn narrow(number: u32) -> u32 {
    0x0101_0101 + number
}

fn wide(number: u32) -> u64 {
    0x0202_0202_0101_0101 + u64::from(number)
}

/// A push of so many items onto three, and how many instructions that takes: one item goes through a register, more are copied, where what is
/// odd goes by four bytes and the rest by sixteen.
fn pushes<T: Item + Into<u64>>(name: &str, item: fn(u32) -> T, expected: [(usize, usize); 4]) {
    for (count, instructions) in expected {
        let stack = Stack::<T>::new(64, 100, Indexing::Cpu);
        let below = [100, 101, 102].map(item);
        stack.push(&below);
        let items: Vec<T> = (0..count as u32).map(item).collect();
        let case = Case {
            operation: &|| {
                stack.push(&items);
                stack.len() == items.len() + 3
            },
            state: &|peek| stack_state(&stack, peek),
            committed: &|_| stack_of(&[&below[..], &items].concat()),
        };
        assert_eq!(check_all(name, &case), instructions, "{count} items of {} bytes", size_of::<T>());
    }
}

#[test]
fn a_push_is_done_whole_or_not_at_all() {
    let name = "a_push_is_done_whole_or_not_at_all";
    on_first_cpu(name, || {
        pushes(name, narrow, [(1, 10), (4, 18), (7, 22), (32, 18)]);
        pushes(name, wide, [(1, 10), (4, 18), (7, 22), (32, 18)]);
    });
}

/// A pop of so many of forty items, and how many instructions that takes.
fn pops<T: Item + Into<u64> + PartialEq>(name: &str, item: fn(u32) -> T, expected: [(usize, usize); 4]) {
    for (count, instructions) in expected {
        let stack = Stack::<T>::new(64, 100, Indexing::Cpu);
        let items: Vec<T> = (0..40).map(item).collect();
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
            state: &|peek| stack_state(&stack, peek),
            committed: &|_| stack_of(&items[..40 - count]),
        };
        assert_eq!(check_all(name, &case), instructions, "{count} items of {} bytes", size_of::<T>());
    }
}

#[test]
fn a_pop_is_done_whole_or_not_at_all() {
    let name = "a_pop_is_done_whole_or_not_at_all";
    on_first_cpu(name, || {
        pops(name, narrow, [(1, 9), (4, 21), (7, 25), (32, 21)]);
        pops(name, wide, [(1, 9), (4, 21), (7, 25), (32, 21)]);
    });
}

#[test]
fn a_reservation_is_done_whole_or_not_at_all() {
    let name = "a_reservation_is_done_whole_or_not_at_all";
    on_first_cpu(name, || {
        let log = Log::with_indexing(4096, Indexing::Cpu);
        log.write(b"before").unwrap();
        let slot = log.slot_address(first_index(log.logs() - 1));
        let case = Case {
            operation: &|| log.write(b"the record").is_ok(),
            state: &|peek| [0, 8, 64, 72, 80, 88].map(|at| peek(slot + at)).to_vec(),
            // A header of 8 bytes, and 10 bytes in whole words. The record itself is written behind the section.
            committed: &|before| [&[before[0] + 24], &before[1..]].concat(),
        };
        assert_eq!(check_all(name, &case), 12);
    });
}

/// What the handler of a hardware breakpoint found: where the interrupted thread is to go on, and the slot's first words.
static WENT_TO: AtomicU64 = AtomicU64::new(0);
static FOUND: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
/// What it looks at, and the event that sent it.
static SLOT: AtomicUsize = AtomicUsize::new(0);
static EVENT: AtomicI32 = AtomicI32::new(-1);

/// Keeps what it finds, and ends the breakpoint, which would come again with the second try.
extern "C" fn at_breakpoint(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the interrupted thread's context; the slot was set to one that has that many words, all of them written
    // by this thread only; the event's descriptor is open.
    unsafe {
        let registers = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let slot = SLOT.load(Ordering::Relaxed) as *const u64;
        for (index, found) in FOUND.iter().enumerate() {
            found.store(slot.add(index).read_volatile(), Ordering::Relaxed);
        }
        perf_event_open_sys::ioctls::DISABLE(EVENT.load(Ordering::Relaxed), 0);
        WENT_TO.store(registers[libc::REG_RIP as usize].cast_unsigned(), Ordering::Relaxed);
    }
}

/// A hardware breakpoint for the calling thread that sends it SIGTRAP: no tracer, and no stop.
fn open_breakpoint(address: u64) -> std::io::Result<OwnedFd> {
    use perf_event_open_sys::bindings::{HW_BREAKPOINT_X, PERF_TYPE_BREAKPOINT, perf_event_attr};
    let mut event =
        perf_event_attr { type_: PERF_TYPE_BREAKPOINT, bp_type: HW_BREAKPOINT_X, ..Default::default() };
    event.size = size_of::<perf_event_attr>() as u32;
    event.__bindgen_anon_1.sample_period = 1;
    event.__bindgen_anon_3.bp_addr = address;
    event.__bindgen_anon_4.bp_len = 8;
    event.set_sigtrap(1);
    event.set_remove_on_exec(1);
    event.set_exclude_kernel(1);
    event.set_exclude_hv(1);
    // SAFETY: a valid description, for the calling thread on any CPU.
    let fd = unsafe { perf_event_open_sys::perf_event_open(&mut event, 0, -1, -1, 0) };
    // SAFETY: a new descriptor that nobody else has.
    if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

/// Where the signal comes at an instruction, its handler finds the structure untouched and the thread on its way to the abort address. At how many
/// instructions that was.
fn signalled(stack: &Stack<u32>, operation: &dyn Fn(), undo: &dyn Fn()) -> usize {
    let case = Case {
        operation: &|| {
            operation();
            true
        },
        state: &|_| Vec::new(),
        committed: &|_| Vec::new(),
    };
    let slot = stack.slot_address(first_index(stack.stacks()));
    SLOT.store(slot, Ordering::Relaxed);
    // SAFETY: this thread's own memory, which only it writes.
    let read = |address: usize| unsafe { (address as *const u64).read_volatile() };
    // The first that it comes by: others are for a second try.
    let section = sections_of(&case)[0];
    let addresses = instructions(section);
    for address in &addresses {
        let offset = address - section.start_ip;
        // The kernel may interrupt it by itself before: then anew.
        let went_to = (0..100).find_map(|_| {
            let before = stack_state(stack, &read);
            let event = open_breakpoint(*address).unwrap();
            WENT_TO.store(0, Ordering::Relaxed);
            EVENT.store(event.as_raw_fd(), Ordering::Relaxed);
            operation();
            drop(event);
            undo();
            let went_to = WENT_TO.load(Ordering::Relaxed);
            if went_to != 0 {
                let found =
                    stack_state(stack, &|address| FOUND[(address - slot) / 8].load(Ordering::Relaxed));
                assert_eq!(found, before, "signalled at +{offset}");
            }
            (went_to != 0).then_some(went_to)
        });
        assert_eq!(went_to, Some(section.abort_ip), "signalled at +{offset}");
    }
    addresses.len()
}

#[test]
fn a_signal_alone_sends_a_section_to_its_abort_address() {
    let name = "a_signal_alone_sends_a_section_to_its_abort_address";
    on_first_cpu(name, || {
        // Distributions keep perf events from ordinary users (kernel.perf_event_paranoid above 2).
        if let Err(error) = open_breakpoint(at_breakpoint as *const () as u64)
            && error.kind() == std::io::ErrorKind::PermissionDenied
            && !nix::unistd::geteuid().is_root()
        {
            return eprintln!("SKIPPED {name}: needs root for a hardware breakpoint: {error}");
        }
        let action =
            SigAction::new(SigHandler::SigAction(at_breakpoint), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler calls nothing that could not be called anywhere.
        unsafe { sigaction(Signal::SIGTRAP, &action) }.unwrap();
        let stack = Stack::<u32>::new(64, 200, Indexing::Cpu);
        stack.push(&[100, 101, 102]);
        for (count, pushed, popped) in [(1, 10, 9), (7, 22, 25)] {
            let items: Vec<u32> = (0..count as u32).collect();
            let push = || stack.push(&items);
            let pop = || {
                let mut hand = [MaybeUninit::uninit(); 64];
                assert_eq!(stack.pop(&mut hand[..count]), items);
            };
            // As many as the checks above find.
            assert_eq!(signalled(&stack, &push, &pop), pushed);
            push();
            assert_eq!(signalled(&stack, &pop, &push), popped);
            pop();
            assert_eq!(stack.len(), 3);
        }
    });
}

/// A push that stores the length first. The checks above would be worth nothing if they let it pass.
#[test]
fn a_commit_that_is_not_the_last_instruction_is_found() {
    on_first_cpu("a_commit_that_is_not_the_last_instruction_is_found", || {
        let stack = Stack::<u32>::new(64, 100, Indexing::Cpu);
        stack.push(&[1, 2, 3]);
        let slot = stack.slot_address(first_index(stack.stacks()));
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
            state: &|peek| stack_state(&stack, peek),
            committed: &|_| stack_of(&[1_u32, 2, 3, 7]),
        };
        let wrong = check(&case, Interruption::Stop).unwrap_err();
        assert!(wrong.starts_with("aborted at") && wrong.contains("became"), "{wrong}");
    });
}
