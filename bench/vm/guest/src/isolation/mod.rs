//! Checks of strict isolation, in a guest whose CPU 1 is tickless (`nohz_full`): nothing disturbs a worker there but what a check does on
//! purpose, and of that each is to be told with its cause, and with no other.

mod helper;
mod osnoise;
mod outside;
mod own;
mod quiet;
mod scene;

use crate::Check;
use anyhow::{Result, ensure};
use isolation::Violation;
use std::time::Duration;

pub(crate) use helper::help;
pub(crate) use quiet::quieten;

/// The CPU that the kernel leaves alone.
const CPU: usize = 1;

/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Every check by its name, in the order they run in.
pub(crate) const CHECKS: &[(&str, Check)] = &[
    ("a_worker_is_left_alone", outside::a_worker_is_left_alone),
    ("a_system_call_is_named", own::a_system_call_is_named),
    ("a_page_fault_has_its_address", own::a_page_fault_has_its_address),
    ("a_thread_can_be_made", own::a_thread_can_be_made),
    ("a_panic_is_survived", own::a_panic_is_survived),
    ("an_abort_is_one", own::an_abort_is_one),
    ("a_thread_can_end", own::a_thread_can_end),
    ("a_fork_elsewhere_shares_no_stack", outside::a_fork_elsewhere_shares_no_stack),
    ("a_fork_elsewhere_faults_where_it_may", outside::a_fork_elsewhere_faults_where_it_may),
    ("a_shootdown_has_its_sender", outside::a_shootdown_has_its_sender),
    ("work_of_the_kernel_is_named", outside::work_of_the_kernel_is_named),
    ("a_real_time_task_is_named", outside::a_real_time_task_is_named),
    ("a_device_interrupt_is_named", outside::a_device_interrupt_is_named),
    ("a_profiler_is_named", outside::a_profiler_is_named),
    ("a_debugger_suspends", outside::a_debugger_suspends),
    ("a_move_ends_the_stay", outside::a_move_ends_the_stay),
];

/// Takes a kernel with `osnoise`: runs only where it is named.
pub(crate) const WITH_OSNOISE: &[(&str, Check)] = &[("osnoise_agrees", osnoise::osnoise_agrees)];

/// How near to a second task its ticks are: one or two, in a guest whose host may be busy with others for half a second.
const TICK: Duration = Duration::from_secs(1);

/// A violation in one line.
fn line(violation: &Violation) -> String {
    let Violation { start_ns, cause, detail, address, user_stack, kernel_stack, .. } = violation;
    let first = |stack: &[String]| stack.iter().take(3).cloned().collect::<Vec<_>>().join("<");
    let (at_us, took_us) = (start_ns / 1000, violation.duration_ns.map_or(0, |ns| ns / 1000));
    let place = format!("{} in {}", first(user_stack), first(kernel_stack));
    format!("[{at_us}+{took_us} us: {cause} ({detail}) {address:x?} at {place}]")
}

fn lines<'a>(found: impl IntoIterator<Item = &'a Violation>) -> String {
    found.into_iter().map(line).collect::<Vec<_>>().join(" ")
}

/// Fails where there is none, or one that is not as it should be.
fn all_are(found: &[Violation], what: &str, right: impl Fn(&Violation) -> bool) -> Result<()> {
    ensure!(!found.is_empty(), "{what}: nothing was told");
    let wrong: Vec<&Violation> = found.iter().filter(|one| !right(one)).collect();
    ensure!(wrong.is_empty(), "{what}: {} of {} are wrong: {}", wrong.len(), found.len(), lines(wrong));
    Ok(())
}

/// The violations without the ticks around a task or a device's interrupt that had the worker's CPU. With two tasks there the kernel
/// needs its tick, tells itself so (`irq_work`), and takes one more to find that the second has gone; the serial driver's interrupt
/// starts a timer.
fn without_ticks(found: Vec<Violation>) -> Vec<Violation> {
    let near = TICK.as_nanos() as u64;
    let reasons: Vec<(u64, u64)> = found
        .iter()
        .filter(|one| one.cause.starts_with("task:") || one.cause == "irq:ttyS0")
        .map(|reason| (reason.start_ns.saturating_sub(near), reason.end_ns + near))
        .collect();
    let is_tick = |one: &Violation| {
        ["irq:local_timer", "irq:irq_work"].contains(&one.cause.as_str())
            && reasons.iter().any(|(from, to)| (from..to).contains(&&one.start_ns))
    };
    found.into_iter().filter(|one| !is_tick(one)).collect()
}
